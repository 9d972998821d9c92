"""Loss curves and tables from run folders."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from txl.errors import ConfigError
from txl.report.__main__ import main
from txl.report.loss_curve import TRAIN_POINTS, downsample_losses, plot_loss_curve
from txl.report.runs import find_runs_with_metrics, read_run
from txl.report.table import format_runs_table

PROJECT = Path(__file__).resolve().parents[2]
MEASURED = dict(tgt_len=64, mem_len=64, ext_len=0, clamp_len=-1, same_length=False, batch_size=16)


def line(kind, step, loss, **more):
    score = {} if loss is None else {"ppl": math.exp(loss)}
    more |= MEASURED if kind != "train" else {"tokens_per_second": 100.0 + step}
    return {"kind": kind, "step": step, "loss": loss} | score | more


def write_run(folder, lines, seed=1, **summary):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(values) + "\n" for values in lines))
    (folder / "config.yaml").write_text(f"name: demo\nseed: {seed}\n")
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def usual(offset=0.0):
    train = [line("train", step, 3.0 + 5 / step) for step in range(10, 301, 10)]
    valid = [line("valid", step, loss + offset) for step, loss in ((100, 3.3), (200, 3.1), (300, 3.2))]
    return [*train, *valid, line("test", 200, 3.0 + offset)]


def test_the_curve_is_a_picture_in_the_run_folder(tmp_path):
    path = plot_loss_curve(write_run(tmp_path / "abc-s1", usual()))
    assert path == tmp_path / "abc-s1" / "report" / "loss.png"
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 10_000


def test_a_run_without_validation_or_with_infinite_loss_has_a_curve(tmp_path):
    assert plot_loss_curve(write_run(tmp_path / "a", [line("train", 10, 3.0)])).exists()
    broken = [line("train", 10, 3.0), line("train", 20, None), line("valid", 20, None), line("test", 20, None)]
    folder = write_run(tmp_path / "b", broken)
    assert plot_loss_curve(folder).exists()
    assert "not finite" in format_runs_table([read_run(folder)])


def test_a_run_without_losses_is_one_clear_error(tmp_path, capsys):
    with pytest.raises(ConfigError, match="no losses yet"):
        plot_loss_curve(write_run(tmp_path / "a", []))
    assert main([str(tmp_path / "nowhere")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "holds no metrics.jsonl" in message and message.count("\n") == 1


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    folder = write_run(tmp_path / "a", usual())
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    assert len(read_run(folder).train) == 30


def test_one_run_makes_one_row_with_its_geometry(tmp_path):
    run = read_run(write_run(tmp_path / "demo" / "abc-s7", usual(), seed=7, tokens_per_second=1234.5))
    row = format_runs_table([run]).splitlines()[2]
    assert " ".join(row.split()) == (
        "demo/abc-s7 7 300 3.1000 (ppl 22.20) 3.0000 (ppl 20.09) 1,234 "
        "tgt_len 64 mem_len 64 clamp_len -1 same_length false batch 16"
    )


def test_speed_of_an_unfinished_run_is_the_median_of_its_step_lines(tmp_path):
    assert read_run(write_run(tmp_path / "a", usual())).tokens_per_second == 255.0


def test_seeds_of_one_configuration_get_mean_and_sd(tmp_path):
    runs = [
        read_run(write_run(tmp_path / "demo" / f"abc-s{seed}", usual(offset), seed=seed))
        for seed, offset in ((2, 0.1), (1, 0.0), (11, 0.2))
    ]
    runs.append(read_run(write_run(tmp_path / "demo" / "def-s1", usual())))
    lines = format_runs_table(runs).splitlines()[2:]
    assert [line.split()[0] for line in lines] == ["demo/abc-s1", "demo/abc-s2", "demo/abc-s11", "mean", "demo/def-s1"]
    assert lines[3].startswith("mean ± sd, 3 seeds")
    assert "3.2000 ± 0.1000 (ppl 24.61 ± 2.46)" in lines[3] and "3.1000 ± 0.1000" in lines[3]


def test_a_mean_over_unfinished_seeds_is_not_given(tmp_path):
    runs = [read_run(write_run(tmp_path / "demo" / "abc-s1", usual(), seed=1))]
    runs.append(read_run(write_run(tmp_path / "demo" / "abc-s2", usual()[:-1], seed=2)))
    mean = format_runs_table(runs).splitlines()[-1]
    assert mean.count("±") == 3  # the title, valid loss and valid perplexity: no test


def test_bits_per_character_are_kept_as_such(tmp_path):
    lines = [line("valid", 5, 1.0) | {"bpc": 1 / math.log(2)}]
    del lines[0]["ppl"]
    assert "1.0000 (bpc 1.4427)" in format_runs_table([read_run(write_run(tmp_path / "a", lines))])


def test_a_long_curve_is_averaged_down():
    lines = [{"step": step, "loss": float(step % 2)} for step in range(1, 10 * TRAIN_POINTS + 1)]
    steps, losses = downsample_losses(lines)
    assert len(steps) == TRAIN_POINTS and steps[-1] == 10 * TRAIN_POINTS and set(losses) == {0.5}
    assert downsample_losses(lines[:3]) == ([1, 2, 3], [1.0, 0.0, 1.0])
    assert downsample_losses([]) == ([], [])


def test_a_folder_of_runs_stands_for_all_below_it(tmp_path):
    folders = [write_run(tmp_path / "demo" / f"abc-s{seed}", usual(), seed=seed) for seed in (1, 2)]
    assert find_runs_with_metrics([tmp_path]) == folders and find_runs_with_metrics(folders[:1]) == folders[:1]


def test_the_command_prints_pictures_and_table_without_torch(tmp_path):
    folder = write_run(tmp_path / "demo" / "abc-s1", usual())
    code = (
        f"import sys; from txl.report.__main__ import main; main([{str(folder)!r}]); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.splitlines()[0].endswith("report/loss.png")
    assert "demo/abc-s1" in done.stdout
