"""The HTML page: whole without a network, the same numbers, every text as text; looked at in a real browser."""

import builtins
import importlib.util
import json
import os
import re
import threading

import pytest

from tests.support import browser
from tests.support.made_runs import line, usual_lines, write_run, write_study, write_sweep
from txl.report.__main__ import main
from txl.report.curves import elapsed_hours
from txl.report.runs import read_run

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of a sweep with a run that diverged, one that goes on, and a name that tries to be HTML."""
    folder = tmp_path_factory.mktemp("page")
    write_sweep(folder)
    lost = [line("train", 10, 3.0), line("train", 20, None), line("valid", 20, None)]
    write_run(folder / "sweep" / "bad-s1", lost, 1, False, optimizer__lr=0.3)
    write_run(folder / "sweep" / "half-s1", usual_lines(0.2, 200, False), 1, False, optimizer__lr=0.1, name=HOSTILE)
    (folder / "sweep" / "half-s1" / "environment.json").write_text(json.dumps({"cpu": HOSTILE, "cores": 2}))
    assert main([str(folder), "--html", str(folder / "report.html")]) == 0
    return folder / "report.html"


def data_of(page) -> dict:
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page.read_text(), re.DOTALL)[1])


def test_the_page_is_whole_without_a_network(page):
    text = page.read_text()
    without_library = re.sub(r'<script id="plotly".*?</script>', "", text, flags=re.DOTALL)
    assert not re.search(r"""(src|href|url|@import)\s*[=(]\s*["']?(https?:)?//""", without_library)
    assert "default-src 'none'" in text and page.stat().st_size < 3e6


def test_the_curves_are_those_of_the_runs(page):
    runs = {run["label"]: run for run in data_of(page)["runs"]}
    assert len(runs) == 11
    rates = [re.search(r"lr=([\d.]+)", label)[1] for label in runs]
    assert rates[:9] == ["0.01"] * 3 + ["0.03"] * 3 + ["0.003"] * 3  # as in the table, the best one first
    (best,) = (run for label, run in runs.items() if "lr=0.01" in label and "seed=2" in label)
    assert best["valid"]["step"] == [100, 200, 300] and best["valid"]["tokens"] == [100_000, 200_000, 300_000]
    assert best["train"]["hours"][-1] == pytest.approx(2.0 * 290 / 3600, abs=1e-4) and best["complete"]
    (lost,) = (run for label, run in runs.items() if "lr=0.3" in label)
    assert (
        lost["lost"]["step"] == [20]
        and lost["lost"]["loss"] == [3.0]
        and lost["lost"]["valid"] == [None]
        and lost["train"]["loss"] == [3.0, None]
    )


def test_tables_configurations_and_lengths_are_there(page):
    text = page.read_text()
    for said in ("22.48 ± 0.25", "Training step", "optimizer.lr", "best: ", "measured with tgt_len 64 mem_len 64"):
        assert said in text
    rows = re.findall(r'<tr class="differs"><td>([\w.]+)</td>', text)
    assert {"optimizer.lr", "seed", "name", "cpu"} <= set(rows) and "data.name" not in rows


def test_what_users_typed_stays_text(page):
    text = page.read_text()
    assert "<script>document.title" not in text and "<img" not in text
    assert any("</script>" in run["label"] for run in data_of(page)["runs"])


def test_the_time_between_the_attempts_of_a_job_is_no_training(tmp_path):
    lines = [line("train", step, 3.0, time=1e9 + 2 * step + (90_000 if step > 5 else 0)) for step in range(1, 11)]
    hours = elapsed_hours(read_run(write_run(tmp_path / "a", lines)))
    assert max(hours.values()) == pytest.approx(16 / 3600)


@pytest.mark.parametrize(
    "target, reason", [(".", "it is a folder"), ("", "it is a folder"), ("none/x.html", "its folder does not exist")]
)
def test_a_target_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys, target, reason):
    write_run(tmp_path / "runs" / "a-s1")
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "--html", target if target == "." else str(tmp_path / target)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --html ") and reason in error and error.count("\n") == 1


def test_a_pipe_is_written_and_not_replaced(tmp_path):
    run, pipe, read = write_run(tmp_path / "a-s1"), tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    assert main([str(run), "--html", str(pipe)]) == 0 and pipe.is_fifo()
    reader.join()
    assert read[0].startswith("<!DOCTYPE html>") and read[0].endswith("</html>\n")


def test_without_the_plotting_library_one_line_names_it(tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "a-s1")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "plotly" else found(name))
    assert main([str(tmp_path), "--html", str(tmp_path / "x.html")]) == 2
    assert "pip install plotly" in capsys.readouterr().err


def test_the_page_needs_no_import_of_the_plotting_library(tmp_path, monkeypatch):
    write_run(tmp_path / "a-s1")
    plain = builtins.__import__

    def checked(name, *rest):
        assert not name.startswith("plotly")
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", checked)
    assert main([str(tmp_path), "--html", str(tmp_path / "x.html")]) == 0


# --------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def opened(page):
    missing = browser.missing_programs()
    if missing:
        reason = f"no {' and no '.join(missing)}: apt-get install chromium chromium-driver"
        (pytest.fail if os.environ.get("TXL_REQUIRE_BROWSER") else pytest.skip)(reason)
    with browser.headless_browser() as window:
        window.open(page)
        yield window


def traces(window) -> list[dict]:
    return window.ask("document.getElementById('curves').data.map(t => ({name: t.name, visible: t.visible, y: t.y}))")


def test_the_browser_draws_every_run_without_an_error(opened):
    names = {trace["name"] for trace in traces(opened)}
    assert len(names) == 11 and any("(stopped)" in name for name in names)
    assert opened.errors() == [] and opened.ask("document.title") != "owned"
    assert len(opened.find_all("#curves .scatterlayer .trace")) >= 10


def test_a_cross_stands_at_the_last_finite_value_where_a_loss_was_not_finite(opened, page):
    lines = [line("train", 10, 2.0), line("valid", 10, 3.0), line("train", 20, None), line("valid", 30, None)]
    write_run(page.parent / "lost" / "a-s1", lines, 1, False, optimizer__lr=1.0)
    write_run(page.parent / "lost" / "b-s1", [line("train", 10, None), line("train", 20, None)], 1, False)
    assert main([str(page.parent / "lost"), "--html", str(page.parent / "lost.html")]) == 0
    opened.open(page.parent / "lost.html")
    crosses = "document.getElementById('curves').data.filter(t => t.marker?.symbol === 'x').map(t => [t.x, t.y])"
    opened.choose("#unit", "loss")
    assert opened.ask(crosses) == [[[20, 30], [3, 3]], [[10, 20], [3, 3]]]
    opened.choose("#split", "train")
    assert opened.ask(crosses) == [[[20, 30], [2, 2]], [[10, 20], [2, 2]]]
    assert opened.errors() == []
    opened.open(page)


def test_hovering_over_a_point_tells_its_run_and_value(opened):
    point = opened.find("#curves .scatterlayer .trace .points path")
    opened.hover(point)
    opened.wait_for("document.querySelectorAll('#curves .hoverlayer .hovertext').length > 0")
    said = opened.find("#curves .hoverlayer .hovertext").text
    assert "lr=0.01" in said and "valid ppl 2" in said and opened.errors() == []


def test_a_click_on_its_name_hides_a_run(opened):
    opened.click("#curves .legendtoggle")
    opened.wait_for("document.getElementById('curves').data.some(t => t.visible === 'legendonly')")
    assert sum(trace["visible"] == "legendonly" for trace in traces(opened)) == 1


def test_axes_values_and_bands_can_be_switched(opened):
    axis = "document.getElementById('curves').layout.{}"
    opened.choose("#x-axis", "tokens")
    assert opened.ask(axis.format("xaxis.title.text")) == "tokens"
    opened.click("#log-x")
    opened.click("#log-y")
    assert opened.ask(axis.format("xaxis.type")) == opened.ask(axis.format("yaxis.type")) == "log"
    opened.choose("#unit", "loss")
    opened.choose("#split", "both")
    assert max(value for trace in traces(opened) for value in trace["y"] if value) < 4
    opened.click("#band")
    names = [trace["name"] for trace in traces(opened) if trace["name"]]
    assert len(names) == 3 and all(name.endswith(", 3 seeds") for name in names)
    assert opened.errors() == []


def test_light_and_dark(opened):
    before = opened.ask("getComputedStyle(document.body).backgroundColor")
    opened.click("#theme")
    assert opened.ask("getComputedStyle(document.body).backgroundColor") != before
    assert opened.errors() == []


def test_lines_that_agree_can_be_shown_as_well(opened):
    hidden = "[...document.querySelectorAll('#configurations tbody tr')].filter(r => r.offsetParent === null).length"
    assert opened.ask(hidden) > 0
    opened.click("input[data-filters=configurations]")
    assert opened.ask(hidden) == 0


def test_the_means_of_base_are_drawn_beside_the_published_ones(tmp_path, opened):
    for seed in (1, 2):
        lines = [line("valid", step, 3.5 - step / 1e5 + seed / 100) for step in (5000, 10000)]
        config = {"model__name": "base", "data__name": "wt103", "train__max_step": 10000}
        write_run(tmp_path / "wt103-base" / f"a-s{seed}", lines, seed, **config)
    assert main([str(tmp_path), "--html", str(tmp_path / "base.html")]) == 0
    opened.open(tmp_path / "base.html")
    opened.click("#band")
    (published,) = [trace for trace in traces(opened) if trace["name"] and trace["name"].startswith("published")]
    assert published["y"][:2] == [42.62, 32.31] and opened.errors() == []
    assert sum(trace["name"] == "wt103-base, 2 seeds" for trace in traces(opened)) == 1


def test_the_trials_of_a_search_are_lines_across_its_keys(tmp_path, opened):
    assert main([str(write_study(tmp_path / "search-1")), "--html", str(tmp_path / "study.html")]) == 0
    opened.open(tmp_path / "study.html")
    lines = "document.querySelector('[data-study]').data.map(t => ({name: t.name, y: t.y, opacity: t.opacity}))"
    drawn = {line["name"]: line["y"] for line in opened.ask(lines)}
    assert drawn.keys() == {"best: trial 1", "complete", "pruned", "failed"}
    assert drawn["best: trial 1"] == pytest.approx([2 / 3, 1, 0]) and len(opened.ask(lines)) == 5
    assert drawn["pruned"][-1] == 1  # its loss is far above the others
    assert [bar.size["width"] for bar in opened.find_all(".study .bar")] == [108, 12]
    opened.drag(opened.find("[data-study] .nsewdrag"), (-0.48, -0.45), (-0.3, -0.1))
    opened.wait_for("document.querySelector('[data-study]').data.some(t => t.opacity < 0.1)")
    opened.click("#theme")
    assert opened.ask(lines) and opened.errors() == []
