"""Read the files that torch.save writes, and plain pickles, without running code from them.

Since torch 1.6 such a file is a zip archive: NAME/data.pkl is a pickle, NAME/data/<key> are the elements of a storage.
torch's own reader ignores the archive's checksums, and hands archives with programs to a reader that runs them. This
one does neither. Older files are several pickles, followed by the storages.
"""

import mmap
import struct
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from txl.checkpoint.pickle_functions import DamagedFileError, UnsafeFileError, shown_text
from txl.checkpoint.safe_unpickle import load_pickle
from txl.errors import ConfigError

ZIP_START = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file older than torch 1.6
MAX_SHARING = 16  # size of all tensors / size of the file: tensors may share storages, as tied weights do
BLOCK = 1 << 22  # bytes read at a time


def load_torch_file(path: Path, device: str | torch.device = "cpu", mapped: bool = False) -> Any:
    """The object that torch.save or pickle wrote to a file.

    Args:
        path: the file; it may come from anybody.
        device: where the tensors of a zip archive are put; those of older files are on the CPU.
        mapped: map the file instead of reading it, so that only the parts in use are read. Checksums are not checked
            then. This works for zip archives, on the CPU.

    Raises:
        ConfigError: the file cannot be read, is damaged, or asks for something that no checkpoint needs.
    """
    if path.exists() and not path.is_file():  # opening a pipe could wait without end
        raise ConfigError(f"{path} is no file; name a file that torch.save wrote")
    try:
        with open(path, "rb") as file:
            if file.read(len(ZIP_START)) == ZIP_START:
                return _ZipReader(file, torch.device(device), mapped).load()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:  # never reads more than there is
                return _load_pickles(cast(IO[bytes], content), len(content))
    except UnsafeFileError as error:
        raise ConfigError(f"{path} is not safe to read: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        reason = shown_text(str(error) or type(error).__name__, 120)
        raise ConfigError(f"{path} is no checkpoint, or damaged: {reason}; use an intact copy") from None


# --------------------------------------------------------------------------- zip archives


class _ZipReader:
    """Reads one archive. Every part that is read is checked against its checksum (CRC-32) in the archive."""

    def __init__(self, file: IO[bytes], device: torch.device, mapped: bool):
        self._file, self._device, self._mapped = file, device, mapped
        self._size = file.seek(0, 2)
        self._archive = zipfile.ZipFile(file)
        self._parts = {info.filename: info for info in self._archive.infolist()}
        self._check_parts()
        pickles = [name for name in self._parts if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise DamagedFileError("it is a zip archive without a data.pkl")
        self._name = pickles[0].partition("/")[0]
        self._storages: dict[str, Tensor] = {}

    def load(self) -> Any:
        byte_order = f"{self._name}/byteorder"
        if byte_order in self._parts and self._archive.read(byte_order).decode() != sys.byteorder:
            raise DamagedFileError("its numbers have another byte order than this machine's")
        content = BytesIO(self._archive.read(f"{self._name}/data.pkl"))
        return load_pickle(content, self._find_storage, MAX_SHARING * self._size)

    def _check_parts(self) -> None:
        """No programs, and no part that is larger than the file says."""
        for name, info in self._parts.items():
            *folders, last = name.split("/")
            if last == "constants.pkl" or "code" in folders:
                raise UnsafeFileError(
                    "it is a TorchScript program, which runs code when it is loaded; nothing was run. "
                    "Weights alone are written by torch.save(model.state_dict(), FILE)"
                )
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise DamagedFileError("parts of it are compressed, which torch.save never does")
        if sum(info.file_size for info in self._parts.values()) > self._size:
            raise DamagedFileError(f"its parts are said to be larger than the whole file of {self._size:,} bytes")

    def _find_storage(self, dtype: torch.dtype, key: str, numel: int) -> Tensor:
        if key not in self._storages:
            info = self._parts.get(f"{self._name}/data/{key}")
            if info is None or info.file_size != numel * dtype.itemsize:
                raise DamagedFileError(f"the data of storage {shown_text(key)} is missing or has another size")
            read = self._map if self._mapped else self._read
            self._storages[key] = read(info, dtype, numel) if numel else torch.empty(0, dtype=dtype)
        storage = self._storages[key]
        if storage.dtype != dtype or len(storage) != numel:
            raise DamagedFileError(f"it describes storage {shown_text(key)} in two ways")
        return storage

    def _read(self, info: zipfile.ZipInfo, dtype: torch.dtype, numel: int) -> Tensor:
        storage = torch.empty(numel, dtype=dtype)
        with self._archive.open(info) as part:
            _fill(storage, part)
            if part.read(1):  # the end of a part is where its checksum is checked
                raise DamagedFileError("a storage has another size than its data")
        return storage.to(self._device)

    def _map(self, info: zipfile.ZipInfo, dtype: torch.dtype, numel: int) -> Tensor:
        self._file.seek(info.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", self._file.read(4))
        offset = info.header_offset + 30 + name_length + extra_length
        content = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        return torch.frombuffer(content, dtype=dtype, count=numel, offset=offset)


# --------------------------------------------------------------------------- older files


def _load_pickles(content: IO[bytes], size: int) -> Any:
    """A plain pickle, or a file older than torch 1.6: magic number, version, machine, object, keys, storages."""
    first = load_pickle(content)
    if type(first) is not int or first != LEGACY_MAGIC:
        return first
    _version, _machine = load_pickle(content), load_pickle(content)
    storages: dict[str, Tensor] = {}

    def find_storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        if key not in storages:
            if numel * dtype.itemsize + sum(one.nbytes for one in storages.values()) > size:
                raise DamagedFileError(f"its storages are said to be larger than the file of {size:,} bytes")
            storages[key] = torch.empty(numel, dtype=dtype)
        return storages[key]

    value = load_pickle(content, find_storage, MAX_SHARING * size)
    keys = [str(key) for key in load_pickle(content)]
    if sorted(keys) != sorted(storages):
        raise DamagedFileError("it lists other storages than it uses")
    for key in keys:
        (numel,) = struct.unpack("<q", content.read(8))
        if numel != len(storages[key]):
            raise DamagedFileError(f"the data of storage {shown_text(key)} has another size")
        _fill(storages[key], content)
    return value


def _fill(storage: Tensor, source: Any) -> None:
    """Read the bytes of a storage, [n], from a file."""
    target = storage.view(torch.uint8).numpy().data if len(storage) else memoryview(b"")
    position = 0
    while position < len(target):
        block = source.read(min(BLOCK, len(target) - position))
        if not block:
            raise DamagedFileError("it ends early")
        target[position : position + len(block)] = block
        position += len(block)
