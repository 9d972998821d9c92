"""Vocabularies: order, unknown symbols, and the way back to text."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txl.data.byte_vocabulary import ByteVocabulary
from txl.data.char_vocabulary import CharVocabulary
from txl.data.text_blocks import Span, character_blocks, character_start, line_number, place_after, word_blocks
from txl.data.vocabulary import vocabulary_from_dict
from txl.data.word_vocabulary import WordVocabulary, split_words
from txl.errors import ConfigError

# Everything that Python takes for white space, a line's end, or neither, and bytes of every length in UTF-8.
TRAPS = st.text(alphabet=st.sampled_from("ab \n\r\t\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u3000\u200bé東😀"))


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def words_line_by_line(path):
    """How the reference reads: lines of a text file, stripped and split, `<eos>` after each."""
    with open(path, encoding="utf-8") as lines:
        return [word for line in lines for word in [*line.strip().split(), "<eos>"]]


@given(text=TRAPS, size=st.integers(1, 20))
@settings(deadline=None)
def test_words_are_those_of_reading_line_by_line_wherever_blocks_end(tmp_path_factory, text, size):
    path = write(tmp_path_factory.mktemp("text") / "a.txt", text or "x")
    blocks = list(word_blocks(Span.whole(path, "data.train"), size))
    words = [word for _, block in blocks for word in split_words(block, lower_case=False)]
    assert words == words_line_by_line(path)


@given(text=TRAPS, size=st.integers(1, 20))
@settings(deadline=None)
def test_characters_survive_blocks_as_they_are(tmp_path_factory, text, size):
    path = write(tmp_path_factory.mktemp("text") / "a.txt", text or "x")
    assert "".join(character_blocks(Span.whole(path, "data.train"), size)) == (text or "x")


def test_positions_move_on_to_the_next_line_or_character(tmp_path):
    path = write(tmp_path / "a.txt", "é\nab\nc")  # bytes: é é \n a b \n c
    assert [place_after(path, i) for i in range(8)] == [0, 3, 3, 3, 6, 6, 6, 7]
    assert [character_start(path, i) for i in range(3)] == [0, 2, 2]
    assert [line_number(path, i) for i in (0, 2, 3, 5, 6)] == [1, 1, 2, 2, 3]


@given(st.lists(st.sampled_from("abcdefg"), min_size=1), st.integers(0, 3), st.none() | st.integers(1, 5))
@settings(deadline=None)
def test_words_come_by_falling_count_and_ties_by_first_appearance(words, min_freq, max_size):
    vocabulary = WordVocabulary.from_counts(Counter(words), min_freq=min_freq, max_size=max_size)
    kept = [word for word, count in Counter(words).most_common(max_size) if count >= min_freq]
    assert vocabulary.words == ("<eos>", *kept)


def test_lower_case_merges_words():
    text = "The the b\nB a B"
    words, lowered = (Counter(split_words(text, lower, eos=None)) for lower in (False, True))
    assert WordVocabulary.from_counts(words).words == ("<eos>", "B", "The", "the", "b", "a")
    assert WordVocabulary.from_counts(lowered, lower_case=True).words == ("<eos>", "b", "the", "a")


def test_the_word_eos_in_the_text_stays_first_and_takes_no_place():
    counts = Counter("a a <eos> <eos> <eos> b".split())
    assert WordVocabulary.from_counts(counts, max_size=1).words == ("<eos>", "a")


def test_unk_is_added_only_where_asked_and_words_were_left_out():
    counts = {"a": 3, "b": 1}
    assert WordVocabulary.from_counts(counts, min_freq=2).words == ("<eos>", "a")
    assert WordVocabulary.from_counts(counts, min_freq=2, unk_if_cut=True).words == ("<eos>", "a", "<unk>")
    assert WordVocabulary.from_counts(counts, max_size=1, unk_if_cut=True).words == ("<eos>", "a", "<unk>")
    assert WordVocabulary.from_counts(counts, unk_if_cut=True).words == ("<eos>", "a", "b")
    kept = WordVocabulary.from_counts(counts | {"<unk>": 2}, min_freq=2, unk_if_cut=True)
    assert kept.words == ("<eos>", "a", "<unk>")


def test_eos_ends_every_line_also_an_empty_and_an_unfinished_one():
    vocabulary = WordVocabulary(["<eos>", "a", "b"])
    assert vocabulary.encode("a b\n\nb").tolist() == [1, 2, 0, 0, 2, 0]
    assert vocabulary.encode(b"a\r\nb\r").tolist() == [1, 0, 2, 0]
    assert vocabulary.encode("a b\n\nb", add_eos=False).tolist() == [1, 2, 2]
    assert vocabulary.encode("").tolist() == []
    assert vocabulary.decode([1, 2, 0, 0, 2, 0]) == "a b\n\nb\n"


def test_an_unknown_word_is_unk_or_else_an_error_that_names_it():
    assert WordVocabulary(["<eos>", "a", "<unk>"]).encode("a zebra", add_eos=False).tolist() == [1, 2]
    with pytest.raises(ConfigError, match="'zebra'.*<unk>"):
        WordVocabulary(["<eos>", "a"]).encode("a zebra")


def test_bytes_are_ordered_and_an_unknown_one_is_named():
    vocabulary = ByteVocabulary(set("né".encode()))
    assert vocabulary.values.tolist() == [0x6E, 0xA9, 0xC3]
    assert vocabulary.encode("né").tolist() == vocabulary.encode("né".encode()).tolist() == [0, 2, 1]
    assert vocabulary.decode(np.array([0, 2, 1])) == "né" and vocabulary.decode([2, 0]) == "\ufffdn"
    assert vocabulary.unk_id is None and vocabulary.eos_id is None
    with pytest.raises(ConfigError, match="0x78 .'x'."):
        vocabulary.encode("nx")


def test_characters_are_ordered_and_an_unknown_one_is_unk_or_named():
    plain, with_unk = CharVocabulary("b😀a"), CharVocabulary("b😀a", unk=True)
    assert (len(plain), len(with_unk), with_unk.unk_id) == (3, 4, 3)
    assert plain.encode("a😀").tolist() == [0, 2] and plain.decode([0, 2]) == "a😀"
    assert with_unk.encode("ax").tolist() == [0, 3] and with_unk.decode([0, 3]) == "a<unk>"
    with pytest.raises(ConfigError, match=r"'x' \(U\+0078\)"):
        plain.encode("ax")


@pytest.mark.parametrize("kind", [WordVocabulary, CharVocabulary])
def test_a_prompt_that_is_not_utf8_is_refused(kind):
    with pytest.raises(ConfigError, match="0xff at 1"):
        kind("ab").encode(b"a\xff")


VOCABULARIES = [
    WordVocabulary(["<eos>", "naïve", "東京"], lower_case=True),
    ByteVocabulary([0, 10, 255]),
    CharVocabulary("ab\n", unk=True),
]


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=lambda v: v.kind)
def test_a_vocabulary_survives_its_dict(vocabulary):
    again = vocabulary_from_dict(vocabulary.to_dict())
    assert type(again) is type(vocabulary) and again.to_dict() == vocabulary.to_dict()
    assert again.fingerprint == vocabulary.fingerprint and len(again) == len(vocabulary)


def test_fingerprints_tell_vocabularies_apart():
    others = [WordVocabulary(["<eos>", "東京", "naïve"], True), WordVocabulary(["<eos>", "naïve", "東京"])]
    others += [ByteVocabulary([0, 10]), CharVocabulary("ab\n")]
    assert len({vocabulary.fingerprint for vocabulary in [*VOCABULARIES, *others]}) == 7
