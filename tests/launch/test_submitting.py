"""From one process to a SLURM cluster. The cluster is real: slurm_cluster.py starts it for these tests."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest

from tests.support.configurations import composed
from tests.support.entry_points import PROJECT, command, environment
from tests.support.in_process import train_here
from tests.support.made_data import write_corpus
from tests.support.slurm_site import HOLD, TWO_BY_TWO, job_of, submitted, wait_for_step
from tests.support.tiny_runs import TINY_RUN, metrics
from txl.config.differences import name_points
from txl.launch.preflight import find_problems
from txl.launch.slurm_environment import first_host, slurm_variables
from txl.launch.slurm_script import outermost, without_job_environment
from txl.launch.wait_for_jobs import describe_failure, ends_of_ranks
from txl.system.devices import numa_nodes
from txl.system.hardware import parse_core_list
from txl.system.slurm_jobs import SubmittedJob

# --------------------------------------------------------------------------- one job


def test_a_job_of_two_nodes_computes_what_one_process_computes(site):
    plain = ["train.max_step=20", "precision=fp64", "model.dropout=0", "then=evaluate"]
    output = site.train(*TWO_BY_TWO, *plain, f"run_dir={site.folder}/four")
    job = job_of(output)
    assert "4 = 2 node(s) x 2" in output
    assert f"tail -F {site.folder}/four/slurm/{job}_0_log.out" in output and f"txl status {site.folder}" in output
    train_here(*site.shared, *plain, f"run_dir={site.folder}/one")
    said = site.cluster.wait_for(job, "COMPLETED", "FAILED", timeout=90)
    assert said["JobState"] == "COMPLETED", (site.folder / f"four/slurm/{job}_0_log.out").read_text()
    for kind in ("train", "valid", "test"):
        one, four = metrics(site.folder / "one", kind), metrics(site.folder / "four", kind)
        assert [r["step"] for r in one] == [r["step"] for r in four] and one
        assert [r["loss"] for r in four] == pytest.approx([r["loss"] for r in one], rel=1e-6)
    one, four = (json.loads((site.folder / name / "summary.json").read_text()) for name in ("one", "four"))
    assert four["evaluation"]["loss"] == pytest.approx(one["evaluation"]["loss"], rel=1e-6)
    assert sorted(path.name for path in (site.folder / "four/logs").iterdir()) == [f"rank_{i}.log" for i in range(4)]


def long_text(folder) -> list[str]:
    """Enough for the published batches, in every split."""
    text = folder / "train.txt"
    return [*write_corpus(folder, train_lines=9000)[:4], f"data.valid={text}", f"data.test={text}"]


def test_submitting_takes_less_than_two_seconds(site, faults):
    """Of this process' time: others may be using the machine as well."""
    longer = long_text(site.folder / "longer")
    big = ["model=large", "hardware=dgxa100", "nodes=8", *longer, f"runs={site.folder}/latency", HOLD]
    start = dict(cwd=site.folder, env=site.environment(), capture_output=True, text=True, timeout=60)
    subprocess.run([*command("train.py", *big), "seed=1"], **start)  # encodes the text
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([*command("train.py", *big), "seed=2"], **start)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "64 = 8 node(s) x 8 A100" in done.stdout and "multi_node" in done.stdout
    assert site.cluster.job(job_of(done.stdout))["NumNodes"].startswith("8")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    what = "`model=large hardware=dgxa100 nodes=8`, until it is submitted"
    faults.measure(what, f"{seconds:.2f} s ({cpu:.2f} s of CPU)")
    assert cpu < 2
    site.cluster.run("scancel", "--state=PENDING", "--name=text-large")


def test_dry_run_prints_plan_and_script_where_there_is_no_slurm(tmp_path):
    data, runs = write_corpus(tmp_path / "text"), tmp_path / "elsewhere"
    flags = ["cluster.cpus_per_task=4", "cluster.partition=dgx", "cluster.qos=high", "cluster.setup=[module load cuda]"]
    flags += ['cluster.sbatch=["--mail-user=me"]', 'cluster.srun=["--cpu-bind=cores"]', "cluster.container=image.sqsh"]
    flags += ['cluster.container_mounts=["/datasets:/datasets"]', "cluster.account=ours", "cluster.constraint=v100"]
    shape = ["hardware=dgx2", "nodes=2", "train.batch_size=64", f"runs={runs}", "dry_run=true"]
    output = subprocess.run(
        command("train.py", *data, *shape, *flags),
        cwd=tmp_path,
        env=environment(PATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "32 = 2 node(s) x 16 V100-32GB" in output
    sbatch, _, srun = output.partition("srun ")
    for flag in ("nodes=2", "ntasks-per-node=16", "cpus-per-task=4", "gpus-per-node=16", "requeue", "time=1440"):
        assert f"#SBATCH --{flag}\n" in sbatch
    for flag in ("partition=dgx", "qos=high", "account=ours", "constraint=v100", "mail-user=me", "signal=USR2@120"):
        assert f"#SBATCH --{flag}\n" in sbatch
    for flag in ("--kill-on-bad-exit=1", "--cpus-per-task=4", "--cpu-bind=cores", "--container-image=image.sqsh"):
        assert flag in srun
    # What the job needs is there as well: the runs, and the text, which lies below the working directory here.
    assert f"--container-mounts={tmp_path}:{tmp_path},/datasets:/datasets --container-workdir={tmp_path}" in srun
    assert "module load cuda" in sbatch and "wckey" not in output and not runs.exists()


def test_a_container_is_given_every_folder_once(tmp_path):
    folders = {tmp_path / "a", tmp_path / "a/b", tmp_path / "c"}
    assert outermost(folders) == [tmp_path / "a", tmp_path / "c"]


def test_a_site_keeps_its_settings_in_a_file_that_git_ignores(tmp_path):
    assert "/conf/site/" in (PROJECT / ".gitignore").read_text().splitlines()
    (tmp_path / "site").mkdir()
    (tmp_path / "site/slurm.yaml").write_text("partition: gpu\naccount: ours\nminutes: 480\n")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    for choice in ("hardware=dgx2", "cluster=slurm"):
        cluster = composed("hardware=cpu" if choice == "cluster=slurm" else "gpus=16", choice, search).cluster
        assert (cluster.name, cluster.partition, cluster.account, cluster.minutes) == ("slurm", "gpu", "ours", 480)
        assert cluster.signal_delay == 120  # conf/cluster/slurm.yaml's
    assert composed("hardware=dgx2", "cluster=local", search).cluster.partition is None
    assert composed("hardware=dgx2", "cluster.partition=debug", search).cluster.partition == "debug"


def test_published_hardware_goes_to_slurm_unless_told_otherwise():
    assert composed("hardware=dgx2").cluster.name == "slurm"
    assert composed("hardware=dgx2", "cluster=local").cluster.name == "local"


@pytest.mark.parametrize("answer", ["y", "n", None])
def test_ctrl_c_in_a_waiting_launcher_asks_what_to_do_with_the_job(answer, site):
    """... and without a terminal it leaves the job and says so."""
    ours, theirs = os.openpty()
    run_dir = site.folder / f"left-{answer}"
    process = site.start(
        *TWO_BY_TWO, HOLD, "cluster.wait=true", f"run_dir={run_dir}", stdin=theirs if answer else subprocess.DEVNULL
    )
    assert any("PENDING" in line for line in iter(process.stdout.readline, "")), process.stderr.read()
    process.send_signal(signal.SIGINT)
    if answer:
        os.write(ours, f"{answer}\n".encode())
    out, err = process.communicate(timeout=30)
    job = submitted(run_dir)
    assert process.returncode == 130 and "Traceback" not in err
    if answer == "y":
        assert f"cancelled: {job}" in out and site.cluster.job(job)["JobState"] == "CANCELLED"
    else:
        assert f"scancel {job}" in out and site.cluster.job(job)["JobState"] == "PENDING"
        site.cluster.run("scancel", job)


def test_a_job_can_be_submitted_from_inside_another_one(site):
    """Nothing of the allocation's shape or binding reaches the new job."""
    within = ("srun", "-N1", "-n1", "--cpus-per-task=1", "--time=2")
    check = ["preflight=true", "preflight_torch=false", "cluster.wait=true", "cluster.cpus_per_task=2"]
    output = site.train(*TWO_BY_TWO, *check, f"run_dir={site.folder}/inside", within=within)
    assert "4 of 4 ranks" in output and "0 problem(s)" in output
    assert len(re.findall(r"^n\d +2 ", output, re.MULTILINE)) == 2


# --------------------------------------------------------------------------- sweeps


@pytest.mark.parametrize(
    "array", [pytest.param(False, marks=pytest.mark.slow, id="separate_jobs"), pytest.param(True, id="one_array")]
)
def test_a_sweep_is_continued_where_it_was_interrupted_and_finished_points_are_not_repeated(array, site):
    runs, steps = site.folder / ("array" if array else "separate"), 30
    launcher = ["hydra/launcher=slurm_array", "hydra.launcher.array_parallelism=2"] * array
    sweep = ["-m", *launcher, "seed=1,2,3", "cluster=slurm", "cluster.minutes=5", f"train.max_step={steps}"]
    sweep += ["resume=auto", f"hydra.sweep.dir={runs}", f"run_dir={runs}/text/s${{seed}}"]
    jobs = re.findall(r"job (\S+) submitted", site.train(*sweep, fault="slow:0.1"))
    assert len(jobs) == 3
    if array:
        assert [job.partition("_")[2] for job in jobs] == ["0", "1", "2"]
    wait_for_step(runs / "text/s1", 3)
    site.cluster.run("scancel", jobs[0])
    site.cluster.wait_for(jobs[0], "CANCELLED")
    again = site.train(*sweep, "cluster.wait=true")  # also for the others, which are left alone
    assert len(re.findall(r"job \S+ submitted", again)) == 1
    for sacct in (False, True):
        rows = site.status(runs, sacct)
        assert [row[0] for row in rows[1:]] == ["seed=1", "seed=2", "seed=3"]
        assert [row[2:4] for row in rows[1:]] == [["COMPLETED", f"{steps}/{steps}"]] * 3
        assert [row[1] for row in rows[2:]] == jobs[1:] and rows[1][1] != jobs[0]
    for seed in (1, 2, 3):
        assert [record["step"] for record in metrics(runs / f"text/s{seed}")] == list(range(1, steps + 1))
    last = site.train(*sweep)
    assert last.count("is finished: nothing to do") == 3 and "submitted" not in last


def test_a_sweep_that_waits_has_submitted_every_point_first(site):
    runs = f"run_dir={site.folder}/waiting/s${{seed}}"
    process = site.start("-m", "seed=1,2", *TWO_BY_TWO, HOLD, "cluster.wait=true", runs)
    jobs = [submitted(site.folder / f"waiting/s{seed}") for seed in (1, 2)]
    site.cluster.run("scancel", *jobs)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert all(f"job {job} CANCELLED" in err for job in jobs), err


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


def test_ctrl_c_ends_a_local_sweep_and_the_same_sweep_goes_on(tmp_path):
    data, runs = write_corpus(tmp_path / "text"), tmp_path / "runs"
    sweep = ["-m", *data, *TINY_RUN, "seed=1,2", "resume=auto", "train.max_step=120", f"run_dir={runs}/s${{seed}}"]
    with subprocess.Popen(
        command("train.py", *sweep), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        wait_for_step(runs / "s1", 3)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert not (runs / "s2").exists()
    subprocess.run(command("train.py", *sweep), cwd=tmp_path, env=environment(), check=True, timeout=120)
    for seed in (1, 2):
        assert [record["step"] for record in metrics(runs / f"s{seed}")] == list(range(1, 121))


# --------------------------------------------------------------------------- preflight, torchrun, what follows


@pytest.mark.slow
def test_128_ranks_come_up_where_the_plan_has_them(site):
    big = ["model=large", "hardware=dgx2", "nodes=8", "train.batch_size=512", "cluster.wait=true"]
    shared, site.shared = site.shared, long_text(site.folder / "longer")
    try:
        big += [f"runs={site.folder}/runs", "preflight=true", "preflight_torch=false", "cluster.minutes=5"]
        output = site.train(*big)
    finally:
        site.shared = shared
    assert "128 of 128 ranks" in output and "0 problem(s)" in output
    assert len(re.findall(r"^n\d +16 +16 ", output, re.MULTILINE)) == 8


def test_a_job_may_evaluate_after_training(tmp_path):
    longer = ["evaluation.tgt_len=4", "evaluation.mem_len=16", "evaluation.batch_size=2"]
    data = write_corpus(tmp_path / "text")
    train_here(*data, *TINY_RUN, "train.max_step=8", "then=evaluate", *longer, f"run_dir={tmp_path}/run")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["evaluation"]["geometry"]["mem_len"] == 16 and summary["evaluation"]["batch_size"] == 2
    assert summary["evaluation"]["loss"] != summary["test"]["loss"]


def test_a_benchmark_of_several_nodes_is_submitted_like_a_training_and_needs_no_data(site):
    words = ["data.vocab_size=60", "data.cutoffs=[20]"]
    shared, site.shared = site.shared, [*TINY_RUN, *words, f"runs={site.folder}/runs"]
    try:
        measure = ["suite=train", "benchmark.steps=2", "benchmark.micro_batch_sizes=[2]", "cluster=slurm"]
        measure += ["cluster.minutes=5", "gpus=1", "cluster.wait=true"]
        output = site.train("-m", "nodes=1,2", *measure, script="benchmark.py")
    finally:
        site.shared = shared
    for nodes, job in enumerate(re.findall(r"job (\S+) submitted", output), start=1):
        (table,) = (site.folder / "runs").glob(f"*/*-benchmark-{nodes}x1/benchmark.json")
        (row,) = json.loads(table.read_text())["rows"]
        assert (row["processes"], row["micro_batch_size"]) == (nodes, 2) and row["tokens_per_second"] > 0
        assert site.cluster.job(job)["NumNodes"] == str(nodes)
        assert "MFU" in (table.parent / "slurm" / f"{job}_0_log.out").read_text()


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
    with without_job_environment():
        left = {key for key in os.environ if key.startswith(("SLURM_", "SBATCH_", "SUBMITIT_")) or key == "RANK"}
        assert left == {"SLURM_CONF"}
    assert os.environ["SLURM_CPU_BIND"] == "7"


def test_a_failed_rank_is_found_among_those_that_srun_ended():
    text = "srun: error: n2: tasks 2-3: Killed\nsrun: error: n1: task 0: Exited with exit code 1\n"
    assert ends_of_ranks(text) == {2: " on n2: Killed", 3: " on n2: Killed", 0: " on n1: Exited with exit code 1"}


@pytest.mark.parametrize(
    "lost",
    [
        "RuntimeError: [gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:31659: Connection reset by peer.",
        "RuntimeError: the other process, with which gradients are averaged, has ended",
    ],
)
def test_a_killed_rank_is_named_although_others_noticed_and_ended_before_srun_reported_it(tmp_path, lost):
    job = SubmittedJob(tmp_path, "17", tmp_path / "17_0_log.out")
    reported = ["n1: tasks 0-1: Exited with exit code 1", "n2: task 2: Killed", "n2: task 3: Exited with exit code 1"]
    job.log.write_text("Starting with JobEnvironment\n" + "".join(f"srun: error: {line}\n" for line in reported))
    (tmp_path / "logs").mkdir()
    for rank in (1, 0, 3):
        (tmp_path / "logs" / f"rank_{rank}.error").write_text(f"Traceback (most recent call last):\n{lost}\n")
    assert describe_failure(job) == f"rank 2 on n2: Killed; {tmp_path}/17_2_log.out"
    (tmp_path / "logs" / "rank_1.error").write_text("Traceback (most recent call last):\nValueError: of its own\n")
    os.utime(tmp_path / "logs" / "rank_1.error", (0, 0))
    assert describe_failure(job).startswith("rank 1 on n1: Exited with exit code 1;")


def test_points_are_named_by_what_they_differ_in():
    runs = [{"seed": s, "optimizer.lr": lr, "run_dir": f"r{s}"} for s, lr in ((1, 0.1), (2, 0.1), (2, 0.2))]
    assert name_points(runs)[0] == "optimizer.lr=0.1 seed=1"


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
    problems = find_problems(config, [report(0), report(1), report(2), report(3) | changes], 4)
    assert (problems == []) if said is None else len(problems) == 1 and said in problems[0], problems


def test_a_rank_keeps_to_one_memory_node_where_the_machine_has_several(tmp_path):
    for node, cores in ((0, "0-3,8-11"), (1, "4-7")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}/cpulist").write_text(cores + "\n")
    assert numa_nodes(tmp_path) == {0: {0, 1, 2, 3, 8, 9, 10, 11}, 1: {4, 5, 6, 7}}


def test_core_lists_are_read():
    assert parse_core_list("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11} and parse_core_list("") == set()
