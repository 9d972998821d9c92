"""Text from a model: sampled from exactly the distribution that evaluating it finds."""

import json
import math

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.support.entry_points import run
from tests.support.in_process import evaluate_here, train_here
from tests.support.made_data import write_corpus
from tests.support.models import build
from tests.support.tiny_runs import TINY_RUN
from txl.cli.hydra_main import quote_typed_text
from txl.config.geometry import Geometry
from txl.config.sampling import Sampling
from txl.data.byte_vocabulary import ByteVocabulary
from txl.data.word_vocabulary import WordVocabulary
from txl.errors import ConfigError
from txl.evaluate.kv_cache import CachedTransformerXL
from txl.evaluate.sampling import TokenSampler, sampling_probabilities
from txl.evaluate.text_stream import GrowingText, StopFilter, TextStream
from txl.evaluate.typed_text import token_ids, unescape

GEOMETRY = Geometry(4, 64, 0, 9, True)
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [3]]


def written(model, prompts, geometry, **options):
    """The continuation of every prompt."""
    return TokenSampler(model, geometry).continue_prompts(prompts, Sampling(**options))


@torch.no_grad()
def evaluated(model, prompt, tokens, geometry):
    """Log-probability of the tokens after the prompt, read in segments."""
    ids, mems, total = torch.tensor([prompt + tokens]), [], 0.0
    for begin in range(0, ids.shape[1] - 1, geometry.tgt_len):
        end = min(begin + geometry.tgt_len, ids.shape[1] - 1)
        hidden, mems = model(ids[:, begin:end], mems, geometry)
        loss = model.loss(hidden, ids[:, begin + 1 : end + 1])[0]
        total -= loss[max(0, len(prompt) - 1 - begin) :].sum().item()
    return total


@pytest.mark.parametrize("geometry", [GEOMETRY, Geometry(4, 9, 0, 5, True), Geometry(1, 9)])
@pytest.mark.parametrize("runtime", [lambda model: model, CachedTransformerXL])
def test_the_log_probability_of_a_generated_text_equals_its_evaluation(runtime, geometry):
    """Also of one that is longer than the memory: with same_length, or read a token at a time."""
    model = build()
    texts = written(runtime(model), PROMPTS, geometry, max_tokens=30, seed=5)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        assert len(text.tokens) == 30
        assert text.log_prob == pytest.approx(evaluated(model, prompt, text.tokens, geometry), rel=1e-10)


def test_a_text_does_not_depend_on_its_neighbours_nor_on_the_runtime():
    model = build()
    together = written(CachedTransformerXL(model), PROMPTS, GEOMETRY, max_tokens=20, seed=7)
    alone = written(model, PROMPTS[:1], GEOMETRY, max_tokens=20, seed=7)
    assert together[0].tokens == alone[0].tokens


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    model = build()
    texts = [written(model, [[1]], GEOMETRY, max_tokens=20, seed=s)[0].tokens for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_prompt_longer_than_the_memory_is_read_to_its_end():
    model, geometry = build(), Geometry(4, 6, same_length=True)
    prompt = [i % 50 for i in range(33)]
    text = written(CachedTransformerXL(model), [prompt], geometry, max_tokens=10)[0]
    again = written(model, [prompt], geometry, max_tokens=10)[0]
    assert len(text.tokens) == 10 and text.tokens == again.tokens


def test_temperature_zero_takes_the_likeliest_token_every_time():
    model = build()
    text = written(CachedTransformerXL(model), [[1, 2]], GEOMETRY, max_tokens=20, temperature=0, seed=3)[0]
    ids, mems = torch.tensor([[1, 2, *text.tokens]]), []
    for position, token in enumerate(text.tokens):
        with torch.no_grad():
            hidden, _ = model(ids[:, : position + 2], mems, Geometry(64, 64, 0, 9, True))
            assert model.log_prob(hidden[:, -1]).argmax() == token


def test_a_penalty_keeps_a_text_from_repeating_itself_and_leaves_its_log_probability_alone():
    model, geometry = build(), Geometry(4, 64)
    plain = written(model, [[1, 2]], geometry, max_tokens=40, temperature=0)[0]
    varied = written(model, [[1, 2]], geometry, max_tokens=40, temperature=0, repetition_penalty=50)[0]
    assert len(set(varied.tokens)) == 40 > len(set(plain.tokens))
    assert varied.log_prob == pytest.approx(evaluated(model, [1, 2], varied.tokens, geometry), rel=1e-10)
    assert varied.log_prob == pytest.approx(sum(varied.log_probs)) and len(varied.log_probs) == 40


def test_the_cost_of_a_token_does_not_grow_with_the_text():
    """Once the ring is full (mem_len + tgt_len slots) every step sees the same number of keys."""
    model, seen = CachedTransformerXL(build()), []
    read = model.position_keys
    model.position_keys = lambda K, geometry: (seen.append(K), read(K, geometry))[1]
    written(model, [[1]], Geometry(4, 16), max_tokens=50)
    assert seen[:3] == [1, 2, 3] and set(seen[19:]) == {20}


def test_sampling_leaves_the_unlikely_out():
    log_prob = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    torch.testing.assert_close(sampling_probabilities(log_prob, Sampling()), log_prob.exp())
    assert sampling_probabilities(log_prob, Sampling(top_k=2)).tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert sampling_probabilities(log_prob, Sampling(top_p=0.6)).tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert sampling_probabilities(log_prob, Sampling(top_p=1e-9)).tolist() == [1, 0, 0, 0]
    assert sampling_probabilities(log_prob, Sampling(temperature=0.5))[0] > 0.5
    assert sampling_probabilities(log_prob, Sampling(min_p=0.6)).tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert sampling_probabilities(log_prob, Sampling(temperature=0)).tolist() == [1, 0, 0, 0]
    together = sampling_probabilities(log_prob, Sampling(temperature=2, top_k=3, top_p=0.9))
    assert math.isclose(together.sum().item(), 1, rel_tol=1e-6)


def pieces(vocab, ids, prompt=1):
    """The pieces of a text whose first tokens are the prompt."""
    stream = TextStream(vocab, ids[:prompt])
    return [stream.prompt_text, *(stream.add(int(token)) for token in ids[prompt:]), stream.finish()]


def test_words_are_written_as_one_types_them():
    vocab = WordVocabulary(["<eos>", "Prices", "rose", "1", "@,@", "234", ".", "in", "mid", "@-@", "2020", "We"])
    ids = [1, 2, 3, 4, 5, 7, 8, 9, 10, 6, 0, 11, 2]
    assert vocab.to_typed_text(ids) == "Prices rose 1,234 in mid-2020.\nWe rose"
    assert "".join(pieces(vocab, ids, prompt=2)) == "Prices rose 1,234 in mid-2020.\nWe rose"


def test_a_long_line_costs_no_more_to_write_than_a_short_one(monkeypatch):
    line = """the cat 's dog ran , and " the mid @-@ size dog , " it said , " ran 2 @,@ 500 miles . " it is true . """
    words = line.split()
    vocab = WordVocabulary(["<eos>", *dict.fromkeys(words)])
    ids = vocab.encode(line * 25, add_eos=False).tolist()
    whole, decoded, plain = vocab.to_typed_text(ids), [], vocab.to_typed_text
    monkeypatch.setattr(vocab, "to_typed_text", lambda ids: (decoded.append(len(ids)), plain(ids))[1])
    assert "".join(pieces(vocab, ids)) == whole
    assert max(decoded) < 200


def test_half_a_character_waits_for_its_other_half():
    vocab, text = ByteVocabulary(range(256)), "naïve café"
    found = pieces(vocab, vocab.encode(text).tolist(), prompt=2)
    assert "".join(found) == text and all("\N{REPLACEMENT CHARACTER}" not in piece for piece in found)


@pytest.mark.parametrize(
    "stop, expected",
    [([], "ab\n\ncd"), (["\n\n"], "ab"), (["\n"], "ab"), (["x"], "ab\n\ncd"), (["cd", "b"], "a"), (["a"], "")],
)
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_a_text_ends_before_the_first_stop_string_however_it_is_cut_into_pieces(stop, expected, size):
    text, passed = "ab\n\ncd", StopFilter(stop)
    found = [passed.add(text[i : i + size]) for i in range(0, len(text), size)]
    assert "".join(found) + passed.finish() == expected
    assert passed.stopped == (expected != text)


def test_a_text_ends_before_a_stop_token():
    vocab = WordVocabulary(["<eos>", "a", "b"])
    text = GrowingText(vocab, [1], stop_ids=token_ids(["eos"], vocab))
    assert "".join([text.add(2), text.add(0), text.add(1), text.finish()]) == " b" and text.ended
    with pytest.raises(ConfigError, match="stop_tokens=c is none of the 3 words of the vocabulary"):
        token_ids(["c"], vocab)


def test_probabilities_that_are_no_numbers_are_one_line():
    model = build()
    with torch.no_grad():
        model.layers[0].attention.qkv.weight[0, 0] = math.nan
    with pytest.raises(ConfigError, match="probabilities are no numbers .*use an earlier checkpoint"):
        written(model, PROMPTS, GEOMETRY, temperature=0)


STOPS = {
    "stop=END": ["END"],
    r"stop=\n\n": ["\n\n"],
    "stop=Well, (what) ${now}": ["Well, (what) ${now}"],
    r'stop=["\n",a b]': ["\n", "a b"],
    "stop=": [],
    "stop=null": [],
    "stop_tokens=eos": ["eos"],
    "stop_tokens=[eos,b]": ["eos", "b"],
}


@pytest.mark.parametrize("override", STOPS)
def test_one_text_or_a_list_of_them_ends_a_text(override):
    parsed = OverridesParser.create().parse_override(quote_typed_text(override))
    values = OmegaConf.to_container(OmegaConf.create({parsed.key_or_group: parsed.value()}), resolve=True)
    assert [unescape(text) for text in values[parsed.key_or_group]] == STOPS[override]


def test_a_backslash_that_means_itself_is_doubled():
    assert unescape(r"a\\n\n\t\x") == "a\\n\n\t\\x"


def test_evaluate_writes_texts_from_a_file_of_prompts(tmp_path, capsys):
    text = write_corpus(tmp_path / "text")
    train_here(*TINY_RUN, *text, f"run_dir={tmp_path}/run", "train.max_step=10")
    (tmp_path / "prompts.txt").write_text("the cat\n\na dog ran\n")
    overrides = ["hardware=cpu", f"checkpoint={tmp_path}/run", "task=generate", "max_tokens=12"]
    done = run("evaluate.py", *overrides, f"prompts={tmp_path}/prompts.txt", f"json={tmp_path}/o.json", cwd=tmp_path)
    texts = json.loads((tmp_path / "o.json").read_text())
    assert [text["prompt"] for text in texts] == ["the cat", "a dog ran"]
    assert all(len(text["tokens"]) == 12 and text["text"].startswith(text["prompt"]) for text in texts)
    assert "--- the cat\nthe cat" in done.stdout
    capsys.readouterr()
    evaluate_here(*overrides, "prompt=the cat")
    streamed = capsys.readouterr().out
    assert streamed.startswith("the cat") and streamed.rstrip("\n") == texts[0]["text"].rstrip("\n")
