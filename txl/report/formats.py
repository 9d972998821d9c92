"""Tables as text for a terminal, Markdown, CSV, LaTeX and JSON."""

import csv
import io
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from txl.files import to_json
from txl.report.tables import SUPERSCRIPTS, Column, Spread, Table, Value

if TYPE_CHECKING:
    from rich.table import Table as RichTable

PLAIN = str.maketrans("▁▂▃▄▅▆▇█─·…", "12345678--~")  # for a terminal that knows ASCII only
BETWEEN = 2  # spaces between two columns of a terminal
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "…": r"\dots{}",
    "×": r"$\times$",
    **{character: "\\" + character for character in "&%$#_{}"},
    **{letter: rf"\textsuperscript{{{chr(ord('a') + i)}}}" for i, letter in enumerate(SUPERSCRIPTS[:9])},
}


def to_terminal(tables: Sequence[Table], width: int, color: bool = False) -> str:
    """Tables for a terminal of this many columns: what does not fit is left out, and named below.

    Args:
        tables: What is shown, one below the other.
        width: The columns of the terminal.
        color: Whether it shows colours.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(file=io.StringIO(), width=width, force_terminal=color, color_system="auto" if color else None)
    for i, table in enumerate(tables):
        if i:
            console.print()
        if len(tables) > 1 or table.title_needed:
            console.print(Text(table.title, style="bold"))
        columns, left_out = fitting_columns(table, width)
        console.print(_rich_table(table, columns, width))
        if left_out:
            names = ", ".join(column.title for column in left_out)
            console.print(Text(f"not shown at {width} columns: {names} (a wider terminal, --csv or --html shows all)"))
        for note in table.notes:
            console.print(Text(printable_line(note)))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().split("\n"))


def _rich_table(table: Table, columns: list[Column], width: int) -> "RichTable":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    sizes = _shortened_widths(table, columns, width)
    for column, size in zip(columns, sizes, strict=True):
        side: Literal["left", "right"] = "left" if column.is_text else "right"
        shown.add_column(Text(column.title), justify=side, no_wrap=True, overflow="ellipsis", width=size)
    for i in range(len(table.rows)):
        texts = [printable_line(table.cell(i, column)) for column in columns]
        cells = [Text(_without_middle(text, size)) for text, size in zip(texts, sizes, strict=True)]
        shown.add_row(*cells, style="bold green" if i == table.best else None)
    return shown


def _shortened_widths(table: Table, columns: list[Column], width: int) -> list[int]:
    """The width of each column in a terminal of `width` columns; the longest texts are shortened where it is needed."""
    sizes = [_text_width(table, column) for column in columns]
    texts = [i for i, column in enumerate(columns) if column.is_text]
    for _ in range(sum(sizes) + BETWEEN * len(columns) - width):
        longer = [i for i in texts if sizes[i] > columns[i].narrowest]
        if not longer:
            break
        sizes[max(longer, key=lambda i: sizes[i])] -= 1
    return sizes


def _without_middle(text: str, size: int) -> str:
    """A text of at most `size` characters: what tells runs apart is often at the end."""
    if len(text) <= size:
        return text
    return text[: size // 2] + "…" + text[len(text) - (size - size // 2 - 1) :]


def fitting_columns(table: Table, width: int) -> tuple[list[Column], list[Column]]:
    """The columns that fit into a terminal of this width, and those that do not."""
    columns, left_out = table.shown_columns(), list[Column]()

    def needed() -> int:
        # Texts are shortened before columns go.
        spare = sum(max(0, widths[column.key] - column.narrowest) for column in columns if column.is_text)
        return sum(widths[column.key] for column in columns) - spare + BETWEEN * len(columns)

    widths = {column.key: _text_width(table, column) for column in columns}
    while len(columns) > 2 and needed() > width:
        worst = max(columns, key=lambda column: (column.rank, columns.index(column)))
        columns = [column for column in columns if column is not worst]
        left_out.insert(0, worst)
    return columns, left_out


def _text_width(table: Table, column: Column) -> int:
    """The columns of a terminal that a column's longest text takes."""
    return max(map(len, [column.title, *(table.cell(i, column) for i in range(len(table.rows)))]))


def printable_line(text: str) -> str:
    """A text without control characters, on one line: names of runs may hold anything."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def to_markdown(tables: Sequence[Table]) -> str:
    """Tables in Markdown."""
    parts = []
    for table in tables:
        columns = table.shown_columns()
        lines = [f"**{_markdown(table.title)}**", ""] if len(tables) > 1 or table.title_needed else []
        lines.append("| " + " | ".join(_markdown(column.heading) for column in columns) + " |")
        lines.append("|" + "|".join("---" if column.is_text else "---:" for column in columns) + "|")
        for i in range(len(table.rows)):
            cells = [_markdown(table.cell(i, column)).replace("±", " ± ") for column in columns]
            lines.append("| " + " | ".join(f"**{cell}**" if i == table.best else cell for cell in cells) + " |")
        lines += ["", *(f"{_markdown(note)}  " for note in table.notes)] if table.notes else []
        parts.append("\n".join(lines).rstrip())
    return "\n\n".join(parts)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", printable_line(text))


def to_latex(tables: Sequence[Table]) -> str:
    r"""Tables in LaTeX, for the package `booktabs`."""
    parts = []
    for table in tables:
        columns = table.shown_columns()
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.title)}}}"]
        lines.append(rf"\begin{{tabular}}{{{''.join('l' if column.is_text else 'r' for column in columns)}}}")
        lines += [r"\toprule", " & ".join(_latex(column.heading) for column in columns) + r" \\", r"\midrule"]
        for i in range(len(table.rows)):
            cells = [_latex(table.cell(i, column)) for column in columns]
            lines.append(" & ".join(rf"\textbf{{{cell}}}" if i == table.best else cell for cell in cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\footnotesize {_latex(note)}" for note in table.notes]
        parts.append("\n".join([*lines, r"\end{table}"]))
    return "\n\n".join(parts)


def _latex(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(character, character) for character in printable_line(text))


def to_csv(tables: Sequence[Table]) -> str:
    """Tables with exact numbers; a mean has its standard deviation in the column `<key>_sd`.

    Several tables follow each other, each below a line `# name`.
    """
    parts = []
    for table in tables:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        rows = [exact_values(row) for row in table.rows]
        keys = list(dict.fromkeys(key for column in table.columns for key in _keys_of(column, rows)))
        writer.writerow(keys)
        writer.writerows([["" if row.get(key) is None else row[key] for key in keys] for row in rows])
        parts.append((f"# {table.name}\n" if len(tables) > 1 else "") + file.getvalue().rstrip("\n"))
    return "\n\n".join(parts)


def _keys_of(column: Column, rows: list[dict[str, Any]]) -> list[str]:
    spread = [f"{column.key}_sd", f"{column.key}_n"]
    return [column.key, *(key for key in spread if any(key in row for row in rows))]


def exact_values(row: dict[str, Value]) -> dict[str, Any]:
    """A row as plain values: a mean, its sd and its number of runs become three."""
    values: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Spread):
            values |= {key: value.mean, f"{key}_sd": value.sd, f"{key}_n": value.n}
        else:
            values[key] = value
    return values


def tables_to_json(tables: Sequence[Table]) -> str:
    """Tables as strict JSON: {name: {"title", "rows", "notes", "best"}}."""
    values = {
        table.name: {
            "title": table.title,
            "rows": [exact_values(row) for row in table.rows],
            "notes": table.notes,
            "best": table.best,
        }
        for table in tables
    }
    return to_json(values, indent=1)


def print_text(text: str) -> None:
    """Print on standard output, also where its encoding lacks a character."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.replace("±", "+-").translate(PLAIN).encode(encoding, "replace").decode(encoding)
    print(text, flush=True)
