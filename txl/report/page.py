"""The report as one HTML page that needs nothing else: no network and no other file."""

import base64
import datetime
import gzip
import importlib.util
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from txl.config.differences import IGNORED_KEYS
from txl.errors import ConfigError
from txl.files import flatten, is_special_file, to_json, write_text_file
from txl.report.curves import best_setting_first, curves_of_runs
from txl.report.labels import label_runs
from txl.report.runs import RunRecord
from txl.report.stability import published_stability
from txl.report.studies import StudyRecord, plotted_study, studies_of_runs, study_table
from txl.report.tables import Table, Value, plain_value
from txl.version import __version__

PARTS = Path(__file__).parent  # page.html, page.css, page.js
BEST, DIFFERS = ' class="best"', ' class="differs"'
CONTROLS = """
<div class="controls">
<label>x <select id="x-axis"><option value="step">step</option><option value="tokens">tokens</option>
<option value="hours">hours</option></select></label>
<label>show <select id="split"><option value="valid">valid</option><option value="train">train</option>
<option value="both">train and valid</option></select></label>
<label>as <select id="unit">{units}</select></label>
<label><input type="checkbox" id="log-x"> log x</label>
<label><input type="checkbox" id="log-y"> log y</label>
<label><input type="checkbox" id="band"> mean ± sd of seeds</label>
<span>drag: zoom · double click: all · click a name: hide it · double click a name: only it</span>
</div>
<div id="curves" class="plot"></div>
<noscript>The curves need JavaScript.</noscript>
"""


def check_page_target(path: Path) -> None:
    """Find out whether a page can be written, before anything is read.

    Raises:
        ConfigError: It cannot.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if not is_special_file(path):
            partial = path.with_name(f"{path.name}.partial")
            partial.write_bytes(b"")
            partial.unlink()
    except OSError as error:
        reason = "its folder does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise ConfigError(f"--html {path} cannot be written: {reason}; name a file in a folder of yours") from None
    _plotly_file()


def write_page(path: Path, runs: list[RunRecord], tables: Sequence[Table], verdict: str = "") -> None:
    """Write the page: tables, curves, configurations side by side, environments.

    Args:
        path: The file.
        runs: Those whose curves and configurations are shown.
        tables: In their order.
        verdict: A line at the top: which run is best.

    Raises:
        ConfigError: The file cannot be written.
    """
    names = list(dict.fromkeys(run.name for run in runs))
    title = names[0] if len(names) == 1 else f"{len(runs)} runs" if runs else "results"
    made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    about = f"{len(runs)} run{'s' * (len(runs) != 1)} · {made} · txl {__version__}"
    body = [f'<p class="verdict">{escape(verdict)}</p>'] if verdict else []
    runs = best_setting_first(runs)
    curves = curves_of_runs(runs)
    stability = [table for table in tables if table.name.startswith("stability")]
    folded = stability if len(stability) > 1 else []
    studies = studies_of_runs(runs)
    shown = [table for table in tables if not table.name.startswith("study")]
    body += [_section(table, told=verdict) for table in shown[:1]]
    body += [_study_section(i, study) for i, study in enumerate(studies)] + _curves(curves)
    body += [_section(table, folded=table in folded) for table in shown[1:]]
    body += _settings(runs)
    metric = "bpc" if runs and all(run.metric == "bpc" for run in runs) else "ppl"
    plotted = {"metric": metric, "runs": curves, "published": _published_points(runs)}
    plotted["studies"] = [plotted_study(study) for study in studies]
    parts = {
        "title": escape(title),
        "about": escape(about),
        "css": (PARTS / "page.css").read_text(encoding="utf-8"),
        "script": (PARTS / "page.js").read_text(encoding="utf-8"),
        "body": "\n".join(body),
        "data": to_json(plotted).replace("<", "\\u003c"),
        "plotly": base64.b64encode(gzip.compress(_plotly_file().read_bytes(), 9)).decode() if runs else "",
    }
    pieces = (PARTS / "page.html").read_text(encoding="utf-8").split("{{")
    page = pieces[0] + "".join(parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))
    try:
        write_text_file(path, page)
    except OSError as error:
        raise ConfigError(f"--html {path} cannot be written: {error.strerror}; free some room there") from None


def _plotly_file() -> Path:
    """The plotting library, which becomes a part of the page. Raises ConfigError if it is not installed."""
    spec = importlib.util.find_spec("plotly")
    file = Path(spec.origin).parent / "package_data" / "plotly.min.js" if spec and spec.origin else None
    if file is None or not file.is_file():
        raise ConfigError("--html needs the package plotly, which is not installed; run: pip install plotly")
    return file


# --------------------------------------------------------------------------- sections


def _section(table: Table, folded: bool = False, bars: str = "", told: str = "") -> str:
    """A table with its notes.

    Args:
        table: The table.
        folded: Only its title is shown until it is clicked.
        bars: The key of a column of shares, which are also drawn.
        told: A note that stands elsewhere already.
    """
    columns = table.shown_columns()
    kinds = [' class="text"' if column.is_text else "" for column in columns]
    head = "".join(f"<th{kind}>{escape(c.heading)}</th>" for c, kind in zip(columns, kinds, strict=True))
    rows = []
    for i in range(len(table.rows)):
        cells = (
            (_bar(table.rows[i].get(column.key)) if column.key == bars else "")
            + escape(table.cell(i, column).replace("±", " ± "))
            for column in columns
        )
        text = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(cells, kinds, strict=True))
        rows.append(f"<tr{BEST if i == table.best else ''}>{text}</tr>")
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes if note != told)
    inside = (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<div class="notes">{notes}</div>'
    )
    title = f"<h2>{escape(table.title)}</h2>"
    inside = f"<details><summary>{title}</summary>{inside}</details>" if folded else title + inside
    return f'<section class="{escape(table.name)}">{inside}</section>'


def _bar(share: Value) -> str:
    """A bar of this share of its place."""
    return f'<i class="bar" style="width:{120 * share:.0f}px"></i>' if isinstance(share, float) else ""


def _study_section(number: int, study: StudyRecord) -> str:
    """The table of a study, and the place for its trials as lines across the axes."""
    hint = "drag over an axis: only the trials that pass there · double click: all · click a name: hide these trials"
    plot = f'<div class="controls"><span>{hint}</span></div><div class="scroll wide">'
    plot += f'<div class="plot trials" data-study="{number}"></div></div>'
    return _section(study_table(study), bars="importance").replace("</section>", f"{plot}</section>")


def _curves(curves: list[dict[str, Any]]) -> list[str]:
    if not any(one["train"]["step"] or one["valid"]["step"] for one in curves):
        return []
    metrics = {one["metric"] for one in curves}
    units = ['<option value="loss">loss</option>']
    if len(metrics) == 1:
        name = "perplexity" if metrics == {"ppl"} else "bits per character"
        units.insert(0, f'<option value="score">{name}</option>')
    measured: dict[str, list[str]] = {}
    for one in curves:
        if one["geometry"]:
            measured.setdefault(one["geometry"], []).append(one["label"])
    notes = [f"valid measured with {text}" for text in measured]
    if len(measured) > 1:
        notes = [f"{', '.join(names)}: measured with {text}" for text, names in measured.items()]
    lines = "".join(f"<p>{escape(note)}</p>" for note in notes)
    controls = CONTROLS.format(units="".join(units))
    return [f'<section><h2>curves</h2>{controls}<div class="notes">{lines}</div></section>']


def _published_points(runs: list[RunRecord]) -> dict[str, list[dict[str, Any]]]:
    """The published validations of the models that are shown, drawn beside the means over seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        rows = [row for (split, _), row in published_stability(run).items() if split == "valid"]
        if rows:
            found[f"published {run.config['model.name']}, mean ± 3 sd"] = rows
    return found


def _settings(runs: list[RunRecord]) -> list[str]:
    if not runs:
        return []
    labels = [label.run for label in label_runs(runs)]
    configurations = [run.config for run in runs]
    environments = [flatten(run.environment) for run in runs]
    return [
        _side_by_side("configurations", labels, configurations, IGNORED_KEYS),
        _side_by_side("environment", labels, environments, ()),
    ]


def _side_by_side(title: str, labels: list[str], values: list[dict[str, Any]], ignored: Sequence[str]) -> str:
    """A line per key, a column per run; lines that differ are marked."""
    keys = sorted({key for one in values for key in one})
    if not keys:
        return ""
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    rows = []
    for key in keys:
        cells = [str(plain_value(one[key])) if key in one else "-" for one in values]
        differs = len(set(cells)) > 1 and key not in ignored
        text = "".join(f'<td title="{escape(cell)}">{escape(cell)}</td>' for cell in cells)
        rows.append(f"<tr{DIFFERS if differs else ''}><td>{escape(key)}</td>{text}</tr>")
    checked = " checked" if any(DIFFERS in row for row in rows) else ""
    box = f'<label><input type="checkbox" data-filters="{title}"{checked}> only lines that differ</label>'
    return (
        f'<section><h2>{title}</h2><div class="controls">{box}</div><div class="scroll">'
        f'<table class="sides" id="{title}"><thead><tr><th>key</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )
