"""Unpack zip archives and tarballs into a folder: nothing is written outside of it, and nothing endless."""

import errno
import os
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TypeVar

from txl.data.download_sources import CHUNK, DownloadError
from txl.errors import quoted

MOST_EXPANSION = 200  # times an archive's size that its members may have together; texts have about 5
MOST_PADDING = 1 << 20  # zeros at the end of a gzip file; tapes need some
ALWAYS_ALLOWED = 100_000_000  # bytes that any archive may unpack to

Info = TypeVar("Info", zipfile.ZipInfo, tarfile.TarInfo)


def unpack(archive: Path, folder: Path, files: dict[str, str], name: str) -> list[str]:
    """Unpack members of an archive. Links and devices are never unpacked.

    Args:
        archive: The archive. A file that is no archive counts as an archive with one member, whatever it is called.
        folder: An existing folder.
        files: {member: its name in the folder}; empty: all members, as they are called.
        name: What the archive is called, for messages; and a file that is no archive, unless `files` names it.

    Returns:
        The names in the folder.

    Raises:
        DownloadError: Before anything is written, if a name cannot be used or leads out of the folder, if a member is
            missing, or if the members are too large.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                infos = _within_limit(opened.infolist(), archive, name)
                zipped = {info.filename: info for info in infos if _is_regular_file(info)}
                return _write_members(zipped, opened.open, folder, files, name)
        _refuse_long_padding(archive, name)
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                entries = _within_limit(tar, archive, name)
                members = {str(PurePosixPath(info.name)): info for info in entries if info.isfile()}
                names = _write_members(members, lambda info: _open_member(tar, info), folder, files, name)
                while tar.fileobj is not None and tar.fileobj.read(CHUNK):  # gzip's own checksum is at the end
                    pass
                return names
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        OSError,
        EOFError,
        zlib.error,
        RuntimeError,
        NotImplementedError,
        ValueError,
    ) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EIO):  # gzip's error has no number
            raise  # about the disk or the folder, not about the archive
        raise DownloadError(f"{name} cannot be unpacked: {quoted(str(error), 120)}") from None
    _check_member_name(name, "the address")
    if len(files) > 1:
        raise DownloadError(f"{name} is no archive; nothing was unpacked")
    here = next(iter(files.values()), name)
    shutil.copyfile(archive, folder / here)
    return [here]


def _refuse_long_padding(archive: Path, name: str) -> None:
    """Raises DownloadError for a gzip file that ends with many zeros: Python skips them one by one, for minutes."""
    with open(archive, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
        if is_gzip and archive.stat().st_size > MOST_PADDING:
            file.seek(-MOST_PADDING, os.SEEK_END)
            if not any(file.read()):
                raise DownloadError(f"{name} cannot be unpacked: it ends with more than {MOST_PADDING:,} zeros")


def _check_member_name(name: str, archive: str) -> None:
    """Raises DownloadError for a name that leads out of the folder, or that a terminal or a file system may misread."""
    path = PureWindowsPath(name)  # knows "/" as well as "\\" and "C:"
    if path.anchor or ".." in path.parts or not path.parts:
        raise DownloadError(
            f"{archive} has a member that leads out of the folder ({quoted(name)}); nothing was unpacked"
        )
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise DownloadError(
            f"{archive} has a member whose name has a control character ({quoted(name)}); nothing was unpacked"
        )


def _within_limit(members: Iterable[Info], archive: Path, name: str) -> Iterator[Info]:
    """The members, until they would unpack to too much."""
    most, total = max(ALWAYS_ALLOWED, MOST_EXPANSION * archive.stat().st_size), 0
    for info in members:
        total += info.file_size if isinstance(info, zipfile.ZipInfo) else info.size
        if total > most:
            raise DownloadError(f"{name} would unpack to more than {most:,} bytes: it is no text; nothing was unpacked")
        yield info


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
        _check_member_name(name, archive)
    missing = files.keys() - members.keys()
    if missing:
        raise DownloadError(f"{archive} has no {', '.join(sorted(missing)[:3])}; nothing was unpacked")
    names = files or {name: str(PurePosixPath(name)) for name in members}
    # In the order of the archive: a tarball cannot be read backwards.
    for member in (member for member in members if member in names):
        name = names[member]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open_member(members[member]) as source, open(folder / name, "wb") as target:
            shutil.copyfileobj(source, target, CHUNK)
    return list(names.values())
