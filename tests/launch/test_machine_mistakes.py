"""What a machine lacks while a run is on it ends in one line with the remedy."""

import errno
from dataclasses import replace

import pytest
import torch

from tests.support.configurations import composed
from txl.errors import ConfigError
from txl.launch.preflight import check_gpu_build
from txl.launch.rank import mistakes_of_the_machine
from txl.plan.run_plan import make_plan


@pytest.fixture
def plan():
    return replace(make_plan(composed("experiment=demo")), micro_batch_size=12, run_dir="runs/x")


def test_out_of_memory_names_the_next_smaller_micro_batch(plan):
    with (
        pytest.raises(ConfigError, match="=12 does not fit .* use train.micro_batch_size=6 "),
        mistakes_of_the_machine(plan),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with (
        pytest.raises(ConfigError, match="use recompute=true or a smaller model"),
        mistakes_of_the_machine(replace(plan, micro_batch_size=1)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_without_room_is_one_line(number, plan):
    with (
        pytest.raises(ConfigError, match="run_dir=runs/x cannot be written: .*resume=auto continues"),
        mistakes_of_the_machine(plan),
    ):
        raise OSError(number, "No space left on device")


def test_other_errors_of_files_keep_their_traceback(plan):
    with pytest.raises(FileNotFoundError), mistakes_of_the_machine(plan):
        raise FileNotFoundError(errno.ENOENT, "No such file")


def test_a_torch_without_kernels_for_the_gpu_is_found_before_training(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a"])
    with pytest.raises(ConfigError, match="Tesla V100 is sm_70, and torch .* is built for sm_75 and newer"):
        check_gpu_build(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_70", "sm_80"])
    check_gpu_build(torch.device("cuda"))
