"""The page of evaluation that learns (tools/dynamic.py): its rows, and the bar."""

from tools.dynamic import Measured, missed_bars, page


def evaluations(loss: float, seconds: float) -> list[Measured]:
    """Two seeds: without learning 2.0 nats in 10 s, with it `loss` in `seconds`."""
    plain = Measured(10, "", "tgt_len 64 mem_len 64", [2.0, 2.0], [10.0, 10.0], [3.0, 3.0])
    learning = Measured(10, "dynamic=rms", plain.geometry, [loss, loss], [seconds, seconds], [23.0, 23.0])
    return [plain, learning]


def test_the_bar_is_less_loss_in_limited_time():
    assert missed_bars({("a", "test"): evaluations(1.89, 39.0), ("b", "valid"): evaluations(1.89, 39.0)}) == []
    (too_little,) = missed_bars({("a", "test"): evaluations(1.91, 39.0)})
    assert too_little == "a: 4.5 % in at most 4 times the time, wanted 5 %."
    (too_slow,) = missed_bars({("a", "test"): evaluations(1.0, 41.0), ("b", "valid"): evaluations(1.0, 40.0)})
    assert too_slow.startswith("a: 0.0 % in at most 4 times the time")


def test_the_page_has_a_row_for_each_set_of_options_beside_the_plain_one():
    found = {("a", "test"): evaluations(1.89, 39.0)}
    text = page(found, missed_bars(found))
    assert "| none | 10 | 2.000 ± 0.000 | - | - | 1.0 | - |" in text
    assert "| dynamic=rms | 10 | 1.890 ± 0.000 | -5.5 | -5.5, -5.5 | 3.9 | 2.0 |" in text
    assert "txl evaluate checkpoint=RUN split=test batch_size=10 dynamic=rms" in text
    assert text.endswith("4 times the time.\n\n* a: 5.5 % in 3.9 times the time with `dynamic=rms`\n")


def test_the_cache_alone_is_no_dynamic_evaluation():
    plain, learning = evaluations(1.5, 13.0)
    learning.options = "neural_cache=4000"
    (missed,) = missed_bars({("a", "test"): [plain, learning]})
    assert missed.startswith("a: 0.0 %")
