"""Fetch one file from the web: interrupted downloads continue, and addresses of the same file are tried in turn.

Beside NAME.part, NAME.part.json says which address its bytes come from, and the server's ETag or date of them. Without
a known checksum a download continues only from the same address, and only if the server still has the same file.
"""

import base64
import hashlib
import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit, urlunsplit

from txl.data.download_sources import CHUNK, DownloadError, Source, public_address
from txl.errors import shortened
from txl.files import read_json, write_json

USER_AGENT = "txl-download/0.1"  # some servers refuse a client without a name
ATTEMPTS = 5  # connections in a row without a new byte before the download is given up
PAUSE = 1.0  # seconds before the first retry; doubled for each further one
TIMEOUT = 60.0  # seconds without a byte


def fetch(source: Source, path: Path) -> str:
    """Download to `path`, or continue with `path`.part if it exists, and verify.

    Returns the address that it came from; of a file that was there and is right, the first one. Raises DownloadError if
    no address has the file.
    """
    if path.is_file() and source.checksum is not None and source.checksum_of(path) == source.checksum:
        return source.urls[0]
    path.unlink(missing_ok=True)
    reasons = []
    for number, url in enumerate(source.urls, start=1):
        try:
            _fetch_from(url, source, path)
            return url
        except DownloadError as error:
            reasons.append(str(error))
            if number < len(source.urls):
                print(f"{error}; trying {public_address(source.urls[number])}", file=sys.stderr)
    others = f" (the other addresses failed, too: {len(reasons) - 1})" if len(reasons) > 1 else ""
    raise DownloadError(f"{shortened(reasons[0], 270)}{others}")


def _fetch_from(url: str, source: Source, path: Path) -> None:
    """Download from one address and verify."""
    part = _Part(path, url, source.checksum is not None)
    resumed = part.size > 0
    _download(url, part)
    found = source.checksum_of(part.path)
    if source.checksum not in (None, found) and resumed:  # the first part may belong to another file
        print("the checksum does not match; downloading again from the beginning", file=sys.stderr)
        part.remove()
        _download(url, part)
        found = source.checksum_of(part.path)
    if part.size == 0:
        part.remove()
        raise DownloadError(f"{public_address(url)} is an empty file")
    if source.checksum is None:
        print(f"no checksum was given; the sha256 of this file is {found}", file=sys.stderr)
    elif found != source.checksum:
        part.remove()
        raise DownloadError(
            f"{public_address(url)} has checksum {found}, expected {source.checksum}: it is another file"
        )
    part.path.replace(path)
    part.record.unlink(missing_ok=True)


def _part_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


class _Part:
    """What was received so far of a file, and from where.

    Args:
        path: The file that it will become.
        url: The address that is going to be asked.
        verified: Whether a checksum will tell if the bytes belong together, wherever they came from.
    """

    def __init__(self, path: Path, url: str, verified: bool):
        self.path = path.with_name(f"{path.name}.part")
        self.record = path.with_name(f"{path.name}.part.json")
        self._address = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
        self._verified = verified
        before = read_json(self.record)
        before = before if isinstance(before, dict) and before.get("address") == self._address else {}
        self.validator: str | None = before.get("validator")  # the server's name of this version of the file
        if not self.can_continue:
            self.remove()

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return _part_size(self.path)

    @property
    def can_continue(self) -> bool:
        """Whether a later download can go on where this one stopped."""
        return self._verified or self.validator is not None

    def accepts(self, validator: str | None) -> bool:
        """Whether bytes of a version of the file continue those that are there."""
        return self._verified or (validator is not None and validator == self.validator)

    def begin(self, validator: str | None) -> None:
        """Note from where bytes are received; None: the server gives no name for this version."""
        self.validator = validator
        write_json(self.record, {"address": self._address, "validator": validator})

    def remove(self) -> None:
        """Forget everything."""
        self.path.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)
        self.validator = None


def _download(url: str, part: _Part) -> None:
    """All of `url` into `part`, with a new connection whenever one ends early after new bytes."""
    shown = public_address(url)
    failures, attempts = 0, 1  # no retry before the first byte: waiting would not help
    while True:
        before = part.size
        try:
            if _receive(url, part, before):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = shortened(f"the server answers {error.code} {error.reason}")
            if error.code < 500:
                raise DownloadError(f"{shown}: {reason}") from None
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise OSError(error.errno, error.strerror, str(part.path.parent)) from None
            reason = shortened(str(getattr(error, "reason", error)) or type(error).__name__)
        after = part.size
        failures, attempts = (0, ATTEMPTS) if after > before else (failures + 1, attempts)
        if failures == attempts:
            again = f"; {after:,} bytes are kept, the same command continues" if after and part.can_continue else ""
            raise DownloadError(f"{shown}: {reason}{again}")
        print(f"{reason}; continuing at {after:,} bytes", file=sys.stderr)
        time.sleep(PAUSE * 2**failures)


def _request(url: str) -> urllib.request.Request:
    """A request for an address; a user and password in it become a header."""
    parts = urlsplit(url)
    user, _, place = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=place)))
    request.add_header("User-Agent", USER_AGENT)
    request.add_header("Accept-Encoding", "identity")
    if user:  # not sent on to the place that a redirection names
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _receive(url: str, part: _Part, offset: int) -> bool:
    """Receive from byte `offset` on with one connection. Returns whether the file is complete."""
    request = _request(url)
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        if part.validator is not None:  # otherwise the server sends the whole file
            request.add_header("If-Range", part.validator)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and offset:  # no bytes after these: complete, or too long, which the checksum finds
            return True
        raise
    with response:
        validator = _validator(response)
        continued = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if offset and not (continued and part.accepts(validator)):
            if continued:  # another file than before, from a server that ignores If-Range
                part.remove()
                return _receive(url, part, 0)
            offset = 0  # the server sends the whole file
        part.begin(validator)
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length is not None else None
        with open(part.path, "ab" if offset else "wb") as file:
            received = _copy(response, file, offset, total)
    return total is None or received == total


def _validator(response: HTTPResponse) -> str | None:
    """The strong ETag of a response, or its date; None if there is neither."""
    etag: str | None = response.headers.get("ETag")
    found = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    return found if found and found.isprintable() and found.isascii() else None


def _copy(response: HTTPResponse, file: IO[bytes], done: int, total: int | None) -> int:
    progress = DownloadProgress(done, total)
    while chunk := response.read(CHUNK):
        file.write(chunk)
        done += len(chunk)
        progress.show(done)
    progress.end(done)
    return done


class DownloadProgress:
    """A line on stderr: rewritten in place on a terminal, otherwise a new line for every ten percent."""

    def __init__(self, done: int, total: int | None):
        self.first, self.total, self.began = done, total, time.monotonic()
        self.terminal, self.shown, self.tenth = sys.stderr.isatty(), 0.0, 10 * done // total if total else 0

    def show(self, done: int) -> None:
        """Show how many bytes are there, if a new line is due."""
        now = time.monotonic()
        tenth = 10 * done // self.total if self.total else 0
        if self.terminal and now - self.shown > 0.1 or tenth > self.tenth:
            self.shown, self.tenth = now, tenth
            self._print(done)

    def end(self, done: int) -> None:
        """Complete the line of a terminal."""
        if self.terminal:
            self._print(done)
            print(file=sys.stderr)

    def _print(self, done: int) -> None:
        speed = (done - self.first) / max(1e-3, time.monotonic() - self.began) / 1e6
        of = f" of {self.total / 1e6:.1f}" if self.total else ""
        line = f"{done / 1e6:.1f}{of} MB, {speed:.1f} MB/s"
        begin, end = ("\r", "") if self.terminal else ("", "\n")
        print(f"{begin}{line:<40}", end=end, file=sys.stderr, flush=True)
