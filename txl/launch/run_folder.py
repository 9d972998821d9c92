"""The files of a run folder: configuration, plan, a copy of the code."""

import shutil
from pathlib import Path

import yaml

from txl.config.compose import from_dict, to_dict
from txl.config.schema import BenchmarkConfig, RunConfig
from txl.files import PROJECT, write_json
from txl.plan.run_plan import Plan


def first_to_fail(run_dir: Path) -> int | None:
    """The rank that wrote its traceback first: the others failed because it was gone."""
    errors = sorted(run_dir.glob("logs/rank_*.error"), key=lambda path: path.stat().st_mtime_ns)
    return int(errors[0].stem.removeprefix("rank_")) if errors else None


def write_run_folder(config: RunConfig, plan: Plan, run_dir: Path, code: bool = True) -> None:
    """config.yaml, plan.json and a copy of the code that runs."""
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    write_json(run_dir / "plan.json", plan.to_dict(), indent=1)
    if code:
        copy_code(run_dir / "code")


def read_config(run_dir: Path) -> RunConfig:
    """The configuration that `write_run_folder` left there: of a training, or of a benchmark."""
    values = yaml.safe_load((run_dir / "config.yaml").read_text())
    return from_dict(values, BenchmarkConfig if "suite" in values else RunConfig)


def folder_of(config: RunConfig, plan: Plan) -> Path:
    """Where a job writes: checks and benchmarks are no trainings, and have folders beside theirs."""
    if isinstance(config, BenchmarkConfig):
        return Path(f"{plan.run_dir}-benchmark-{plan.nodes}x{plan.gpus_per_node}")
    return Path(plan.run_dir + ("-preflight" if config.preflight else ""))


def copy_code(folder: Path) -> None:
    """What the ranks of a job import: editing the checkout later changes no queued job."""
    for part in ("txl", "conf"):
        ignore = shutil.ignore_patterns("__pycache__", "site")
        shutil.copytree(PROJECT / part, folder / part, ignore=ignore, dirs_exist_ok=True)
    for script in PROJECT.glob("*.py"):
        shutil.copy2(script, folder)
