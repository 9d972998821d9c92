"""From one process to a SLURM cluster. The cluster is real: slurm_cluster.py starts it for these tests."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import slurm_cluster
from composing import composed
from test_resume import assert_bitwise_equal
from tiny import PROJECT, TINY_RUN, command, environment, metrics, write_corpus
from txl import checkpoint as ckpt
from txl.hardware import core_set, numa_nodes
from txl.preflight import judge
from txl.rank import first_host, slurm_variables
from txl.slurm import outside_of_any_job
from txl.status import points

STEPS = 60
HOLD = 'cluster.sbatch=["--hold"]'
TWO_BY_TWO = ["cluster=slurm", "cluster.minutes=5", "nodes=2", "gpus=2"]

# What goes wrong in a job is put into its ranks from outside: TXL_FAULT="raise:3:10" (rank 3, step 10), or "slow:0.1"
# (seconds per step of the first attempt, so that there is time to disturb it).
FAULTS = """
import importlib.abc, importlib.util, os, sys, time

class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "txl.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), disturb(module.Trainer))
        return spec

def disturb(Trainer):
    kind, *values = os.environ["TXL_FAULT"].split(":")
    step, rank = Trainer.step, int(os.environ.get("SLURM_PROCID", 0))
    def disturbed(self):
        step(self)
        if kind == "slow" and "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(float(values[0]))
        if kind == "raise" and (rank, self.state.step) == (int(values[0]), int(values[1])):
            raise RuntimeError("boom")
    Trainer.step = disturbed

if os.environ.get("TXL_FAULT"):
    sys.meta_path.insert(0, Hook())
"""


@pytest.fixture(scope="module")
def cluster():
    reason = slurm_cluster.missing()
    if reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)  # CI has SLURM, and shows that it works
    running = slurm_cluster.Cluster(nodes=8).start()
    yield running
    running.stop()
    assert running.processes() == []


class Site:
    """A folder of runs, a corpus, and a cluster to train on."""

    def __init__(self, cluster, folder: Path):
        self.cluster, self.folder = cluster, folder
        self.shared = [*write_corpus(folder / "text"), *TINY_RUN, f"runs={folder}/runs"]
        (folder / "sitecustomize.py").write_text(FAULTS)

    def environment(self, fault: str = "", sacct: bool = False) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH")]))
        mine = {"PYTHONPATH": path, "TXL_FAULT": fault, "OMP_NUM_THREADS": "1"}
        return (self.cluster.with_sacct() if sacct else self.cluster.environment) | mine

    def start(self, *overrides, fault: str = "", sacct: bool = False) -> subprocess.Popen:
        flags = [one for one in overrides if one == "-m"]
        return subprocess.Popen(
            command("train.py", *flags, *self.shared, *(one for one in overrides if one != "-m")),
            cwd=self.folder,
            env=self.environment(fault, sacct),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell starts what runs in the background with SIGINT ignored, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def train(self, *overrides, expect: int = 0, fault: str = "", sacct: bool = False) -> str:
        """Run train.py to its end; returns what it printed."""
        process = self.start(*overrides, fault=fault, sacct=sacct)
        out, err = process.communicate(timeout=150)
        assert process.returncode == expect, f"exit code {process.returncode}\n{out}\n{err}"
        return out + err

    def status(self, folder: Path, sacct: bool = False) -> list[list[str]]:
        done = subprocess.run(
            [sys.executable, "-m", "txl.launch", "status", str(folder)],
            cwd=PROJECT,
            env=self.environment(sacct=sacct),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return [re.split(r"\s{2,}", line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def site(cluster, tmp_path_factory):
    return Site(cluster, tmp_path_factory.mktemp("site"))


def job_of(output: str) -> str:
    return re.search(r"job (\S+) submitted", output)[1]


def wait_for_step(run_dir: Path, step: int, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not (run_dir / "metrics.jsonl").exists() or len(metrics(run_dir)) < step:
        assert time.monotonic() < deadline, f"no step {step} in {run_dir} after {seconds} s"
        time.sleep(0.05)


def rank_process(cluster, job: str, rank: int) -> int:
    """The process of one rank."""
    marks = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()}
    for pid in cluster.processes():
        variables = set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
        if marks <= variables and Path(f"/proc/{pid}/cmdline").read_bytes().startswith(sys.executable.encode()):
            return pid
    raise AssertionError(f"job {job} has no rank {rank}")


# --------------------------------------------------------------------------- one job


def test_a_job_of_two_nodes_computes_what_one_process_computes(site):
    plain = ["train.max_step=20", "precision=fp64", "model.dropout=0"]
    began = time.monotonic()
    output = site.train(*TWO_BY_TWO, *plain, f"run_dir={site.folder}/four")
    seconds = time.monotonic() - began
    print(f"submitted in {seconds:.2f} s")
    assert seconds < 10  # 1.5 s on an idle machine
    assert "world" in output or "processes" in output
    assert f"tail -F {site.folder}/four/slurm" in output and "txl.launch status" in output
    site.train(*plain, f"run_dir={site.folder}/one")
    said = site.cluster.wait_for(job_of(output), "COMPLETED", "FAILED", timeout=90)
    assert said["JobState"] == "COMPLETED", (site.folder / "four/slurm").glob("*.out")
    for kind in ("train", "valid", "test"):
        one, four = metrics(site.folder / "one", kind), metrics(site.folder / "four", kind)
        assert [r["step"] for r in one] == [r["step"] for r in four] and one
        assert [r["loss"] for r in four] == pytest.approx([r["loss"] for r in one], rel=1e-6)
    assert sorted(path.name for path in (site.folder / "four/logs").iterdir()) == [f"rank_{i}.log" for i in range(4)]


def test_dry_run_prints_the_script_and_submits_nothing(site):
    flags = ["cluster.cpus_per_task=4", "cluster.partition=dgx", "cluster.qos=high", "cluster.setup=[module load cuda]"]
    flags += ['cluster.sbatch=["--mail-user=me"]', 'cluster.srun=["--cpu-bind=cores"]', "cluster.container=image.sqsh"]
    output = site.train(*TWO_BY_TWO, *flags, "dry_run=true", f"run_dir={site.folder}/dry")
    for line in ("#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=2", "#SBATCH --cpus-per-task=4", "#SBATCH --requeue"):
        assert line in output
    for line in ("#SBATCH --partition=dgx", "#SBATCH --qos=high", "#SBATCH --mail-user=me", "module load cuda"):
        assert line in output
    for flag in ("--kill-on-bad-exit=1", "--cpus-per-task=4", "--cpu-bind=cores", "--container-image=image.sqsh"):
        assert flag in output.partition("srun ")[2]
    assert "wckey" not in output and not (site.folder / "dry").exists()


def test_published_hardware_goes_to_slurm_unless_told_otherwise(site):
    output = site.train("hardware=dgx2", "nodes=2", "train.batch_size=64", "dry_run=true")
    assert "#SBATCH --gpus-per-node=16" in output and "--ntasks-per-node=16" in output
    assert "sbatch" not in site.train("hardware=dgx2", "cluster=local", "train.batch_size=64", "dry_run=true").lower()


def test_a_bad_partition_is_one_line_and_leaves_nothing_behind(site):
    output = site.train(*TWO_BY_TWO, "cluster.partition=nope", f"run_dir={site.folder}/bad", expect=2)
    error = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "cluster.partition=nope" in error[0] and "invalid partition" in error[0]
    assert "Traceback" not in output and not (site.folder / "bad").exists()


def test_a_cancelled_job_ends_its_waiting_launcher_and_a_queued_folder_is_in_use(site):
    held = [*TWO_BY_TWO, HOLD, f"run_dir={site.folder}/held"]
    process = site.start(*held, "cluster.wait=true")
    deadline = time.monotonic() + 30
    while not (site.folder / "held/slurm/job.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    job = json.loads((site.folder / "held/slurm/job.json").read_text())["job"]
    again = site.train(*held, expect=2)
    assert f"job {job}" in again and "PENDING" in again
    site.cluster.run("scancel", job)
    out, err = process.communicate(timeout=30)
    assert process.returncode != 0 and "CANCELLED" in out + err


def test_ctrl_c_in_a_waiting_launcher_leaves_the_job_and_says_so(site):
    process = site.start(*TWO_BY_TWO, HOLD, "cluster.wait=true", f"run_dir={site.folder}/left")
    assert any("PENDING" in line for line in iter(process.stdout.readline, "")), process.stderr.read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    job = json.loads((site.folder / "left/slurm/job.json").read_text())["job"]
    assert process.returncode == 130 and f"scancel {job}" in out
    assert site.cluster.job(job)["JobState"] == "PENDING"
    site.cluster.run("scancel", job)


# --------------------------------------------------------------------------- failures


def test_a_raise_on_rank_3_fails_the_job_and_is_named(site):
    run_dir = site.folder / "raises"
    output = site.train(
        *TWO_BY_TWO, "cluster.wait=true", "train.max_step=100000", f"run_dir={run_dir}", fault="raise:3:5", expect=1
    )
    assert "FAILED" in output and "rank 3" in output and f"{run_dir}/slurm" in output
    assert output.rstrip().endswith("RuntimeError: boom")
    assert site.status(run_dir)[1][2] == "FAILED"
    assert site.status(run_dir, sacct=True)[1][2] == "FAILED"


def test_a_killed_rank_fails_the_job(site):
    run_dir = site.folder / "killed"
    process = site.start(*TWO_BY_TWO, "cluster.wait=true", "train.max_step=100000", f"run_dir={run_dir}")
    wait_for_step(run_dir, 5)
    job = json.loads((run_dir / "slurm/job.json").read_text())["job"]
    began = time.monotonic()
    os.kill(rank_process(site.cluster, job, 2), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode != 0 and "FAILED" in err and "rank 2" in err, err


# --------------------------------------------------------------------------- requeues


def final_state(run_dir):
    folder = run_dir / "checkpoints" / f"step_{STEPS}"
    return {
        "model": ckpt.read(folder, "model.pt"),
        "optimizer": ckpt.read(folder, "optimizer.pt")["state"],
        "mems": ckpt.read_columns(folder, range(8)),
    }


@pytest.fixture(scope="module")
def undisturbed(site):
    run_dir = site.folder / "undisturbed"
    site.train(*TWO_BY_TWO, "cluster.wait=true", f"train.max_step={STEPS}", f"run_dir={run_dir}")
    return run_dir


def user_signal(cluster, job):
    cluster.run("scancel", "--signal=USR2", job)


def node_down(cluster, job):
    node = cluster.job(job)["NodeList"]
    lost = cluster.run("scontrol", "show", "hostnames", node).split()[-1]
    cluster.run("scontrol", "update", f"nodename={lost}", "state=down", "reason=test")


def preemption(cluster, job):
    sbatch = ["sbatch", "-p", "urgent", "-N8", "-n8", "-c32", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2"]
    cluster.run(*sbatch)


def requeue(cluster, job):
    cluster.run("scontrol", "requeue", job)


def time_limit(cluster, job):
    """Nothing to do: it comes."""


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [user_signal, node_down, requeue, preemption, time_limit])
def test_a_disturbed_job_comes_back_and_ends_bitwise_like_an_undisturbed_one(disturb, site, undisturbed):
    run_dir, limited = site.folder / disturb.__name__, disturb is time_limit
    limit = ["cluster.minutes=2", "cluster.signal_delay=60"] if limited else []  # SLURM may be 30 s early
    fault = "slow:1.0" if limited else "slow:0.1"
    options = [f"train.max_step={STEPS}", "checkpoint.interval=7", f"run_dir={run_dir}", "tracking.wandb.mode=none"]
    job = job_of(site.train(*TWO_BY_TWO, *limit, *options, fault=fault))
    wait_for_step(run_dir, 1 if limited else 10)
    began = time.monotonic()
    disturb(site.cluster, job)
    deadline = began + 120
    while len((run_dir / "slurm/attempts.jsonl").read_text().splitlines()) < 2:
        assert time.monotonic() < deadline, site.cluster.job(job)
        time.sleep(0.1)
    print(f"{disturb.__name__}: running again after {time.monotonic() - began:.1f} s")
    site.cluster.run("scontrol", "update", "nodename=n[1-8]", "state=resume", check=False)
    site.cluster.run("scontrol", "update", f"jobid={job}", "TimeLimit=10")
    said = site.cluster.wait_for(job, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", timeout=90)
    assert said["JobState"] == "COMPLETED", (run_dir / f"slurm/{job}_0_log.out").read_text()
    assert int(said["Restarts"]) >= 1 and site.status(run_dir)[1][6] == said["Restarts"]
    steps = [record["step"] for record in metrics(run_dir)]
    assert steps == list(range(1, STEPS + 1))  # none twice, none missing
    assert [r["loss"] for r in metrics(run_dir)] == [r["loss"] for r in metrics(undisturbed)]
    assert_bitwise_equal(final_state(run_dir), final_state(undisturbed))


def test_a_signal_before_the_ranks_listen_kills_nothing(site):
    run_dir = site.folder / "early"
    job = job_of(site.train("cluster=slurm", "cluster.minutes=5", "train.max_step=10", f"run_dir={run_dir}"))
    deadline = time.monotonic() + 30
    while True:  # from the first moment of the task on
        with contextlib.suppress(AssertionError, OSError):
            pid = rank_process(site.cluster, job, 0)
            break
        assert time.monotonic() < deadline
    os.kill(pid, signal.SIGUSR2)
    said = site.cluster.wait_for(job, "COMPLETED", "FAILED", timeout=90)
    assert said["JobState"] == "COMPLETED", (run_dir / f"slurm/{job}_0_log.out").read_text()
    assert len(metrics(run_dir)) == 10


# --------------------------------------------------------------------------- sweeps


@pytest.mark.parametrize(
    "array", [pytest.param(False, marks=pytest.mark.slow, id="separate_jobs"), pytest.param(True, id="one_array")]
)
def test_a_sweep_finishes_and_is_not_repeated(array, site):
    runs = site.folder / ("array" if array else "separate")
    launcher = ["hydra/launcher=slurm_array", "hydra.launcher.array_parallelism=2", "cluster.wait=true"] * array
    sweep = ["-m", *launcher, "seed=1,2,3", "cluster=slurm", "cluster.minutes=5", "train.max_step=10", "resume=auto"]
    sweep += [f"hydra.sweep.dir={runs}", f"run_dir={runs}/text/s${{seed}}"]
    output = site.train(*sweep)
    jobs = re.findall(r"job (\S+) submitted", output)
    assert len(jobs) == 3
    if array:
        assert [job.partition("_")[2] for job in jobs] == ["0", "1", "2"]
    for job in jobs:
        assert site.cluster.wait_for(job, "COMPLETED", "FAILED", timeout=90)["JobState"] == "COMPLETED"
    for sacct in (False, True):
        rows = site.status(runs, sacct)
        assert [row[0] for row in rows[1:]] == ["seed=1", "seed=2", "seed=3"]
        assert [row[1:4] for row in rows[1:]] == [[job, "COMPLETED", "10"] for job in jobs]
    for seed in (1, 2, 3):
        assert len(metrics(runs / f"text/s{seed}")) == 10
    again = site.train(*sweep)
    assert again.count("is finished: nothing to do") == 3 and "submitted" not in again


def test_a_sweep_checks_every_point_before_it_submits_one(site):
    sweep = ["-m", "hydra/launcher=slurm_array", "train.batch_size=8,0", "cluster=slurm"]
    sweep += [f"runs={site.folder}/unsubmitted"]
    assert "train.batch_size=0" in site.train(*sweep, expect=2)
    assert list((site.folder / "unsubmitted").rglob("config.yaml")) == []  # Hydra writes its multirun.yaml


@pytest.mark.slow
def test_the_plain_hydra_launcher_ends_honestly(site):
    sweep = ["-m", "hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=2", "gpus=2", "cluster=srun"]
    sweep += ["train.max_step=10", f"hydra.sweep.dir={site.folder}/plain"]
    site.train(*sweep, f"run_dir={site.folder}/plain/good", sacct=True)
    assert len(metrics(site.folder / "plain/good")) == 10
    process = site.start(*sweep, f"run_dir={site.folder}/plain/bad", fault="raise:1:5", sacct=True)
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    job = max(site.cluster.run("squeue", "-h", "-t", "all", "-o", "%A").split(), key=int)
    assert site.cluster.job(job)["JobState"] == "FAILED"


# --------------------------------------------------------------------------- preflight, torchrun, what follows


@pytest.mark.slow
def test_128_ranks_come_up_where_the_plan_has_them(site):
    big = ["model=large", "hardware=dgx2", "nodes=8", "train.batch_size=512", "cluster.wait=true"]
    shared, site.shared = site.shared, write_corpus(site.folder / "longer", train_lines=9000)
    try:
        big += [f"runs={site.folder}/runs", "preflight=true", "preflight_torch=false", "cluster.minutes=5"]
        output = site.train(*big)
    finally:
        site.shared = shared
    assert "128 of 128 ranks" in output and "0 problem(s)" in output
    assert len(re.findall(r"^n\d +16 +16 ", output, re.MULTILINE)) == 8


def test_a_job_may_evaluate_after_training(site):
    run_dir = site.folder / "then"
    longer = ["evaluation.tgt_len=4", "evaluation.mem_len=16", "evaluation.batch_size=2"]
    site.train("train.max_step=8", "then=evaluate", *longer, f"run_dir={run_dir}")
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["evaluation"]["geometry"]["mem_len"] == 16 and summary["evaluation"]["batch_size"] == 2
    assert summary["evaluation"]["loss"] != summary["test"]["loss"]


def test_torchrun_starts_the_same_training(tmp_path):
    data = write_corpus(tmp_path / "text")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    arguments = [*data, *TINY_RUN, "gpus=2", "train.max_step=10", f"run_dir={tmp_path}/run"]
    start = [*torchrun, str(PROJECT / "train.py"), *arguments]
    done = subprocess.run(start, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert len(metrics(tmp_path / "run")) == 10


# --------------------------------------------------------------------------- small things


def test_a_slurm_task_knows_its_place():
    env = {"SLURM_JOB_ID": "20017", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}
    env |= {"SLURM_TASKS_PER_NODE": "4(x2)", "SLURM_JOB_NODELIST": "localhost"}
    found = slurm_variables(env)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == ("5", "8", "1", "4")
    assert 20000 <= int(found["MASTER_PORT"]) < 40000
    assert slurm_variables(env | {"SLURM_RESTART_COUNT": "1"})["MASTER_PORT"] != found["MASTER_PORT"]


@pytest.mark.parametrize(
    "nodes, first", [("dgx[03-08,11]", "dgx03"), ("n1", "n1"), ("a7,b[1-2]", "a7"), ("x-[9,10]", "x-9")]
)
def test_the_first_host_of_a_node_list(nodes, first, monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda host, port: host)
    assert first_host({"SLURM_JOB_NODELIST": nodes}) == first


def test_a_host_that_does_not_resolve_is_reached_by_address():
    env = {"SLURM_JOB_NODELIST": "no-such-host.invalid", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}
    assert first_host(env) == "10.0.0.7"


def test_submitting_from_inside_a_job_hands_nothing_of_it_on(monkeypatch):
    for key in ("SLURM_JOB_ID", "SLURM_CPU_BIND", "SLURM_NTASKS", "SBATCH_CPU_BIND", "SUBMITIT_EXECUTOR", "RANK"):
        monkeypatch.setenv(key, "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    with outside_of_any_job():
        left = {key for key in os.environ if key.startswith(("SLURM_", "SBATCH_", "SUBMITIT_")) or key == "RANK"}
        assert left == {"SLURM_CONF"}
    assert os.environ["SLURM_CPU_BIND"] == "7"


def test_points_are_named_by_what_they_differ_in():
    runs = [{"seed": s, "optimizer.lr": lr, "run_dir": f"r{s}"} for s, lr in ((1, 0.1), (2, 0.1), (2, 0.2))]
    assert points(runs)[0] == "optimizer.lr=0.1 seed=1"


def report(rank: int) -> dict:
    place = {"rank": rank, "node": f"n{rank // 2}", "local_rank": rank % 2, "gpus": 2, "clock": 0.0, "problems": []}
    return place | {"config": "a", "code": "/c", "python": "3.11"}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, None),
        ({"gpus": 1}, "was given 1 GPUs, not 2"),
        ({"clock": 60.0}, "clocks differ by 60.0 s"),
        ({"config": "b"}, "same configuration"),
        ({"node": "n0"}, "same place"),
        ({"rank": 9}, "ranks [3] did not report"),
        ({"problems": ["rank 3: no device"]}, "no device"),
    ],
)
def test_preflight_names_what_is_wrong(changes, said):
    config = composed("hardware=dgx2", "gpus=2", "nodes=2", "train.batch_size=64")
    problems = judge(config, [report(0), report(1), report(2), report(3) | changes], 4)
    assert (problems == []) if said is None else len(problems) == 1 and said in problems[0], problems


def test_a_rank_keeps_to_one_memory_node_where_the_machine_has_several(tmp_path):
    for node, cores in ((0, "0-3,8-11"), (1, "4-7")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}/cpulist").write_text(cores + "\n")
    assert numa_nodes(tmp_path) == {0: {0, 1, 2, 3, 8, 9, 10, 11}, 1: {4, 5, 6, 7}}


def test_core_lists_are_read():
    assert core_set("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11} and core_set("") == set()
