"""Text on disk: byte ranges of files, read in blocks that end where a word or a character ends.

Reading in blocks keeps memory bounded, whatever the size of a file or the length of its lines. Text that is not UTF-8
is reported with its line.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from txl.errors import ConfigError
from txl.files import unpacking_program
from txl.system.hang_watch import note_progress

BLOCK = 1 << 18  # bytes; what is computed from a block stays in the processor's cache
LONGEST_WORD = 1 << 24  # bytes between two white spaces that are held in memory at a time


@dataclass(frozen=True)
class Span:
    """The bytes start <= i < stop of a file."""

    path: Path
    start: int
    stop: int
    key: str  # the option that named the file, for messages

    def __str__(self) -> str:
        return f"{self.key}={self.path}"

    @staticmethod
    def whole(path: Path, key: str) -> "Span":
        """All bytes of a file."""
        return Span(path, 0, path.stat().st_size, key)


SplitSpans = dict[str, list[Span]]  # {split: the spans of its text, one after the other}


def byte_blocks(span: Span, size: int = 1 << 20) -> Iterator[bytes]:
    """Blocks of `size` bytes."""
    for _, block in _blocks(span, len, size):
        yield block


def character_blocks(span: Span, size: int = BLOCK) -> Iterator[str]:
    """Blocks of about `size` bytes of whole characters, unchanged; carriage returns are kept.

    Raises ConfigError for text that is not UTF-8.
    """
    for offset, block in _blocks(span, _end_of_whole_characters, size):
        yield _decode_block(span, offset, block)


def word_blocks(span: Span, size: int = BLOCK) -> Iterator[tuple[int, str]]:
    """(byte offset, text) of blocks of whole words. Every line ends with "\\n", also the last one.

    Lines end as in Python's text files: with "\\n", "\\r\\n" or "\\r". Raises ConfigError for text that is not UTF-8.
    """
    text = "\n"
    for offset, block in _blocks(span, _end_of_whole_words, size):
        text = _decode_block(span, offset, block)
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield offset, text
    if not text.endswith("\n"):
        yield span.stop, "\n"


def decode_utf8(text: str | bytes) -> str:
    """The text as str. Raises ConfigError for bytes that are not UTF-8."""
    if isinstance(text, str):
        return text
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the text is not UTF-8 (byte 0x{text[error.start]:02x} at {error.start})") from None


LINE_FEED = re.compile(rb"\n")
CARRIAGE_RETURN = re.compile(rb"\r")
WHITE_SPACE = re.compile(rb"[ \t\n\v\f\r]")


def place_after(path: Path, position: int, end: re.Pattern[bytes] = LINE_FEED) -> int:
    """The byte after the first match of one byte that ends at or after a byte position; without one, the file's end.

    With LINE_FEED, this is where the first line starts that starts at or after the position.
    """
    if position <= 0:
        return 0
    with open(path, "rb") as file:
        file.seek(position - 1)
        while block := file.read(BLOCK):  # in blocks, because a line may be longer than the memory
            if match := end.search(block):
                return file.tell() - len(block) + match.end()
        return file.tell()


def character_start(path: Path, position: int) -> int:
    """The byte where the first character that starts at or after a byte position starts."""
    with open(path, "rb") as file:
        file.seek(position)
        following = file.read(4)
    continuing = [byte & 0xC0 == 0x80 for byte in following]
    return position + (continuing.index(False) if False in continuing else len(following))


def line_number(path: Path, offset: int) -> int:
    """The number (from 1) of the line that contains a byte."""
    number, returned = 1, False  # whether the block before ended with "\r"
    with open(path, "rb") as file:
        while block := file.read(min(BLOCK, offset - file.tell())):
            number += block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")
            number -= returned and block.startswith(b"\n")
            returned = block.endswith(b"\r")
        return number - (returned and file.read(1) == b"\n")


def _blocks(span: Span, end_of_whole: Callable[[bytes], int], size: int) -> Iterator[tuple[int, bytes]]:
    """(byte offset, block). `end_of_whole` returns where a buffer may be cut; 0: read more first."""
    with open(span.path, "rb") as file:
        file.seek(span.start)
        offset, buffer, step = span.start, b"", size
        while data := file.read(min(step, span.stop - offset - len(buffer))):
            note_progress()
            buffer += data
            end = end_of_whole(buffer)
            step = size if end else 2 * step  # a word longer than a block
            if not end and len(buffer) > LONGEST_WORD:
                raise ConfigError(
                    f"{span}: line {line_number(span.path, offset)} has a word of more than {LONGEST_WORD:,} bytes "
                    "without a space; use data.vocab=char or byte"
                )
            if end:
                yield offset, buffer[:end]
                offset, buffer = offset + end, buffer[end:]
        if buffer:
            yield offset, buffer


def _end_of_whole_words(buffer: bytes) -> int:
    # A "\r" at the very end may be the first half of "\r\n".
    return max(*(buffer.rfind(sign) for sign in (b"\n", b" ", b"\t")), buffer.rfind(b"\r", 0, -1)) + 1


def _end_of_whole_characters(buffer: bytes) -> int:
    """All but the last character, which may be incomplete. Bytes that cannot be a character are left to the decoder."""
    for end in range(len(buffer) - 1, max(-1, len(buffer) - 5), -1):
        if buffer[end] & 0xC0 != 0x80:
            return end
    return len(buffer)


def _decode_block(span: Span, offset: int, block: bytes) -> str:
    try:
        return block.decode()
    except UnicodeDecodeError as error:
        with open(span.path, "rb") as file:
            program = unpacking_program(file.read(16))
        if program is not None:
            raise ConfigError(f"{span} is compressed; unpack it first: {program} {span.path}") from None
        line = line_number(span.path, offset + error.start)
        raise ConfigError(
            f"{span}: line {line} is not UTF-8 (byte 0x{block[error.start]:02x}); "
            "convert the file (iconv -t UTF-8), or use data.vocab=byte"
        ) from None
