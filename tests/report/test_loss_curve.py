"""The picture of a run's losses."""

import pytest

from tests.support.made_runs import line, usual_lines, write_run
from txl.errors import ConfigError
from txl.report.loss_curve import plot_loss_curve


def test_the_curve_is_a_picture_in_the_run_folder(tmp_path):
    path = plot_loss_curve(write_run(tmp_path / "abc-s1", usual_lines()))
    assert path == tmp_path / "abc-s1" / "report" / "loss.png"
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 10_000


def test_a_run_without_validation_or_with_infinite_loss_has_a_curve(tmp_path):
    assert plot_loss_curve(write_run(tmp_path / "a", [line("train", 10, 3.0)])).exists()
    assert plot_loss_curve(write_run(tmp_path / "c", [line("valid", 2, 3.0)])).exists()  # shorter than log_interval
    broken = [line("train", 10, 3.0), line("train", 20, None), line("valid", 20, None), line("test", 20, None)]
    assert plot_loss_curve(write_run(tmp_path / "b", broken)).exists()


def test_a_run_without_losses_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="no losses yet"):
        plot_loss_curve(write_run(tmp_path / "a", []))
