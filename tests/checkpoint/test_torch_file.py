"""What torch.save and pickle write is read back as it was."""

import collections
import pickle
import random
from argparse import Namespace

import numpy as np
import pytest
import torch

from txl.checkpoint.torch_file import load_torch_file


class Vocab:
    """Stands for a class that is not known here."""


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_and_containers_are_read_as_torch_reads_them(legacy, tmp_path):
    vocab, array, weight = Vocab(), np.arange(12, dtype="f4").reshape(3, 4), torch.randn(4, 6, dtype=torch.bfloat16)
    vocab.__dict__ = {"words": ["a", "ä"], "ids": collections.OrderedDict(a=0), "counts": collections.Counter("aab")}
    vocab.__dict__["default"] = collections.defaultdict(int, {"k": 3})
    tensors = {
        str(dtype): torch.arange(5).to(dtype) for dtype in (torch.float64, torch.float16, torch.int8, torch.bool)
    }
    tensors |= {"view": weight.t(), "part": weight[1:3, 2:], "empty": torch.zeros(0, 3), "scalar": torch.tensor(5)}
    parameter = torch.nn.Parameter(torch.ones(3))
    plain = {"numbers": [1, 2.5, None, True, 10**30], "bytes": b"\x00\xff", "set": {1, "x"}, "state": random.getstate()}
    value = {"vocab": vocab, "args": Namespace(dataset="wt103"), "array": array, "again": array, "weight": weight}
    value |= {"tensors": tensors, "parameter": parameter, "plain": plain, "float": np.float64(3.5)}
    torch.save(value, tmp_path / "f.pt", _use_new_zipfile_serialization=not legacy)
    found = load_torch_file(tmp_path / "f.pt")
    assert vars(found["vocab"]) == vars(vocab) and found["args"].dataset == "wt103"
    assert found["plain"] == plain and found["float"] == 3.5
    assert found["array"] is found["again"] and np.array_equal(found["array"], array)
    assert all(torch.equal(found["tensors"][name], tensor) for name, tensor in tensors.items())
    assert all(found["tensors"][name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert torch.equal(found["parameter"], parameter)
    shared = found["weight"].untyped_storage().data_ptr()
    assert found["tensors"]["view"].untyped_storage().data_ptr() == shared


def test_a_mapped_file_gives_the_same_tensors(tmp_path):
    tensors = {str(i): torch.randn(100 + i) for i in range(5)}
    torch.save(tensors, tmp_path / "f.pt")
    found = load_torch_file(tmp_path / "f.pt", mapped=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol(protocol, tmp_path):
    many = {f"word{i}": i for i in range(3000)}
    value = [1, 2.5, None, True, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), "ä", b"\x00\xff", 10**30, -5, 1 << 40]
    value += [bytearray(b"x"), frozenset([1]), {1: {2: 3}}, set(), many, many, list(many)]
    (tmp_path / "p").write_bytes(pickle.dumps(value, protocol))
    assert load_torch_file(tmp_path / "p") == value
