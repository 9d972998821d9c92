"""Do we learn as fast as the reference? The published curves again, seed by seed (about 50 minutes on 2 cores).

    make parity DATA=path/to/data        # holds wikitext-mini/ and tinyshakespeare/

Trains the two configurations of tests/published/reference_curves.json, writes docs/results/parity.{md,json}, and exits
with 1 when a bound does not hold. Finished seeds are not run again.
"""

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from tools.curves import comparison_arguments, losses_by_step, train_once
from txl.files import PROJECT

REFERENCE = json.loads((PROJECT / "tests" / "published" / "reference_curves.json").read_text())
SHAKESPEARE = next(key for key in REFERENCE if key.startswith("tinyshakespeare"))
MEAN_BOUND, POINT_BOUND, SHAKESPEARE_BOUND = 0.03, 0.06, 1.80


def curve(experiment: str, data: str, seed: int, runs: Path) -> dict[int, float]:
    """Validation loss by step of one training, in nats per token."""
    overrides = [f"experiment={experiment}", data, f"seed={seed}"]
    return losses_by_step(train_once(runs / f"{experiment}-s{seed}", overrides))


def wikitext_mini(data: Path, seeds: int, runs: Path) -> dict[str, Any]:
    reference = {int(step): point for step, point in REFERENCE["wikitext-mini"]["valid_loss"].items()}
    curves = [curve("wikitext-mini", f"data.path={data}/wikitext-mini", seed, runs) for seed in range(1, seeds + 1)]
    rows = []
    for step, point in reference.items():
        ours = [points[step] for points in curves]
        mean, sd = statistics.mean(ours), statistics.stdev(ours) if seeds > 1 else 0.0
        rows.append({"step": step, "reference": point["mean"], "mean": mean, "sd": sd, "values": ours})
    differences = [row["mean"] - row["reference"] for row in rows]
    average, worst = statistics.mean(differences), max(differences)
    return {"rows": rows, "average": average, "worst": worst, "held": average <= MEAN_BOUND and worst <= POINT_BOUND}


def mini_table(result: dict[str, Any]) -> list[str]:
    """The standard error of a difference: from the spread of both means."""
    lines = ["| step | reference | sd | txl mean | sd | difference | its standard error |", "|---:" * 7 + "|"]
    published = REFERENCE["wikitext-mini"]["valid_loss"]
    for row in result["rows"]:
        point = published[str(row["step"])]
        error = math.hypot(row["sd"] / math.sqrt(len(row["values"])), point["sd"] / math.sqrt(len(point["values"])))
        lines.append(
            f"| {row['step']} | {row['reference']:.4f} | {point['sd']:.4f} | {row['mean']:.4f} | {row['sd']:.4f} "
            f"| {row['mean'] - row['reference']:+.4f} | {error:.4f} |"
        )
    return [
        *lines,
        "",
        f"Average difference {result['average']:+.4f} nats (bound {MEAN_BOUND:+.2f}), largest {result['worst']:+.4f} "
        f"(bound {POINT_BOUND:+.2f}): {'holds' if result['held'] else 'DOES NOT HOLD'}.",
        "",
        "All six points come from the same runs: their differences are one observation rather than six.",
    ]


def tinyshakespeare(data: Path, runs: Path) -> dict[str, Any]:
    steps = map(int, REFERENCE[SHAKESPEARE]["valid_loss"])
    ours = curve("tinyshakespeare", f"data.file={data}/tinyshakespeare/input.txt", 1, runs)
    return {"rows": ours, "held": ours[max(steps)] <= SHAKESPEARE_BOUND}


def play_table(result: dict[str, Any]) -> list[str]:
    ours = {int(step): loss for step, loss in result["rows"].items()}
    reference = {int(step): loss for step, loss in REFERENCE[SHAKESPEARE]["valid_loss"].items()}
    end = f"At the end {ours[max(reference)]:.4f} nats (bound {SHAKESPEARE_BOUND})"
    return [
        "| step | reference | txl (seed 1) |",
        "|---:|---:|---:|",
        *(f"| {step} | {loss:.4f} | {ours[step]:.4f} |" for step, loss in reference.items()),
        "",
        f"{end}: {'holds' if result['held'] else 'DOES NOT HOLD'}.",
    ]


def main() -> int:
    arguments = comparison_arguments(__doc__, 12, "parity")
    data, runs = arguments.data, arguments.runs
    mini = wikitext_mini(data, arguments.seeds, runs)
    play = tinyshakespeare(data, runs)
    write(mini, play)
    return 0 if mini["held"] and play["held"] else 1


def write(mini: dict[str, Any], play: dict[str, Any]) -> None:
    seeds = len(mini["rows"][0]["values"])
    lines = [
        "# Training parity with the reference",
        "",
        "Validation loss in nats per token; evaluated with `tgt_len 64 mem_len 64 clamp_len -1 same_length false "
        "batch 10`. Made by `make parity DATA=…`.",
        "",
        f"## wikitext-mini, {seeds} seeds (reference: {len(REFERENCE['wikitext-mini']['seeds'])})",
        "",
        *mini_table(mini),
        "",
        "## tinyshakespeare",
        "",
        *play_table(play),
    ]
    results = PROJECT / "docs" / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "parity.md").write_text("\n".join(lines) + "\n")
    (results / "parity.json").write_text(json.dumps({"wikitext-mini": mini, "tinyshakespeare": play}, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
