"""Token ids that exist already as the source of a corpus: .npy arrays, or raw integers with data.dtype.

The files are memory-mapped where they are and never copied. Every id is checked once; the corpus folder remembers it.
"""

import hashlib
import itertools
import logging
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from txl.config.data import SPLITS, DataConfig
from txl.data.block_checksums import BlockChecksums
from txl.data.corpus_folder import SplitEntry, write_corpus_folder
from txl.data.find_files import check_file, file_stamps
from txl.data.given_vocabulary import GivenVocabulary
from txl.data.token_files import token_dtype
from txl.data.token_source import TokenSource
from txl.data.vocabulary import Vocabulary
from txl.errors import ConfigError
from txl.system.hang_watch import note_progress

log = logging.getLogger(__name__)

FORMAT = 1  # version of the corpus folder; with another number ids are checked again
NPY_MAGIC = b"\x93NUMPY"
SUFFIXES = (".npy", ".bin")  # looked for in a folder
BLOCK = 1 << 22  # ids that are checked at a time


@dataclass(frozen=True)
class IdArray:
    """A row of ids in a file."""

    option: str  # "data.train=a.npy", for messages
    path: Path  # absolute
    dtype: np.dtype
    offset: int  # of the first id, in bytes
    tokens: int
    first: int = 0  # position of the first id in the file

    def part(self, start: int, stop: int) -> "IdArray":
        """The ids start <= i < stop."""
        offset = self.offset + start * self.dtype.itemsize
        return IdArray(self.option, self.path, self.dtype, offset, stop - start, self.first + start)


class IdsSource(TokenSource):
    """data.source=ids; see `TokenSource`."""

    def __init__(self, data: DataConfig, vocabulary: Vocabulary | None = None):
        self.data = data
        self.id_files = find_id_files(data)
        self.given = GivenVocabulary(data, vocabulary)
        if data.vocab.facts.from_text and not self.given.files and self.given.replacement is None:
            raise ConfigError(
                f"data.vocab={data.vocab.name} with data.source=ids needs the file of its words: give data.vocab_file"
            )
        self._stamps = self._file_stamps()

    def _file_stamps(self) -> list[dict[str, str | int]]:
        return file_stamps({option: [path] for option, path in self.id_files.items()})

    @property
    def files(self) -> list[Path]:
        """The files of the ids and of the vocabulary."""
        return [*self.id_files.values(), *self.given.files.values()]

    def key(self) -> dict[str, Any]:
        """The stamps of all files, the vocabulary, and how the files are read and cut."""
        data = self.data
        key = {"format": FORMAT, "source": data.source.name, "sources": self._stamps, "vocab_size": data.vocab_size}
        key |= {"dtype": data.dtype and data.dtype.name, "split": data.split if "file" in self.id_files else None}
        return key | self.given.key()

    def build(self, folder: Path) -> None:
        """Check every id, and write where the ids of each split are."""
        data, began = self.data, time.perf_counter()
        arrays = {option: open_id_file(option, path, data) for option, path in self.id_files.items()}
        splits = cut_ids(arrays["file"], data) if "file" in arrays else arrays
        vocabulary, given_key = self.given.read(), self.given.key()
        assert vocabulary is not None, "__init__ refuses a vocabulary that is made of a text"
        log.info("checking data=%s (%s)", data.name, ", ".join(map(str, self.id_files.values())))
        entries = {split: check_ids(array, vocabulary) for split, array in splits.items()}
        if (self._file_stamps(), self.given.key()) != (self._stamps, given_key):
            raise ConfigError(f"data={data.name}: its files changed while they were read; start again")
        write_corpus_folder(folder, vocabulary, entries, self.key())
        log.info("checked data=%s in %.1f s", data.name, time.perf_counter() - began)


# --------------------------------------------------------------------------- files


def find_id_files(data: DataConfig) -> dict[str, Path]:
    """{"train": ..., "valid": ..., "test": ...} (test may be missing), or {"file": ...}, which is cut into splits.

    A split that no option names is `<split>.npy` or `<split>.bin` in the folder data.path. Raises ConfigError if a file
    is missing, empty, or not readable.
    """
    folder = Path(data.path or "").expanduser()
    named = {"file": data.file} if data.file is not None else {split: getattr(data, split) for split in SPLITS}
    files = {}
    for option, name in named.items():
        if name is not None:
            files[option] = folder / Path(name).expanduser()
            if not files[option].exists() and any(sign in name for sign in "*?["):
                raise ConfigError(f"data.{option}={name} is a pattern; the ids of a split must be in one file")
        else:
            found = [path for suffix in SUFFIXES if (path := folder / f"{option}{suffix}").is_file()]
            if found or option != "test":
                files[option] = found[0] if found else folder / f"{option}.npy"
        if option in files:
            check_file(files[option], f"data.{option}", data)
    return files


def open_id_file(option: str, path: Path, data: DataConfig) -> IdArray:
    """Read the header of a file of ids, or take data.dtype if it has none.

    Args:
        option: The option that names the file, without `data.`.
        path: The file.
        data: Options of the data set.

    Raises:
        ConfigError: If the file does not hold one row of integers.
    """
    name = f"data.{option}={path}"
    with open(path, "rb") as file:
        is_npy = file.read(len(NPY_MAGIC)) == NPY_MAGIC
    if is_npy:
        return _open_npy(name, path)
    if path.suffix in (".npy", ".npz"):
        raise ConfigError(f"{name} is no .npy file; write it with numpy.save")
    if data.dtype is None:
        raise ConfigError(
            f"data.dtype=null is needed for {name}, which has no header: data.dtype=uint16, uint32 or int32, as it was "
            "written"
        )
    dtype, size = np.dtype(data.dtype.name), path.stat().st_size
    if size % dtype.itemsize:
        raise ConfigError(
            f"{name} has {size:,} bytes, no multiple of the {dtype.itemsize} bytes of data.dtype={dtype}: it is "
            "truncated, or was written with another type"
        )
    return IdArray(name, path.absolute(), dtype, 0, size // dtype.itemsize)


def _open_npy(name: str, path: Path) -> IdArray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name} cannot be opened ({reason}): it is truncated or damaged; write it again") from None
    if array.dtype.kind not in "iu":
        raise ConfigError(f"{name} holds {array.dtype}, no token ids; write integers: ids.astype('uint16')")
    if array.ndim != 1:
        raise ConfigError(f"{name} has the shape {array.shape}; the ids must be one row: ids.reshape(-1)")
    if len(array) == 0:
        raise ConfigError(f"{name} has no ids; give another file")
    return IdArray(name, path.absolute(), array.dtype, array.offset, len(array))


def cut_ids(array: IdArray, data: DataConfig) -> dict[str, IdArray]:
    """Cut one file into train, valid and test at the fractions data.split of its ids; two fractions: no test split."""
    shares = itertools.accumulate(Fraction(str(share)) for share in data.split)  # 0.9 is exactly 9/10
    stops = [int(array.tokens * share) for share in shares]
    stops[-1] = array.tokens
    parts = {}
    for split, start, stop in zip(SPLITS, [0, *stops[:-1]], stops, strict=False):
        if start >= stop:
            written = str(data.split).replace(" ", "")
            raise ConfigError(
                f"data.split={written} leaves no ids for {split}: {array.option} has {array.tokens:,}; give more "
                "ids, or a larger share"
            )
        parts[split] = array.part(start, stop)
    return parts


# --------------------------------------------------------------------------- ids


def check_ids(array: IdArray, vocabulary: Vocabulary) -> SplitEntry:
    """The entry of meta.json for a split, after every id was checked.

    The digest is that of the same ids encoded from text, whatever the type of the integers in the file. Raises
    ConfigError, with the position in the file, for the first id outside the vocabulary.
    """
    ids = np.memmap(array.path, array.dtype, "r", array.offset, shape=(array.tokens,))
    vocab_size, unk_id = len(vocabulary), vocabulary.unk_id
    narrow, digest, unknown = token_dtype(vocab_size), hashlib.sha256(), 0
    checksums = BlockChecksums()
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        if block.min() < 0 or block.max() >= vocab_size:
            position = int(np.argmax((block < 0) | (block >= vocab_size)))
            place = f"the id {block[position]} at position {array.first + start + position:,} (from 0)"
            raise ConfigError(
                f"{array.option}: {place} is outside the vocabulary of {vocab_size:,} ids; correct data.vocab_size or "
                "data.vocab_file, or the ids"
            )
        digest.update(block.astype(narrow).tobytes())
        checksums.update(block.tobytes())
        note_progress()
        unknown += 0 if unk_id is None else int(np.count_nonzero(block == unk_id))
    entry: SplitEntry = {"tokens": array.tokens, "sha256": digest.hexdigest(), "unknown": unknown}
    entry |= {"file": str(array.path), "dtype": array.dtype.str, "offset": array.offset}
    return entry | {"crc32": checksums.values}
