"""The page of the modern recipe (tools/modern.py): its rows, and the bars that were missed."""

import pytest

from tests.support.configurations import composed
from tools.modern import CORPORA, RECIPES, Outcome, missed_bars, page

LOSSES = {"published": 5.84, "lamb": 5.13, "adamw": 4.97, "modern": 4.85}


def outcome(loss: float, speed: float = 1000.0) -> Outcome:
    """Two seeds that end 0.01 above and below `loss`."""
    curves = [{100: loss + 1, 200: loss + offset} for offset in (0.01, -0.01)]
    geometry = "tgt_len 64 mem_len 64 clamp_len -1 same_length false batch 10"
    return Outcome(curves, [], [speed, speed], tokens=153_600, layer_parameters=857_000, geometry=geometry)


def outcomes(**changes: Outcome) -> dict[str, dict[str, Outcome]]:
    """Outcomes over seeds that reach all bars, with other ones for some recipes of wikitext-mini."""
    mini = {name: outcome(LOSSES[name]) for name in RECIPES}
    return {
        "wikitext-mini": mini | changes,
        "tinyshakespeare": {"published": outcome(1.7), "modern": outcome(1.49, 950.0)},
    }


def sizes(of_largest: float = 4.7) -> dict[str, dict[str, dict[str, Outcome]]]:
    """The smallest and the largest model of wikitext-mini."""
    small = {"published": outcome(5.84), "modern": outcome(4.85)}
    large = {"published": outcome(5.7), "modern": outcome(of_largest)}
    return {"wikitext-mini": {"w128": small, "w384": large}}


def test_nothing_is_missed_where_all_bars_are_reached():
    assert missed_bars(outcomes(), sizes()) == []


@pytest.mark.parametrize(
    "changes, of_largest, missed",
    [
        ({"modern": outcome(4.96), "lamb": outcome(5.3)}, 4.7, "wikitext-mini: 4.960 nats, wanted 4.95."),
        ({"lamb": outcome(5.05)}, 4.7, "wikitext-mini: 0.200 nats below LAMB, wanted 0.25."),
        ({"modern": outcome(4.85, 890.0)}, 4.7, "wikitext-mini: 0.89 of the published recipe's tokens per second"),
        ({}, 5.5, "wikitext-mini: the largest model gains 0.200 nats, the smallest 0.990."),
    ],
    ids=["loss", "control", "speed", "size"],
)
def test_each_missed_bar_is_named_with_its_figure(changes, of_largest, missed):
    (found,) = missed_bars(outcomes(**changes), sizes(of_largest))
    assert found.startswith(missed)


def test_the_page_has_a_row_for_each_recipe_and_size_and_the_commands():
    corpora, of_sizes = outcomes(), sizes()
    text = page(corpora, of_sizes, missed_bars(corpora, of_sizes))
    assert "| modern | 2 | 4.850 ± 0.014 |" in text and "| LAMB, else as modern | 2 | 5.130 ± 0.014 |" in text
    assert "| 6 layers of width 384 | 857k | modern | 2 | 4.700 ± 0.014 |" in text
    assert "* modern: `txl train experiment=tinyshakespeare recipe=modern`" in text
    assert text.endswith("## Bars\n\nAll are reached.\n")


def test_every_corpus_has_an_experiment(tmp_path):
    for name, corpus in CORPORA.items():
        assert composed(f"experiment={name}", *corpus.places(tmp_path)).name == name
