"""Start every rank of a job, check what training will need, and stop: a minute that may save a night on 128 GPUs.

Without torch (`preflight_torch=false`): that all ranks came up where the plan has them, that the run folder is shared,
that the nodes' clocks agree, the GPUs and cores that each rank sees, and that the data can be read. With it: this
rank's device computes, and a sum over all ranks is right.
"""

import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from txl.config.config_hash import config_hash
from txl.config.schema import RunConfig
from txl.data.token_source import open_source
from txl.errors import ConfigError, error_line
from txl.files import PROJECT, write_json
from txl.plan.batch_split import processes
from txl.system.world import World

if TYPE_CHECKING:
    import torch

REPORT_SECONDS = 300.0  # seconds until all ranks must have reported


MAX_CLOCK_DIFFERENCE = 5.0  # seconds between two nodes' clocks


FAILED = 1  # exit code


def preflight(config: RunConfig, world: World, run_dir: Path) -> int:
    """Check from this rank; rank 0 gathers the reports, prints and decides.

    Args:
        config: The training to check for.
        world: This rank among the others.
        run_dir: Shared folder for the reports and for preflight.json.

    Returns:
        The exit code: 1 on rank 0 if there are problems.
    """
    rank, size = world.rank, world.world_size
    attempt = "-".join(os.environ.get(key, "0") for key in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "MASTER_PORT"))
    folder = run_dir / "preflight" / attempt
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    try:
        processes(config)  # raises if the launcher started another number than configured
        open_source(config.data)
    except ConfigError as error:
        problems.append(str(error))
    report = {"rank": rank, "problems": problems} | describe_rank()
    report["clock"] = clock_difference(folder / f".clock_{rank}")
    report["config"] = config_hash(config)
    if config.preflight_torch:
        began = time.time()
        problems += check_with_torch(config, world)
        report["torch_seconds"] = round(time.time() - began, 1)
    write_json(folder / f"rank_{rank}.json", report)
    if rank != 0:
        return 0
    reports = gather_reports(folder, size)
    problems = find_problems(config, reports, size)
    print(node_table(reports), flush=True)
    for problem in problems:
        print(error_line(problem), file=sys.stderr, flush=True)
    write_json(run_dir / "preflight.json", {"problems": problems, "ranks": reports}, indent=1)
    shutil.rmtree(folder)
    print(f"preflight: {len(problems)} problem(s), {len(reports)} of {size} ranks", flush=True)
    return FAILED if problems else 0


def describe_rank() -> dict[str, Any]:
    """Node, GPUs, cores, code and Python as this rank sees them."""
    gpus = [entry for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry]
    return {
        "node": os.environ.get("SLURMD_NODENAME", platform.node()),
        "local_rank": int(os.environ.get("LOCAL_RANK", 0)),
        "gpus": len(gpus),
        "cores": len(os.sched_getaffinity(0)),
        "meeting_point": f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}",
        "code": str(PROJECT),
        "python": platform.python_version(),
    }


def clock_difference(file: Path) -> float:
    """This node's clock minus the shared file system's, in seconds."""
    before = time.time()
    file.write_text("")
    difference = (before + time.time()) / 2 - file.stat().st_mtime
    file.unlink()
    return round(difference, 3)


def check_with_torch(config: RunConfig, world: World) -> list[str]:
    """A device that computes, and a sum over all ranks."""
    import torch

    from txl.system.devices import pick_device
    from txl.system.distributed import close_process_group, init_process_group, sum_over_ranks

    try:
        device = pick_device(config.hardware, world.local_rank)
        check_gpu_build(device)
        init_process_group(world, device, config.cluster.hang_minutes)
        block = torch.eye(256, device=device) * (world.rank + 1)
        total = sum_over_ranks((block @ block).sqrt())[0, 0].item()
        close_process_group()
    except Exception as error:  # whatever it is, it is what the user must see
        return [f"rank {world.rank}: {str(error).partition(chr(10))[0]}"]
    expected = world.world_size * (world.world_size + 1) / 2
    return [] if total == expected else [f"rank {world.rank}: the sum over all ranks is {total}, not {expected}"]


def check_gpu_build(device: "torch.device") -> None:
    """Raises ConfigError if this build of torch has no kernels for the GPU; V100s need one for CUDA 12.6 or older."""
    import torch

    if device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    built_for = torch.cuda.get_arch_list()
    if built_for and all(int(arch.partition("_")[2].rstrip("af")) > 10 * major + minor for arch in built_for):
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} is sm_{major}{minor}, and torch {torch.__version__} is built for "
            f"{built_for[0]} and newer; install a build for an older CUDA (V100: CUDA 12.6)"
        )


def gather_reports(folder: Path, size: int) -> list[dict[str, Any]]:
    """The reports of all ranks, or of those that arrive within REPORT_SECONDS."""
    deadline = time.monotonic() + REPORT_SECONDS
    while len(found := list(folder.glob("rank_*.json"))) < size and time.monotonic() < deadline:
        time.sleep(0.1)
    return sorted((json.loads(path.read_text()) for path in found), key=lambda report: report["rank"])


def find_problems(config: RunConfig, reports: list[dict[str, Any]], size: int) -> list[str]:
    """What is wrong, in one line each."""
    problems = [problem for report in reports for problem in report["problems"]]
    missing = sorted(set(range(size)) - {report["rank"] for report in reports})
    if missing:
        problems.append(f"ranks {missing} did not report: they never started, or the run folder is not shared")
    places = [(report["node"], report["local_rank"]) for report in reports]
    if len(set(places)) < len(places):
        problems.append("two ranks have the same place on the same node: started with --ntasks-per-node?")
    clocks = [report["clock"] for report in reports]
    if clocks and max(clocks) - min(clocks) > MAX_CLOCK_DIFFERENCE:
        problems.append(f"the nodes' clocks differ by {max(clocks) - min(clocks):.1f} s; synchronise them")
    wanted = config.hardware.gpus and processes(config)[1]
    for report in reports:
        if wanted and report["gpus"] < wanted:
            problems.append(f"rank {report['rank']} on {report['node']} was given {report['gpus']} GPUs, not {wanted}")
    for key, what in (("config", "configuration"), ("code", "copy of the code"), ("python", "Python")):
        if len({report[key] for report in reports}) > 1:
            problems.append(f"not all ranks run the same {what}: {sorted({report[key] for report in reports})}")
    return problems


def node_table(reports: list[dict[str, Any]]) -> str:
    """One line per node: ranks, GPUs, cores, clock."""
    lines = ["node        ranks  gpus  cores  clock"]
    for node in sorted({report["node"] for report in reports}):
        here = [report for report in reports if report["node"] == node]
        clock = max((report["clock"] for report in here), key=abs)
        lines.append(f"{node:<10} {len(here):>6} {here[0]['gpus']:>5} {here[0]['cores']:>6} {clock:+.3f}s")
    return "\n".join(lines)
