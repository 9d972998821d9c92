"""Models that were saved without settings, or with objects that nobody needs, are the same models here."""

import json
import os
import pickle
import re
import stat
import sys
import types
from collections import OrderedDict

import pytest
import torch

from tests.support.bitwise import assert_bitwise_equal
from tests.support.golden import GOLDEN, golden, reference_file
from txl.checkpoint.checkpoint_files import read_checkpoint_file
from txl.checkpoint.exchange import export_model, import_model
from txl.errors import ConfigError

ARCHITECTURE = "n_layer n_head d_model d_head d_inner d_embed div_val tie_weight pre_lnorm untie_r".split()


@pytest.fixture
def authors_module(monkeypatch):
    """Classes as the authors' modules define them, which exist only while a model is saved."""
    module = types.ModuleType("mem_transformer")
    for name in ("MemTransformerLM", "RelPartialLearnableMultiHeadAttn", "Part"):
        setattr(module, name, type(name, (torch.nn.Module,), {"__module__": "mem_transformer"}))
    monkeypatch.setitem(sys.modules, "mem_transformer", module)
    return module


def as_module(authors, case, weights):
    """A whole model as the authors' train.py saves it, with these weights."""
    c, model = case["config"], authors.MemTransformerLM()
    made = {"": model}
    for name, tensor in weights.items():
        name = re.sub(r"out_layers_(weight|bias)e?s\.(\d+)", r"out_layers.\2.\1", name)
        *folders, last = name.split(".")
        for depth in range(len(folders)):
            path, parent = ".".join(folders[: depth + 1]), made[".".join(folders[:depth])]
            if path not in made:
                part = authors.Part() if folders[depth] != "dec_attn" else authors.RelPartialLearnableMultiHeadAttn()
                made[path] = part
                parent.add_module(folders[depth], part)
        made[".".join(folders)].register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    for layer in range(c["n_layer"]):
        made[f"layers.{layer}.dec_attn"].pre_lnorm = c["pre_lnorm"]
    made["crit"].cutoffs = [*c["cutoffs"], c["n_token"]]
    model.add_module("drop", torch.nn.Dropout(0.25))
    for key in ("n_token", "n_layer", "n_head", "d_model", "mem_len", "tgt_len", "ext_len", "clamp_len", "same_length"):
        setattr(model, key, c[key])
    return model


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # torch's, of a class without a file
@pytest.mark.parametrize("name", ["base_like", "large_like_div4", "pre_lnorm", "untied"])
@pytest.mark.parametrize("old_format", [False, True])
def test_a_whole_module_is_the_model_that_its_checkpoint_is(name, old_format, authors_module, tmp_path, monkeypatch):
    case, _, weights = golden(GOLDEN / f"{name}.json")
    import_model(reference_file(tmp_path / "checkpoint.pt", case, weights), tmp_path / "expected")
    module = as_module(authors_module, case, weights)
    torch.save(module, tmp_path / "model.pt", _use_new_zipfile_serialization=not old_format)
    monkeypatch.delitem(sys.modules, "mem_transformer")  # nothing of it is there when the file is read
    import_model(tmp_path / "model.pt", tmp_path / "ours")
    expected, ours = (read_checkpoint_file(tmp_path / name, "run.json") for name in ("expected", "ours"))
    for key in ARCHITECTURE:
        assert ours["model"][key] == expected["model"][key], key
    assert ours["train"] == expected["train"] and ours["data"]["cutoffs"] == expected["data"]["cutoffs"]
    assert ours["model"]["dropout"] == 0.25
    assert_bitwise_equal(*(read_checkpoint_file(tmp_path / name, "model.pt") for name in ("ours", "expected")))


def test_weights_alone_are_imported_as_far_as_their_shapes_say_what_they_are(tmp_path):
    case, _, weights = golden(GOLDEN / "large_like_div4.json")
    import_model(reference_file(tmp_path / "checkpoint.pt", case, weights), tmp_path / "expected")
    torch.save(OrderedDict((f"module.{name}", tensor) for name, tensor in weights.items()), tmp_path / "weights.pt")
    report = import_model(tmp_path / "weights.pt", tmp_path / "ours")
    assert any("weights without settings" in line and "assumed" in line for line in report)
    assert_bitwise_equal(*(read_checkpoint_file(tmp_path / name, "model.pt") for name in ("ours", "expected")))
    assert read_checkpoint_file(tmp_path / "ours", "run.json")["data"]["cutoffs"] == case["config"]["cutoffs"]


def test_weights_that_do_not_say_where_clusters_end_or_are_of_another_model_are_one_line(tmp_path):
    _, _, weights = golden(GOLDEN / "base_like.json")
    others = {"a": weights, "b": {"fc.weight": torch.zeros(2, 2)}, "c": {"embedding.tables.0": torch.zeros(2, 2)}}
    said = {"a": "do not say where its 2 clusters", "b": "no weights of a Transformer-XL", "c": "config_file="}
    for name, state in others.items():
        torch.save(state, tmp_path / f"{name}.pt")
        with pytest.raises(ConfigError, match=said[name]) as refused:
            import_model(tmp_path / f"{name}.pt", tmp_path / "ours")
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 300 and not (tmp_path / "ours").exists()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "linear.pt")
    with pytest.raises(ConfigError, match="no Transformer-XL"):
        import_model(tmp_path / "linear.pt", tmp_path / "ours")


def test_a_tokenizer_as_transformers_saves_it_is_read_without_its_objects(tmp_path, monkeypatch):
    """Patterns, objects of other libraries, and tokens that were added beside the vocabulary."""
    path = sorted((GOLDEN.parent / "hugging_face").glob("*.json"))[0]
    case, folder = json.loads(path.read_text()), tmp_path / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(case["config"]))
    (folder / "model.safetensors").write_bytes(path.with_suffix(".safetensors").read_bytes())
    words = ["<eos>", "<unk>", *(f"word{i}" for i in range(2, case["config"]["vocab_size"] - 1))]
    made = {}
    for module, name in (("sacremoses", "MosesTokenizer"), ("tokenizers", "AddedToken")):
        made[name] = type(name, (), {"__module__": module})
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: made[name]}))
    tokens = {0: made["AddedToken"](), 2: made["AddedToken"]()}
    tokens[0].content, tokens[2].content = "<eos>", "<formula>"
    tokenizer = {"punctuation": re.compile("[^\\s]"), "moses_tokenizer": made["MosesTokenizer"](), "idx2sym": words}
    tokenizer |= {"_added_tokens_decoder": tokens, "lower_case": False}
    (folder / "vocab.pkl").write_bytes(pickle.dumps(tokenizer))
    report = import_model(folder, tmp_path / "ours")
    assert any("added tokens that no text becomes: <formula>" in line for line in report)
    assert read_checkpoint_file(tmp_path / "ours", "vocabulary.json")["words"] == [*words, "<formula>"]


def test_our_own_export_comes_back_and_colleagues_can_read_it(tmp_path):
    case, _, weights = golden(GOLDEN / "large_like_div4.json")
    import_model(reference_file(tmp_path / "checkpoint.pt", case, weights), tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "exported", "safetensors")
    allowed = 0o666 & ~_umask()
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "exported").iterdir()} == {allowed}
    import_model(tmp_path / "exported", tmp_path / "again")
    for name in ("model.pt", "vocabulary.json"):
        assert_bitwise_equal(*(read_checkpoint_file(tmp_path / folder, name) for folder in ("ours", "again")))
    config = json.loads((tmp_path / "exported/config.json").read_text())
    (tmp_path / "exported/config.json").write_text(json.dumps(config | {"model": config["model"] | {"d_inner": 99}}))
    with pytest.raises(ConfigError, match="another architecture"):
        import_model(tmp_path / "exported", tmp_path / "changed")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
