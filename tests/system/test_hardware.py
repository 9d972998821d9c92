"""What the machine has, asked through a stand-in for nvidia-smi, and what of it may be written down."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from txl.config.machine import HardwareConfig
from txl.errors import ConfigError
from txl.system import devices, hardware
from txl.system.devices import pick_device, set_threads, threads_per_rank
from txl.system.versions_and_devices import environment_record, git_state

PROJECT = Path(__file__).resolve().parents[2]
EIGHT = "".join(f"GPU-{i}abc, NVIDIA A100-SXM4-40GB, 40960, 550.54\n" for i in range(8))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with the GPUs of this nvidia-smi output and no selection."""

    def make(output, code=0):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}END\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        hardware.query_nvidia_smi.cache_clear()

    yield make
    hardware.query_nvidia_smi.cache_clear()


def config(gpus, name="auto"):
    return HardwareConfig(name=name, gpus=gpus, gpu=None, memory_gb=None)


# --------------------------------------------------------------------------- detection


def test_gpus_are_found_without_torch(machine):
    machine(EIGHT)
    assert hardware.detect_gpus() == ("NVIDIA A100-SXM4-40GB", 8)
    assert hardware.visible_gpus()[7] == ("NVIDIA A100-SXM4-40GB", 40.0, "550.54")


@pytest.mark.parametrize(
    "selection, count",
    [("", 0), ("0", 1), ("1,3", 2), ("2, 2,9,1", 2), ("-1", 0), ("GPU-5a", 1), ("MIG-77,MIG-78", 2), ("0,x,1", 1)],
)
def test_only_visible_gpus_count(machine, monkeypatch, selection, count):
    machine(EIGHT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", selection)
    assert hardware.detect_gpus()[1] == count


def test_without_nvidia_smi_the_driver_tells_its_gpus(tmp_path, monkeypatch):
    for name, uuid in (("0000:17:00.0", "GPU-5a"), ("0000:65:00.0", "GPU-77")):
        (tmp_path / "gpus" / name).mkdir(parents=True)
        text = f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 18\nGPU UUID: \t {uuid}\n"
        (tmp_path / "gpus" / name / "information").write_text(text)
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Tue Oct 1\n")
    monkeypatch.setattr(hardware, "query_nvidia_smi", list)
    monkeypatch.setattr(hardware.read_driver_files, "__defaults__", (tmp_path,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hardware.visible_gpus() == [("NVIDIA H100 80GB HBM3", None, "580.159.04")] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-77")
    assert hardware.detect_gpus() == ("NVIDIA H100 80GB HBM3", 1)
    assert hardware.read_driver_files(tmp_path / "missing") == []


@pytest.mark.parametrize("output, code", [("", 0), ("No devices were found\n", 6), ("Failed to initialize NVML\n", 9)])
def test_a_driver_without_devices_is_a_cpu_machine(machine, output, code):
    machine(output, code)
    assert hardware.detect_gpus() == ("cpu", 0)


def test_memory_that_is_not_told_is_unknown(machine):
    machine("GPU-1, NVIDIA GB10, [N/A], 580.1\n")
    assert hardware.visible_gpus() == [("NVIDIA GB10", None, "580.1")]


def test_cores_are_those_of_the_container(tmp_path, monkeypatch):
    assert hardware.container_cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert hardware.container_cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert hardware.container_cpu_quota(tmp_path) == 2.5
    monkeypatch.setattr(hardware, "container_cpu_quota", lambda: 0.5)
    assert hardware.cpu_count() == 1


def test_cores_of_an_old_container(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert hardware.container_cpu_quota(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    assert hardware.container_cpu_quota(tmp_path) == 4.0


# --------------------------------------------------------------------------- devices and threads


def test_a_cpu_is_picked_where_it_was_asked_for_or_nothing_else_is_there(machine):
    machine("")
    assert pick_device(config(0, "cpu"), 0).type == "cpu"
    assert pick_device(config(None), 3).type == "cpu"


def test_gpus_that_torch_cannot_use_are_an_error_with_a_remedy(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^hardware=dgx1 needs GPUs.*hardware=cpu$"):
        pick_device(config(8, "dgx1"), 0)


@pytest.fixture
def cuda(monkeypatch):
    """torch sees this many GPUs; the numbers of those that were chosen."""
    torch, chosen = pytest.importorskip("torch"), []

    def make(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        return chosen

    return make


def test_more_ranks_than_gpus_are_an_error(cuda):
    cuda(2)
    with pytest.raises(ConfigError, match="shows 2; use gpus=2"):
        pick_device(config(8, "dgx1"), 2)


def test_a_rank_that_sees_only_its_own_gpu_uses_it(cuda, monkeypatch):
    """As under `srun --gpus-per-task=1`; the cores near the GPU are asked for by its number, too."""
    chosen = cuda(1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ConfigError, match="shows 1; use gpus=1"):
        pick_device(config(8, "dgx1"), 3)  # eight ranks on one GPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    device = pick_device(config(8, "dgx1"), 3)
    assert (device.type, device.index) == ("cuda", 0) and chosen == [device]
    asked = []
    monkeypatch.setattr(devices, "numa_nodes", lambda: {0: {0}, 1: {1}})
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(devices.os, "sched_setaffinity", lambda pid, cores: asked.append(cores), raising=False)
    monkeypatch.setattr(devices, "cores_near_gpu", lambda index: {index})
    devices.bind_to_numa_node(device, 3, 8)
    assert asked == [{0}]


def test_a_gpu_that_only_torch_sees_is_not_left_unused_silently(cuda, machine):
    machine("")
    cuda(2)
    with pytest.raises(ConfigError, match=r"finds no GPU by nvidia-smi, but torch sees 2; use hardware.gpus=2"):
        pick_device(config(None), 0)
    assert pick_device(config(0, "cpu"), 0).type == "cpu"


def test_deterministic_kernels_set_what_cublas_needs(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        devices.use_deterministic_kernels(False)
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ and not torch.are_deterministic_algorithms_enabled()
        devices.use_deterministic_kernels(True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and torch.are_deterministic_algorithms_enabled()
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        devices.use_deterministic_kernels(True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_ranks_share_the_cores():
    assert threads_per_rank(cores=16, ranks=4, torch_threads=16) == 4
    assert threads_per_rank(cores=2, ranks=4, torch_threads=2) == 1
    assert threads_per_rank(cores=64, ranks=1, torch_threads=32) == 32


def test_threads_are_set_for_cpu_ranks_unless_the_environment_says_so(monkeypatch):
    torch = pytest.importorskip("torch")
    before, chosen = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(devices, "cpu_count", lambda: 2 * before)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    set_threads(torch.device("cuda"), 1)
    set_threads(torch.device("cpu"), 2 * before)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    set_threads(torch.device("cpu"), 1)
    assert chosen == [1]


# --------------------------------------------------------------------------- the record


def test_the_record_is_plain_and_tells_versions_cores_and_commit():
    record = environment_record()
    assert json.loads(json.dumps(record)) == record
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["cores"] >= 1 and record["memory_gb"] > 0 and record["cpu"] and record["hostname"]
    assert record["packages"]["omegaconf"]


def test_the_record_holds_no_secrets(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-the-user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-user")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    record = environment_record()
    assert record["variables"]["OMP_NUM_THREADS"] == "7"
    assert "secret-of-the-user" not in json.dumps(record)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_state_tells_commit_and_changes(tmp_path):
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {"commit": clean["commit"], "dirty": True}


def test_detection_and_record_do_not_import_torch():
    code = (
        "import sys; from txl.system.versions_and_devices import environment_record; "
        "environment_record(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=60).returncode == 0
