"""Fetch, verify and unpack data sets.

    python -m txl.download wt103                    into data/wt103 (or $TXL_DATA/wt103); so enwik8, text8, lm1b
    python -m txl.download enwik8 --to some/folder
    python -m txl.download gpt2                     the tables of data.vocab=bpe: vocab.json, merges.txt
    python -m txl.download https://example.org/texts.zip --to data/mine --sha256 ...

An interrupted download goes on where it stopped when the command is given again. Nothing is unpacked before its
checksum holds, and nothing is written outside the folder.
"""

import argparse
import gzip
import hashlib
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO
from urllib.parse import unquote, urlsplit

from txl.files import hash_of_file, lock_file, sha256_of_file

USER_AGENT = "txl-download/0.1"  # some servers refuse a client without a name


ATTEMPTS = 5  # in a row that bring no new byte


PAUSE = 1.0  # seconds before the first of them; then twice as long each time


TIMEOUT = 60.0  # seconds without a byte


CHUNK = 1 << 20


class DownloadError(Exception):
    """What went wrong and what to do, in one line."""


@dataclass(frozen=True)
class Source:
    """A data set on the web."""

    url: str
    sha256: str | None  # of what is downloaded
    files: dict[str, str] = field(default_factory=dict)  # member of the archive -> its name here; empty: all of them
    file_sha256: dict[str, str] = field(default_factory=dict)  # of unpacked files, where known
    git_blob: str | None = None  # instead of sha256: git's name of the content
    beside: "Source | None" = None  # another part of the same data set

    @property
    def checksum(self) -> str | None:
        return self.sha256 or self.git_blob

    def checksum_of(self, path: Path) -> str:
        return git_blob_of(path) if self.git_blob else sha256_of_file(path)


LM1B = "1-billion-word-language-modeling-benchmark-r13output"


LM1B_FILES = [
    *(f"{LM1B}/training-monolingual.tokenized.shuffled/news.en-{i:05d}-of-00100" for i in range(1, 100)),
    *(f"{LM1B}/heldout-monolingual.tokenized.shuffled/news.en.heldout-{i:05d}-of-00050" for i in range(50)),
]


SOURCES = {
    "wt103": Source(
        "https://wikitext.smerity.com/wikitext-103-v1.zip",
        "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
        {f"wikitext-103/wiki.{split}.tokens": f"{split}.txt" for split in ("test", "valid", "train")},
    ),
    "enwik8": Source(
        "http://mattmahoney.net/dc/enwik8.zip",
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        {"enwik8": "enwik8"},
        {"enwik8": "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"},
    ),
    "text8": Source(
        "http://mattmahoney.net/dc/text8.zip",
        "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        {"text8": "text8"},
    ),
    "lm1b": Source(
        f"http://www.statmt.org/lm-benchmark/{LM1B}.tar.gz",
        "01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e",
        {name: name for name in LM1B_FILES},
        beside=Source(
            "https://raw.githubusercontent.com/rafaljozefowicz/lm/75a7fcd71a2abbc8e6034d6028eebdf1b0e2631f/"
            "1b_word_vocab.txt",
            None,
            {"1b_word_vocab.txt": "1b_word_vocab.txt"},
            git_blob="249020af8359cef6aff5ce083bad42bc7cce0715",
        ),
    ),
    "gpt2": Source(  # no text: the tables of data.vocab=bpe
        "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        {"encoder.json": "vocab.json"},
        beside=Source(
            "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",
            "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
            {"vocab.bpe": "merges.txt"},
        ),
    ),
}


def install(source: Source, folder: Path) -> list[Path]:
    """Download, verify and unpack into `folder`; the files that are there now. Raises DownloadError.

    Files appear whole or not at all. What is there already is not fetched again.
    """
    return _install(source, folder) + (_install(source.beside, folder) if source.beside else [])


def _install(source: Source, folder: Path) -> list[Path]:
    there = [folder / name for name in source.files.values()]
    if there and all(path.is_file() for path in there):
        return there
    work = folder / ".download"
    work.mkdir(parents=True, exist_ok=True)
    name = PurePosixPath(unquote(urlsplit(source.url).path)).name or "download"
    with _claimed(work):
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
def _claimed(work: Path) -> Iterator[None]:
    with open(work / "lock", "a") as lock:
        with suppress(OSError):  # a file system without locks
            if not lock_file(lock):
                raise DownloadError(f"another download into {work.parent} is at work; wait for it")
        yield


# --------------------------------------------------------------------------- fetching


def fetch(source: Source, path: Path) -> None:
    """Download to `path`, going on with `path`.part if it is there, and verify. Raises DownloadError."""
    if path.is_file() and source.checksum in (None, source.checksum_of(path)):
        return
    part = path.with_name(f"{path.name}.part")
    resumed = part.exists()
    _download(source.url, part)
    found = source.checksum_of(part)
    if source.checksum not in (None, found) and resumed:  # the first piece may be of another file
        print("checksum does not hold; from the beginning", file=sys.stderr)
        part.unlink()
        _download(source.url, part)
        found = source.checksum_of(part)
    if source.checksum is None:
        print(f"no checksum was given; this file's is sha256 {found}", file=sys.stderr)
    elif found != source.checksum:
        part.unlink()
        kind = "git blob" if source.git_blob else "sha256"
        raise DownloadError(f"{source.url} has {kind} {found}, expected {source.checksum}: not the file it should be")
    part.replace(path)


def _download(url: str, part: Path) -> None:
    """All of `url` into `part`, with as many connections as it takes while each brings something."""
    failures, attempts = 0, 1  # where nothing was ever received, waiting will not help
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
            again = f"; {after:,} bytes are kept, the same command goes on" if after else ""
            raise DownloadError(f"{url}: {reason}{again}")
        print(f"{reason}; going on at {after:,} bytes", file=sys.stderr)
        time.sleep(PAUSE * 2**failures)


def _receive(url: str, part: Path, offset: int) -> bool:
    """One connection, from byte `offset` on; whether the file is whole now."""
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and offset:  # nothing after these bytes: whole, or too long, which the checksum tells
            return True
        raise
    with response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if offset and not goes_on:
            offset = 0  # the server sends everything, from the beginning
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length is not None else None
        with open(part, "ab" if offset else "wb") as file:
            received = _copy(response, file, offset, total)
    return total is None or received == total


def _copy(response: HTTPResponse, file: IO[bytes], done: int, total: int | None) -> int:
    progress = Progress(done, total)
    while chunk := response.read(CHUNK):
        file.write(chunk)
        done += len(chunk)
        progress.show(done)
    progress.end(done)
    return done


class Progress:
    """A line on stderr that is rewritten on a terminal, and one line in ten percent elsewhere."""

    def __init__(self, done: int, total: int | None):
        self.first, self.total, self.began = done, total, time.monotonic()
        self.terminal, self.shown, self.tenth = sys.stderr.isatty(), 0.0, 10 * done // total if total else 0

    def show(self, done: int) -> None:
        now = time.monotonic()
        tenth = 10 * done // self.total if self.total else 0
        if self.terminal and now - self.shown > 0.1 or tenth > self.tenth:
            self.shown, self.tenth = now, tenth
            self._print(done)

    def end(self, done: int) -> None:
        if self.terminal:
            self._print(done)
            print(file=sys.stderr)

    def _print(self, done: int) -> None:
        speed = (done - self.first) / max(1e-3, time.monotonic() - self.began) / 1e6
        of = f" of {self.total / 1e6:.1f}" if self.total else ""
        line = f"{done / 1e6:.1f}{of} MB, {speed:.1f} MB/s"
        begin, end = ("\r", "") if self.terminal else ("", "\n")
        print(f"{begin}{line:<40}", end=end, file=sys.stderr, flush=True)


def git_blob_of(path: Path) -> str:
    """What git calls a file of this content."""
    return hash_of_file(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size))


# --------------------------------------------------------------------------- unpacking


def unpack(archive: Path, folder: Path, files: dict[str, str]) -> list[str]:
    """Unpack members into `folder` under the names that `files` gives them (all under their own where it is empty).

    Returns the names. What is no archive is one file. Raises DownloadError, before it writes anything, for a member
    whose path leads out of the folder, and for a missing one. Links and devices are never unpacked.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                members = {info.filename: info for info in opened.infolist() if _is_plain(info)}
                return _write_members(members, opened.open, folder, files, archive.name)
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened:
                members = {str(PurePosixPath(info.name)): info for info in opened if info.isfile()}
                names = _write_members(members, opened.extractfile, folder, files, archive.name)
                while opened.fileobj.read(CHUNK):  # gzip's own checksum stands at the end
                    pass
                return names
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, RuntimeError) as error:
        raise DownloadError(f"{archive.name} cannot be unpacked: {error}") from None
    name = files.get(archive.name, archive.name)
    shutil.copyfile(archive, folder / name)
    return [name]


def _is_plain(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16)
    return not info.is_dir() and kind in (0, stat.S_IFREG)


def _write_members(members: dict, open_member, folder: Path, files: dict[str, str], archive: str) -> list[str]:
    for name in members:
        path = PureWindowsPath(name)  # knows "/" as well as "\\" and "C:"
        if path.anchor or ".." in path.parts or not path.parts:
            raise DownloadError(f"{archive} has a member that leads out of the folder ({name!r}); nothing was unpacked")
    missing = files.keys() - members.keys()
    if missing:
        raise DownloadError(f"{archive} has no {', '.join(sorted(missing))}; nothing was unpacked")
    names = files or {name: str(PurePosixPath(name)) for name in members}
    for member in (member for member in members if member in names):  # in their order there: a tarball has no way back
        name = names[member]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open_member(members[member]) as source, open(folder / name, "wb") as target:
            shutil.copyfileobj(source, target, CHUNK)
    return list(names.values())


# --------------------------------------------------------------------------- command


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m txl.download", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help=f"{', '.join(SOURCES)}, or an address (http, https)")
    parser.add_argument("--to", type=Path, help="folder; default: $TXL_DATA/NAME or data/NAME")
    parser.add_argument("--sha256", help="of the file at an address")
    options = parser.parse_args(arguments)
    if options.name not in SOURCES and urlsplit(options.name).scheme not in ("http", "https"):
        return _complain(f"{options.name} is neither one of {', '.join(SOURCES)} nor an address (http, https)")
    if options.name in SOURCES and options.sha256:
        return _complain(f"--sha256 is for addresses; the checksum of {options.name} is known")
    if options.name not in SOURCES and options.to is None:
        return _complain(f"where to? give --to FOLDER with {options.name}")
    source = SOURCES.get(options.name) or Source(options.name, options.sha256 and options.sha256.lower())
    folder = options.to or Path(os.environ.get("TXL_DATA", "data")) / options.name
    try:
        for path in install(source, folder):
            print(f"{path}  {path.stat().st_size:,} bytes")
    except DownloadError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{folder} cannot be written: {error}")
    except KeyboardInterrupt:
        return _complain("interrupted; what was received is kept, the same command goes on")
    return 0


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
