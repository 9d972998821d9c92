"""A long training of a tiny model, and a record of a million lines: memory, files, speed, sizes of logs, seconds.

python -m tools.long_run                 200,000 steps, then the long record: goes on where it was stopped (Ctrl-C)
python -m tools.long_run --steps 2000 --lines 10000

The figures go into docs/reliability.md: python -m tools.chaos.reliability --long runs/long_run/figures.json
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN
from txl.config.tracking import TrackingConfig
from txl.files import PROJECT, read_json, write_json
from txl.system.process_exit import TERMINATED
from txl.tracking.jsonl_sink import JsonlSink
from txl.tracking.metrics_file import TRAIN_LINE, last_records
from txl.tracking.metrics_gaps import missing_at_the_end
from txl.tracking.sinks import TrackedRun

SAMPLED_EVERY = 1.0  # seconds
ROTATE_MB = 1  # small, so that the logs are rotated

MODEL = "n_layer=1 n_head=1 d_model=4 d_head=4 d_inner=4 dropout=0"


def options_of(folder: Path, steps: int) -> list[str]:
    """The command line of the run: next to nothing is computed, so that most of the time is the loop's own."""
    tiny = [option for option in TINY_RUN if not option.startswith(("model.", "train.", "valid."))]
    run = [f"model.{size}" for size in MODEL.split()]
    run += ["train.batch_size=1", "train.tgt_len=4", "train.mem_len=4", "train.log_interval=10", "valid.tgt_len=4"]
    run += ["valid.batch_size=1", "valid.max_steps=10", f"valid.interval={max(10, steps // 20)}"]
    run += ["scheduler=constant", f"tracking.rotate_mb={ROTATE_MB}", f"train.max_step={steps}"]
    return [*write_corpus(folder / "text"), *tiny, *run, f"run_dir={folder}/run", "resume=auto"]


# --------------------------------------------------------------------------- the long run


def train(folder: Path, steps: int) -> None:
    """Train to the last step, and append a sample to samples.jsonl every second."""
    command = [sys.executable, "-m", "txl", "train", *options_of(folder, steps)]
    with open(folder / "output.txt", "a") as output, open(folder / "samples.jsonl", "a") as samples:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=output)
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError, LookupError, ValueError):
                    samples.write(json.dumps(sample(process.pid, folder / "run")) + "\n")
                    samples.flush()
                time.sleep(SAMPLED_EVERY)
        except KeyboardInterrupt:
            print("stopped; the same command goes on", file=sys.stderr)
        finally:
            process.terminate()  # it saves
            process.wait()
    if process.returncode not in (0, TERMINATED):
        raise SystemExit(f"error: the run ended with exit code {process.returncode}: {folder}/output.txt")


def sample(pid: int, run: Path) -> dict[str, Any]:
    """What a process has used so far, and what lies in its run folder."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    seconds = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = [path for path in run.rglob("*") if path.is_file() and "code" not in path.relative_to(run).parts]
    logs = [path.stat().st_size for path in files if ".log" in path.name]
    return {
        "pid": pid,
        "step": last_records(run, "train")[0].get("step", 0),
        "time": time.time(),
        "cpu_seconds": seconds,
        "rss_mb": int(status["VmRSS"].split()[0]) / 1024,
        "open_files": len(os.listdir(f"/proc/{pid}/fd")),
        "files": len(files),
        "log_bytes": sum(logs),
    }


def summarize(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a run from its samples: the first tenth of the steps so far, without the start, and the last."""
    steps = samples[-1]["step"]
    tenths = [[one for one in samples if one["step"] > 0 and 10 * one["step"] // (steps + 1) == n] for n in range(10)]
    first, last = tenths[0], tenths[-1]
    speeds = {name: _steps_per(first, name) for name in ("cpu_seconds", "time")}
    return {
        "steps": steps,
        "processes": len({one["pid"] for one in samples}),  # 1: it was not stopped
        "rss_mb": {"first": max(one["rss_mb"] for one in first), "last": max(one["rss_mb"] for one in last)},
        "files": {"first": first[-1]["files"], "last": last[-1]["files"]},
        "open_files": {"first": first[-1]["open_files"], "last": last[-1]["open_files"]},
        "log_bytes": max(one["log_bytes"] for one in samples),
        "steps_per_cpu_second": {"first": speeds["cpu_seconds"], "last": _steps_per(last, "cpu_seconds")},
        "steps_per_second": {"first": speeds["time"], "last": _steps_per(last, "time")},
    }


def _steps_per(tenth: list[dict[str, Any]], clock: str) -> float:
    """Steps per unit of a clock, over the samples of the tenth's last process."""
    same = [one for one in tenth if one["pid"] == tenth[-1]["pid"]]
    return float(same[-1]["step"] - same[0]["step"]) / float(max(1e-9, same[-1][clock] - same[0][clock]))


# --------------------------------------------------------------------------- a record of a million lines


def measure_long_record(folder: Path, lines: int) -> dict[str, Any]:
    """What `txl report`, and a resume's reading of the record, take with a short and with a long metrics.jsonl."""
    found: dict[str, Any] = {"lines": lines}
    source = folder / "short" / "run"
    if not (source / "summary.json").exists():
        shutil.rmtree(source, ignore_errors=True)
        _timed([sys.executable, "-m", "txl", "train", *options_of(source.parent, 20)])
    record = (source / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    line = next(line for line in record if line.startswith(TRAIN_LINE))
    for name, count in (("short", len(record)), ("long", lines)):
        run = folder / "record" / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(source, run, symlinks=True)
        with open(run / "metrics.jsonl", "wb") as file:
            file.writelines(line.replace(b'"step": 10,', b'"step": %d,' % (10 * i)) for i in range(1, count + 1))
        found[f"report_{name}"] = _timed([sys.executable, "-m", "txl", "report", str(run)])
        last = 10 * count - 50  # as if the checkpoint were five lines before the end
        sink, began = JsonlSink(run, TrackedRun(TrackingConfig(), {}, "bpc", 10 * lines, 0)), time.process_time()
        sink.rewind(last)
        sink.close(0)
        assert missing_at_the_end(run / "metrics.jsonl", {"train": last}) == []
        found[f"resume_{name}"] = [round(time.process_time() - began, 3)]
    return found


def _timed(command: list[str]) -> list[float]:
    """Seconds of the processor, and of the clock, that a command takes."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [round(cpu, 2), round(time.monotonic() - began, 2)]


def main() -> int:
    """Measures both, and writes figures.json."""
    parser = argparse.ArgumentParser(prog="python -m tools.long_run", description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200_000, help="0: no training")
    parser.add_argument("--lines", type=int, default=1_000_000, help="of the long record; 0: none")
    parser.add_argument("--folder", type=Path, default=Path("runs/long_run"))
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    figures = read_json(folder / "figures.json") or {}
    if options.steps:
        train(folder, options.steps)
        samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        figures["run"] = summarize(samples)
        write_json(folder / "figures.json", figures, indent=1)
    if options.lines:
        figures["record"] = measure_long_record(folder, options.lines)
        write_json(folder / "figures.json", figures, indent=1)
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
