"""The page of evaluation that learns (tools/dynamic.py): its rows, and the bar."""

from tools.dynamic import Measured, missed_bars, page


def evaluations(loss: float, seconds: float) -> list[Measured]:
    """Two seeds: without learning 2.0 nats in 10 s, with it `loss` in `seconds`."""
    plain = Measured(10, "", "tgt_len 64 mem_len 64", [2.0, 2.0], [10.0, 10.0], [3.0, 3.0])
    learning = Measured(10, "dynamic=rms", plain.geometry, [loss, loss], [seconds, seconds], [5.0, 5.0])
    return [plain, learning]


def test_the_bar_is_less_loss_in_limited_time_the_time_before_included():
    assert missed_bars({("a", "test"): evaluations(1.89, 37.0), ("b", "valid"): evaluations(1.89, 37.0)}) == []
    (too_little,) = missed_bars({("a", "test"): evaluations(1.91, 37.0)})
    assert too_little == "a: 4.5 % in at most 4 times the time, wanted 5 %."
    (too_slow,) = missed_bars({("a", "test"): evaluations(1.0, 39.0), ("b", "valid"): evaluations(1.0, 38.0)})
    assert too_slow.startswith("a: 0.0 % in at most 4 times the time")


def test_the_page_has_a_row_for_each_set_of_options_beside_the_plain_one():
    found = {("a", "test"): evaluations(1.89, 37.0)}
    text = page(found, missed_bars(found))
    assert "| none | 10 | 2.000 ± 0.000 | - | - | 1.0 | - |" in text
    assert "| dynamic=rms | 10 | 1.890 ± 0.000 | -5.5 | -5.5, -5.5 | 3.7 | 0.2 |" in text
    assert "txl evaluate checkpoint=RUN split=test batch_size=10 dynamic=rms" in text
    assert text.endswith(
        "the time before included.\n\n* a: 5.5 % in 3.9 times the time with `dynamic=rms` (batch 10)\n"
    )


def test_the_bar_is_for_dynamic_evaluation_without_the_cache():
    plain, learning = evaluations(1.5, 13.0)
    for options in ("neural_cache=4000", "dynamic=rms neural_cache=4000"):
        learning.options = options
        (missed,) = missed_bars({("a", "test"): [plain, learning]})
        assert missed.startswith("a: 0.0 %")


def test_longer_segments_are_compared_with_a_plain_evaluation_of_the_same_lengths():
    longer = Measured(10, "tgt_len=96", "tgt_len 96 mem_len 64", [1.9, 1.9], [5.0, 5.0], [3.0, 3.0])
    learning = Measured(10, "tgt_len=96 dynamic=rms", longer.geometry, [1.71, 1.71], [15.0, 15.0], [5.5, 5.5])
    found = {("a", "test"): [*evaluations(1.89, 37.0), longer, learning]}
    text = page(found, missed_bars(found))
    assert "| tgt\\_len=96 | 10 | 1.900 ± 0.000 | - | - | 1.0 | - |" in text
    assert "| tgt\\_len=96 dynamic=rms | 10 | 1.710 ± 0.000 | -10.0 | -10.0, -10.0 | 3.0 | 0.5 |" in text
    assert "* a: 10.0 % in 3.5 times the time" in text
