"""What goes wrong on a cluster, done to real jobs: each ends as it should, or comes back and ends bitwise the same.

`make faults` runs all of it and writes docs/results/faults.md.
"""

import json
import os
import re
import signal
import time

import pytest

from tests.support import slurm_cluster
from tests.support.bitwise import assert_bitwise_equal
from tests.support.slurm_site import (
    HOLD,
    TWO_BY_TWO,
    TWO_NODES,
    Site,
    attempts,
    job_of,
    rank_processes,
    submitted,
    wait_for_step,
    wait_until,
)
from tests.support.tiny_runs import metrics
from tests.support.wandb_files import wandb_records
from txl.checkpoint.checkpoint_files import read_checkpoint_file, read_memory_columns

STEPS = 40
FOR_EVER = "train.max_step=100000"


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def line_with(text: str, words: str) -> str:
    return next(line for line in text.splitlines() if words in line)


# --------------------------------------------------------------------------- ends


def test_a_raise_on_rank_3_fails_the_job_and_is_named(site, faults):
    run_dir = site.folder / "raises"
    output = site.train(*TWO_BY_TWO, "cluster.wait=true", FOR_EVER, f"run_dir={run_dir}", fault="raise:3:5", expect=1)
    took = time.time() - (run_dir / "logs/rank_3.error").stat().st_mtime
    said = line_with(output, "FAILED (exit code 1)")
    assert "rank 3" in said and said.endswith(f"{run_dir}/{Site.log_of(run_dir, 3)}")
    assert output.rstrip().endswith("RuntimeError: boom")
    assert site.status(run_dir)[1][2] == "FAILED"
    assert site.status(run_dir, sacct=True)[1][2] == "FAILED"
    short = said.replace(f"{run_dir}/", "").rstrip()
    faults.note("raise on rank 3", "FAILED", 1, f"{short} ... {last_line(output)}", took)


def test_a_killed_rank_fails_the_job_within_seconds(site, faults):
    run_dir = site.folder / "killed"
    options = ["cluster.wait=true", "cluster.cpus_per_task=3", FOR_EVER]
    process = site.start(*TWO_BY_TWO, *options, f"run_dir={run_dir}")
    wait_for_step(run_dir, 5)
    job = submitted(run_dir)
    # srun was told as well: 4 tasks of 3 cores each.
    assert "CPUs=12 Tasks=4 " in site.cluster.run("scontrol", "-o", "show", "step", f"{job}.0")
    began = time.monotonic()
    os.kill(rank_processes(site.cluster, job)[2], signal.SIGKILL)
    wait_until(lambda: site.cluster.job(job)["JobState"] == "FAILED", "the job to fail", 20)
    ended = time.monotonic() - began
    out, err = process.communicate(timeout=60)
    assert process.returncode == 137 and "FAILED" in err and "rank 2 on n2" in err and "Killed" in err, err
    assert Site.log_of(run_dir, 2) in err
    faults.note("`kill -9` of rank 2", "FAILED", 137, last_line(err).replace(f"{run_dir}/", ""), ended)


def test_a_bad_partition_is_one_line_and_leaves_nothing_behind(site, faults):
    output = site.train(*TWO_BY_TWO, "cluster.partition=nope", f"run_dir={site.folder}/bad", expect=2)
    error = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "cluster.partition=nope" in error[0] and "invalid partition" in error[0]
    assert "Traceback" not in output and not (site.folder / "bad").exists()
    array = ["-m", "hydra/launcher=slurm_array", "seed=1,2", "cluster.partition=nope", f"runs={site.folder}/none"]
    assert "invalid partition" in site.train(*TWO_BY_TWO, *array, expect=2)
    left = [path.name for path in (site.folder / "none").rglob("*") if path.is_file()]
    assert set(left) <= {"multirun.yaml"}  # Hydra's
    faults.note("a partition that does not exist", "(none)", 2, error[0])


def test_a_cancelled_waiting_job_ends_its_launcher_and_a_queued_folder_is_in_use(site, faults):
    run_dir = site.folder / "held"
    held = [*TWO_BY_TWO, HOLD, f"run_dir={run_dir}"]
    process = site.start(*held, "cluster.wait=true")
    job = submitted(run_dir)
    again = site.train(*held, expect=2)
    assert f"job {job}" in again and "PENDING" in again
    site.cluster.run("scancel", job)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and f"job {job} CANCELLED (exit code 1): it never started" in err
    refused = line_with(again, "error:").replace(str(run_dir), "RUN_DIR")
    faults.note("the same folder again while its job waits", "PENDING", 2, refused)
    faults.note("`scancel` of a waiting job", "CANCELLED", 1, last_line(err))


def test_a_cancelled_running_job_saves_and_does_not_come_back(site, faults):
    run_dir = site.folder / "cancelled"
    process = site.start(*TWO_NODES, "cluster.wait=true", FOR_EVER, f"run_dir={run_dir}", fault="slow:0.05")
    wait_for_step(run_dir, 5)
    job, began = submitted(run_dir), time.monotonic()
    site.cluster.run("scancel", job)
    wait_until(lambda: not rank_processes(site.cluster, job), "the ranks to end")
    took = time.monotonic() - began
    out, err = process.communicate(timeout=30)
    said = site.cluster.job(job)
    assert said["JobState"] == "CANCELLED" and said["Restarts"] == "0"
    assert process.returncode != 0 and "CANCELLED" in err and "rank" not in err
    state = json.loads((run_dir / "checkpoints/last/state.json").read_text())
    assert state["step"] == metrics(run_dir)[-1]["step"] >= 5
    ended = line_with(err, "CANCELLED").replace(f"{run_dir}/", "")
    faults.note("`scancel` of a running job", "CANCELLED", process.returncode, ended, took)


@pytest.mark.slow
def test_a_job_that_does_not_answer_ends_at_its_time_limit(site, faults):
    run_dir = site.folder / "hangs"
    limit = ["cluster.minutes=1", "cluster.signal_delay=20", "cluster.wait=true", FOR_EVER]
    output = site.train("cluster=slurm", *limit, f"run_dir={run_dir}", fault="hang:0:3", expect=143)
    assert "TIMEOUT (exit code 143): see" in output and site.status(run_dir)[1][2] == "TIMEOUT"
    said = line_with(output, "TIMEOUT (exit").replace(f"{run_dir}/", "")
    faults.note("time limit of a rank that hangs", "TIMEOUT", 143, said)


@pytest.mark.slow
def test_a_job_that_times_out_too_often_fails_and_says_so(site, faults):
    run_dir = site.folder / "often"
    options = ["cluster.max_timeouts=1", "cluster.wait=true", FOR_EVER, f"run_dir={run_dir}"]
    process = site.start("cluster=slurm", "cluster.minutes=5", *options)
    wait_for_step(run_dir, 10)
    site.cluster.run("scancel", "--signal=USR2", submitted(run_dir))
    wait_until(lambda: len(attempts(run_dir)) == 2, "a second attempt")
    wait_for_step(run_dir, len(metrics(run_dir)) + 10)
    site.cluster.run("scancel", "--signal=USR2", submitted(run_dir))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "timed-out too many times" in out and "FAILED" in err
    assert json.loads((run_dir / "checkpoints/last/state.json").read_text())["step"] == len(metrics(run_dir))
    said = line_with(out, "too many times").partition(" - ")[2]
    faults.note("more time limits than `cluster.max_timeouts`", "FAILED", 1, said)


# --------------------------------------------------------------------------- comes back


def final_state(run_dir):
    folder = run_dir / "checkpoints" / f"step_{STEPS}"
    return {
        "model": read_checkpoint_file(folder, "model.pt"),
        "optimizer": read_checkpoint_file(folder, "optimizer.pt")["state"],
        "mems": read_memory_columns(folder, range(8)),
    }


@pytest.fixture(scope="module")
def undisturbed(site):
    """A run to compare with; whoever compares waits for it first."""
    run_dir = site.folder / "undisturbed"
    job = job_of(site.train(*TWO_NODES, f"train.max_step={STEPS}", f"run_dir={run_dir}"))

    def finished():
        assert site.cluster.wait_for(job, "COMPLETED", "FAILED", timeout=90)["JobState"] == "COMPLETED"
        return run_dir

    return finished


def user_signal(cluster, job):
    """`scancel --signal=USR2`"""
    cluster.run("scancel", "--signal=USR2", job)


def node_down(cluster, job):
    """`scontrol update nodename=... state=down`"""
    lost = cluster.run("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).split()[-1]
    cluster.run("scontrol", "update", f"nodename={lost}", "state=down", "reason=test")


def preemption(cluster, job):
    """a job in a partition of higher priority preempts it"""
    sbatch = ["sbatch", "-p", "urgent", f"-N{cluster.nodes}", f"-n{cluster.nodes}", "-c32", "--exclusive"]
    cluster.run(*sbatch, "-o", "/dev/null", "--wrap", "sleep 2")


def requeue(cluster, job):
    """`scontrol requeue`"""
    cluster.run("scontrol", "requeue", job)


def time_limit(cluster, job):
    """time limit of 2 minutes, `signal_delay=60`"""


def comes_back(site, disturb, options, undisturbed, after, fault="slow:0.1") -> tuple[str, float]:
    """Disturb a job; it must go on with the same id and end bitwise like the undisturbed one.

    Returns what its launcher printed, and the seconds until it ran again.
    """
    run_dir = site.folder / f"{disturb.__name__}-{id(site)}"
    options = [f"train.max_step={STEPS}", "checkpoint.interval=7", "cluster.wait=true", *options]
    process = site.start(*TWO_NODES, *options, f"run_dir={run_dir}", fault=fault)
    wait_for_step(run_dir, after)
    job, began = submitted(run_dir), time.monotonic()
    disturb(site.cluster, job)
    wait_until(lambda: len(attempts(run_dir)) == 2, "a second attempt", 120)
    took = time.monotonic() - began
    site.cluster.run("scontrol", "update", f"nodename=n[1-{site.cluster.nodes}]", "state=resume", check=False)
    site.cluster.run("scontrol", "update", f"jobid={job}", "TimeLimit=10", check=False)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    said = site.cluster.job(job)
    assert said["JobState"] == "COMPLETED" and int(said["Restarts"]) == 1
    assert {entry["job"] for entry in attempts(run_dir)} == {job}
    row = site.status(run_dir)[1]
    assert row[2:4] + row[-1:] == ["COMPLETED", f"{STEPS}/{STEPS}", "1"]
    straight = undisturbed()
    assert [record["step"] for record in metrics(run_dir)] == list(range(1, STEPS + 1))  # none twice, none missing
    assert [r["loss"] for r in metrics(run_dir)] == [r["loss"] for r in metrics(straight)]
    assert_bitwise_equal(final_state(run_dir), final_state(straight))
    return out, took


def note_return(faults, disturb, out, took, what: str = "") -> None:
    said = [line for line in out.splitlines() if re.match(r"job \S+ [A-Z]|Stopped at", line)]
    faults.note(what or disturb.__doc__, "COMPLETED, 1 restart", 0, "; ".join(said), took)


def test_a_user_signal_saves_and_the_job_goes_on_with_the_next_step(site, undisturbed, faults):
    wandb = ["tracking=wandb", "tracking.wandb.mode=offline"]
    out, took = comes_back(site, user_signal, wandb, undisturbed, after=10)
    stopped = int(re.search(r"Stopped at step (\d+) \(SIGUSR2\); saved", out)[1])
    run_dir = site.folder / f"user_signal-{id(site)}"
    first, second = (found for found in wandb_records(run_dir))
    assert first[0].run_id == second[0].run_id == (run_dir / "wandb_id").read_text().strip()
    steps = [[row["_step"] for row in rows if "train/loss" in row] for _, rows, _ in (first, second)]
    assert steps == [list(range(1, stopped + 1)), list(range(stopped + 1, STEPS + 1))]
    note_return(faults, user_signal, out, took)
    faults.measure("from USR2 to running again", f"{took:.1f} s (of it 5 s `cred_expire`; two minutes by default)")


def test_a_lost_node_costs_no_more_than_the_steps_since_the_last_checkpoint(site, undisturbed, faults):
    out, took = comes_back(site, node_down, [], undisturbed, after=10)
    assert re.search(r"^job \S+ COMPLETED", out, re.MULTILINE), out
    note_return(faults, node_down, out, took)


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [requeue, preemption])
def test_what_slurm_requeues_goes_on(disturb, site, undisturbed, faults):
    out, took = comes_back(site, disturb, [], undisturbed, after=10)
    assert re.search(r"^job \S+ COMPLETED", out, re.MULTILINE), out
    note_return(faults, disturb, out, took)


@pytest.mark.slow
def test_at_its_time_limit_a_job_saves_and_goes_on(site, undisturbed, faults):
    limit = ["cluster.minutes=2", "cluster.signal_delay=60"]  # the signal comes after 30 to 60 s; 40 steps take 80
    out, took = comes_back(site, time_limit, limit, undisturbed, after=1, fault="slow:2.0")
    assert "SIGUSR2" in out
    note_return(faults, time_limit, out, took)


@pytest.mark.slow
def test_preemption_without_a_user_signal_costs_no_step(site, undisturbed, tmp_path, faults):
    """A site without preempt_send_user_signal: only SIGTERM comes, and all ranks save."""
    other = slurm_cluster.Cluster(nodes=2, user_signal=False).start()
    try:
        there = Site(other, tmp_path)
        out, took = comes_back(there, preemption, site.data, undisturbed, after=10)
        assert re.search(r"^job \S+ COMPLETED", out, re.MULTILINE), out
        note_return(faults, preemption, out, took, "the same where the site sends no user signal")
    finally:
        other.stop()


def test_a_signal_before_the_ranks_listen_kills_nothing(site, faults):
    run_dir = site.folder / "early"
    process = site.start("cluster=slurm", "cluster.wait=true", "train.max_step=10", f"run_dir={run_dir}")
    job, found = submitted(run_dir), {}
    wait_until(lambda: found.update(rank_processes(site.cluster, job)) or found, "the first moment of the task")
    os.kill(found[0], signal.SIGUSR2)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0 and len(metrics(run_dir)) == 10, out + err
    faults.note("USR2 before Python listens", site.cluster.job(job)["JobState"], 0, "")
