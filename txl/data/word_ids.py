"""Number the words of a text in order of first appearance, a block at a time without a Python loop.

A Python loop with a dict lookup per word is slow, because nearly every lookup misses the processor's cache. Here array
arithmetic hashes each word to 64 bits, and all words of a block are looked up together in one open-addressing table.
Two words with the same hash would get the same number. This cannot happen to words of up to eight bytes without a zero
byte, because their hash is invertible. For a million other words the probability is 1 in 10^7.
"""

from functools import cache
from hashlib import blake2b

import numpy as np

from txl.data.vocabulary import EOS

SPACE, NEWLINE = ord(" "), ord("\n")
# A table for bytes.translate: ASCII characters that Python takes for white space become spaces, except newlines.
ASCII_SPACES = bytes(SPACE if i < 128 and chr(i).isspace() and i != NEWLINE else i for i in range(256))

FIRST_BYTES = np.array([(1 << 8 * i) - 1 for i in range(9)], np.uint64)  # masks of the first i of eight bytes
LONGEST = 32  # bytes of the longest word that is hashed by array arithmetic; longer words are rare
NONE = -1


class WordNumbering:
    """Gives every distinct word a number, from 0 in order of first appearance.

    `words` lists all words so far by number; the end of a line is the word `eos`.
    """

    def __init__(self, eos: str = EOS):
        self.words: list[str] = []
        self.eos = eos
        self._hashes = np.zeros(0, np.uint64)  # by number
        self._make_table(1 << 16)

    def number(self, text: str) -> np.ndarray:
        """[words and newlines of the text] int32 numbers. The text must begin and end with whole words."""
        data = bytearray(text.encode().translate(ASCII_SPACES))
        data += b" " * (LONGEST + 8)  # words are read eight bytes at a time
        codes = np.frombuffer(data, np.uint8)
        if not text.isascii():
            _replace_wide_spaces(codes)
        starts, ends = _word_bounds(codes)
        hashes = hash_words(data, starts, ends - starts)
        numbers = self._find(hashes)
        new = np.flatnonzero(numbers == NONE)
        if len(new):
            distinct, first, which = np.unique(hashes[new], return_index=True, return_inverse=True)
            order = np.argsort(first)
            rank = np.empty(len(order), np.int32)
            rank[order] = np.arange(len(self.words), len(self.words) + len(order))
            numbers[new] = rank[which]
            self._add(data, starts[new[first[order]]], ends[new[first[order]]], distinct[order])
        return numbers

    def _add(self, data: bytearray, starts: np.ndarray, ends: np.ndarray, hashes: np.ndarray) -> None:
        before = len(self.words)
        words = (data[start:end].decode() for start, end in zip(starts.tolist(), ends.tolist(), strict=True))
        self.words += (self.eos if word == "\n" else word for word in words)
        self._hashes = np.concatenate([self._hashes, hashes])
        if 4 * len(self.words) > len(self._numbers):
            self._make_table(1 << (8 * len(self.words)).bit_length())
        else:
            self._insert(hashes, np.arange(before, len(self.words), dtype=np.int32))

    # The hash table: a hash is stored in the slot that its first bits name, or in the next free slot after it.

    def _make_table(self, size: int) -> None:
        self._shift, self._last = np.uint64(64 - (size.bit_length() - 1)), size - 1
        self._keys, self._numbers = np.zeros(size, np.uint64), np.full(size, NONE, np.int32)
        self._insert(self._hashes, np.arange(len(self._hashes), dtype=np.int32))

    def _insert(self, hashes: np.ndarray, numbers: np.ndarray) -> None:
        slots = (hashes >> self._shift).astype(np.int64)
        while len(hashes):
            free = self._numbers[slots] == NONE
            self._numbers[slots[free]] = numbers[free]  # of several words with the same slot, one gets it
            got = self._numbers[slots] == numbers
            self._keys[slots[got]] = hashes[got]
            hashes, numbers, slots = hashes[~got], numbers[~got], (slots[~got] + 1) & self._last

    def _find(self, hashes: np.ndarray) -> np.ndarray:
        """[hashes] int32 numbers; NONE for an unknown word."""
        slots = (hashes >> self._shift).astype(np.int64)
        numbers = self._numbers[slots]
        open_ = np.flatnonzero((self._keys[slots] != hashes) & (numbers != NONE))
        hashes, slots = hashes[open_], slots[open_]
        while len(open_):
            slots = (slots + 1) & self._last
            found = self._numbers[slots]
            numbers[open_] = found
            other = (self._keys[slots] != hashes) & (found != NONE)
            open_, hashes, slots = open_[other], hashes[other], slots[other]
        return numbers


@cache
def _wide_spaces() -> np.ndarray:
    """The white space outside ASCII: its two or three bytes of UTF-8 as a number, the third byte 0 if there is none."""
    found = [chr(i).encode() for i in range(0x80, 0x10000) if chr(i).isspace()]
    return np.array([int.from_bytes(code.ljust(3, b"\0"), "big") for code in found])


def _replace_wide_spaces(codes: np.ndarray) -> None:
    """Overwrite white space outside ASCII with spaces. Two more bytes must follow the text."""
    leads = np.unique(_wide_spaces() >> 16)
    at = np.flatnonzero(np.isin(codes, leads.astype(np.uint8)))
    first, second = codes[at].astype(np.int64), codes[at + 1].astype(np.int64)
    three = first >= 0xE0
    wide = np.isin(first << 16 | second << 8 | np.where(three, codes[at + 2], 0), _wide_spaces())
    codes[at[wide]] = codes[at[wide] + 1] = codes[at[wide & three] + 2] = SPACE


def _word_bounds(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where words and newlines start and where they end, [words and newlines] each. The codes must end with a space."""
    newline = codes == NEWLINE
    word = (codes != SPACE) & ~newline
    first, last = newline.copy(), newline.copy()
    first[0] |= word[0]
    first[1:] |= word[1:] & ~word[:-1]
    last[:-1] |= word[:-1] & ~word[1:]
    return np.flatnonzero(first), np.flatnonzero(last) + 1


def hash_words(data: bytearray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[words] uint64 hashes of the bytes from starts[i] to starts[i] + lengths[i]."""
    eights = np.ndarray(len(data) - 7, "<u8", data, strides=1)  # the eight bytes from each position on
    hashes = _mix_bits((eights[starts] & FIRST_BYTES[np.minimum(lengths, 8)]) ^ lengths.astype(np.uint64))
    longer, done = np.flatnonzero(lengths > 8), 8
    while len(longer) and done < LONGEST:
        rest = np.minimum(lengths[longer] - done, 8)
        hashes[longer] = _mix_bits(hashes[longer] ^ (eights[starts[longer] + done] & FIRST_BYTES[rest]))
        done += 8
        longer = longer[lengths[longer] > done]
    if 0 in data:  # in a hash, a zero byte of a word looks like the end of the word
        zeros = np.flatnonzero(np.frombuffer(data, np.uint8) == 0)
        longer = np.union1d(longer, np.searchsorted(starts, zeros, "right") - 1)
    for i in longer.tolist():
        word = data[starts[i] : starts[i] + lengths[i]]
        hashes[i] = int.from_bytes(blake2b(word, digest_size=8).digest(), "little")
    return hashes


def _mix_bits(bits: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit. The steps are invertible: x ^ x >> 32, and a product with an odd
    number."""
    for _ in range(2):
        bits = (bits ^ bits >> np.uint64(32)) * np.uint64(0xD6E8FEB86659FD93)
    return np.asarray(bits ^ bits >> np.uint64(32))
