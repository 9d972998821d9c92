"""The modern recipe beside the published one and beside controls: docs/results/modern.md.

    make modern DATA=path/to/data        # holds wikitext-mini/ and tinyshakespeare/

Trains every recipe on both corpora with the same tokens, over seeds, then models of three sizes, and writes
docs/results/modern.{md,json} and plots. The speeds come from short trainings of the recipes in turn, because a machine
can be slower for an hour. Finished trainings are not done again, and interrupted ones go on. Exits with 1 when a bar is
missed. How the values of the recipes were chosen: docs/recipe-log.md.
"""

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tools.curves import comparison_arguments, losses_by_step, train_once
from txl.files import PROJECT

RESULTS = PROJECT / "docs" / "results"
GAIN_OVER_CONTROL = 0.25  # nats that modern must be below LAMB on wikitext-mini
GAIN_LEFT = 0.5  # share of the gain over the published recipe that the largest model must keep
CONTROLS, CONTROL_SEEDS = ("lamb", "adamw"), 3
SPEED = 0.9  # tokens per second that modern must reach, divided by the published recipe's
SPEED_STEPS, SPEED_ROUNDS = 100, 3
GEOMETRY = "tgt_len 64 mem_len 64 clamp_len -1 same_length false batch 10"


@dataclass(frozen=True)
class Recipe:
    """A way to train.

    Attributes:
        title: in tables and plots.
        color: of its line.
        overrides: its options on every corpus.
        rates: its learning rate by corpus, where the options do not set it; it is trained on these corpora only.
    """

    title: str
    color: str
    overrides: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)

    def is_for(self, corpus: str) -> bool:
        """Whether it is trained on this corpus."""
        return not self.rates or corpus in self.rates

    def options(self, corpus: str) -> list[str]:
        """Its options on one corpus."""
        return [*self.overrides, *([f"optimizer.lr={self.rates[corpus]}"] if corpus in self.rates else [])]


@dataclass(frozen=True)
class Corpus:
    """Where the text of a corpus is, and the validation loss that modern must reach (nats per token)."""

    option: str
    bar: float


@dataclass(frozen=True)
class Size:
    """A model of another size, trained on wikitext-mini. Its learning rates follow the recipe's own rule."""

    title: str
    overrides: tuple[str, ...]


LAMB = (
    "recipe=modern",
    "optimizer=lamb",
    "optimizer.betas=[0.9,0.999]",
    "optimizer.momentum=null",
    "scheduler.first_update_at_base_lr=true",
    "train.clip=0.25",
)
ADAMW = ("recipe=modern", "optimizer=adam", "optimizer.momentum=null")
CORPORA = {
    "wikitext-mini": Corpus("data.path={data}/wikitext-mini", 4.95),
    "tinyshakespeare": Corpus("data.file={data}/tinyshakespeare/input.txt", 1.50),
}
RECIPES = {
    "published": Recipe("published", "#8a8a8a"),
    "lamb": Recipe("LAMB, else as modern", "#c1440e", LAMB, {"wikitext-mini": 0.02}),
    "adamw": Recipe("AdamW, else as modern", "#d9a441", ADAMW, {"wikitext-mini": 0.008}),
    "modern": Recipe("modern", "#1f5fa8", ("recipe=modern",)),
}
SMALLEST = "w128"
SIZES = {
    SMALLEST: Size("4 layers of width 128", ()),
    "w256": Size(
        "5 layers of width 256", ("model.n_layer=5", "model.d_model=256", "model.n_head=8", "model.d_inner=1024")
    ),
    "w384": Size(
        "6 layers of width 384", ("model.n_layer=6", "model.d_model=384", "model.n_head=12", "model.d_inner=1536")
    ),
}
OF_SIZES = ("published", "modern")


@dataclass
class Outcome:
    """What the seeds of one recipe on one corpus reached."""

    curves: list[dict[int, float]] = field(default_factory=list)  # validation loss by step
    test: list[float] = field(default_factory=list)  # of the best checkpoint; empty without a test split
    tokens_per_second: list[float] = field(default_factory=list)  # of the short trainings
    tokens: int = 0  # of one training
    layer_parameters: int = 0

    @property
    def last(self) -> list[float]:
        """The validation loss after the last step, by seed."""
        return [curve[max(curve)] for curve in self.curves]

    @property
    def mean(self) -> float:
        """The mean of `last`."""
        return statistics.mean(self.last)

    def speed_beside(self, other: "Outcome") -> float:
        """The median over the rounds of this recipe's tokens per second divided by the other's."""
        pairs = zip(self.tokens_per_second, other.tokens_per_second, strict=True)
        return statistics.median(own / others for own, others in pairs)


Outcomes = dict[str, Outcome]  # by recipe


def train_recipes(names: Sequence[str], corpus: str, options: Sequence[str], seeds: int, runs: Path) -> Outcomes:
    """Train recipes with seeds 1, 2, ...

    Args:
        names: of the recipes.
        corpus: name of the corpus and of its experiment.
        options: that all these trainings share.
        seeds: how many; fewer for the controls.
        runs: folder of the run folders.
    """
    outcomes = {name: Outcome() for name in names}
    for name, outcome in outcomes.items():
        for seed in range(1, (min(seeds, CONTROL_SEEDS) if name in CONTROLS else seeds) + 1):
            run_dir = runs / f"{name}-s{seed}"
            own = [f"experiment={corpus}", *options, f"seed={seed}", *RECIPES[name].options(corpus)]
            records = train_once(run_dir, own)
            outcome.curves.append(losses_by_step(records))
            outcome.test += [record["loss"] for record in records if record["kind"] == "test"]
            outcome.tokens = json.loads((run_dir / "summary.json").read_text())["tokens"]
            outcome.layer_parameters = json.loads((run_dir / "plan.json").read_text())["layer_parameters"]
    return outcomes


def measure_speeds(outcomes: Outcomes, corpus: str, options: Sequence[str], runs: Path) -> None:
    """Train each recipe for a few steps, one recipe after the other, and again; note the tokens per second.

    Args:
        outcomes: of the recipes; gets the speeds.
        corpus: name of the corpus and of its experiment.
        options: that all these trainings share.
        runs: folder of the run folders.
    """
    short = [f"train.max_step={SPEED_STEPS}", "scheduler.max_step=1000", f"valid.interval={SPEED_STEPS}"]
    for round_ in range(1, SPEED_ROUNDS + 1):
        for name, outcome in outcomes.items():
            run_dir = runs / f"{name}-speed{round_}"
            train_once(run_dir, [f"experiment={corpus}", *options, *short, *RECIPES[name].options(corpus)])
            outcome.tokens_per_second.append(json.loads((run_dir / "summary.json").read_text())["tokens_per_second"])


def missed_bars(corpora: dict[str, Outcomes], sizes: dict[str, Outcomes]) -> list[str]:
    """What was wanted of the modern recipe and was not reached, one sentence each."""
    missed = []
    for corpus, of_recipe in corpora.items():
        modern = of_recipe["modern"]
        if modern.mean > CORPORA[corpus].bar:
            missed.append(f"{corpus}: {modern.mean:.3f} nats, wanted {CORPORA[corpus].bar:.2f}.")
        speed = modern.speed_beside(of_recipe["published"])
        if speed < SPEED:
            missed.append(f"{corpus}: {speed:.2f} of the published recipe's tokens per second, wanted {SPEED}.")
    mini = corpora["wikitext-mini"]
    gain = mini["lamb"].mean - mini["modern"].mean
    if gain < GAIN_OVER_CONTROL:
        missed.append(f"wikitext-mini: {gain:.3f} nats below LAMB, wanted {GAIN_OVER_CONTROL}.")
    smallest, *_, largest = (of["published"].mean - of["modern"].mean for of in sizes.values())
    if largest < GAIN_LEFT * smallest:
        missed.append(f"The largest model gains {largest:.3f} nats, the smallest {smallest:.3f}.")
    return missed


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, or a dash for no values."""
    if not values:
        return "–"
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def table(of_recipe: Outcomes) -> list[str]:
    """A row per recipe: losses, difference, speed."""
    published = of_recipe["published"]
    lines = [
        "| recipe | seeds | valid loss | test loss | difference in valid | tokens/s | beside the published recipe's |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, outcome in of_recipe.items():
        lines.append(
            f"| {RECIPES[name].title} | {len(outcome.last)} | {spread(outcome.last)} | {spread(outcome.test)} "
            f"| {outcome.mean - published.mean:+.3f} | {statistics.median(outcome.tokens_per_second):,.0f} "
            f"| {outcome.speed_beside(published):.2f} |"
        )
    return lines


def table_of_sizes(sizes: dict[str, Outcomes]) -> list[str]:
    """A row per size and recipe."""
    lines = [
        "| model | parameters in the layers | recipe | seeds | valid loss | test loss | modern is lower by |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for size, of_recipe in sizes.items():
        for name, outcome in of_recipe.items():
            lines.append(
                f"| {SIZES[size].title} | {outcome.layer_parameters / 1e6:.1f} M | {RECIPES[name].title} "
                f"| {len(outcome.last)} | {spread(outcome.last)} | {spread(outcome.test)} "
                f"| {outcome.mean - of_recipe['modern'].mean:.3f} |"
            )
    return lines


def plot(name: str, title: str, x_label: str, draw: Callable[[Any], None]) -> None:
    """Write docs/results/modern-NAME.png.

    Args:
        name: of the file.
        title: above the axes.
        x_label: below them.
        draw: puts the lines on axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(title, loc="left", weight="bold")
    axes.set_xlabel(x_label)
    axes.set_ylabel("validation loss (nats per token)")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(RESULTS / f"modern-{name}.png", format="png")


def draw_line(axes: Any, recipe: str, places: Sequence[float], losses: Sequence[Sequence[float]]) -> None:
    """The mean over the seeds, and a band of one standard deviation.

    Args:
        axes: matplotlib's.
        recipe: whose title and color the line has.
        places: on the horizontal axis.
        losses: of the seeds, for every place.
    """
    means = [statistics.mean(values) for values in losses]
    deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in losses]
    title, color = RECIPES[recipe].title, RECIPES[recipe].color
    axes.plot(places, means, color=color, marker="o", markersize=4, label=title)
    low, high = ([m + sign * d for m, d in zip(means, deviations, strict=True)] for sign in (-1, 1))
    axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)


def draw_against_tokens(of_recipe: Outcomes, axes: Any) -> None:
    """A line per recipe: loss against tokens."""
    for name, outcome in of_recipe.items():
        steps = sorted(outcome.curves[0])
        losses = [[curve[step] for curve in outcome.curves] for step in steps]
        draw_line(axes, name, [outcome.tokens * step / steps[-1] for step in steps], losses)


def draw_against_size(sizes: dict[str, Outcomes], axes: Any) -> None:
    """A line per recipe: loss after the last step against the number of the layers' parameters."""
    axes.set_xscale("log")
    for name in OF_SIZES:
        of_sizes = [of_recipe[name] for of_recipe in sizes.values()]
        draw_line(axes, name, [o.layer_parameters for o in of_sizes], [o.last for o in of_sizes])


def page(corpora: dict[str, Outcomes], sizes: dict[str, Outcomes], missed: list[str]) -> str:
    """The text of docs/results/modern.md."""
    lines = [
        "# The modern recipe",
        "",
        "`recipe=modern` beside the published recipe, and beside LAMB and AdamW with modern's other options, at equal "
        "tokens. Losses are in nats per token, mean ± standard deviation over seeds: `valid` after the last step, "
        f"`test` of the best checkpoint, evaluated with `{GEOMETRY}`. Tokens per second: median of {SPEED_ROUNDS} "
        f"trainings of {SPEED_STEPS} steps, the recipes in turn. Made by `make modern DATA=…`; how the options were "
        "chosen, all by the validation loss: [recipe-log.md](../recipe-log.md).",
    ]
    for corpus, of_recipe in corpora.items():
        lines += ["", f"## {corpus}, {of_recipe['published'].tokens:,} tokens", "", *table(of_recipe), ""]
        lines += [f"![Validation loss against tokens](modern-{corpus}.png)", ""]
        for name in of_recipe:
            options = " ".join([f"experiment={corpus}", *RECIPES[name].options(corpus)])
            lines.append(f"* {RECIPES[name].title}: `txl train {options}`")
    lines += ["", "## Larger models, wikitext-mini", "", *table_of_sizes(sizes), ""]
    lines += ["![Validation loss against the parameters of the layers](modern-sizes.png)", ""]
    lines += [f"* {size.title}: `{' '.join(size.overrides)}`" for size in SIZES.values() if size.overrides]
    lines += [
        "",
        "No rate was tuned for these models: LAMB scales an update to the size of its weights, and Muon's rate falls "
        "with the root of the width (`lr_scale` in `conf/recipe/modern.yaml`).",
    ]
    lines += ["", "## Bars", "", *([f"* Missed: {line}" for line in missed] or ["All are reached."])]
    return "\n".join(lines) + "\n"


def main() -> int:
    arguments = comparison_arguments(__doc__, 5, "modern")
    data, runs, seeds = arguments.data, arguments.runs, arguments.seeds
    places = {name: corpus.option.format(data=data) for name, corpus in CORPORA.items()}
    corpora = {}
    for corpus, place in places.items():
        names = [name for name, recipe in RECIPES.items() if recipe.is_for(corpus)]
        corpora[corpus] = train_recipes(names, corpus, [place], seeds, runs / corpus)
    for name, of_recipe in corpora.items():
        measure_speeds(of_recipe, name, [places[name]], runs / name)
    sizes = {SMALLEST: {name: corpora["wikitext-mini"][name] for name in OF_SIZES}}
    for name, size in SIZES.items():
        if name != SMALLEST:
            options = [places["wikitext-mini"], *size.overrides]
            sizes[name] = train_recipes(OF_SIZES, "wikitext-mini", options, 1, runs / f"wikitext-mini-{name}")
    missed = missed_bars(corpora, sizes)
    for name, of_recipe in corpora.items():
        plot(name, name, "tokens", partial(draw_against_tokens, of_recipe))
    plot("sizes", "wikitext-mini", "parameters of the layers", partial(draw_against_size, sizes))
    values = {
        title: {name: asdict(outcome) for name, outcome in of_recipe.items()}
        for title, of_recipe in {**corpora, **{f"wikitext-mini, {name}": of for name, of in sizes.items()}}.items()
    }
    (RESULTS / "modern.json").write_text(json.dumps(values, indent=1) + "\n")
    text = page(corpora, sizes, missed)
    (RESULTS / "modern.md").write_text(text)
    print(text)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
