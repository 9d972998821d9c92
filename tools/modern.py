"""The modern recipe beside the published one and beside controls: docs/results/modern.md.

    make modern DATA=path/to/data        # holds wikitext-mini/ and tinyshakespeare/

Trains every recipe on both corpora with the same tokens, over seeds, then models of several sizes, and writes
docs/results/modern.{md,json} and plots. The speeds come from short trainings of the recipes in turn, because a machine
can be slower for an hour. Finished trainings are not done again, and interrupted ones go on. Exits with 1 when a bar is
missed. How the values of the recipes were chosen: docs/recipe-log.md.
"""

import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tools.curves import comparison_arguments, losses_by_step, train_once
from txl.config.geometry import Geometry
from txl.files import PROJECT
from txl.report.formats import to_markdown
from txl.report.tables import Column, Spread, Table, Value, show_fixed, show_short
from txl.system.hardware import cpu_model

RESULTS = PROJECT / "docs" / "results"
GAIN_OVER_CONTROL = 0.25  # nats that modern must be below LAMB on wikitext-mini
GAIN_LEFT = 0.5  # share of the gain over the published recipe that the largest model must keep
SPEED = 0.9  # tokens per second that modern must reach, divided by the published recipe's
SPEED_STEPS, SPEED_ROUNDS = 200, 3


@dataclass(frozen=True)
class Recipe:
    """A way to train."""

    title: str
    color: str  # of its line
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Corpus:
    """A corpus, and what is trained on it.

    Attributes:
        options: where its text is.
        bar: the validation loss that modern must reach (nats per token).
        recipes: those that were tuned for it; each is trained over seeds.
        sizes: models that the published recipe and modern train, the smallest first.
        tuned: by control, options that are better here than those of its recipe.
    """

    options: tuple[str, ...] = ()
    bar: float = math.inf
    recipes: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    tuned: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def overrides(self, recipe: str) -> tuple[str, ...]:
        """The options of a recipe on this corpus."""
        return RECIPES[recipe].overrides + self.tuned.get(recipe, ())

    def places(self, data: Path) -> list[str]:
        """`options` with the folder of all corpora."""
        return [option.format(data=data) for option in self.options]


@dataclass(frozen=True)
class Size:
    """A model of another size. Its learning rates follow the recipe's own rule."""

    title: str
    overrides: tuple[str, ...]


LAMB = (
    "recipe=modern",
    "optimizer=lamb",
    "optimizer.betas=[0.9,0.999]",
    "scheduler.first_update_at_base_lr=true",
    "train.clip=0.25",
    "optimizer.lr=0.025",
)
ADAMW = ("recipe=modern", "optimizer=adam", "optimizer.lr=0.008")
CORPORA = {
    "wikitext-mini": Corpus(
        ("data.path={data}/wikitext-mini",),
        bar=4.95,
        recipes=("published", "lamb", "adamw", "modern"),
        sizes=("w128", "w256", "w384"),
    ),
    "tinyshakespeare": Corpus(
        ("data.file={data}/tinyshakespeare/input.txt",),
        bar=1.50,
        recipes=("published", "lamb", "adamw", "modern"),
        tuned={"lamb": ("optimizer.lr=0.015",), "adamw": ("optimizer.lr=0.004",)},
    ),
    "stdlib": Corpus(sizes=("w128", "w256")),
}
RECIPES = {
    "published": Recipe("published", "#8a8a8a"),
    "lamb": Recipe("LAMB, else as modern", "#c1440e", LAMB),
    "adamw": Recipe("AdamW, else as modern", "#d9a441", ADAMW),
    "modern": Recipe("modern", "#1f5fa8", ("recipe=modern",)),
}
SIZES = {
    "w128": Size("4 layers of width 128", ()),
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
    geometry: str = ""  # of the validation

    @property
    def last(self) -> list[float]:
        """The validation loss after the last step, by seed."""
        return [curve[max(curve)] for curve in self.curves]

    @property
    def mean(self) -> float:
        """The mean of `last`."""
        return statistics.mean(self.last)

    def losses(self) -> dict[str, Value]:
        """The losses of the seeds, as cells of a table."""
        losses = {"seeds": len(self.last), "valid": Spread.of(self.last), "test": Spread.of(self.test)}
        return losses | {"valid_geometry": self.geometry}

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
        seeds: how many.
        runs: folder of the run folders.
    """
    outcomes = {name: Outcome() for name in names}
    for name, outcome in outcomes.items():
        for seed in range(1, seeds + 1):
            run_dir = runs / f"{name}-s{seed}"
            own = [f"experiment={corpus}", *options, f"seed={seed}", *CORPORA[corpus].overrides(name)]
            records = train_once(run_dir, own)
            outcome.curves.append(losses_by_step(records))
            last = next(record for record in reversed(records) if record["kind"] == "valid")
            outcome.geometry = f"{Geometry.from_record(last)} batch {last['batch_size']}"
            outcome.test += [record["loss"] for record in records if record["kind"] == "test"]
            outcome.tokens = json.loads((run_dir / "summary.json").read_text())["tokens"]
            outcome.layer_parameters = json.loads((run_dir / "plan.json").read_text())["layer_parameters"]
    return outcomes


def is_trained_over_seeds(corpus: str, size: str) -> bool:
    """Whether a size is the model that the recipes of the corpus train anyway."""
    return bool(CORPORA[corpus].recipes) and not SIZES[size].overrides


def train_sizes(corpus: str, data: Path, runs: Path, corpora: dict[str, Outcomes]) -> dict[str, Outcomes]:
    """Train the models of a corpus by the published recipe and modern, with one seed; outcomes by size.

    Args:
        corpus: its name.
        data: folder of all corpora.
        runs: folder of the run folders.
        corpora: outcomes over seeds, by corpus. The smallest model is not trained again.
    """
    sizes = {}
    for size in CORPORA[corpus].sizes:
        if is_trained_over_seeds(corpus, size):
            sizes[size] = {name: corpora[corpus][name] for name in OF_SIZES}
            continue
        options = [*CORPORA[corpus].places(data), *SIZES[size].overrides]
        sizes[size] = train_recipes(OF_SIZES, corpus, options, 1, runs / f"{corpus}-{size}")
    return sizes


def measure_speeds(outcomes: Outcomes, corpus: str, options: Sequence[str], runs: Path) -> None:
    """Train each recipe for a few steps, one recipe after the other, and again; note the tokens per second.

    Args:
        outcomes: of the recipes; gets the speeds.
        corpus: name of the corpus and of its experiment.
        options: that all these trainings share.
        runs: folder of the run folders.
    """
    short = [f"train.max_step={SPEED_STEPS}", "scheduler.warmup_step=10", f"valid.interval={SPEED_STEPS}"]
    for round_ in range(1, SPEED_ROUNDS + 1):
        for name, outcome in outcomes.items():
            run_dir = runs / f"{name}-speed{round_}"
            train_once(run_dir, [f"experiment={corpus}", *options, *short, *CORPORA[corpus].overrides(name)])
            outcome.tokens_per_second.append(json.loads((run_dir / "summary.json").read_text())["tokens_per_second"])


def missed_bars(corpora: dict[str, Outcomes], sizes: dict[str, dict[str, Outcomes]]) -> list[str]:
    """What was wanted of the modern recipe and was not reached, one sentence each.

    Args:
        corpora: outcomes over seeds, by corpus.
        sizes: outcomes by corpus and size, the smallest first.
    """
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
    for corpus, of_size in sizes.items():
        smallest, *_, largest = (of["published"].mean - of["modern"].mean for of in of_size.values())
        if largest < GAIN_LEFT * smallest:
            missed.append(f"{corpus}: the largest model gains {largest:.3f} nats, the smallest {smallest:.3f}.")
    return missed


def table(of_recipe: Outcomes) -> str:
    """A row per recipe: losses, difference, speed."""
    published = of_recipe["published"]
    columns = [
        Column("recipe", "recipe", is_text=True),
        Column("seeds", "seeds"),
        Column("valid", "valid loss", show_fixed(3)),
        Column("test", "test loss", show_fixed(3)),
        Column("difference", "difference in valid", "{:+.3f}".format),
        Column("speed", "tokens/s", "{:,.0f}".format),
        Column("ratio", "beside the published recipe's", show_fixed(2)),
    ]
    table = Table("recipes", "Recipes", columns)
    for name, outcome in of_recipe.items():
        table.rows.append(
            outcome.losses()
            | {"recipe": RECIPES[name].title, "difference": outcome.mean - published.mean}
            | {"speed": statistics.median(outcome.tokens_per_second), "ratio": outcome.speed_beside(published)}
        )
    table.mark_measurements(["valid"])
    return to_markdown([table])


def table_of_sizes(sizes: dict[str, Outcomes]) -> str:
    """A row per size and recipe."""
    columns = [
        Column("model", "model", is_text=True),
        Column("parameters", "parameters in the layers", show_short),
        Column("recipe", "recipe", is_text=True),
        Column("seeds", "seeds"),
        Column("valid", "valid loss", show_fixed(3)),
        Column("test", "test loss", show_fixed(3)),
        Column("gain", "modern is lower by", show_fixed(3)),
    ]
    table = Table("sizes", "Sizes", columns)
    for size, of_recipe in sizes.items():
        for name, outcome in of_recipe.items():
            table.rows.append(
                outcome.losses()
                | {"model": SIZES[size].title, "parameters": outcome.layer_parameters, "recipe": RECIPES[name].title}
                | {"gain": outcome.mean - of_recipe["modern"].mean}
            )
    table.mark_measurements(["valid"])
    return to_markdown([table])


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


def shown_options(size: Size) -> str:
    """The options of a size in Markdown."""
    return f"`{' '.join(size.overrides)}`" if size.overrides else "as it is"


def page(corpora: dict[str, Outcomes], sizes: dict[str, dict[str, Outcomes]], missed: list[str]) -> str:
    """The text of docs/results/modern.md.

    Args:
        corpora: outcomes over seeds, by corpus.
        sizes: outcomes by corpus and size, the smallest first.
        missed: what `missed_bars` returned.
    """
    lines = [
        "# The modern recipe",
        "",
        "`recipe=modern` beside the published recipe, and beside LAMB and AdamW with modern's other options, at equal "
        "tokens. Losses are in nats per token, mean ± standard deviation over seeds: `valid` after the last step, "
        f"`test` of the best checkpoint. Tokens per second: median of {SPEED_ROUNDS} trainings of {SPEED_STEPS} steps, "
        f"the recipes in turn, on {cpu_model()} (threads: {torch.get_num_threads()}). Made by "
        "`make modern DATA=…`; how the options were chosen, all by the validation loss: "
        "[recipe-log.md](../recipe-log.md).",
    ]
    for corpus, of_recipe in corpora.items():
        lines += ["", f"## {corpus}, {of_recipe['published'].tokens:,} tokens", "", table(of_recipe), ""]
        lines += [f"![Validation loss against tokens](modern-{corpus}.png)", ""]
        for name in of_recipe:
            options = " ".join([f"experiment={corpus}", *CORPORA[corpus].overrides(name)])
            lines.append(f"* {RECIPES[name].title}: `txl train {options}`")
    for corpus, of_size in sizes.items():
        tokens = of_size[CORPORA[corpus].sizes[0]]["published"].tokens
        lines += ["", f"## Larger models, {corpus}, {tokens:,} tokens", "", table_of_sizes(of_size), ""]
        lines += [f"![Validation loss against the parameters of the layers](modern-{corpus}-sizes.png)", ""]
        lines.append(f"`txl train experiment={corpus}` with `recipe=modern` or without, and:")
        lines += ["", *(f"* {SIZES[size].title}: {shown_options(SIZES[size])}" for size in of_size)]
    lines += [
        "",
        "No rate was tuned for larger models: Muon's rate falls with the root of the width (`lr_scale` in "
        "`conf/recipe/modern.yaml`), and the published recipe keeps its own.",
    ]
    lines += ["", "## Bars", "", *([f"* Missed: {line}" for line in missed] or ["All are reached."])]
    return "\n".join(lines) + "\n"


def main() -> int:
    arguments = comparison_arguments(__doc__, 5, "modern")
    data, runs, seeds = arguments.data, arguments.runs, arguments.seeds
    corpora = {
        name: train_recipes(corpus.recipes, name, corpus.places(data), seeds, runs / name)
        for name, corpus in CORPORA.items()
        if corpus.recipes
    }
    for name, of_recipe in corpora.items():
        measure_speeds(of_recipe, name, CORPORA[name].places(data), runs / name)
    sizes = {name: train_sizes(name, data, runs, corpora) for name, corpus in CORPORA.items() if corpus.sizes}
    missed = missed_bars(corpora, sizes)
    for name, of_recipe in corpora.items():
        plot(name, name, "tokens", partial(draw_against_tokens, of_recipe))
    for name, of_size in sizes.items():
        plot(f"{name}-sizes", name, "parameters of the layers", partial(draw_against_size, of_size))
    of_sizes = {
        f"{name}, {size}": of_recipe
        for name, of_size in sizes.items()
        for size, of_recipe in of_size.items()
        if not is_trained_over_seeds(name, size)
    }
    values = {
        title: {name: asdict(outcome) for name, outcome in of_recipe.items()}
        for title, of_recipe in {**corpora, **of_sizes}.items()
    }
    (RESULTS / "modern.json").write_text(json.dumps(values, indent=1) + "\n")
    text = page(corpora, sizes, missed)
    (RESULTS / "modern.md").write_text(text)
    print(text)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
