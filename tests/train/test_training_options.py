"""Options with a small home: each does what it says, in a real run on tiny data."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.support.configurations import composed
from tests.support.entry_points import run
from tests.support.in_process import evaluate_here, train_here
from tests.support.made_data import write_corpus
from tests.support.models import model_config
from tests.support.tiny_runs import TINY_RUN, metrics
from txl.checkpoint.checkpoint_files import read_checkpoint_file, read_memory_columns
from txl.checkpoint.exchange import export_model
from txl.checkpoint.resolve import resolve_checkpoint
from txl.config.model import Init
from txl.errors import ConfigError
from txl.model.transformer import TransformerXL
from txl.train import optimizer_step
from txl.train.memories import BatchMemories
from txl.train.train_state import seed_everything

FOUR_STEPS = ["train.max_step=4", "scheduler.warmup_step=1"]


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train in this process: overrides -> the run folder."""
    monkeypatch.chdir(tmp_path)
    shared = [*write_corpus(tmp_path / "text"), *TINY_RUN, *FOUR_STEPS]
    names = iter("abcdefgh")

    def start(*overrides, expect=0):
        run_dir = tmp_path / next(names)
        train_here(*shared, f"run_dir={run_dir}", *overrides, expect=expect)
        return run_dir

    return start


def weights(run_dir, name="last"):
    return read_checkpoint_file((run_dir / "checkpoints" / name).resolve(), "model.pt")


def step_losses(run_dir):
    return [record["loss"] for record in metrics(run_dir)]


@pytest.mark.parametrize("same_length", ["false", "true"])
def test_steps_before_mem_from_step_read_every_segment_without_memory(train, capsys, same_length):
    without, always = step_losses(train("train.mem_len=0")), step_losses(train())
    capsys.readouterr()
    later = step_losses(train("train.mem_from_step=2", f"train.same_length={same_length}"))
    assert "From here on the memory is used" in capsys.readouterr().out
    assert later[:2] == without[:2] != always[:2]
    assert later[3] != without[3]  # the third step begins the memory, as the first one of a training does


def test_memory_that_begins_at_once_changes_nothing_and_one_that_never_begins_is_none(train, capsys):
    assert step_losses(train("train.mem_from_step=0")) == step_losses(train())
    assert step_losses(train("train.mem_from_step=9")) == step_losses(train("train.mem_len=0"))
    assert "the memory is used" not in capsys.readouterr().out


# --------------------------------------------------------------------------- multi-token prediction


def test_the_weight_of_the_token_after_the_next_falls_in_a_line_to_zero():
    config = composed("train.multi_token_weight=0.5", "train.multi_token_steps=4").train
    assert [config.multi_token_weight_at(step) for step in range(6)] == [0.5, 0.375, 0.25, 0.125, 0.0, 0.0]
    assert composed().train.multi_token_weight_at(0) == 0.0


def test_multi_token_prediction_is_the_same_in_parts_and_when_it_goes_on(train):
    option = ["train.multi_token_weight=0.5", "train.multi_token_steps=3", "model.dropout=0"]
    whole, plain = train(*option), step_losses(train("model.dropout=0"))
    assert step_losses(whole)[0] == plain[0]  # what is logged is the loss of the next token
    assert step_losses(whole)[1] != plain[1]
    in_parts = step_losses(train(*option, "train.grad_accum_steps=2"))
    assert in_parts == pytest.approx(step_losses(whole), rel=1e-5)
    half = train(*option, "train.max_step=2", "scheduler.max_step=4")
    rest = train(*option, "scheduler.max_step=4", f"resume={half}/checkpoints/last")
    assert all(torch.equal(value, weights(rest)[name]) for name, value in weights(whole).items())


# --------------------------------------------------------------------------- memories on the host


class Swapped(BatchMemories):
    """As on a GPU."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.swap = True


def test_memories_that_wait_on_the_host_change_nothing(train, monkeypatch):
    chunks = ["train.grad_accum_steps=2", "model.dropout=0.1", "train.max_step=6"]
    straight = train(*chunks, "train.swap_mem=true")  # on a CPU they are on the host anyway
    monkeypatch.setattr(optimizer_step, "BatchMemories", Swapped)
    half = train(*chunks, "train.max_step=3", "scheduler.max_step=6")
    rest = train(*chunks, "scheduler.max_step=6", f"resume={half}/checkpoints/last")
    mems = [read_memory_columns((path / "checkpoints/last").resolve(), range(8)) for path in (straight, rest)]
    assert torch.equal(*mems)
    assert all(torch.equal(value, weights(rest)[name]) for name, value in weights(straight).items())


def test_swapped_memories_are_copies_in_buffers_that_are_used_again():
    memories = Swapped(2, 1, torch.device("cpu"))
    device = [torch.randn(1, 3, 4) for _ in range(2)]
    memories.set(0, device)
    memories.set(1, device)
    first = memories.get(0)
    assert torch.equal(first[1], device[1]) and first[1].data_ptr() != device[1].data_ptr()
    memories.set(0, [mem + 1 for mem in device])
    assert memories.get(0)[0].data_ptr() == first[0].data_ptr()
    merged = memories.to_tensor()
    assert merged.shape == (2, 2, 3, 4)
    other = BatchMemories(1, 2, torch.device("cpu"))
    other.load_tensor(merged)
    assert torch.equal(other.to_tensor(), merged)
    other.load_tensor(None)
    assert other.to_tensor() is None


# --------------------------------------------------------------------------- no validation, no trace


def test_without_validation_a_run_only_trains_and_saves(train):
    run_dir = train("valid.enabled=false", "valid.interval=2", "checkpoint.interval=3")
    kinds = {json.loads(line)["kind"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()}
    assert kinds == {"train"}
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["best_valid_loss"] is None and "test" not in summary
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"step_3", "step_4", "last"}
    assert resolve_checkpoint(run_dir).name == "step_4"  # what evaluate.py then reads


def files_below(folder):
    return {path for path in folder.rglob("*") if path.is_file() and "text" not in path.parts}


@pytest.mark.parametrize("started_by", ["train.py", "torchrun"])
def test_debug_trains_and_leaves_nothing(train, started_by, tmp_path, capsys, monkeypatch):
    if started_by == "torchrun":
        for key, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1")):
            monkeypatch.setenv(key, value)
    train("debug=true", "valid.interval=2", "checkpoint.interval=1", "resume=auto")
    said = capsys.readouterr().out
    assert "run folder   none: debug=true" in said and "Test at step 4 | " in said
    assert "Run folder:" not in said and files_below(tmp_path) == set()


def test_debug_with_two_processes_leaves_nothing(tmp_path):
    two = ["gpus=2", "train.local_batch_size=3"]
    data = write_corpus(tmp_path / "text")
    done = run("train.py", *data, *TINY_RUN, *FOUR_STEPS, *two, "debug=true", cwd=tmp_path)
    for said in ("batch        6 sequences", "Test at step 4 |", "Training time"):
        assert said in done.stdout
    assert files_below(tmp_path) == set()


# --------------------------------------------------------------------------- the original's metrics


def dll_lines(file):
    """The JSON of every line, as the original's readers take it apart."""
    lines = file.read_text().splitlines()
    assert all(line.startswith("DLLL {") for line in lines)
    return [json.loads(line.removeprefix("DLLL ")) for line in lines]


def test_dllogger_file_has_the_originals_lines_and_no_step_twice(train):
    half = train("tracking.dllogger=train_log.json", "train.max_step=3", "scheduler.max_step=4", "valid.interval=2")
    file = half / "train_log.json"
    file.write_text(file.read_text() + "DLLL {torn")
    again = ["resume=auto", f"run_dir={half}", "train.max_step=4", "scheduler.max_step=4", "valid.interval=2"]
    train(*again, "tracking.dllogger=train_log.json")
    lines = dll_lines(file)
    assert all(set(line) == {"timestamp", "datetime", "elapsedtime", "type", "step", "data"} for line in lines)
    steps = [line["step"] for line in lines]
    assert steps == ["PARAMETER", [1], [2], [2], [3], [3], "PARAMETER", [4], [4], []]
    assert lines[0]["data"]["train"]["max_step"] == 3 and float(lines[1]["timestamp"]) > 1.6e9
    trained, valid, end = lines[1]["data"], lines[3]["data"], lines[-1]["data"]
    assert list(trained) == [
        "epoch", "train_batch", "lr", "train_time/batch", "train_throughput", "train_loss", "train_bits_per_character",
    ]  # fmt: skip
    assert trained["train_loss"] == metrics(half)[0]["loss"]
    assert list(valid) == ["valid_elapsed", "valid_loss", "valid_bits_per_character"]
    assert valid["valid_loss"] == metrics(half, "valid")[0]["loss"]
    summary = json.loads((half / "summary.json").read_text())
    assert end["test_loss"] == summary["test"]["loss"] and end["train_elapsed"] == summary["train_seconds"] / 60
    assert end["valid_loss"] == summary["best_valid_loss"] and end["train_throughput"] == summary["tokens_per_second"]


def evaluated(*overrides):
    """What `python evaluate.py` writes to result.json; run in this process."""
    evaluate_here("hardware=cpu", "json=result.json", *overrides)
    return json.loads(Path("result.json").read_text())


def test_an_evaluation_speaks_on_the_way_and_in_the_originals_lines(train, capsys):
    run_dir = train("evaluation.mem_len=16")
    options = ["tgt_len=8", "batch_size=4", "runtime=eager", "log_interval=4", "log=eval_log.log", "latency=true"]
    options += ["percentiles=[90,99.9]", "dllogger=eval_log.json"]
    Path("eval_log.json").write_text("of another evaluation")
    result = evaluated(f"checkpoint={run_dir}", *options)
    said = Path("eval_log.log").read_text()
    assert said in capsys.readouterr().out
    steps = [line for line in said.splitlines() if line.startswith("| batch ")]
    parameters, *on_the_way, end = dll_lines(Path("eval_log.json"))
    segments = result["test"]["tokens"] // 32
    assert len(steps) == len(on_the_way) == (segments + 1) // 4 and "| loss " in steps[-1] and "| bpc " in steps[-1]
    assert parameters["step"] == "PARAMETER" and [line["step"] for line in on_the_way][:2] == [[4], [8]]
    assert list(on_the_way[0]["data"]) == ["eval_latency", "eval_throughput", "eval_loss", "eval_bits_per_character"]
    assert end["step"] == [] and end["data"]["eval_loss"] == result["test"]["loss"]
    assert list(end["data"])[3:] == ["eval_avg_latency", "eval_90%_latency", "eval_99.9%_latency"]
    assert "Latency 99.9%: " in said and "Latency 50%" not in said
    losses = [line["data"]["eval_loss"] for line in on_the_way]
    assert min(losses) <= result["test"]["loss"] <= max(losses)


def test_weights_alone_are_evaluated_with_the_configuration_given_for_them(train):
    run_dir = train()
    expected = evaluated(f"checkpoint={run_dir}")["test"]["loss"]
    torch.save(weights(run_dir, "best"), "weights.pt")
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    parts = {name: config[name] for name in ("model", "data", "train", "evaluation")}
    Path("described.json").write_text(json.dumps(parts))
    data = [f"data.{name}={value}" for name, value in config["data"].items() if name in ("train", "valid", "test")]
    data += ["data=text", "data.vocab=char", f"data.cache={config['data']['cache']}"]
    printed = run("train.py", *TINY_RUN, *FOUR_STEPS, *data, "--cfg", "job", "--resolve", cwd=Path.cwd()).stdout
    Path("printed.yaml").write_text(printed)
    pairs = [("weights.pt", "described.json"), ("weights.pt", "printed.yaml"), (run_dir, "described.json")]
    for weights_file, file in pairs:
        assert evaluated(f"checkpoint={weights_file}", f"config_file={file}")["test"]["loss"] == expected
    export_model(run_dir, Path("exported"), "safetensors")
    shutil.rmtree("text/cache")  # the vocabulary lies beside the weights
    both = ["checkpoint=exported/model.safetensors", "config_file=exported/config.json"]
    assert evaluated(*both, "text=the cat sat")["text"]["tokens"] == 10
    assert not Path("text/cache").exists()


def test_an_evaluation_finds_the_text_where_it_was_moved(train):
    names = [f"data.{split}={split}.txt" for split in ("train", "valid", "test")]
    run_dir = train("data.path=text", "data.cache=cache", *names, "train.max_step=2")
    expected = evaluated(f"checkpoint={run_dir}")["test"]["loss"]
    shutil.move("text", "moved")
    assert evaluated(f"checkpoint={run_dir}", "data_path=moved")["test"]["loss"] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts.pop("data"), "has no section data; give the configuration of a run"),
        (lambda parts: parts["model"].update(n_layer=3), "holds another architecture: it has no layers.2"),
        (lambda parts: parts["model"].update(n_layr=3), "model.n_layr is not an option; did you mean n_layer?"),
        (lambda parts: parts["model"].update(n_layer=0), "model.n_layer=0 must be above 0"),
        (lambda parts: parts["model"].update(n_layer="${x}"), "model refers to other keys; write it with --cfg job"),
        (lambda parts: parts["train"].pop("tgt_len"), "train.tgt_len has no value"),
        (lambda parts: parts.clear(), "has no section model"),
    ],
)
def test_a_configuration_that_does_not_describe_the_weights_is_refused(train, change, message):
    run_dir = train("valid.enabled=false", "train.max_step=2")
    parts = yaml.safe_load((run_dir / "config.yaml").read_text())
    change(parts)
    Path("described.yaml").write_text(yaml.safe_dump(parts))
    torch.save(weights(run_dir), "weights.pt")
    with pytest.raises(ConfigError, match=re.escape(message)):
        evaluated("checkpoint=weights.pt", "config_file=described.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["percentiles=[101]"], "percentiles=[101.0] must be numbers from 0 to 100"),
        (["log_interval=0"], "log_interval=0 must be above 0"),
        (["log=nowhere/a.log"], "log=nowhere/a.log: there is no folder nowhere; make it"),
        (["config_file=absent.yaml"], "config_file=absent.yaml cannot be read"),
    ],
)
def test_an_option_of_an_evaluation_that_cannot_work_is_refused_before_any_work(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        evaluated("checkpoint=x", *overrides)


# --------------------------------------------------------------------------- names, logs, lengths


def test_data_set_and_time_may_be_part_of_a_runs_name(tmp_path):
    name = "name='lm-${data.name}-${now:%Y%m%d-%H%M%S}'"
    done = run("train.py", "model=small", "data=ptb", "hardware=cpu", name, "dry_run=true", cwd=tmp_path)
    folder = done.stdout.splitlines()[0].split()[-1]
    day, clock = folder.split("/")[1].removeprefix("lm-ptb-").split("-")
    assert len(day) == 8 and len(clock) == 6 and (day + clock).isdigit()


def test_validation_may_read_a_part_and_the_curve_may_be_longer_than_the_run(train):
    run_dir = train("valid.max_steps=2", "scheduler.max_step=40", "scheduler.warmup_step=0", "optimizer.lr=0.01")
    assert [record["tokens"] for record in metrics(run_dir, "valid")] == [2 * 4 * 8]
    low = composed(*TINY_RUN, "data=ptb").scheduler.eta_min
    expected = [low + (0.01 - low) * (1 + math.cos(math.pi * step / 40)) / 2 for step in (1, 2, 3, 4)]
    assert [record["lr"] for record in metrics(run_dir)] == pytest.approx(expected)
    assert not (run_dir / "environment.json").exists()  # tracking.environment=false


def test_a_training_that_misses_its_targets_ends_with_code_3(train, capsys):
    train("train.target_throughput=1e12", "train.target_perplexity=1.5", expect=3)
    said = capsys.readouterr().out
    assert "train.target_throughput=1e+12 was missed" in said
    assert "train.target_perplexity=1.5 was missed: test bpc" in said
    train("train.target_throughput=1e-3", "train.target_perplexity=99")


def test_clip_nonemb_leaves_the_embeddings_gradient_alone(train):
    plain = ["optimizer=sgd", "optimizer.lr=1", "scheduler=constant", "scheduler.warmup_step=0", "train.max_step=1"]
    plain += ["scheduler.eta_min=0", "model.dropout=0"]
    run_dir = train(*plain, "train.clip=1e-12", "train.clip_nonemb=true")
    config = composed(*TINY_RUN, "data=ptb", *plain)
    seed_everything(config.seed)
    after = weights(run_dir)
    before = TransformerXL(config.model, len(after["embedding.tables.0"]), [], 16).state_dict()
    moved = {name for name, value in after.items() if (value - before[name]).abs().max() > 1e-6}
    assert moved == {"embedding.tables.0"}


def test_a_model_with_unigram_biases_begins_at_the_entropy_of_the_tokens_and_resumes_bitwise(train, tmp_path):
    straight = train("model.bias_init=unigram", "train.max_step=8", "scheduler.max_step=8")
    text = (tmp_path / "text/train.txt").read_text()
    shares = [text.count(character) / len(text) for character in set(text)]
    entropy = -sum(share * math.log(share) for share in shares)
    assert metrics(straight)[0]["loss"] == pytest.approx(entropy, abs=0.1) and entropy < math.log(len(shares)) - 0.2
    broken = train("model.bias_init=unigram", "train.max_step=4", "scheduler.max_step=8")
    train_here(*write_corpus(tmp_path / "text"), *TINY_RUN, *FOUR_STEPS, "model.bias_init=unigram", "train.max_step=8",
               "scheduler.max_step=8", f"run_dir={broken}", "resume=auto")  # fmt: skip
    assert [r["loss"] for r in metrics(broken)] == [r["loss"] for r in metrics(straight)]


def test_uniform_initial_values_stay_in_their_ranges_and_fill_them():
    config = model_config(init=Init.uniform, init_range=0.3, emb_init=Init.uniform, emb_init_range=0.02, div_val=2)
    model = TransformerXL(config, 300, [20, 100], 16)
    for name, value in model.state_dict().items():
        bound = 0.02 if name.startswith("embedding.tables") else 0.3
        if "norm" not in name and "projections" not in name and value.numel() > 100 and value.any():
            assert 0.9 * bound < value.abs().max() <= bound, name
            assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15), name
    assert model.embedding.projections[0].std().item() == pytest.approx(config.proj_init_std, rel=0.3)
