"""Words get the numbers that a dict would give them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from txl.data import word_ids as words_module
from txl.data.word_ids import WordNumbering
from txl.data.word_vocabulary import split_words

# White space of every kind, what only looks like it, control characters, and characters of one to four bytes.
TRAPS = "ab\x00\x01\x1b\x1c\x1f \t\n\x0b\x0c\x85\xa0\xad\u1680\u180e"
TRAPS += "\u2000\u200a\u200b\u2028\u202f\u205f\u2060\u3000\u3001é東😀"
BLOCKS = st.lists(st.text(st.sampled_from(TRAPS), max_size=80), min_size=1, max_size=5)


def numbers_by_dict(blocks):
    known: dict[str, int] = {}
    return [[known.setdefault(word, len(known)) for word in split_words(text, False)] for text in blocks], list(known)


def assert_numbered_as_by_a_dict(blocks):
    numbers = WordNumbering()
    found = [numbers.number(text).tolist() for text in blocks]
    assert (found, numbers.words) == numbers_by_dict(blocks)


@given(BLOCKS)
@settings(max_examples=300, deadline=None)
def test_words_are_numbered_in_order_of_first_appearance(blocks):
    assert_numbered_as_by_a_dict(blocks)


def test_words_with_zero_bytes_are_told_apart():
    assert_numbered_as_by_a_dict(["b\0 a", "a a\0 b \0 \0\0 c\0\0 " + "\0 ".join("abcdefgh" * 9)])


@given(st.lists(st.integers(1, 70), min_size=1), st.randoms())
@settings(deadline=None)
def test_words_of_every_length_are_told_apart(lengths, random):
    words = ["".join(random.choices("ab\0é", k=length)) for length in lengths]
    assert_numbered_as_by_a_dict([" ".join(words), "\n".join(reversed(words))])


def test_words_that_differ_in_one_byte_anywhere_are_told_apart():
    words = ["x" * i + "y" + "x" * (n - i - 1) for n in range(1, 50) for i in range(n)]
    assert len(WordNumbering().number(" ".join(words))) == len(set(words))
    assert_numbered_as_by_a_dict([" ".join(words)])


def test_every_white_space_of_python_separates_words():
    spaces = [chr(i) for i in range(0x110000) if chr(i).isspace() and chr(i) != "\n"]
    assert_numbered_as_by_a_dict(["".join(f"a{space}b" for space in spaces)])


def test_the_table_grows_with_its_words():
    rng = np.random.default_rng(0)
    assert_numbered_as_by_a_dict([" ".join(map(str, rng.integers(0, 200_000, 100_000))) for _ in range(3)])


def test_words_that_want_the_same_slot_each_get_their_own(monkeypatch):
    def nearly_equal(data, starts, lengths):
        return np.array(
            [int.from_bytes(data[s : s + n], "big") for s, n in zip(starts, lengths, strict=True)], np.uint64
        )

    monkeypatch.setattr(words_module, "hash_words", nearly_equal)  # all begin with zeros
    rng = np.random.default_rng(0)
    assert_numbered_as_by_a_dict([" ".join(map(str, rng.integers(0, 500, 1000))) for _ in range(3)])


def test_a_word_that_is_spelt_as_the_end_of_a_line_is_one(monkeypatch):
    numbers = WordNumbering()
    found = numbers.number("a <eos>\n")
    assert [numbers.words[i] for i in found] == ["a", "<eos>", "<eos>"]
