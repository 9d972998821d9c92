"""evaluate.py: one number, however it is computed, and every mistake in one line."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.support.entry_points import run
from tests.support.in_process import evaluate_here, train_here
from tests.support.made_data import write_corpus
from tests.support.models import build
from tests.support.tiny_runs import TINY_RUN
from txl.checkpoint.find import CheckpointError
from txl.checkpoint.resolve import resolve_checkpoint
from txl.checkpoint.weights import load_weights
from txl.cli.hydra_main import quote_typed_text
from txl.config.geometry import Geometry
from txl.data.batches import TokenStream
from txl.data.word_vocabulary import WordVocabulary
from txl.errors import ConfigError
from txl.evaluate.exported_program import CachedStep, FixedShapeProgram
from txl.evaluate.kv_cache import CachedTransformerXL
from txl.evaluate.loss import evaluate_stream
from txl.evaluate.typed_text import count_unknown, read_text_argument

TOKENS = np.random.default_rng(0).integers(0, 50, 333)
GEOMETRY = Geometry(7, 20, 0, 9, True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder."""
    folder = tmp_path_factory.mktemp("evaluate")
    overrides = [*write_corpus(folder / "text"), "evaluation.tgt_len=6", "evaluation.mem_len=20", "train.max_step=20"]
    train_here(*TINY_RUN, *overrides, f"run_dir={folder}/run")
    return folder / "run"


def score(trained, tmp_path, *overrides, expect=0):
    """The JSON that evaluate.py writes; run in this process."""
    file = tmp_path / "result.json"
    evaluate_here("hardware=cpu", f"checkpoint={trained}", f"json={file}", *overrides, expect=expect)
    return json.loads(file.read_text())


def stream(batch_size=3, columns=None, geometry=GEOMETRY):
    lengths = {"ext_len": geometry.ext_len, "warmup_len": geometry.mem_len}
    return TokenStream(TOKENS, batch_size, geometry.tgt_len, columns=columns, **lengths)


def test_the_mean_is_over_the_counted_tokens_after_the_memory_was_warmed():
    model, nats, mems = build(), [], []
    for index in range(stream().n_batches):
        batch = stream().batch(1, index)
        with torch.no_grad():
            hidden, mems = model(batch.input, mems, GEOMETRY)
            if batch.counted:
                nats += model.loss(hidden, batch.target).flatten().tolist()
    result = evaluate_stream(model, stream(), GEOMETRY, 3)
    assert result.tokens == len(nats) == 3 * (333 // 3 - 1)
    assert result.loss == pytest.approx(np.mean(nats), rel=1e-12)


def test_every_runtime_and_every_way_to_gather_losses_gives_the_same_number():
    model, latencies = build(), []
    expected = evaluate_stream(model, stream(), GEOMETRY, 3).loss
    others = {
        "cached": evaluate_stream(CachedTransformerXL(model), stream(), GEOMETRY, 3),
        "segment by segment": evaluate_stream(model, stream(), GEOMETRY, 3, latencies=latencies),
        "twice": evaluate_stream(model, stream(), GEOMETRY, 3, repeat=2),
        "a step with fixed shapes": evaluate_stream(
            FixedShapeProgram(step := CachedStep(model, GEOMETRY), step), stream(), GEOMETRY, 3
        ),
    }
    for name, result in others.items():
        assert result.loss == pytest.approx(expected, rel=1e-10), name
    assert len(latencies) == stream().n_batches - stream().n_warmup
    assert others["twice"].tokens == 2 * others["cached"].tokens


def test_columns_of_several_ranks_add_up_to_the_whole():
    model = build()
    parts = [evaluate_stream(model, stream(columns=columns), GEOMETRY, 3) for columns in (range(0, 1), range(1, 3))]
    tokens = sum(part.tokens for part in parts)
    assert sum(part.loss * part.tokens for part in parts) / tokens == pytest.approx(
        evaluate_stream(model, stream(), GEOMETRY, 3).loss, rel=1e-12
    )


def test_max_steps_counts_segments_after_the_warming():
    assert evaluate_stream(build(), stream(), GEOMETRY, 3, max_steps=2).tokens == 2 * 3 * 7


def test_the_published_evaluation_is_the_default_and_stands_beside_the_result(trained, tmp_path, capsys):
    result = score(trained, tmp_path)
    first, lengths, time, rule, line, *_ = capsys.readouterr().out.splitlines()
    assert first == "Evaluating with math fp32 type cached bsz 16"
    assert lengths == "  tgt_len 6 ext_len 0 mem_len 20 clamp_len -1 same_length false"
    assert time.startswith("Time : ") and time.endswith("ms/segment") and rule == "=" * 79
    loss, bpc = result["test"]["loss"], result["test"]["bpc"]
    assert line == f"| test loss {loss:5.2f} | test bpc {bpc:9.5f}"
    assert result["test"]["geometry"]["mem_len"] == 20


@pytest.mark.parametrize("runtime", ["cached", "torchscript"])
def test_two_processes_give_the_same_number_as_one(trained, tmp_path, runtime):
    overrides = ["precision=fp64", "batch_size=5", "split=all"]
    one = score(trained, tmp_path, *overrides)
    overrides += ["hardware=cpu", "gpus=2", f"checkpoint={trained}", "json=two.json", f"runtime={runtime}"]
    run("evaluate.py", *overrides, cwd=tmp_path)
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["world_size"] == 2
    for split in ("valid", "test"):
        assert two[split]["tokens"] == one[split]["tokens"]
        assert two[split]["loss"] == pytest.approx(one[split]["loss"], rel=1e-12)


def test_latencies_are_saved_without_a_pickle_and_missed_targets_set_the_exit_code(trained, tmp_path, capsys):
    overrides = ["latency=true", f"npz={tmp_path}/times.npz", "runtime=torchscript", "target_perplexity=1"]
    overrides.append("target_throughput=1e12")
    result = score(trained, tmp_path, *overrides, f"program={tmp_path}/step.ts", expect=3)
    said = capsys.readouterr().out
    expected = ("Throughput Avg: ", "Latency Avg: ", "Latency 50%: ", "Latency 99%: ")
    expected += ("target_perplexity=1 was missed", "target_throughput=1e+12 was missed")
    for line in expected:
        assert line in said
    assert (np.load(tmp_path / "times.npz")["latency_seconds"] > 0).all()
    eager = score(trained, tmp_path, "runtime=eager")
    assert result["test"]["loss"] == pytest.approx(eager["test"]["loss"], rel=1e-5)


def test_a_typed_text_is_evaluated_token_by_token(trained, tmp_path, capsys):
    result = score(trained, tmp_path, "text=the cat sat", "token_losses=true")
    table = result["text"]["token_losses"]
    assert "".join(token for token, _ in table) == "he cat sat"
    assert result["text"]["loss"] == pytest.approx(np.mean([loss for _, loss in table]), rel=1e-5)
    assert "10 tokens predicted, 0 unknown of 11" in capsys.readouterr().out


PROSE = [
    "Well, (what) ${now}? {a: b} [c] d=e",
    'He said "yes, no"',
    "it's \\\\ one\nor two\\",
    "\\${a}",
    "3.5",
    "true",
    "-",
]


@pytest.mark.parametrize("text", PROSE)
def test_a_typed_text_means_what_it_says_whatever_hydra_makes_of_commas_and_brackets(text):
    for key in ("text", "prompt"):
        override = OverridesParser.create().parse_override(quote_typed_text(f"{key}={text}"))
        cfg = OmegaConf.create({key: override.value()})
        assert OmegaConf.to_container(cfg, resolve=True) == {key: text}
    assert quote_typed_text("text=null") == "text=null" and quote_typed_text("split=[valid]") == "split=[valid]"
    assert quote_typed_text('text="as before"') == 'text="as before"'


def test_a_text_comes_from_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a b\n"))
    assert read_text_argument("text", "-") == "a b\n" and read_text_argument("text", "a" * 5000) == "a" * 5000
    with pytest.raises(ConfigError, match="the text is empty"):
        read_text_argument("text", " \n")


@pytest.mark.parametrize(("key", "remedy"), [("text", "task=score file=FILE"), ("prompt", "prompts=FILE")])
def test_the_name_of_a_file_is_not_taken_for_a_text(key, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a\n")
    with pytest.raises(
        ConfigError, match=f"{key}=prompts.txt is the name of a file, .* write {remedy}, or {key}=- < p"
    ):
        read_text_argument(key, "prompts.txt")


def test_typed_words_are_separated_as_in_wikitext_and_unknown_ones_counted():
    vocab = WordVocabulary(["<eos>", "<unk>", "a", "@-@", "b", "."])
    ids = vocab.encode_typed("a-b zebra.\na", end_line=True)
    assert ids.tolist() == [2, 3, 4, 1, 5, 0, 2, 0] and count_unknown(ids, vocab) == 1
    assert vocab.encode_typed("a", end_line=False).tolist() == [2]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["batch_size=500"], "batch_size=500 with tgt_len=6 needs"),
        (["tgt_len=0"], "tgt_len=0 must be above 0"),
        (["mem_len=-1"], "mem_len=-1 must be 0 or more"),
        (["mem_len=0", "same_length=true"], "same_length=true needs a memory"),
        (["text=' '"], "text='' is empty"),
        (["text=a"], "text='a' has one token"),
        (["ext_len=2", "runtime=cached"], "ext_len=2 needs runtime=eager"),
        (["task=generate"], "task=generate needs a beginning"),
        (["task=generate", "prompt=a", "top_p=0"], "top_p=0.* must be above 0"),
        (["precision=fp16"], "precision=fp16 needs a GPU"),
        (["runtime=graphs"], "runtime=graphs needs a GPU; use runtime=cached"),
        (["task=generate", "prompt=a", "runtime=export"], "runtime=export reads whole segments"),
        (["runtime=cached", "program=step.pt2"], "program=step.pt2 needs runtime=torchscript or export"),
    ],
)
def test_a_mistake_is_named_with_its_rule(trained, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        score(trained, tmp_path, *overrides)


def test_a_mistake_is_one_line(trained, tmp_path):
    done = run("evaluate.py", f"checkpoint={trained}", "runtime=foo", cwd=tmp_path, expect=2)
    assert done.stderr.startswith("error: runtime=foo must be one of auto, eager") and done.stderr.count("\n") == 1


def test_a_checkpoint_of_something_else_is_named(trained, tmp_path):
    (tmp_path / "checkpoint_best.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="txl import .*checkpoint_best.pt FOLDER"):
        resolve_checkpoint(tmp_path / "checkpoint_best.pt")
    other = build(n_layer=3).state_dict()
    with pytest.raises(CheckpointError, match="another architecture: it has no layers.2"):
        load_weights(build(n_layer=3), build().state_dict(), "best")
    with pytest.raises(CheckpointError, match="layers.2.*is not part of this model"):
        load_weights(build(), other, "best")
    with pytest.raises(CheckpointError, match="another architecture or vocabulary: .*this model needs"):
        load_weights(build(d_model=8, d_inner=8), build(d_inner=16).state_dict(), "best")


def test_data_with_another_vocabulary_is_refused(trained, tmp_path):
    train = trained.parent / "text" / "train.txt"
    kept = train.read_text()
    train.write_text(kept + "@\n")
    try:
        with pytest.raises(ConfigError, match="was trained with another vocabulary"):
            score(trained, tmp_path)
    finally:
        train.write_text(kept)


def test_data_that_changed_since_the_training_are_noticed(trained, tmp_path, capsys):
    test = trained.parent / "text" / "test.txt"
    kept = test.read_text()
    before = score(trained, tmp_path)["data"]
    assert before["fingerprint"] == before["trained_on"] and "changed since" not in capsys.readouterr().out
    test.write_text(kept + "the cat\n")
    try:
        now = score(trained, tmp_path)["data"]
    finally:
        test.write_text(kept)
    assert now["trained_on"] == before["trained_on"] != now["fingerprint"]
    said = capsys.readouterr().out
    assert f"fingerprint is {now['fingerprint']}, the checkpoint was trained on {now['trained_on']}" in said
    assert score(trained, tmp_path, "text=the cat sat").get("data") is None  # a typed text is no data set


def test_a_damaged_checkpoint_is_refused(trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree((trained / "checkpoints" / "best").resolve(), copy)
    (copy / "model.pt").write_bytes((copy / "model.pt").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged: model.pt"):
        score(copy, tmp_path)


def test_ext_len_is_evaluated_by_the_eager_runtime():
    geometry = replace(GEOMETRY, ext_len=3, mem_len=0, same_length=False)
    result = evaluate_stream(build(), stream(geometry=geometry), geometry, 3)
    assert result.tokens == 330
