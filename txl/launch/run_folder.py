"""The files of a run folder: configuration, plan, a copy of the code; where runs and jobs have their folders."""

import shutil
from pathlib import Path

import yaml

from txl.config.compose import from_dict, to_dict
from txl.config.schema import BenchmarkConfig, EvaluateConfig, RunConfig
from txl.config.yaml_file import read_yaml
from txl.files import CONF, INSTALLED, PACKAGE, PROJECT, write_json, write_text_file
from txl.plan.batch_split import processes
from txl.plan.run_plan import Plan, run_folder


def job_folder(config: RunConfig) -> Path:
    """Where a job writes. Preflights and benchmarks are no trainings: they have folders beside their run's."""
    folder = run_folder(config)
    if isinstance(config, BenchmarkConfig):
        nodes, per_node = processes(config)
        return Path(f"{folder}-benchmark-{nodes}x{per_node}")
    return Path(folder + ("-preflight" if config.preflight else ""))


def write_config(config: RunConfig | EvaluateConfig, folder: Path) -> None:
    """Write config.yaml, and make the folder of the logs."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    write_text_file(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))


def write_run_folder(config: RunConfig, plan: Plan, folder: Path, code: bool = True) -> None:
    """Write config.yaml, plan.json and, unless `code` is false, a copy of the code that runs.

    Args:
        config: What will run.
        plan: What was planned for it.
        folder: The run folder; made if it is missing.
        code: Whether to copy the code.
    """
    write_config(config, folder)
    write_json(folder / "plan.json", plan.to_dict(), indent=1)
    if code:
        copy_code(folder / "code")


def read_config(folder: Path) -> RunConfig | EvaluateConfig:
    """The configuration that `write_config` wrote: of a training, a benchmark or an evaluation."""
    values = read_yaml(folder / "config.yaml")
    if "task" in values:
        return from_dict(values, EvaluateConfig)
    return from_dict(values, BenchmarkConfig if "suite" in values else RunConfig)


def copy_code(folder: Path) -> None:
    """Copy what the ranks of a job import: editing the checkout later changes no queued job."""
    ignore = shutil.ignore_patterns("__pycache__", "site")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=ignore, dirs_exist_ok=True)
    if not INSTALLED:  # a checkout: conf/ and the scripts lie beside the package
        shutil.copytree(CONF, folder / CONF.name, ignore=ignore, dirs_exist_ok=True)
        for script in PROJECT.glob("*.py"):
            shutil.copy2(script, folder)


def error_file(run_dir: Path, rank: int) -> Path:
    """Where a rank that fails writes its traceback."""
    return run_dir / "logs" / f"rank_{rank}.error"


def first_failed_rank(run_dir: Path) -> int | None:
    """The rank that wrote its traceback first. The other ranks failed because this one was gone."""
    errors = sorted(run_dir.glob("logs/rank_*.error"), key=lambda path: path.stat().st_mtime_ns)
    return int(errors[0].stem.removeprefix("rank_")) if errors else None
