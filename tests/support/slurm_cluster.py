"""A private SLURM on this machine, for tests: munged, slurmctld and N slurmd with fake GPUs, as our children.

Runs as root or as any user, beside any other cluster. GPUs are links to /dev/null.
"""

import contextlib
import ctypes
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue"]
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

CONFIGURATION = """
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
FirstJobId={first_job}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/s,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=100000,bf_interval=2
ReturnToService=2
SlurmdTimeout=10
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters={preemption}
GresTypes=gpu
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=32 RealMemory=20000 \
Gres=gpu:{gpus} State=UNKNOWN
PartitionName=dgx Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

# Real sites have accounting; without it sacct answers nothing. This one asks the controller.
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
while [ $# -gt 0 ]; do
  if [ "$1" = -j ]; then
    scontrol -o show job "$2" 2>/dev/null | awk '{
      delete f; for (i = 1; i <= NF; i++) { n = index($i, "="); f[substr($i, 1, n - 1)] = substr($i, n + 1) }
      id = f["JobId"]; if (f["ArrayJobId"] != "") id = f["ArrayJobId"] "_" f["ArrayTaskId"]
      print id "|" f["JobState"] "|" f["NodeList"] }'
    shift
  fi
  shift
done
"""


def missing() -> str | None:
    """Why there can be no cluster here; None: it can be."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return (
        f"no SLURM here: {', '.join(absent)} not installed (apt-get install munge slurmctld slurmd slurm-client)"
        if absent
        else None
    )


class Cluster:
    """A running cluster of `nodes` nodes, n1 to nN, with partitions dgx and (preempting it) urgent."""

    def __init__(self, nodes: int = 2, gpus: int = 16, user_signal: bool = True):
        # A short path, for the socket, that all may enter: munged insists.
        self.folder = folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.nodes = nodes
        self.daemons: dict[str, subprocess.Popen] = {}
        for part in ("state", "munge", "dev", "bin"):
            (folder / part).mkdir()
        folder.chmod(0o755)
        port = free_ports(nodes + 1)
        host = socket.gethostname().partition(".")[0]
        text = CONFIGURATION.format(
            host=host,
            user=getpass.getuser(),
            folder=folder,
            port=port,
            # The port of a job's rank 0 is 20000 + its number: jobs of another cluster on this machine use others.
            first_job=port - 20000 + 100,
            first=port + 1,
            last=port + nodes,
            nodes=nodes,
            gpus=gpus,
            preemption="preempt_send_user_signal" if user_signal else "idle_on_node_suspend",
        )
        (folder / "slurm.conf").write_text(text)
        for i in range(gpus):
            (folder / "dev" / f"gpu{i}").symlink_to("/dev/null")
        devices = f"{folder}/dev/gpu[0-{gpus - 1}]"
        (folder / "gres.conf").write_text(f"NodeName=n[1-{nodes}] Name=gpu File={devices}\n")
        sacct = folder / "bin" / "sacct"
        sacct.write_text(SACCT)
        sacct.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SUBMITIT_"))}
        self.environment = clean | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def with_sacct(self) -> dict[str, str]:
        """The environment of a site whose sacct answers."""
        return self.environment | {"PATH": f"{self.folder}/bin{os.pathsep}{PATH}"}

    # ------------------------------------------------------------------ start and stop

    def start(self) -> "Cluster":
        d = self.folder
        munge = ["munged", "-F", f"--key-file={d}/munge.key", f"--socket={d}/munge/s", f"--pid-file={d}/munge/pid"]
        self._daemon("munged", [*munge, f"--log-file={d}/munge/log", f"--seed-file={d}/munge/seed"])
        self._wait(lambda: (d / "munge/s").exists(), 10, "munged")
        self._daemon("slurmctld", ["slurmctld", "-D", "-f", f"{d}/slurm.conf"])
        for i in range(1, self.nodes + 1):
            self.start_node(f"n{i}")
        self._wait(lambda: self.idle() == self.nodes, 30, "nodes")
        return self

    def start_node(self, name: str) -> None:
        self._daemon(name, ["slurmd", "-D", "-N", name, "-f", f"{self.folder}/slurm.conf"])

    def stop(self) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.run("scancel", "-s", "KILL", "-u", getpass.getuser(), check=False, timeout=10)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=5)
            daemon.kill()
        for pid in self.processes():  # steps outlive their slurmd
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[int]:
        """Everything that belongs to this cluster."""
        mark, found = f"SLURM_CONF={self.folder}/slurm.conf".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes().split(b"\0") and int(path.parts[2]) != os.getpid():
                    found.append(int(path.parts[2]))
        return found

    def _daemon(self, name: str, command: list[str]) -> None:
        log = open(self.folder / f"{name}.out", "ab")  # noqa: SIM115
        self.daemons[name] = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent
        )

    # ------------------------------------------------------------------ asking

    def run(self, *command: str, check: bool = True, timeout: float = 30) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def idle(self) -> int:
        count = self.run("sinfo", "-h", "-p", "dgx", "-t", "idle", "-o", "%D", check=False)
        return int(count) if count.isdigit() else 0

    def job(self, number: str) -> dict[str, str]:
        """What the controller says about a job: JobState, ExitCode, Restarts, NodeList, ..."""
        text = self.run("scontrol", "-o", "show", "job", number, check=False).partition("\n")[0]
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    def wait_for(self, number: str, *states: str, timeout: float = 60) -> dict[str, str]:
        """Wait until a job is in one of these states; returns what the controller says then."""
        self._wait(lambda: self.job(number).get("JobState") in states, timeout, f"job {number} to be {states}")
        return self.job(number)

    def _wait(self, condition, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}; {self._tail()}"
            time.sleep(0.1)

    def _tail(self) -> str:
        queue = self.run("squeue", "-a", check=False)
        logs = "\n".join((path.read_text(errors="replace")[-800:]) for path in self.folder.glob("slurmctld.log"))
        return f"{queue}\n{logs}"


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def free_ports(count: int) -> int:
    """The first of so many neighbouring ports that nobody listens on."""
    while True:
        first = random.randrange(21000, 31000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(contextlib.closing(socket.socket())).bind(("127.0.0.1", port))
            return first
