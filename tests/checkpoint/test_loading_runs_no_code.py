"""Files from elsewhere run no code when they are read, and take no more memory or time than their size suggests."""

import os
import pickle
import re
import shutil
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch

from tests.support.golden import GOLDEN, golden, reference_file
from tests.support.hostile_files import torchscript_that_writes
from tests.support.in_process import evaluate_here
from tests.support.models import build
from txl.checkpoint.__main__ import main
from txl.checkpoint.checkpoint_files import read_checkpoint_file
from txl.checkpoint.exchange import import_model
from txl.checkpoint.torch_file import load_torch_file
from txl.config.geometry import Geometry
from txl.config.schema import Runtime
from txl.errors import ConfigError
from txl.evaluate.exported_program import CachedStep, make_program

PACKAGE = Path(__file__).resolve().parents[2] / "txl"


@pytest.fixture
def reference(tmp_path):
    """A checkpoint of the reference."""
    case, _, weights = golden(GOLDEN / "base_like.json")
    return reference_file(tmp_path / "checkpoint_best.pt", case, weights)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))


# --------------------------------------------------------------------------- programs


def test_a_torchscript_archive_runs_nothing_in_an_import(tmp_path, capsys):
    archive = torchscript_that_writes(tmp_path / "victim", tmp_path / "checkpoint_best.pt")
    assert main(["import", str(archive), str(tmp_path / "ours")]) == 2
    message = capsys.readouterr().err
    assert "is a TorchScript program, which runs code when it is loaded; nothing was run" in message
    assert message.count("\n") == 1 and not (tmp_path / "victim").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "vocab.pkl"])
def test_a_torchscript_archive_runs_nothing_in_a_folder_of_hugging_face(name, tmp_path, capsys):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save({}, folder / "pytorch_model.bin")
    torchscript_that_writes(tmp_path / "victim", folder / name)
    assert main(["import", str(folder), str(tmp_path / "ours")]) == 2
    assert "is a TorchScript program" in capsys.readouterr().err and not (tmp_path / "victim").exists()


def test_a_torchscript_archive_runs_nothing_as_weights_with_a_config_file(reference, tmp_path):
    import_model(reference, tmp_path / "ours")
    archive = torchscript_that_writes(tmp_path / "victim", tmp_path / "weights.pt")
    shutil.copy(tmp_path / "ours" / "vocabulary.json", tmp_path)
    with pytest.raises(ConfigError, match="is a TorchScript program"):
        evaluate_here(f"checkpoint={archive}", f"config_file={tmp_path}/ours/run.json", "text=word1", "hardware=cpu")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("hidden", ["constants.pkl", "code/__torch__.py"])
def test_an_archive_of_weights_with_a_program_in_it_is_refused(hidden, reference):
    with zipfile.ZipFile(reference, "a") as archive:
        archive.writestr(f"checkpoint_best/{hidden}", b"")
    with pytest.raises(ConfigError, match="TorchScript program"):
        load_torch_file(reference)


def test_a_program_is_loaded_only_if_this_user_wrote_it(tmp_path, monkeypatch):
    file, step = tmp_path / "step.ts", CachedStep(build(), Geometry(4, 8))
    make_program(step, Runtime.torchscript, 2, str(file))
    make_program(step, Runtime.torchscript, 2, str(file))  # loaded
    key = tmp_path / "home" / "txl" / "program.key"
    assert key.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "somebody else"))
    with pytest.raises(ConfigError, match="not written by this user.*trust_program=true"):
        make_program(step, Runtime.torchscript, 2, str(file))
    make_program(step, Runtime.torchscript, 2, str(file), trust=True)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    torchscript_that_writes(tmp_path / "victim", file)
    with pytest.raises(ConfigError, match="was changed since"):
        make_program(step, Runtime.torchscript, 2, str(file))
    assert not (tmp_path / "victim").exists()


def test_without_a_place_for_the_key_a_saved_program_is_not_loaded_again(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    file, step = tmp_path / "step.ts", CachedStep(build(), Geometry(4, 8))
    make_program(step, Runtime.torchscript, 2, str(file))
    with pytest.raises(ConfigError, match="trust_program=true"):
        make_program(step, Runtime.torchscript, 2, str(file))


def test_no_other_reader_is_used_anywhere():
    """Only program files, which are checked first, are given to a loader that can run code."""
    loaders = r"torch\.load\(|weights_only|torch\.jit\.load|aoti_load_package\(|pickle\.loads?\(|\bUnpickler\b"
    found = {
        path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if re.search(loaders, path.read_text())
    }
    assert found == {"evaluate/exported_program.py"}


# --------------------------------------------------------------------------- pickles


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_a_pickle_that_names_a_function_is_refused_whatever_the_function_is(tmp_path):
    victim = tmp_path / "victim"
    functions = [
        (os.system, f"touch {victim}"),
        (eval, f"open({str(victim)!r}, 'w')"),
        (getattr, "", "join"),
        (str, [1]),
    ]
    functions += [(bytes, 1 << 40), (bytearray, 1 << 40), (torch.load, str(victim)), (torch.jit.load, str(victim))]
    for function, *arguments in functions:
        for protocol in range(6):
            (tmp_path / "p").write_bytes(pickle.dumps({"a": Calls(function, *arguments)}, protocol))
            with pytest.raises(ConfigError) as error:
                load_torch_file(tmp_path / "p")
            assert str(error.value).count("\n") == 0 and len(str(error.value)) < 300
        torch.save({"a": Calls(function, *arguments)}, tmp_path / "zip")
        with pytest.raises(ConfigError):
            load_torch_file(tmp_path / "zip")
    assert not victim.exists()


def test_text_of_a_file_does_not_control_the_terminal(tmp_path):
    (tmp_path / "p").write_bytes(b"\x80\x04\x8c\x0a\x1b[31mevil\x0a\x0a" + b"\x8c\x01x\x93.")
    with pytest.raises(ConfigError) as error:
        load_torch_file(tmp_path / "p")
    assert str(error.value).isprintable()


# --------------------------------------------------------------------------- damage


def test_a_flipped_bit_is_noticed_or_changes_nothing(reference):
    content, expected = reference.read_bytes(), load_torch_file(reference)["model_state"]
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for position in torch.randint(8 * len(content), (150,), generator=generator).tolist():
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        reference.write_bytes(damaged)
        try:
            found = load_torch_file(reference)["model_state"]
        except ConfigError:
            refused += 1
            continue
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert refused > 75  # the rest is padding, times and names that nobody reads


@pytest.mark.parametrize("legacy", [False, True])
def test_a_cut_file_is_one_line(legacy, tmp_path):
    file = tmp_path / "c.pt"
    torch.save({"w": torch.arange(100.0)}, file, _use_new_zipfile_serialization=not legacy)
    content = file.read_bytes()
    for size in range(0, len(content), 7):
        file.write_bytes(content[:size])
        with pytest.raises(ConfigError) as error:
            load_torch_file(file)
        assert str(error.value).isprintable() and len(str(error.value)) < 300


def test_something_that_is_no_file_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "absent"):
        with pytest.raises(ConfigError, match="no file|cannot be read"):
            load_torch_file(path)


# --------------------------------------------------------------------------- bombs


def saved(value, file, legacy=False):
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)


def expanded(file):
    saved({"w": torch.zeros(1).expand(1 << 40)}, file)


def expanded_in_an_old_file(file):
    saved({"w": torch.zeros(1).expand(1 << 40)}, file, legacy=True)


def many_views(file):
    """Views that share one storage, which copies would not."""
    whole = torch.zeros(10_000)
    saved({str(i): whole[i:] for i in range(5000)}, file)


def compressed(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c/data.pkl", bytes(1 << 26))


def declared_larger(file):
    """The directory at the end of the archive says that a part has 2 GB."""
    saved({"w": torch.zeros(4)}, file)
    content = bytearray(file.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<II", 1 << 31, 1 << 31)
    file.write_bytes(content)


def storage_without_data(file):
    saved({"w": torch.zeros(4)}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            if name.endswith("data.pkl"):  # 4 elements become 2^31 - 1
                content = content.replace(
                    b"X\x03\x00\x00\x00cpuq\x06K\x04", b"X\x03\x00\x00\x00cpuq\x06J\xff\xff\xff\x7f"
                )
            archive.writestr(name, content)


def nested_lists(file):
    file.write_bytes(b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".")


def nested_tuples_as_key(file):
    file.write_bytes(b"\x80\x02}N" + b"\x85" * 300_000 + b"Ns.")


def doubled_tuples_as_key(file):
    """Each tuple holds the one before it twice: a hash takes 2^60 steps."""
    file.write_bytes(b"\x80\x02}N" + b"2\x86" * 60 + b"Ns.")


def giant_memory_index(file):
    file.write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")


def giant_text(file):
    file.write_bytes(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"abc.")


BOMBS = [expanded, expanded_in_an_old_file, many_views, compressed, declared_larger, storage_without_data, nested_lists]
BOMBS += [nested_tuples_as_key, doubled_tuples_as_key, giant_memory_index, giant_text]


@pytest.mark.parametrize("make", BOMBS, ids=lambda make: make.__name__)
def test_a_bomb_is_one_line_at_once(make, tmp_path):
    file = tmp_path / "bomb.pt"
    make(file)
    began = time.monotonic()
    if make is giant_memory_index:  # harmless here
        assert load_torch_file(file) is None
    else:
        with pytest.raises(ConfigError) as error:
            load_torch_file(file)
        assert str(error.value).isprintable() and len(str(error.value)) < 300
    assert time.monotonic() - began < 20


def test_files_of_a_checkpoint_are_read_in_the_same_way(tmp_path):
    expanded(tmp_path / "model.pt")
    with pytest.raises(ConfigError, match="a tensor of 1,099,511,627,776 elements refers to a storage of 1"):
        read_checkpoint_file(tmp_path, "model.pt")
