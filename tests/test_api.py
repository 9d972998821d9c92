"""txl from Python: what a notebook needs in three lines, with the numbers and texts of the command line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

import txl
from tests.support.configurations import composed
from tests.support.entry_points import PROJECT
from tests.support.in_process import evaluate_here, train_here
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN
from txl.checkpoint.checkpoint_files import write_checkpoint_file
from txl.checkpoint.exchange import export_model, import_model
from txl.checkpoint.find import CheckpointError
from txl.config.sampling import Sampling, SamplingKeywords
from txl.config.schema import EvaluateConfig
from txl.errors import ConfigError
from txl.evaluate.trained_model import GenerateKeywords

TEXTS = ["the cat sat on a mat", "a dog ran", "quickly", "the cat and the dog never ran under the tree", "on", ""]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run of characters, runs/demo/run, and one of words, words/run."""
    folder = tmp_path_factory.mktemp("api")
    text, lengths = write_corpus(folder / "text"), ["evaluation.tgt_len=6", "evaluation.mem_len=20"]
    train_here(*TINY_RUN, *text, *lengths, "train.max_step=20", f"run_dir={folder}/runs/demo/run")
    words = ["data.vocab=word", "data.metric=ppl", "model.div_val=1"]
    train_here(*TINY_RUN, *text, *lengths, *words, "train.max_step=20", f"run_dir={folder}/words/run")
    return folder


@pytest.fixture(scope="module")
def model(runs):
    return txl.load(runs / "runs" / "demo", device="cpu")


# --------------------------------------------------------------------------- load


@pytest.mark.parametrize("path", ["runs/demo", "runs/demo/run", "runs/demo/run/last", "runs/demo/run/checkpoints/best"])
def test_every_way_to_name_a_run_loads_its_model(runs, model, path):
    loaded = txl.load(runs / path, device="cpu")
    assert loaded.config == model.config and loaded.geometry == model.geometry and len(loaded.vocab) == len(model.vocab)
    assert loaded.geometry.mem_len == 20 and loaded.runtime.name == "cached" and "5,221 parameters" in repr(loaded)


def test_exported_and_imported_folders_load_with_the_same_scores(runs, model, tmp_path):
    run, expected = runs / "words" / "run", txl.load(runs / "words", device="cpu").score(TEXTS[0]).nats
    export_model(run, tmp_path / "exported", "safetensors")
    export_model(run, tmp_path / "model.pt", "reference")
    import_model(tmp_path / "model.pt", tmp_path / "imported")
    for name in ("exported", "imported"):
        lengths = {"tgt_len": 6, "mem_len": 20}
        assert txl.load(tmp_path / name, device="cpu", **lengths).score(TEXTS[0]).nats == pytest.approx(expected)


def test_a_folder_that_is_no_run_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="holds no manifest.json: not a checkpoint") as error:
        txl.load(tmp_path)
    assert isinstance(error.value, CheckpointError) and "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="does not exist"):
        txl.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp17"}, "precision=fp17 must be one of fp64, fp32, tf32, bf16, fp16"),
        ({"precision": "fp16"}, "precision=fp16 needs a GPU"),
        ({"runtime": "fast"}, "runtime=fast must be one of auto, eager, cached"),
        ({"runtime": "export"}, "runtime=export reads whole segments; use runtime=auto, eager or cached"),
        ({"device": "tpu9"}, "device=tpu9 is no device of torch"),
        ({"tgt_len": 0}, "tgt_len=0 must be above 0"),
        ({"mem_len": 0, "same_length": True}, "same_length=true needs a memory"),
    ],
)
def test_an_option_without_meaning_is_named(runs, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        txl.load(runs / "runs" / "demo", **{"device": "cpu"} | options)


def test_importing_txl_imports_no_torch_and_offers_typed_names():
    code = "import sys, txl; assert txl.__version__ and dir(txl) == txl.__all__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=60).returncode == 0
    assert (PROJECT / "txl" / "py.typed").exists() and txl.Model.__name__ == "Model"
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = txl.lod


# --------------------------------------------------------------------------- score


def test_a_list_is_scored_as_its_texts_one_by_one(runs):
    model = txl.load(runs / "runs" / "demo", device="cpu", precision="fp64")
    together = model.score(TEXTS, token_losses=True)
    for text, score in zip(TEXTS, together, strict=True):
        alone = model.score(text)
        assert score.nats == pytest.approx(alone.nats, rel=1e-12) and score.tokens == alone.tokens
        assert "".join(token for token, _ in score.token_losses) == text[1:]
        assert score.nats == pytest.approx(sum(nats for _, nats in score.token_losses))


def test_a_score_is_what_evaluating_the_text_finds(runs, model, tmp_path):
    file = tmp_path / "result.json"
    evaluate_here("hardware=cpu", f"checkpoint={runs}/runs/demo/run", f"text={TEXTS[0]}", f"json={file}")
    expected, score = json.loads(file.read_text())["text"], model.score(TEXTS[0])
    assert (score.loss, score.ppl, score.bpc) == pytest.approx([expected[key] for key in ("loss", "ppl", "bpc")])
    assert score.tokens == expected["tokens"] and score.unknown == expected["unknown"]


def test_a_context_makes_the_first_token_a_predicted_one(runs, model):
    words = txl.load(runs / "words", device="cpu")
    assert words.score("the cat").tokens == 2 and words.score("the cat", context="\n").tokens == 3  # with <eos>
    for one in (model, words):
        with_context = one.score(["cat sat", "dog"], context="the ")
        assert [score.tokens for score in with_context] == [len(one.encode(text)) for text in ("cat sat", "dog")]
        whole = one.score_ids([[*one.encode_context("the "), *one.encode("dog")]], token_losses=True)[0]
        assert with_context[1].nats == pytest.approx(sum(n for _, n in whole.token_losses[-with_context[1].tokens :]))


def test_unknown_words_are_counted_and_ids_outside_the_vocabulary_refused(runs, model):
    with pytest.raises(ConfigError, match="the id 21 is not in the vocabulary, whose ids are 0 to 20"):
        model.score_ids([[1, 2, 21]])
    assert model.score_ids([]) == [] and model.score([]) == []


def test_texts_in_sequence_are_scored_as_one(model):
    ids = [model.encode(text) for text in ("the cat\n", "sat on\n", "a mat\n")]
    parts = list(model.score_in_sequence(ids, model.encode_context("\n")))
    assert [part.tokens for part in parts] == [8, 7, 6]
    assert parts[0].nats == pytest.approx(model.score("the cat\n", context="\n").nats)


# --------------------------------------------------------------------------- generate


def test_the_pieces_of_a_stream_are_the_text(model):
    options = {"max_tokens": 30, "temperature": 0.9, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "seed": 3}
    text, stream = model.generate("the cat", **options), model.generate("the cat", stream=True, **options)
    pieces = list(stream)
    assert pieces[0] == "the cat" and "".join(pieces) == text and len(text) == len("the cat") + 30
    assert model.generate("the cat", include_prompt=False, **options) == text.removeprefix("the cat")
    assert model.generate("the cat", **options | {"seed": 4}) != text


SAMPLING = {
    "greedy": {"temperature": 0},
    "few": {"temperature": 0.7, "top_k": 4, "seed": 9},
    "likely": {"min_p": 0.05, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 9},
    "stop": {"stop": ["t\t", "n", "a", "t"], "seed": 9},
    "token": {"stop_tokens": ["n", "a", "t"], "seed": 9},
}


@pytest.mark.parametrize("name", SAMPLING)
def test_generating_is_what_the_command_line_does(runs, model, capsys, tmp_path, name):
    capsys.readouterr()
    options = SAMPLING[name]
    overrides = [f"{key}={value!r}".replace("\t", "\\t") for key, value in options.items()]
    overrides += ["task=generate", "prompt=the cat", "max_tokens=25", f"json={tmp_path}/r.json"]
    overrides += [] if "seed" in options else ["seed=3"]
    evaluate_here("hardware=cpu", f"checkpoint={runs}/runs/demo/run", *overrides)
    expected = model.generate("the cat", 25, **{"seed": 3} | options)
    assert capsys.readouterr().out == expected + "\n"
    (record,) = json.loads((tmp_path / "r.json").read_text())
    assert record["text"] == expected and sum(record["log_probs"]) == pytest.approx(record["log_prob"])
    assert len(record["log_probs"]) == len(record["tokens"]) >= len(expected) - len("the cat")
    assert (len(record["tokens"]) < 25) == (name in ("stop", "token"))


def test_both_have_the_same_options_with_the_same_defaults():
    config, here = composed("checkpoint=x", name="evaluate", kind=EvaluateConfig), Sampling()
    assert {key: getattr(config, key) for key in vars(here) if key != "seed"} == {
        key: value for key, value in vars(here).items() if key != "seed"
    }
    keywords = get_type_hints(GenerateKeywords)
    assert keywords.keys() - {"include_prompt"} | {"max_tokens"} == vars(here).keys()
    numbers = get_type_hints(SamplingKeywords)
    assert {key: kind for key, kind in get_type_hints(Sampling).items() if key in numbers} == numbers


def test_weights_that_are_no_numbers_are_named(runs, tmp_path):
    shutil.copytree((runs / "runs/demo/run/checkpoints/best").resolve(), tmp_path / "diverged")
    weights = torch.load(tmp_path / "diverged" / "model.pt")
    weights["layers.0.attention.qkv.weight"][0, 0] = float("nan")
    manifest = json.loads((tmp_path / "diverged" / "manifest.json").read_text())
    manifest["files"]["model.pt"] = write_checkpoint_file(tmp_path / "diverged" / "model.pt", weights)
    (tmp_path / "diverged" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"weights that are no numbers \(layers.0.attention.qkv.weight\)"):
        txl.load(tmp_path / "diverged", device="cpu")


def test_a_text_stops_before_a_string_or_a_token(model):
    whole = model.generate("the cat", max_tokens=60, seed=1)
    written = whole.removeprefix("the cat")
    stop = written[20:22]
    expected = whole[: len("the cat") + written.index(stop)]
    for stops in (stop, [stop], ["never written", stop]):
        assert model.generate("the cat", max_tokens=60, seed=1, stop=stops) == expected
        assert "".join(model.generate("the cat", max_tokens=60, seed=1, stop=stops, stream=True)) == expected
    token = model.generate("the cat", max_tokens=60, seed=1, stop_tokens=[written[5]])
    assert token == whole[: len("the cat") + written.index(written[5])]


def test_words_are_generated_as_typed_text(runs):
    words = txl.load(runs / "words", device="cpu")
    text = words.generate("the cat", max_tokens=30, seed=2)
    assert text.startswith("the cat") and "<eos>" not in text
    line = words.generate("the cat", max_tokens=200, seed=2, stop_tokens=["eos"])
    assert line == text.split("\n")[0] and words.generate("the cat", max_tokens=200, seed=2, stop="\n") == line


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        ("a", {"temperature": -1}, "temperature=-1 must be 0 or more"),
        ("a", {"top_k": 0}, "top_k=0 must be above 0"),
        ("a", {"top_p": 0}, "top_p=0 must be above 0 and at most 1"),
        ("a", {"min_p": 2}, "min_p=2 must be above 0 and at most 1"),
        ("a", {"repetition_penalty": 0}, "repetition_penalty=0 must be above 0"),
        ("a", {"stop_tokens": ["eos"]}, "stop_tokens=eos is none of the 21 characters of the vocabulary"),
        ("Ä", {}, "the character 'Ä' (U+00C4) is not in the vocabulary"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_mistake_is_said_when_generate_is_called(model, prompt, options, message, stream):
    with pytest.raises(ConfigError, match=re.escape(message)):
        model.generate(prompt, stream=stream, **options)


# --------------------------------------------------------------------------- the documentation


def test_the_documented_lines_run_in_their_order(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "python.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert len(blocks) >= 5 and "the cat" in capsys.readouterr().out
    assert names["best"] in ("the cat sat", "the cat sad") and len(names["scores"]) == 3
    assert Path("runs/demo").is_dir()
