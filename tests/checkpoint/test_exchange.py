"""Models of the reference and of Hugging Face are the same models here, and go back bit by bit."""

import contextlib
import json
import os
import pickle
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.golden import (
    GOLDEN,
    MODELS,
    close,
    golden,
    load_model,
    model_config,
    reference_file,
    segment_losses,
)
from txl.checkpoint.__main__ import main
from txl.checkpoint.checkpoint_files import read_checkpoint_file
from txl.checkpoint.exchange import export_model, import_model
from txl.checkpoint.reference_format import from_reference, to_reference
from txl.checkpoint.torch_file import load_torch_file
from txl.config.compose import from_dict
from txl.config.geometry import Geometry
from txl.config.model import ModelConfig
from txl.errors import ConfigError
from txl.evaluate.load_model import load_trained_model

HUGGING_FACE = sorted((Path(__file__).parents[1] / "hugging_face").glob("*.json"))


class Malicious:
    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_reference_to_ours_to_reference_is_bitwise_the_same(path):
    case, _, weights = golden(path)
    config = model_config(case["config"])
    again = to_reference(from_reference(weights, config), config)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("name", ["base_like", "large_like_div4", "attn_shaw"])
def test_a_reference_checkpoint_is_imported_evaluated_and_exported(name, tmp_path, capsys):
    case, tensors, weights = golden(GOLDEN / f"{name}.json")
    source = reference_file(tmp_path / "checkpoint_best.pt", case, weights)
    assert main(["import", str(source), str(tmp_path / "ours")]) == 0
    report = capsys.readouterr().out
    assert "parameters, vocabulary 120" in report
    n_layer, width = case["config"]["n_layer"], case["config"]["n_head"] * case["config"]["d_head"]
    shape = f"{n_layer} of {3 * width}x{case['config']['d_model']}"
    assert f"  layers.#.dec_attn.qkv_net.weight -> layers.#.attention.qkv.weight: {shape}\n" in report
    loaded = load_trained_model(str(tmp_path / "ours"), torch.device("cpu"), torch.float64)
    c = case["config"]
    lengths = Geometry(*(c[key] for key in ("tgt_len", "mem_len", "ext_len", "clamp_len", "same_length")))
    with torch.no_grad():
        losses, _ = segment_losses(loaded.model, tensors["stream"], lengths, case["segments"])
    close(torch.stack(losses), tensors["train/mean_loss_per_segment"])
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "back.pt")]) == 0
    back = load_torch_file(tmp_path / "back.pt")
    assert back["model_state"].keys() == weights.keys()
    assert all(torch.equal(back["model_state"][name], tensor) for name, tensor in weights.items())
    assert main(["import", str(tmp_path / "back.pt"), str(tmp_path / "again")]) == 0
    assert load_trained_model(str(tmp_path / "again"), torch.device("cpu")).vocab.words == loaded.vocab.words
    assert load_model(case, tensors)


def test_export_to_safetensors_and_json(tmp_path):
    case, _, weights = golden(GOLDEN / "base_like.json")
    import_model(reference_file(tmp_path / "c.pt", case, weights), tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "open", "safetensors")
    state = load_file(tmp_path / "open" / "model.safetensors")
    expected = read_checkpoint_file(tmp_path / "ours", "model.pt")
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    values = json.loads((tmp_path / "open" / "config.json").read_text())
    assert from_dict(values["model"], ModelConfig).n_layer == case["config"]["n_layer"]


def hugging_face_folder(folder: Path, case: dict, state: dict) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(case["config"]))
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("path", HUGGING_FACE, ids=lambda path: path.stem)
def test_hugging_face_models_have_the_same_losses(path, tmp_path):
    """The files hold what transformers 4.35.2 initialised and computed. It starts with a memory of zeros."""
    case, state = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    report = import_model(hugging_face_folder(tmp_path / "theirs", case, state), tmp_path / "ours")
    names = [line.split(" -> ")[0].strip() for line in report if " -> " in line]
    patterns = [re.escape(name.removeprefix("transformer.")).replace(r"\#", r"\d+") for name in names]
    assert len(names) > 15 and all(any(re.search(f"(^|\\.){p}$", name) for name in state) for p in patterns)
    loaded = load_trained_model(str(tmp_path / "ours"), torch.device("cpu"))
    e = loaded.evaluation
    geometry = Geometry(case["tgt_len"], e.mem_len, 0, e.clamp_len, e.same_length)
    stream = torch.tensor(case["stream"])
    mems = [torch.zeros(len(stream), e.mem_len, loaded.model.d_model) for _ in loaded.model.layers]
    for segment, expected in zip(stream.split(case["tgt_len"], dim=1), case["losses"], strict=True):
        with torch.no_grad():
            hidden, mems = loaded.model(segment, mems, geometry)
            ours = loaded.model.loss(hidden[:, :-1], segment[:, 1:])
        expected = torch.tensor(expected).flatten()  # grouped by cluster there, so their order says nothing
        torch.testing.assert_close(ours.flatten().sort().values, expected.sort().values, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's, of pickles that torch did not write
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path):
    case, _, weights = golden(GOLDEN / "base_like.json")
    source = reference_file(tmp_path / "c.pt", case, weights, optimizer_state=Malicious(tmp_path / "executed"))
    with pytest.raises(ConfigError, match="not safe to read: it names posix.system, which no checkpoint needs"):
        import_model(source, tmp_path / "ours")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "executed")))
    with pytest.raises(ConfigError, match="not safe to read"):
        import_model(tmp_path / "raw.pt", tmp_path / "ours")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "ours").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's, of pickles that torch did not write
@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no checkpoint, or damaged"),
        (b"not a checkpoint at all", "no checkpoint, or damaged"),
        (pickle.dumps({"a": 1}), "holds no model_config"),
    ],
)
def test_a_foreign_or_corrupt_file_is_named(content, message, tmp_path):
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        import_model(tmp_path / "c.pt", tmp_path / "ours")
    with pytest.raises(ConfigError, match="cannot be read"):
        import_model(tmp_path / "absent.pt", tmp_path / "ours")


def test_a_vocabulary_of_another_size_and_a_missing_tensor_are_named(tmp_path):
    case, _, weights = golden(GOLDEN / "base_like.json")
    smaller = dict(case, config=case["config"] | {"n_token": 100})
    with pytest.raises(ConfigError, match="softmax.biases.0|embedding.tables.0"):
        import_model(reference_file(tmp_path / "c.pt", smaller, weights), tmp_path / "ours")
    less = {name: tensor for name, tensor in weights.items() if name != "crit.cluster_bias"}
    with pytest.raises(ConfigError, match="it has no softmax.cluster_bias"):
        import_model(reference_file(tmp_path / "d.pt", case, less), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


BAD_VALUES = [None, "x", -1, 0, 10**12, 1.5, [], {}, [10**9], True]


@pytest.mark.parametrize("value", BAD_VALUES, ids=str)
def test_a_bad_setting_of_the_reference_is_one_line(value, tmp_path):
    case, _, weights = golden(GOLDEN / "base_like.json")
    for key in case["config"]:
        bad = dict(case, config=case["config"] | {key: value})
        source = reference_file(tmp_path / "c.pt", bad, weights, words=120)
        shutil.rmtree(tmp_path / "ours", ignore_errors=True)
        with contextlib.suppress(ConfigError), one_line():
            import_model(source, tmp_path / "ours")


@pytest.mark.parametrize("value", BAD_VALUES, ids=str)
def test_a_bad_setting_of_hugging_face_is_one_line(value, tmp_path):
    path = HUGGING_FACE[0]
    case, state = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    folder = hugging_face_folder(tmp_path / "theirs", case, state)
    for key in case["config"]:
        (folder / "config.json").write_text(json.dumps(case["config"] | {key: value}))
        shutil.rmtree(tmp_path / "ours", ignore_errors=True)
        with contextlib.suppress(ConfigError), one_line():
            import_model(folder, tmp_path / "ours")


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"[" * 100_000, b"\xff", b"{}"])
def test_a_bad_config_or_weights_file_of_hugging_face_is_one_line(content, tmp_path):
    path = HUGGING_FACE[0]
    case, state = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    folder = hugging_face_folder(tmp_path / "theirs", case, state)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ConfigError), one_line():
        import_model(folder, tmp_path / "ours")
    (folder / "config.json").write_text(json.dumps(case["config"]))
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="no safetensors file, or damaged"), one_line():
        import_model(folder, tmp_path / "ours")


@contextlib.contextmanager
def one_line():
    """Nothing, or a ConfigError of one short line."""
    began = time.monotonic()
    try:
        yield
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        raise
    finally:
        assert time.monotonic() - began < 20
