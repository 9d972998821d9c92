"""Download, verify and unpack data sets.

  txl download wt103                   to data/wt103 (or $TXL_DATA/wt103)
  txl download tinyshakespeare         for experiment=tinyshakespeare
  txl download enwik8 --to some/folder
  txl download gpt2                    vocab.json, merges.txt for data.vocab=bpe
  txl download https://example.org/texts.zip --to data/mine --sha256 ...

The same command continues an interrupted download. Nothing is unpacked before
its checksum is verified, and nothing is written outside the folder. A file
whose checksum nobody has published is bound to its first download:
.download.json in the folder notes address and sha256, and later downloads must
have the same sha256.
"""

import argparse
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from txl.data.download_sources import SOURCES, DownloadError, Source, digest_of_file, public_address
from txl.data.fetch_file import fetch
from txl.data.unpack_archive import unpack
from txl.errors import error_line, shortened
from txl.files import lock_file, read_json, sha256_of_file, sha256_of_json, write_json
from txl.system.command_parser import CommandParser

WORK = ".download"  # in the folder, until everything is installed
RECORD = ".download.json"  # in the folder: the first download of what has no published checksum


def install(source: Source, folder: Path) -> list[Path]:
    """Download, verify and unpack into `folder`. Returns the files of the data set. Raises DownloadError.

    A file appears complete or not at all. Files that exist are not downloaded again.
    """
    return [path for part in (source, *source.beside) for path in _install(part, folder)]


def _install(source: Source, folder: Path) -> list[Path]:
    there = [folder / name for name in source.names]
    if there and all(path.is_file() for path in there):
        _check_files(source, folder)
        return there
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    with _lock_folder(work):
        received, unpacked = work / "received", work / "unpacked"
        received.mkdir(exist_ok=True)
        # The name depends on the files, so that parts of two downloads into one folder do not mix.
        archive = received / sha256_of_json(source.urls)[:16]
        address = fetch(source, archive)
        note = _note_of(source, address, archive, folder)
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        names = unpack(archive, unpacked, source.files, _name_of(address))
        if source.cut:
            names = _cut(unpacked, names, source.cut)
        _check_files(source, unpacked)
        for name in names:
            if PurePosixPath(name).parts[0] in (WORK, RECORD):
                raise DownloadError(f"{public_address(address)} has a member called {name}, which is reserved")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(unpacked / name, folder / name)
        if note:
            write_json(folder / RECORD, note, indent=1)
        shutil.rmtree(work)
    return [folder / name for name in names]


def _name_of(address: str) -> str:
    """What an address calls its file; `unpack` checks it."""
    return PurePosixPath(unquote(urlsplit(address).path)).name or "download"


def _check_files(source: Source, folder: Path) -> None:
    """Raises DownloadError if a file is not the published one."""
    for name, expected in source.file_checksums.items():
        if (found := digest_of_file(folder / name, expected)) != expected:
            address = public_address(source.urls[0])
            raise DownloadError(
                f"remove {folder / name} to get it again: {name} of {address} has checksum {found[:16]}…, "
                f"expected {expected[:16]}…"
            )


def _cut(folder: Path, names: list[str], sizes: dict[str, int]) -> list[str]:
    """Cut files, one after the other, into others of these sizes (small ones: all are in memory)."""
    text = b"".join((folder / name).read_bytes() for name in names)
    for name in names:
        (folder / name).unlink()
    for name, size in sizes.items():
        (folder / name).write_bytes(text[:size])
        text = text[size:]
    return list(sizes)


def _note_of(source: Source, address: str, archive: Path, folder: Path) -> dict[str, dict[str, str]]:
    """The new content of RECORD, for a file without a published checksum; {}: it has one.

    Raises DownloadError if the file is not that of the first download into the folder.
    """
    if source.checksum is not None:
        return {}
    before = read_json(folder / RECORD)
    notes: dict[str, dict[str, str]] = before if isinstance(before, dict) else {}
    key, found = sha256_of_json(source.urls[0]), sha256_of_file(archive)  # the address may hold a key
    first = notes.get(key)
    if isinstance(first, dict) and first.get("sha256") != found:
        archive.unlink()
        raise DownloadError(
            f"{public_address(address)} has sha256 {found}, its first download ({first.get('time')}) had "
            f"{first.get('sha256')}; remove {folder / RECORD} to accept the new file"
        )
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return {key: {"address": public_address(address), "sha256": found, "time": now}} | notes


@contextmanager
def _lock_folder(work: Path) -> Iterator[None]:
    with open(work / "lock", "a") as lock:
        with suppress(OSError):  # a file system without locks
            if not lock_file(lock):
                raise DownloadError(f"another download into {work.parent} is running; wait for it")
        yield


# --------------------------------------------------------------------------- command


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = CommandParser(
        prog="txl download", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help=f"{', '.join(SOURCES)}, or an address (http, https)")
    parser.add_argument("--to", type=Path, help="folder; default: $TXL_DATA/NAME or data/NAME")
    parser.add_argument("--sha256", help="of the file at an address")
    options = parser.parse_args(arguments)
    if options.name not in SOURCES and urlsplit(options.name).scheme not in ("http", "https"):
        return _print_error(
            f"{shortened(public_address(options.name))} is neither one of {', '.join(SOURCES)} nor an address "
            "(http, https)"
        )
    if options.name in SOURCES and options.sha256:
        return _print_error(f"--sha256 is for addresses; the checksum of {options.name} is known")
    if options.sha256 and not re.fullmatch("[0-9a-fA-F]{64}", options.sha256):
        return _print_error(f"--sha256 {shortened(options.sha256)} must be 64 hex digits")
    if options.name not in SOURCES and options.to is None:
        return _print_error(f"give --to FOLDER with {public_address(options.name)}: the folder to write to")
    source = SOURCES.get(options.name) or Source((options.name,), options.sha256 and options.sha256.lower())
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
    print(error_line(message), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
