"""The rules between values: which configurations make sense.

Rules are decided from the configuration and the installed packages, without a look at files or devices, and without
torch. The range of a single number stands beside its option (bounds.py).
"""

import importlib.util
import re

from txl.config.adaptation import check_adaptation
from txl.config.bounds import check_bounds
from txl.config.compose import Config
from txl.config.data_rules import check_data_options
from txl.config.machine_rules import check_kernels, check_machine
from txl.config.model_rules import check_clamp, check_model
from txl.config.schema import BenchmarkConfig, EvaluateConfig, RunConfig, Runtime, Suite, Task
from txl.config.tracking import PACKAGES, TrackingConfig, enabled_sinks
from txl.config.training_rules import check_training
from txl.errors import refuse_unless

MOST_NAME = 200  # characters; file systems allow 255 bytes

# Files that a run writes itself: tracking.dllogger needs another name.
OWN_FILES = {"metrics.jsonl", "train.log", "config.yaml", "plan.json", "environment.json", "summary.json", "start.json"}


def validate(config: Config) -> Config:
    """Returns the same configuration. Raises ConfigError for the first value or combination that cannot work."""
    check_bounds(config)
    if isinstance(config, RunConfig):
        _check_run_config(config)
    if isinstance(config, BenchmarkConfig):
        _check_benchmark(config)
    if isinstance(config, EvaluateConfig):
        _check_evaluate_config(config)
    return config


def _check_run_config(config: RunConfig) -> None:
    check_model(config.model, config.data)
    check_data_options(config.data)
    check_training(config)
    check_machine(config)
    check_kernels(config)
    _check_run_folder(config)


def _check_run_folder(config: RunConfig) -> None:
    plain = re.fullmatch(r"\w[\w.,=+-]*", config.name)
    refuse_unless(plain, "name", config.name, "must be one folder name of letters, digits and . , = + - _")
    refuse_unless(len(config.name) <= MOST_NAME, "name", config.name, f"is longer than {MOST_NAME} characters")
    rule = "leaves no run folder, which a SLURM job needs; use cluster=local, or leave it out"
    refuse_unless(not config.debug or config.cluster.name != "slurm", "debug", True, rule)
    rule = "would move what was saved in that run folder; leave debug=true out"
    refuse_unless(not config.debug or config.resume in (None, "auto"), "resume", config.resume, rule)
    rule = "is the file for dry_run=true; add that, or leave it out (a run writes plan.json and metrics.jsonl itself)"
    refuse_unless(config.json is None or config.dry_run, "json", config.json, rule)
    _check_tracking(config.tracking)
    for key in ("resume", "init_from", "run_dir", "runs"):
        value = getattr(config, key)
        refuse_unless(value is None or value.strip(), key, "''", "must name a folder; leave it out otherwise")


def _check_tracking(options: TrackingConfig) -> None:
    for sink in enabled_sinks(options):
        package = PACKAGES.get(sink)
        installed = package is None or importlib.util.find_spec(package)
        rule = f"needs the package {package}, which is not installed: pip install {package}, or leave {sink.value} out"
        refuse_unless(installed, "tracking", sink, rule)
    notify = options.notify
    rule = "must be an address (http://..., https://...) or the name of an environment variable that holds one"
    is_address = notify is None or re.fullmatch(r"https?://\S+", notify) or re.fullmatch(r"[A-Za-z_]\w*", notify)
    refuse_unless(is_address, "tracking.notify", notify, rule)
    file = options.dllogger
    free = file is None or (re.fullmatch(r"\w[\w.-]*", file) and file not in OWN_FILES)
    rule = "must be the name of a file in the run folder that nothing else writes; use train_log.json"
    refuse_unless(free, "tracking.dllogger", file, rule)


def _check_benchmark(config: BenchmarkConfig) -> None:
    processes = config.benchmark.processes
    rule = "is for this machine; under cluster=slurm nodes= and gpus= say how many"
    refuse_unless(processes is None or config.cluster.name != "slurm", "benchmark.processes", processes, rule)
    for key in ("batch_sizes", "micro_batch_sizes", "runtimes", "precisions"):
        value = getattr(config.benchmark, key)
        refuse_unless(value, f"benchmark.{key}", value, "is empty: name at least one")
    for key in ("batch_sizes", "micro_batch_sizes", "processes"):
        sizes = getattr(config.benchmark, key)
        refuse_unless(sizes is None or min(sizes, default=0) > 0, f"benchmark.{key}", sizes, "must all be above 0")
    rule = f"submits jobs, and suite={config.suite.name} measures the machine it is started on; use hardware=auto"
    here = config.suite is Suite.train or config.cluster.name != "slurm"
    refuse_unless(here, "cluster", config.cluster.name, f"{rule} cluster=local, inside of an allocation")
    of_inference = config.suite is Suite.inference
    if of_inference:
        _check_inference(config)
    sized = config.suite is Suite.encoding or config.data.vocab_size or (of_inference and config.benchmark.checkpoint)
    rule = "does not say how large its vocabulary is; give data.vocab_size=N"
    rule += ", or benchmark.checkpoint" if of_inference else ""
    refuse_unless(sized, "data", config.data.name, rule)
    rule = "has no meaning for a benchmark, whose segments have one length; leave it out"
    refuse_unless(not config.train.varlen, "train.varlen", config.train.varlen, rule)


def _check_inference(config: BenchmarkConfig) -> None:
    """Every combination is checked before the first is measured."""
    able = config.model.positions.facts.caches_keys and not config.evaluation.ext_len
    for runtime in config.benchmark.runtimes:
        rule = "needs positions whose keys can be cached, and evaluation.ext_len=0; use runtimes=[eager]"
        known = able or runtime in (Runtime.auto, Runtime.eager) or config.benchmark.checkpoint
        refuse_unless(known, "benchmark.runtimes", runtime, rule)


TASK_OPTIONS = {  # what only one task reads; the first ones are needed by it
    Task.generate: ("prompt", "prompts"),
    Task.score: ("file", "scores"),
}


def _check_task(config: EvaluateConfig) -> None:
    given = config.prompt is not None or config.prompts is not None
    rule = 'needs a beginning: prompt="...", or prompts=FILE'
    refuse_unless(given or config.task is not Task.generate, "task", config.task, rule)
    rule = "needs file=FILE, a text per line (file=- reads standard input; one typed text: txl evaluate text=...)"
    refuse_unless(config.file or config.task is not Task.score, "task", config.task, rule)
    for task, keys in TASK_OPTIONS.items():
        for key in keys if task is not config.task else ():
            value = getattr(config, key)
            rule = f"has no meaning for task={config.task.name}; use task={task.name}"
            refuse_unless(value is None, key, value, rule)
    rule = "is the file that file= reads; name another one"
    refuse_unless(config.scores is None or config.scores != config.file, "scores", config.scores, rule)
    if config.task is Task.evaluate:
        return
    refuse_unless(config.text is None, "text", config.text, f"has no meaning for task={config.task.name}; leave it out")
    by_token = config.runtime in (Runtime.auto, Runtime.eager, Runtime.cached)
    rule = f"reads whole segments; use runtime=cached for task={config.task.name}"
    refuse_unless(by_token, "runtime", config.runtime, rule)
    rule = f"is more than task={config.task.name} uses, which is one process; leave it out"
    refuse_unless(config.nodes * (config.gpus or 1) == 1, "gpus", config.gpus, rule)


def _check_evaluate_config(config: EvaluateConfig) -> None:
    check_clamp("clamp_len", config.clamp_len)
    check_machine(config)
    within = config.percentiles and all(0 <= percent <= 100 for percent in config.percentiles)
    rule = "must be numbers from 0 to 100, such as [50,90,95,99]"
    refuse_unless(within, "percentiles", config.percentiles, rule)
    rule = "excludes prompts: give one text, or a file of them"
    refuse_unless(config.prompt is None or config.prompts is None, "prompt", config.prompt, rule)
    refuse_unless(config.prompt is None or config.prompt.strip(), "prompt", "''", "is empty: write how the text begins")
    refuse_unless(config.text is None or config.text.strip(), "text", "''", "is empty: there is nothing to evaluate")
    _check_task(config)
    split = config.task is Task.evaluate and config.text is None
    rule = "is for a split of the data set, not for a text or another task; leave it out"
    key = "neural_cache" if config.neural_cache else "dynamic"
    refuse_unless(not config.adapts or split, key, getattr(config, key), rule)
    times = bool(config.latency or config.npz)
    check_adaptation(config, config.runtime.name, config.precision.name.name, config.repeat, times)
    programs = config.runtime in (Runtime.torchscript, Runtime.export)
    refuse_unless(config.program is None or programs, "program", config.program, "needs runtime=torchscript or export")
