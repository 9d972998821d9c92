"""Evaluation that learns, on models of the published recipe: docs/results/dynamic.md.

    make dynamic DATA=path/to/data        # holds wikitext-mini/ and tinyshakespeare/

Trains the published recipe on both corpora over seeds (the trainings of `make modern`, if they are there), evaluates
the models with every set of options in turn, twice, and writes docs/results/dynamic.{md,json}. What was evaluated is
not evaluated again. Exits with 1 when a bar is missed. How the options were chosen: docs/dynamic-log.md.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tools.curves import comparison_arguments, train_once
from tools.modern import CORPORA, RESULTS
from txl.config.geometry import Geometry
from txl.files import PROJECT
from txl.report.formats import to_markdown
from txl.report.tables import Column, Spread, Table, show_fixed
from txl.system.hardware import cpu_model

GAIN = 0.05  # share of the test loss that learning must take away ...
TIME = 4.0  # ... in so many times the time of the plain evaluation, the time before it included
ROUNDS = 2
PLAIN = ""  # the options of an evaluation that does not learn
LONGER = "tgt_len=96"  # the same with longer segments: fewer updates
RESTING = "dynamic=rms dynamic_attention=false"
CACHE = "neural_cache=4000 cache_theta=0.015 cache_lambda=0.3"

# By corpus and split: batch and options. What learns is compared with the plain row of the same batch and lengths.
EVALUATIONS: dict[tuple[str, str], list[tuple[int, str]]] = {
    ("wikitext-mini", "test"): [
        (10, PLAIN),
        (10, CACHE),
        (10, "dynamic=sgd dynamic_rate=0.05"),
        (10, "dynamic=rms dynamic_rate=0.0004 dynamic_beta=0.999"),
        (10, f"{RESTING} dynamic_statistics=4 dynamic_rate=0.0002 dynamic_beta=0.999 {CACHE}"),
        (1, PLAIN),
        (1, "dynamic=sgd dynamic_rate=0.03"),
        (1, "dynamic=rms dynamic_rate=0.00015"),
        (1, LONGER),
        (1, f"{LONGER} {RESTING} dynamic_words=4800 dynamic_statistics=4 dynamic_rate=0.00025 dynamic_beta=0.9998"),
    ],
    ("tinyshakespeare", "valid"): [
        (10, PLAIN),
        (10, "dynamic=sgd dynamic_rate=0.1"),
        (10, "dynamic=rms dynamic_rate=0.0002"),
        (10, f"{RESTING} dynamic_statistics=10 dynamic_rate=0.0005"),
        (1, PLAIN),
        (1, "dynamic=rms dynamic_rate=0.00007"),
        (1, f"{RESTING} dynamic_statistics=10 dynamic_rate=0.0001"),
    ],
}


@dataclass
class Measured:
    """What one set of options gave, by seed."""

    batch: int
    options: str
    geometry: str = ""
    loss: list[float] = field(default_factory=list)  # nats per token
    seconds: list[float] = field(default_factory=list)  # mean over the rounds
    before: list[float] = field(default_factory=list)  # seconds before the evaluation: loading, gradients' statistics

    @property
    def lengths(self) -> str:
        """Those of the options that are lengths."""
        return " ".join(option for option in self.options.split() if option.startswith(("tgt_len=", "mem_len=")))

    @property
    def learns(self) -> bool:
        """Whether there are other options than lengths."""
        return self.options != self.lengths

    def beside(self, plain: "Measured") -> dict[str, Any]:
        """A row of the table, with the changes against an evaluation that does not learn."""
        return {
            "batch": self.batch,
            "options": self.options or "none",
            "loss": Spread.of(self.loss),
            "change": -100 * self.gain_beside(plain) if self.learns else None,
            "by_seed": ", ".join(f"{-100 * gain:+.1f}" for gain in self.gains(plain)) if self.learns else None,
            "time": self.time_beside(plain),
            "before": self.time_before(plain) if "dynamic=rms" in self.options else None,
        }

    def time_beside(self, plain: "Measured") -> float:
        """The median over the seeds of the time, in times of the evaluation that does not learn."""
        return statistics.median(own / other for own, other in zip(self.seconds, plain.seconds, strict=True))

    def time_before(self, plain: "Measured") -> float:
        """The same of the time before the evaluation, beyond what the other one takes there."""
        times = zip(self.before, plain.before, plain.seconds, strict=True)
        return statistics.median((own - other) / seconds for own, other, seconds in times)

    def whole_time_beside(self, plain: "Measured") -> float:
        """Both together, where gradients' statistics are collected."""
        return self.time_beside(plain) + (self.time_before(plain) if "dynamic=rms" in self.options else 0.0)

    def gains(self, plain: "Measured") -> list[float]:
        """The share of the loss that is gone, by seed."""
        return [1 - own / other for own, other in zip(self.loss, plain.loss, strict=True)]

    def gain_beside(self, plain: "Measured") -> float:
        """The mean of `gains`."""
        return statistics.fmean(self.gains(plain))


def evaluate(run_dir: Path, split: str, batch: int, options: str, file: Path) -> dict[str, Any]:
    """Evaluate a model on a split, unless that was done; the result, with the seconds `before` the evaluation began.

    Args:
        run_dir: the model's run folder.
        split: of its data.
        batch: columns.
        options: further ones, separated by spaces.
        file: that the result is kept in.
    """
    settings = {"batch": batch, "options": options}
    if file.exists() and settings.items() <= (kept := json.loads(file.read_text())).items():
        return dict(kept)
    command = [sys.executable, str(PROJECT / "evaluate.py"), f"checkpoint={run_dir}", "hardware=cpu", f"split={split}"]
    new, started = file.with_suffix(".new"), time.perf_counter()
    subprocess.run([*command, f"batch_size={batch}", *options.split(), f"json={new}"], cwd=PROJECT, check=True)
    result: dict[str, Any] = json.loads(new.read_text())[split]
    result |= settings | {"before": time.perf_counter() - started - result["seconds"]}
    new.write_text(json.dumps(result))
    new.rename(file)
    return result


def measure(corpus: str, split: str, run_dirs: Sequence[Path], results: Path) -> list[Measured]:
    """Evaluate every model with all options of a corpus in turn, ROUNDS times.

    Args:
        corpus: its name.
        split: that is evaluated.
        run_dirs: one model for each seed.
        results: folder for the results of single evaluations.
    """
    found = [Measured(batch, options) for batch, options in EVALUATIONS[corpus, split]]
    results.mkdir(parents=True, exist_ok=True)
    for seed, run_dir in enumerate(run_dirs, 1):
        of_rows: list[list[dict[str, Any]]] = [[] for _ in found]
        for round_ in range(1, ROUNDS + 1):
            for row, measured in enumerate(found):
                file = results / f"{corpus}-s{seed}-row{row}-round{round_}.json"
                of_rows[row].append(evaluate(run_dir, split, measured.batch, measured.options, file))
        for measured, of_rounds in zip(found, of_rows, strict=True):
            measured.loss.append(of_rounds[0]["loss"])
            measured.seconds.append(statistics.fmean(result["seconds"] for result in of_rounds))
            measured.before.append(statistics.fmean(result["before"] for result in of_rounds))
            measured.geometry = str(Geometry(**of_rounds[0]["geometry"]))
    return found


def beside_plain(found: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
    """Each measurement, and the one of the same batch and lengths that does not learn."""
    plain = {(measured.batch, measured.lengths): measured for measured in found if not measured.learns}
    return [(measured, plain[measured.batch, measured.lengths]) for measured in found]


def best_in_time(found: Sequence[Measured], with_cache: bool = False) -> tuple[Measured, Measured] | None:
    """The best dynamic evaluation that takes at most the allowed time, and the plain one; None if all take longer.

    The time before the evaluation counts.

    `with_cache`: of those that have the neural cache as well, else of those without.
    """
    allowed = [
        (measured, plain)
        for measured, plain in beside_plain(found)
        if "dynamic=" in measured.options
        and ("neural_cache" in measured.options) == with_cache
        and measured.whole_time_beside(plain) <= TIME
    ]
    return max(allowed, key=lambda pair: pair[0].gain_beside(pair[1]), default=None)


def missed_bars(corpora: dict[tuple[str, str], list[Measured]]) -> list[str]:
    """The corpora on which dynamic evaluation does not lower the loss by enough in that time, one sentence each."""
    missed = []
    for (corpus, _), found in corpora.items():
        best = best_in_time(found)
        gain = best[0].gain_beside(best[1]) if best else 0.0
        if gain < GAIN:
            missed.append(f"{corpus}: {100 * gain:.1f} % in at most {TIME:g} times the time, wanted {100 * GAIN:g} %.")
    return missed


def table(found: Sequence[Measured]) -> str:
    """A row for each set of options."""
    columns = [
        Column("options", "options", is_text=True),
        Column("batch", "batch"),
        Column("loss", "loss", show_fixed(3)),
        Column("change", "change (%)", "{:+.1f}".format),
        Column("by_seed", "by seed", is_text=True),
        Column("time", "time", show_fixed(1)),
        Column("before", "time before", show_fixed(1)),
    ]
    table = Table("options", "Options", columns)
    table.rows += [measured.beside(plain) for measured, plain in beside_plain(found)]
    return to_markdown([table])


def page(corpora: dict[tuple[str, str], list[Measured]], missed: Sequence[str]) -> str:
    """The text of docs/results/dynamic.md.

    Args:
        corpora: what was measured, by corpus and split.
        missed: what `missed_bars` returned.
    """
    lines = [
        "# Evaluation that learns",
        "",
        "Models of the published recipe (`experiment=wikitext-mini` after 600 steps, `experiment=tinyshakespeare` "
        "after 2,000), evaluated while they learn from the text: each segment is scored first, and learnt afterwards. "
        "What the options do: [inference.md](../inference.md#evaluation-that-learns); how they were chosen: "
        "[dynamic-log.md](../dynamic-log.md). Made by `make dynamic DATA=…`.",
        "",
        "Loss in nats per token, mean ± standard deviation over seeds; `by seed` the change in per cent. Times: in "
        "times of the plain evaluation of the same batch and lengths, which uses the fastest runtime; mean of "
        f"{ROUNDS} rounds, all options in turn, float32, on {cpu_model()} (threads: {torch.get_num_threads()}). "
        "`time before`: what `dynamic=rms` takes first, once: it reads segments of the training split "
        "(`dynamic_statistics`, 100 by default).",
    ]
    for (corpus, split), found in corpora.items():
        title = f"## {corpus}, {split}, {len(found[0].loss)} seeds"
        lines += ["", title, "", f"{found[0].geometry}.", "", table(found)]
        last = found[-1]
        command = f"txl evaluate checkpoint=RUN split={split} batch_size={last.batch} {last.options}"
        lines += ["", "```", command, "```"]
    wanted = f"{100 * GAIN:g} % less loss in at most {TIME:g} times the time, the time before included"
    reached = [f"Wanted of dynamic evaluation, and reached on both corpora: {wanted}.", ""]
    for (corpus, _), found in corpora.items():
        for with_cache in (False, True):
            if best := best_in_time(found, with_cache):
                measured, plain = best
                gain, times = 100 * measured.gain_beside(plain), measured.whole_time_beside(plain)
                name = f"{corpus}, with the neural cache" if with_cache else corpus
                text = f"{gain:.1f} % in {times:.1f} times the time with `{measured.options}`"
                reached.append(f"* {name}: {text} (batch {measured.batch})")
    lines += ["", "## Bar", "", *([f"* Missed: {line}" for line in missed] or reached)]
    return "\n".join(lines) + "\n"


def main() -> int:
    arguments = comparison_arguments(__doc__, 3, "modern")
    corpora = {}
    for corpus, split in EVALUATIONS:
        run_dirs = [arguments.runs / corpus / f"published-s{seed}" for seed in range(1, arguments.seeds + 1)]
        for seed, run_dir in enumerate(run_dirs, 1):
            train_once(run_dir, [f"experiment={corpus}", *CORPORA[corpus].places(arguments.data), f"seed={seed}"])
        corpora[corpus, split] = measure(corpus, split, run_dirs, arguments.runs / "evaluations")
    missed = missed_bars(corpora)
    values = {corpus: [asdict(measured) for measured in found] for (corpus, _), found in corpora.items()}
    (RESULTS / "dynamic.json").write_text(json.dumps(values, indent=1) + "\n")
    text = page(corpora, missed)
    (RESULTS / "dynamic.md").write_text(text)
    print(text)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
