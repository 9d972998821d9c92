"""What somebody else puts into a run folder, or changes there, does no harm and is one line."""

import json
import re
import subprocess
import sys

import pytest
import torch

from tests.support.entry_points import PROJECT, environment
from tests.support.in_process import train_here
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN
from txl.checkpoint.checkpoint_files import read_checkpoint_file, write_checkpoint_file
from txl.checkpoint.find import MANIFEST
from txl.errors import ConfigError
from txl.files import write_json
from txl.launch import local_processes
from txl.launch.local_processes import free_port, run_local_ranks
from txl.launch.prepare import WRITTEN
from txl.tracking.rewind_file import drop_later_lines


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    text = write_corpus(tmp_path_factory.mktemp("text"))
    return [*text, *TINY_RUN, "scheduler=constant", "resume=auto"]


@pytest.mark.parametrize("name", [*WRITTEN, "logs/rank_0.log"])
def test_a_link_in_place_of_a_file_that_the_run_writes_is_refused(name, options, tmp_path):
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    (run / "logs").mkdir(parents=True)
    (run / name).symlink_to(victim)
    with pytest.raises(ConfigError, match=f"{name} is a link to .*victim.*; remove the link") as refused:
        train_here(*options, f"run_dir={run}")
    assert len(str(refused.value)) < 300 and victim.read_text() == "precious"


def test_a_link_in_place_of_a_temporary_file_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("a.json", "b.jsonl"):
        (tmp_path / f"{name}.partial").symlink_to(victim)
    write_json(tmp_path / "a.json", {"a": 1})
    (tmp_path / "b.jsonl").write_text("{}\n[]\n")
    with pytest.raises(OSError, match="symbolic links"):
        drop_later_lines(tmp_path / "b.jsonl", 1, lambda line, step: line == b"[]\n")
    assert victim.read_text() == "precious" and json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("optimizer", ["lamb", "muon"])
def test_an_optimizer_s_state_of_another_shape_is_damage_before_the_first_step(optimizer, options, tmp_path):
    run = [*options, f"optimizer={optimizer}", "optimizer.lr=0.01", f"run_dir={tmp_path}/run"]
    train_here(*run, "train.max_step=1")
    folder = tmp_path / "run/checkpoints/step_1"
    state, manifest = (read_checkpoint_file(folder, name) for name in ("optimizer.pt", MANIFEST))
    part = next(value for value in [state, *state.values()] if "param_groups" in value)
    first = next(iter(part["state"].values()))
    name = next(name for name, value in first.items() if torch.is_tensor(value) and value.numel() > 1)
    first[name] = torch.zeros(3, 5)
    manifest["files"]["optimizer.pt"] = write_checkpoint_file(folder / "optimizer.pt", state)
    write_checkpoint_file(folder / MANIFEST, manifest)
    with pytest.raises(ConfigError, match=rf"step_1 is damaged .*the optimizer's {name} is \(3, 5\), the parameter"):
        train_here(*run, "train.max_step=2")


MEETING = """
import os, torch
from txl.system.distributed import barrier, close_process_group, init_process_group
from txl.system.world import World
world = World.from_environment()
init_process_group(world, torch.device("cpu"), hang_minutes=5)
if world.is_main:
    inodes = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            inodes.add(os.readlink(f"/proc/self/fd/{fd}").removeprefix("socket:[").rstrip("]"))
        except OSError:
            pass
    for table in ("tcp", "tcp6"):
        for line in open(f"/proc/net/{table}").readlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                print(fields[1].partition(":")[0])
barrier()
close_process_group()
"""


def test_ranks_of_one_machine_listen_on_its_loopback_address_only():
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"TXL_LOOPBACK": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(PROJECT)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", MEETING],
            env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [rank.communicate(timeout=100)[0] for rank in ranks][0]
    listening = re.findall(r"\b(?:[0-9A-F]{32}|[0-9A-F]{8})\b", said)  # gloo of torch 2.10 says more
    assert listening and set(listening) == {"0100007F"}  # 127.0.0.1


def test_the_launcher_binds_gloo_and_nccl_to_loopback_unless_told_otherwise(tmp_path, monkeypatch):
    seen = []

    def start(rank, folder, shared, lock):
        seen.append(shared)
        return subprocess.Popen(["true"])

    monkeypatch.setattr(local_processes, "start_rank", start)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0")
    assert run_local_ranks(tmp_path, 1) == 0
    assert (seen[0]["GLOO_SOCKET_IFNAME"], seen[0]["NCCL_SOCKET_IFNAME"]) == ("lo", "eth0")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    assert run_local_ranks(tmp_path, 1) == 0
    assert seen[1]["NCCL_SOCKET_IFNAME"] == "lo"
