"""Any tokenizer.json is a vocabulary: trained on, evaluated, generated from, and encoded in blocks as a whole."""

import json
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.support.configurations import composed
from tests.support.in_process import evaluate_here, train_here
from tests.support.made_data import write_bpe, write_splits
from tests.support.tiny_runs import TINY_RUN
from txl.data.corpus import open_corpus
from txl.data.text_blocks import Span
from txl.data.tokenizer_vocabulary import TokenizerVocabulary
from txl.data.verified_blocks import encode_in_blocks
from txl.data.vocabulary import vocabulary_class, vocabulary_from_dict
from txl.errors import ConfigError
from txl.evaluate.text_stream import TextStream
from txl.system.console import printable

WORDS = "the a cat's dog sat ran on naïve under 東京 12 345 it's you've mat . , ! x <eot>".split()
SPACES = [" ", " ", " ", "\n", "\n\n", "  ", "\u3000\n", " \n", "\r\n", "\t", "", "\xa0"]
BYTES = pre_tokenizers.ByteLevel.alphabet()
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def made_text(rng, words=30):
    return "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(words))


CORPUS = [made_text(random.Random(i)) for i in range(200)]


def trained(model, trainer, *, normalizer=None, pre_tokenizer=None, decoder=None):
    tokenizer = Tokenizer(model)
    for name, part in (("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer), ("decoder", decoder)):
        if part is not None:
            setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_pairs(*cut_by, prefix=False):
    """GPT-2's kind, with its pattern or others."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not cut_by)
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=BYTES, special_tokens=["<eot>"], show_progress=False)
    cut = pre_tokenizers.Sequence([*cut_by, level]) if cut_by else level
    return trained(models.BPE(), trainer, pre_tokenizer=cut, decoder=decoders.ByteLevel())


def unigram(scheme="always", normalizer=None):
    """SentencePiece's kind."""
    trainer = trainers.UnigramTrainer(
        vocab_size=150, unk_token="<unk>", special_tokens=["<unk>", "</s>"], show_progress=False
    )
    parts = {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme=scheme), "decoder": decoders.Metaspace()}
    return trained(models.Unigram(), trainer, normalizer=normalizer, **parts)


def whole_text_pairs(*normalizers_):
    """Merges may reach over spaces, as Llama's."""
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    normalizer = normalizers.Sequence(list(normalizers_)) if normalizers_ else None
    return trained(models.BPE(unk_token="<unk>", byte_fallback=True), trainer, normalizer=normalizer)


def word_level(unk="<unk>"):
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<eos>"], show_progress=False)
    return trained(models.WordLevel(unk_token=unk), trainer, pre_tokenizer=pre_tokenizers.Whitespace())


def word_piece():
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[CLS]"], show_progress=False)
    parts = {"normalizer": normalizers.BertNormalizer(), "pre_tokenizer": pre_tokenizers.BertPreTokenizer()}
    tokenizer = trained(models.WordPiece(unk_token="[UNK]"), trainer, decoder=decoders.WordPiece(), **parts)
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A", special_tokens=[("[CLS]", 1)])
    return tokenizer


def split_at(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


TOKENIZERS = {
    "gpt2": byte_pairs,
    "gpt2_with_prefix": lambda: byte_pairs(prefix=True),
    "cl100k": lambda: byte_pairs(split_at(CL100K)),
    "digits": lambda: byte_pairs(pre_tokenizers.Digits(), split_at(r" ?\S+|\s+(?!\S)|\s+")),
    "looks_back": lambda: byte_pairs(split_at(r"(?<=\n)\S|\S+|\s+")),
    "sentencepiece": unigram,
    "sentencepiece_first": lambda: unigram("first"),
    "sentencepiece_never": lambda: unigram("never"),
    "sentencepiece_normalized": lambda: unigram(
        normalizer=normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
        )
    ),
    "llama": lambda: whole_text_pairs(normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")),
    "no_words": whole_text_pairs,
    "word_level": word_level,
    "bert": word_piece,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def as_vocabulary(tokenizer, eos=None):
    return TokenizerVocabulary(json.loads(tokenizer.to_str()), eos)


# --------------------------------------------------------------------------- encoding


@pytest.fixture
def small_windows(monkeypatch):
    """A cut is verified with 16 characters of what follows, so that small texts have many blocks."""
    for name, value in (("LOOKAHEAD", 16), ("WINDOW", 8), ("SEARCHED", 64), ("GROUP", 3)):
        monkeypatch.setattr(f"txl.data.verified_blocks.{name}", value)


@given(seed=st.integers(0, 2**32), words=st.integers(1, 100), size=st.integers(1, 60))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_text_in_blocks_has_the_ids_of_the_whole_text(small_windows, tokenizer, tmp_path, seed, words, size):
    text, path, vocab = made_text(random.Random(seed), words), tmp_path / "a.txt", as_vocabulary(tokenizer)
    path.write_bytes(text.encode())
    blocks = list(encode_in_blocks(Span.whole(path, "data.train"), vocab.encode_texts, size))
    assert np.concatenate(blocks).tolist() == vocab.encode(text).tolist()


def test_ids_and_text_are_those_of_the_library(tokenizer):
    vocab, text = as_vocabulary(tokenizer), CORPUS[0]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert vocab.encode(text).tolist() == ids
    assert vocab.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)
    table = tokenizer.get_vocab(with_added_tokens=True)
    assert dict(zip(vocab.tokens, range(len(vocab.tokens)), strict=True)) == table
    assert len(vocab) % 8 == 0 and 0 <= len(vocab) - len(vocab.tokens) < 8


def test_what_is_streamed_is_the_whole_text(tokenizer):
    eos = next(token for token in ("</s>", "<eos>", "<eot>", None) if token is None or tokenizer.token_to_id(token))
    vocab = as_vocabulary(tokenizer, eos)
    ids = vocab.encode(made_text(random.Random(3), 150) + (eos or "") + made_text(random.Random(4), 150)).tolist()
    stream = TextStream(vocab, ids[:3])
    pieces = [stream.prompt_text, *map(stream.add, ids[3:]), stream.finish()]
    assert "".join(pieces) == vocab.to_typed_text(ids)


def test_its_dict_is_all_that_is_needed(tokenizer):
    vocab = as_vocabulary(tokenizer)
    again = vocabulary_from_dict(json.loads(json.dumps(vocab.to_dict())))
    assert again.fingerprint == vocab.fingerprint and len(again) == len(vocab)
    assert again.encode(CORPUS[1]).tolist() == vocab.encode(CORPUS[1]).tolist()


def test_what_a_tokenizer_does_for_other_programs_is_switched_off():
    plain, tokenizer = word_piece(), word_piece()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=1000)
    expected = plain.encode(CORPUS[0], add_special_tokens=False).ids
    assert as_vocabulary(tokenizer).encode(CORPUS[0]).tolist() == expected and 1 not in expected
    random_merges = json.loads(byte_pairs().to_str())
    random_merges["model"]["dropout"] = 0.5
    assert TokenizerVocabulary(random_merges).encode("the cat's").tolist() == byte_pairs().encode("the cat's").ids


def test_special_and_unknown_tokens_have_their_ids():
    pieces, words = as_vocabulary(unigram(), "</s>"), as_vocabulary(word_level(), "<eos>")
    assert (pieces.unk_id, pieces.eos_id, words.unk_id, words.eos_id) == (0, 1, 0, 1)
    assert pieces.encode("the</s>").tolist()[-1] == 1 and words.encode("the zebra <eos>").tolist()[1:] == [0, 1]
    assert as_vocabulary(byte_pairs()).unk_id is None


def test_gpt2s_two_files_and_their_tokenizer_json_give_the_same_ids(tmp_path):
    files = dict(zip(("vocab_file", "merges_file"), write_bpe(tmp_path, CORPUS, size=400), strict=True))
    theirs = Tokenizer(models.BPE.from_file(*map(str, files.values())))
    theirs.pre_tokenizer, theirs.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    vocab, pairs = as_vocabulary(theirs, "<|endoftext|>"), vocabulary_class("bpe").from_files(files, None)
    text = "".join(CORPUS) + "<|endoftext|>zebra\x00"
    assert vocab.encode(text).tolist() == pairs.encode(text).tolist()
    assert vocab.decode(pairs.encode(text)) == pairs.decode(pairs.encode(text)) == text
    assert (len(vocab), vocab.eos_id, list(vocab.tokens)) == (len(pairs), pairs.eos_id, list(pairs.tokens))


# --------------------------------------------------------------------------- as a data set


@pytest.mark.parametrize("make, eos", [(unigram, "</s>"), (word_level, "<eos>"), (byte_pairs, "<eot>")])
def test_a_model_of_a_tokenizer_is_trained_evaluated_and_generates(make, eos, tmp_path, capsys):
    write_splits(tmp_path / "data", "{}.txt")
    make().save(str(tmp_path / "tokenizer.json"))
    overrides = ["data=text", f"data.path={tmp_path}/data", "data.vocab=tokenizer", f"data.eos='{eos}'"]
    overrides += [f"data.tokenizer_file={tmp_path}/tokenizer.json", f"data.cache={tmp_path}/cache", *TINY_RUN]
    train_here(*overrides, f"run_dir={tmp_path}/run", "train.max_step=6", "sample_tokens=5")
    corpus = open_corpus(composed(*overrides).data)
    assert corpus.tokens("valid")[-1] == corpus.vocab.eos_id
    for name in ("tokenizer.json", "cache"):  # the checkpoint holds the tokenizer
        (tmp_path / name).rename(tmp_path / f"{name}.gone")
    here = ["hardware=cpu", f"checkpoint={tmp_path}/run", f"json={tmp_path}/s.json"]
    evaluate_here(*here, "split=test", "tgt_len=8", "mem_len=8", "batch_size=4")
    summary, found = (json.loads((tmp_path / name).read_text()) for name in ("run/summary.json", "s.json"))
    assert found["test"]["tokens"] == summary["test"]["tokens"]
    assert found["test"]["loss"] == pytest.approx(summary["test"]["loss"], rel=1e-5)
    evaluate_here(*here, f"text='the cat sat{eos}'", "token_losses=true")
    assert json.loads((tmp_path / "s.json").read_text())["text"]["unknown"] == 0
    evaluate_here(*here, "task=generate", "prompt='the cat sat on'", "max_tokens=90")
    [text] = json.loads((tmp_path / "s.json").read_text())
    assert text["text"].startswith("the cat sat on") and len(text["tokens"]) == 90
    assert printable(text["text"]) in capsys.readouterr().out


BAD = {
    "no_json": ("{", "is no tokenizer.json .JSONDecodeError"),
    "another_json": ('{"a": 1}', "is no tokenizer.json .KeyError: 'model'"),
    "a_list": ("[1]", "is no tokenizer.json .TypeError"),
    "a_table_of_tokens": ('{"model": {"vocab": {"a": 0}}}', "is no tokenizer.json .Exception"),
    "an_unknown_model": ('{"model": {"type": "None", "vocab": {"a": 0}}}', "is no tokenizer.json .Exception"),
    "no_tokens": ('{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}}', "is no tokenizer.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_no_tokenizer_is_named_in_one_line(case, tmp_path):
    content, message = BAD[case]
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ConfigError, match=f"data.tokenizer_file={tmp_path}/t.json {message}") as error:
        open_with(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def open_with(folder, *overrides):
    (folder / "a.txt").write_text("the cat sat\n" * 30)
    files = [f"data.file={folder}/a.txt", f"data.tokenizer_file={folder}/t.json", f"data.cache={folder}/cache"]
    return open_corpus(composed("data=text", "data.vocab=tokenizer", *files, *overrides).data)


def test_an_eos_that_is_none_of_the_tokens_is_refused(tmp_path):
    unigram().save(str(tmp_path / "t.json"))
    with pytest.raises(ConfigError, match="data.eos=END is not among the 1.. tokens of data.tokenizer_file="):
        open_with(tmp_path, "data.eos=END")
    corpus = open_with(tmp_path)
    assert corpus.vocab.eos_id is None and corpus.vocab.unk_id not in corpus.tokens("valid")


def test_text_that_a_tokenizer_cannot_encode_is_refused_in_one_line(tmp_path):
    content = json.loads(word_level().to_str())
    del content["model"]["vocab"]["cat"], content["model"]["vocab"]["<unk>"]
    (tmp_path / "t.json").write_text(json.dumps(content | {"added_tokens": []}))
    with pytest.raises(ConfigError, match="data.vocab=tokenizer: the tokenizer cannot encode the text") as error:
        open_with(tmp_path)
    assert "\n" not in str(error.value)


def test_a_tokenizer_needs_its_file():
    with pytest.raises(ConfigError, match="data.tokenizer_file=null is needed by data.vocab=tokenizer: a "):
        composed("data=text", "data.file=a.txt", "data.vocab=tokenizer")
    with pytest.raises(ConfigError, match="data.tokenizer_file=a.json has no meaning for data.vocab=word"):
        composed("data=text", "data.file=a.txt", "data.tokenizer_file=a.json")
