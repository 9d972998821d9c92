"""Download, verify and unpack data sets.

    txl download wt103                    to data/wt103 (or $TXL_DATA/wt103); also enwik8, text8, lm1b
    txl download enwik8 --to some/folder
    txl download gpt2                     the tables of data.vocab=bpe: vocab.json, merges.txt
    txl download https://example.org/texts.zip --to data/mine --sha256 ...

The same command continues an interrupted download. Nothing is unpacked before its checksum is verified, and nothing is
written outside the folder.
"""

import argparse
import gzip
import os
import shutil
import stat
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TypeVar
from urllib.parse import unquote, urlsplit

from txl.data.download_sources import CHUNK, SOURCES, DownloadError, Source
from txl.files import lock_file, sha256_of_file

USER_AGENT = "txl-download/0.1"  # some servers refuse a client without a name
ATTEMPTS = 5  # connections in a row without a new byte before the download is given up
PAUSE = 1.0  # seconds before the first retry; doubled for each further one
TIMEOUT = 60.0  # seconds without a byte


Info = TypeVar("Info", zipfile.ZipInfo, tarfile.TarInfo)


def install(source: Source, folder: Path) -> list[Path]:
    """Download, verify and unpack into `folder`. Returns the files of the data set. Raises DownloadError.

    A file appears complete or not at all. Files that exist are not downloaded again.
    """
    return _install(source, folder) + (_install(source.beside, folder) if source.beside else [])


def _install(source: Source, folder: Path) -> list[Path]:
    there = [folder / name for name in source.files.values()]
    if there and all(path.is_file() for path in there):
        return there
    work = folder / ".download"
    work.mkdir(parents=True, exist_ok=True)
    name = PurePosixPath(unquote(urlsplit(source.url).path)).name or "download"
    with _lock_folder(work):
        archive = work / name
        fetch(source, archive)
        unpacked = work / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        names = unpack(archive, unpacked, source.files)
        for name, expected in source.file_sha256.items():
            found = sha256_of_file(unpacked / name)
            if found != expected:
                raise DownloadError(f"{name} of {source.url} has sha256 {found}, expected {expected}")
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(unpacked / name, folder / name)
        shutil.rmtree(work)
    return [folder / name for name in names]


@contextmanager
def _lock_folder(work: Path) -> Iterator[None]:
    with open(work / "lock", "a") as lock:
        with suppress(OSError):  # a file system without locks
            if not lock_file(lock):
                raise DownloadError(f"another download into {work.parent} is running; wait for it")
        yield


# --------------------------------------------------------------------------- downloading


def fetch(source: Source, path: Path) -> None:
    """Download to `path`, or continue with `path`.part if it exists, and verify. Raises DownloadError."""
    if path.is_file() and source.checksum in (None, source.checksum_of(path)):
        return
    part = path.with_name(f"{path.name}.part")
    resumed = part.exists()
    _download(source.url, part)
    found = source.checksum_of(part)
    if source.checksum not in (None, found) and resumed:  # the first part may belong to another file
        print("the checksum does not match; downloading again from the beginning", file=sys.stderr)
        part.unlink()
        _download(source.url, part)
        found = source.checksum_of(part)
    if source.checksum is None:
        print(f"no checksum was given; the sha256 of this file is {found}", file=sys.stderr)
    elif found != source.checksum:
        part.unlink()
        kind = "git blob" if source.git_blob else "sha256"
        raise DownloadError(f"{source.url} has {kind} {found}, expected {source.checksum}: it is another file")
    part.replace(path)


def _download(url: str, part: Path) -> None:
    """All of `url` into `part`, with a new connection whenever one ends early after new bytes."""
    failures, attempts = 0, 1  # no retry before the first byte: waiting would not help
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _receive(url, part, before):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise DownloadError(f"{url}: the server answers {error.code} {error.reason}") from None
            reason = f"the server answers {error.code} {error.reason}"
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise DownloadError(f"{part.parent} cannot be written: {error.strerror}") from None
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        after = part.stat().st_size if part.exists() else 0
        failures, attempts = (0, ATTEMPTS) if after > before else (failures + 1, attempts)
        if failures == attempts:
            again = f"; {after:,} bytes are kept, the same command continues" if after else ""
            raise DownloadError(f"{url}: {reason}{again}")
        print(f"{reason}; continuing at {after:,} bytes", file=sys.stderr)
        time.sleep(PAUSE * 2**failures)


def _receive(url: str, part: Path, offset: int) -> bool:
    """Receive from byte `offset` on with one connection. Returns whether the file is complete."""
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and offset:  # no bytes after these: complete, or too long, which the checksum finds
            return True
        raise
    with response:
        continued = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if offset and not continued:
            offset = 0  # the server sends the whole file
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length is not None else None
        with open(part, "ab" if offset else "wb") as file:
            received = _copy(response, file, offset, total)
    return total is None or received == total


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


# --------------------------------------------------------------------------- unpacking


def unpack(archive: Path, folder: Path, files: dict[str, str]) -> list[str]:
    """Unpack the members that `files` names, {member: name in the folder}; all members, as they are called, if empty.

    Returns the names in the folder. A file that is no archive counts as its only member. Raises DownloadError, before
    anything is written, if a path leads out of the folder or a member is missing. Links and devices are never unpacked.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                zipped = {info.filename: info for info in opened.infolist() if _is_regular_file(info)}
                return _write_members(zipped, opened.open, folder, files, archive.name)
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                members = {str(PurePosixPath(info.name)): info for info in tar if info.isfile()}
                names = _write_members(members, lambda info: _open_member(tar, info), folder, files, archive.name)
                while tar.fileobj is not None and tar.fileobj.read(CHUNK):  # gzip's own checksum is at the end
                    pass
                return names
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, RuntimeError) as error:
        raise DownloadError(f"{archive.name} cannot be unpacked: {error}") from None
    name = files.get(archive.name, archive.name)
    shutil.copyfile(archive, folder / name)
    return [name]


def _open_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    opened = tar.extractfile(info)
    assert opened is not None, f"{info.name} is a regular file"
    return opened


def _is_regular_file(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16)
    return not info.is_dir() and kind in (0, stat.S_IFREG)


def _write_members(
    members: dict[str, Info],
    open_member: Callable[[Info], IO[bytes]],
    folder: Path,
    files: dict[str, str],
    archive: str,
) -> list[str]:
    """Write the members of an archive, which `open_member` opens; for the other parameters see `unpack`."""
    for name in members:
        path = PureWindowsPath(name)  # knows "/" as well as "\\" and "C:"
        if path.anchor or ".." in path.parts or not path.parts:
            raise DownloadError(f"{archive} has a member that leads out of the folder ({name!r}); nothing was unpacked")
    missing = files.keys() - members.keys()
    if missing:
        raise DownloadError(f"{archive} has no {', '.join(sorted(missing))}; nothing was unpacked")
    names = files or {name: str(PurePosixPath(name)) for name in members}
    # In the order of the archive: a tarball cannot be read backwards.
    for member in (member for member in members if member in names):
        name = names[member]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open_member(members[member]) as source, open(folder / name, "wb") as target:
            shutil.copyfileobj(source, target, CHUNK)
    return list(names.values())


# --------------------------------------------------------------------------- command


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="txl download", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help=f"{', '.join(SOURCES)}, or an address (http, https)")
    parser.add_argument("--to", type=Path, help="folder; default: $TXL_DATA/NAME or data/NAME")
    parser.add_argument("--sha256", help="of the file at an address")
    options = parser.parse_args(arguments)
    if options.name not in SOURCES and urlsplit(options.name).scheme not in ("http", "https"):
        return _print_error(f"{options.name} is neither one of {', '.join(SOURCES)} nor an address (http, https)")
    if options.name in SOURCES and options.sha256:
        return _print_error(f"--sha256 is for addresses; the checksum of {options.name} is known")
    if options.name not in SOURCES and options.to is None:
        return _print_error(f"give --to FOLDER with {options.name}: the folder to write to")
    source = SOURCES.get(options.name) or Source(options.name, options.sha256 and options.sha256.lower())
    folder = options.to or Path(os.environ.get("TXL_DATA", "data")) / options.name
    try:
        for path in install(source, folder):
            print(f"{path}  {path.stat().st_size:,} bytes")
    except DownloadError as error:
        return _print_error(str(error))
    except OSError as error:
        return _print_error(f"{folder} cannot be written: {error}")
    except KeyboardInterrupt:
        return _print_error("interrupted; the received bytes are kept, the same command continues")
    return 0


def _print_error(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
