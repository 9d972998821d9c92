"""tests/gpu_check.py, rehearsed on a CPU: every step runs, and nothing that was found is lost."""

import importlib.util
import json
import subprocess
import sys
import time

from tests.support.entry_points import PROJECT, environment
from tests.support.gpu_rows import format_page

SCRIPT = PROJECT / "tests" / "gpu_check.py"
PAGE = PROJECT / "docs" / "results" / "gpu.md"


def test_every_step_runs_in_small_and_all_is_well(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), f"--out={tmp_path}", "--revision=abc"],
        env=environment(GPU_CHECK="tiny"), capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    steps = "probe kernels softmax golden curves deterministic warm attention pairs train profile inference".split()
    assert {row["step"] for row in rows} == set(steps)
    assert json.loads((tmp_path / "gpu.json").read_text()) == {"revision": "abc", "rows": rows}
    page = (tmp_path / "gpu.md").read_text()
    assert all(f"## {step}" in page for step in steps) and "revision abc" in page


def test_a_step_that_hangs_or_dies_is_a_row_and_keeps_its_earlier_ones(tmp_path):
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    check.add_row(tmp_path, "train", tokens_per_second=1)
    for name, code in (("train", "import time; time.sleep(60)"), ("golden", "import sys; sys.exit('no memory')")):
        with open(tmp_path / f"{name}.log", "w") as log:
            process = subprocess.Popen([sys.executable, "-c", code], stderr=log, start_new_session=True)
        check.end(check.Step(name, 1), process, time.time() + (0.1 if name == "train" else 30), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [sorted(row.keys() - {"at", "step"}) for row in rows] == [["tokens_per_second"], ["cut_off"], ["failed"]]
    assert "no memory" in rows[2]["failed"]
    assert "| train |" not in format_page(rows, "abc") and "not well" in format_page(rows, "abc")


def test_the_page_of_results_says_what_was_measured_and_nothing_else():
    measured = PAGE.with_suffix(".json")
    content = json.loads(measured.read_text()) if measured.exists() else {"rows": [], "revision": ""}
    assert PAGE.read_text() == format_page(content["rows"], content["revision"])
