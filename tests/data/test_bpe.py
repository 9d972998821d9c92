"""GPT-2's byte pairs: from two files that belong together, exact in both directions, whatever the size of the text."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.support.configurations import composed
from tests.support.made_data import write_bpe
from txl.data.bpe_vocabulary import BpeVocabulary, byte_of_character, read_gpt2_files
from txl.data.corpus import encoded_vocab_size, open_corpus
from txl.data.text_blocks import Span
from txl.data.verified_blocks import encode_in_blocks
from txl.data.vocabulary import vocabulary_from_dict
from txl.errors import ConfigError

LINE = "The cat's 23 naïve dogs  sat\n\n on 東京 .\n"
# What GPT-2's pattern treats in its own way: contractions, digits, marks, white space of every kind and length.
TRAPS = st.text(st.sampled_from("ab1'st .,\n\t\r\x0b\x1c\x85\xa0\u180e\u2003\u3000é東😀"), max_size=150)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_bpe(tmp_path_factory.mktemp("bpe"), [LINE] * 9, size=281)


@pytest.fixture(scope="module")
def vocab(files):
    return BpeVocabulary(*read_gpt2_files(*files))


def test_the_vocabulary_is_padded_to_a_multiple_of_eight(vocab):
    assert (len(vocab.tokens), len(vocab), vocab.eos_id, vocab.unk_id) == (281, 288, 280, None)
    assert vocab.decode([*vocab.encode("on"), 281, 287]) == "on"  # a model may write such an id, though no text has it


def test_text_survives_encoding_and_the_end_of_a_text_is_one_token(vocab):
    ids = vocab.encode(f"{LINE}<|endoftext|>zebra\x00")
    assert ids.dtype == np.int64 and ids.max() < 281 and (ids == 280).sum() == 1
    assert len(ids) < 60 and vocab.decode(ids) == f"{LINE}<|endoftext|>zebra\x00"
    assert vocab.encode(LINE.encode()).tolist() == vocab.encode(LINE).tolist()
    assert vocab.decode(vocab.encode("東")[:1]) == "\ufffd"
    with pytest.raises(ConfigError, match="not UTF-8 .byte 0xff at 1"):
        vocab.encode(b"a\xff")


def test_it_is_what_the_library_itself_makes_of_the_two_files(files, vocab):
    theirs = Tokenizer(models.BPE.from_file(*map(str, files)))
    theirs.pre_tokenizer, theirs.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    text = LINE * 3 + " it's, you've 1234\t\t x"
    assert vocab.encode(text).tolist() == theirs.encode(text).ids
    assert vocab.decode(vocab.encode(text)) == theirs.decode(theirs.encode(text).ids) == text
    assert set(byte_of_character()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_of_character().values()) == list(range(256))


@pytest.fixture
def small_windows(monkeypatch):
    """A cut is verified with 16 characters of what follows, so that small texts have many blocks."""
    for name, value in (("LOOKAHEAD", 16), ("WINDOW", 8), ("GROUP", 3)):
        monkeypatch.setattr(f"txl.data.verified_blocks.{name}", value)


@given(text=TRAPS, size=st.integers(1, 60))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_have_the_tokens_of_the_whole_text_wherever_they_end(small_windows, vocab, tmp_path, text, size):
    path = tmp_path / "a.txt"
    path.write_bytes((text or "x").encode())
    blocks = list(encode_in_blocks(Span.whole(path, "data.train"), vocab.encode_texts, size))
    assert np.concatenate(blocks).tolist() == vocab.encode(text or "x").tolist()


@pytest.mark.parametrize("end", ["\n", "\u3000\n", "\xa0\n", " ", ""])
def test_a_file_is_read_in_blocks_whatever_ends_its_lines(vocab, tmp_path, end):
    path, text = tmp_path / "a.txt", ("東京の猫は寝る" + end) * 60_000
    path.write_text(text)
    parts = list(encode_in_blocks(Span.whole(path, "data.train"), vocab.encode_texts))
    assert len(parts) > 3 and max(map(len, parts)) < sum(map(len, parts)) / 2
    assert np.concatenate(parts).tolist() == vocab.encode(text).tolist()


def test_its_dict_holds_all_that_encoding_needs(files, vocab, tmp_path):
    again = vocabulary_from_dict(json.loads(json.dumps(vocab.to_dict())))
    assert again.encode(LINE).tolist() == vocab.encode(LINE).tolist() and again.fingerprint == vocab.fingerprint
    fewer = vocabulary_from_dict(vocab.to_dict() | {"merges": vocab.merges[:-1]})
    assert fewer.fingerprint != vocab.fingerprint and len(fewer) == len(vocab)


def test_a_corpus_is_encoded_anew_when_a_table_changes(files, tmp_path):
    vocab_file, merges_file = write_bpe(tmp_path / "bpe", [LINE] * 9, size=281)
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text(LINE * 5)
    overrides = ["data=text", "data.vocab=bpe", f"data.path={tmp_path}", f"data.cache={tmp_path}/cache"]
    data = composed(*overrides, "data.vocab_file=bpe/vocab.json", "data.merges_file=bpe/merges.txt").data
    assert encoded_vocab_size(data) is None
    first = open_corpus(data)
    assert first.vocab.decode(first.tokens("train")) == LINE * 5 + "<|endoftext|>"
    assert encoded_vocab_size(data) == 288 and first.tokens("train").dtype == np.uint16
    lines = merges_file.read_text().splitlines()
    table = json.loads(vocab_file.read_text())
    merged = lines[-1].replace(" ", "")
    table[f"<{merged}>"] = table.pop(merged)  # the same ids, but one merge less
    vocab_file.write_text(json.dumps(table))
    merges_file.write_text("\n".join(lines[:-1]) + "\n")
    second = open_corpus(data)
    assert second.fingerprint != first.fingerprint and len(second.tokens("train")) > len(first.tokens("train"))


# --------------------------------------------------------------------------- files that are not what they should be


def edited(table=None, merges=None):
    """(table as a dict -> another, lines of merges -> others)"""
    return table or (lambda values: values), merges or (lambda lines: lines)


def last(values):
    """What the last merge makes."""
    return next(token for token, i in values.items() if i == 279)


def without(values, token):
    return {key: i - (i > values[token]) for key, i in values.items() if key != token}


BAD = {
    "merges_of_a_larger_table": (edited(table=lambda t: without(t, last(t))), "line 25: .* needs the token .*, which"),
    "merges_of_a_smaller_table": (edited(merges=lambda lines: lines[:9]), "no merge of data.merges_file=.* makes its"),
    "duplicate_merge": (edited(merges=lambda lines: [*lines, lines[4]]), "line 26: '.*' is in line 5 already"),
    "blank_line": (edited(merges=lambda lines: [*lines[:3], "", *lines[3:]]), "merges.txt: line 4 is no merge"),
    "three_parts": (edited(merges=lambda lines: [*lines[:3], "a b c"]), "line 4 is no merge.*'a b c'"),
    "no_version_and_no_merges": (edited(merges=lambda lines: ["{}"]), "line 1 is no merge"),
    "ids_with_a_gap": (edited(table=lambda t: t | {"a": 999}), "the id .* is missing or used twice; .* from 0 to"),
    "byte_without_token": (edited(table=lambda t: without(t, "Ā")), "has no token 'Ā' for the byte 0x00: not byte"),
    "a_list": (edited(table=list), "is no table of tokens and their ids"),
    "words": (edited(table=lambda t: {key: "x" for key in t}), "is no table of tokens and their ids"),
    "another_alphabet": (edited(table=lambda t: t | {"<東>": len(t)}), "'<東>' has a character that stands for no"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_do_not_belong_together_are_refused_in_one_line(case, files, tmp_path):
    (change_table, change_merges), message = BAD[case]
    vocab_file, merges_file = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocab_file.write_text(json.dumps(change_table(json.loads(files[0].read_text()))))
    merges_file.write_text("\n".join(change_merges(files[1].read_text().splitlines())) + "\n")
    with pytest.raises(ConfigError, match=message) as error:
        read_gpt2_files(vocab_file, merges_file)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_files_that_are_no_text_or_no_json_are_named(files, tmp_path):
    (tmp_path / "broken").write_bytes(b'{"a": 1, \xff')
    with pytest.raises(ConfigError, match="data.vocab_file=.*broken is not JSON"):
        read_gpt2_files(tmp_path / "broken", files[1])
    with pytest.raises(ConfigError, match="data.merges_file=.*broken is not UTF-8"):
        read_gpt2_files(files[0], tmp_path / "broken")
