"""What a token is when only `data=text data.file=...` is given: the text decides.

The rule, on the first 2 MiB of the file: if they are not UTF-8, bytes. Otherwise the words of their last tenth are
looked up in those of the first nine tenths. If at most 5 % of them occur fewer than twice there, words: those that
occur at least twice, at most 100,000, and `<unk>` for all others. Otherwise characters. Who gives an option that only
one kind of vocabulary has, such as data.min_freq, has chosen words.
"""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from txl.files import unpacking_program

SAMPLE = 1 << 21  # bytes
MOST_RARE = 0.05  # share of the words of the last tenth of the sample
MIN_FREQ, MAX_SIZE = 2, 100_000  # of a vocabulary of words

# Options of words, and the value that says nothing about them.
OF_WORDS: dict[str, Any] = {"lower_case": False, "sentences": False, "eos": "<eos>", "unk": "<unk>"}
FILES = ("vocab_file", "merges_file", "tokenizer_file")
CHOSEN_TOGETHER = ("vocab", "min_freq", "max_size")


class Choice(NamedTuple):
    """The options that suit a text, and why."""

    vocab: str
    reason: str
    min_freq: int = 0
    max_size: int | None = None


WORDS = Choice("word", "")  # what holds without data.file

_reasons: dict[tuple[str | None, str | None], str] = {}  # of the choices of this process, by data.path and data.file


def of_text(option: str, *, _root_: DictConfig) -> Any:
    """${of_text:vocab}: the value of data.vocab, data.min_freq or data.max_size that suits data.file."""
    data = _root_.data
    given = [key for key in CHOSEN_TOGETHER if not data._get_node(key)._is_interpolation()]
    given += [key for key, value in OF_WORDS.items() if data[key] != value]
    given += [key for key in FILES if data[key] is not None]
    if data.file is None or given:
        return getattr(WORDS, option)
    path = Path(data.path or "").expanduser() / Path(data.file).expanduser()
    try:
        status = path.stat()
        choice = choose_vocab(path, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError):  # the file is missing or compressed, which is said when it is read
        return getattr(WORDS, option)
    _reasons[data.path, data.file] = choice.reason
    return getattr(choice, option)


def choice_reason(path: str | None, file: str | None) -> str | None:
    """Why the vocabulary of this data.path and data.file was chosen in this process; None: it was not."""
    return _reasons.get((path, file))


@cache
def choose_vocab(path: Path, size: int, mtime_ns: int) -> Choice:
    """The choice for a text, by the rule of this module. `size` and `mtime_ns` tell when the file has changed.

    Raises OSError if the file cannot be read, ValueError if it is no file or is compressed.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    with open(path, "rb") as file:
        sample = file.read(SAMPLE)
    if unpacking_program(sample) is not None:
        raise ValueError(f"{path} is compressed")
    try:
        words = _whole_characters(sample).decode().split()
    except UnicodeDecodeError:
        return Choice("byte", "the text is not UTF-8")
    last = len(words) - len(words) // 10
    counts, later = Counter(words[:last]), words[last:]
    rare = sum(counts[word] < MIN_FREQ for word in later) / len(later) if later else 1.0
    where = f"of the words at the end of {'the text' if size <= SAMPLE else f'its first {SAMPLE >> 20} MiB'}"
    reason = f"{100 * rare:.1f} % {where} would be unknown"
    if rare > MOST_RARE:
        return Choice("char", reason)
    return Choice("word", reason, MIN_FREQ, MAX_SIZE)


def _whole_characters(sample: bytes) -> bytes:
    """The bytes without those of a character that the end of the sample cuts in two."""
    if len(sample) < SAMPLE:
        return sample
    end = len(sample)
    while end and sample[end - 1] & 0xC0 == 0x80 and len(sample) - end < 3:
        end -= 1
    return sample[: end - 1] if end and sample[end - 1] >= 0xC0 else sample
