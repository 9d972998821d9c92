"""Tables of the report: columns with a meaning, rows of plain values, notes below. `formats` shows them."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

NOT_FINITE = "not finite"
SUPERSCRIPTS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"


@dataclass(frozen=True)
class Spread:
    """A mean over several runs, and their standard deviation."""

    mean: float
    sd: float
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> "Spread | float | None":
        """Mean and sd of several values; a single value stays as it is."""
        if len(values) < 2:
            return values[0] if values else None
        return Spread(statistics.fmean(values), statistics.stdev(values), len(values))


Value = str | int | float | bool | Spread | None


def mean_of(value: Value) -> float | None:
    """The number of a cell, by which rows are sorted and compared; None for text and for nothing."""
    if isinstance(value, Spread):
        return value.mean
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    key: str  # in CSV and JSON
    title: str
    show: Callable[[float], str] = str  # a number as text
    is_text: bool = False  # left-aligned
    rank: int = 0  # where a terminal is too narrow, the columns with the highest rank are left out first
    only_in_files: bool = False  # in CSV and JSON alone
    long: str = ""  # heading where there is room: all but a terminal
    narrowest: int = 12  # columns of a narrow terminal that a shortened text keeps

    @property
    def heading(self) -> str:
        """The heading where there is room."""
        return self.long or self.title

    def text(self, value: Value) -> str:
        """A cell as text; `-` where there is nothing."""
        if value is None or value == "":
            return "-"
        if isinstance(value, Spread):
            return f"{self.show(value.mean)}±{self.show(value.sd)}"
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return " ".join(value.split())
        return self.show(value) if math.isfinite(value) else NOT_FINITE


@dataclass
class Table:
    """Rows of values under columns."""

    name: str  # in CSV and JSON
    title: str
    columns: list[Column]
    rows: list[dict[str, Value]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # lines below the table
    best: int | None = None  # the row that is marked
    marks: dict[tuple[int, str], str] = field(default_factory=dict)  # (row, key): a letter that a note explains
    title_needed: bool = False  # its columns do not say what its title says: a table that stands alone shows it too

    def cell(self, row: int, column: Column) -> str:
        """A cell as text, with its mark."""
        return column.text(self.rows[row].get(column.key)) + self.marks.get((row, column.key), "")

    def shown_columns(self) -> list[Column]:
        """The columns for a reader: those that say something in at least one row."""
        shown = [column for column in self.columns if not column.only_in_files]
        return [column for column in shown if any(row.get(column.key) not in (None, "") for row in self.rows)]

    def mark_measurements(self, keys: Iterable[str]) -> None:
        """Say below the table how the values of these columns were measured (`<key>_geometry` in the rows).

        Where that differs within the table, a letter beside each value leads to its line.
        """
        cells = [(i, key) for i, row in enumerate(self.rows) for key in keys if row.get(f"{key}_geometry")]
        found = list(dict.fromkeys(str(self.rows[i][f"{key}_geometry"]) for i, key in cells))
        if len(found) == 1:
            self.notes.append(f"measured with {found[0]}")
            return
        letters = {text: SUPERSCRIPTS[i % len(SUPERSCRIPTS)] for i, text in enumerate(found)}
        self.marks |= {(i, key): letters[str(self.rows[i][f"{key}_geometry"])] for i, key in cells}
        self.notes += [f"{letter} measured with {text}" for text, letter in letters.items()]


# --------------------------------------------------------------------------- numbers as text


def show_fixed(digits: int) -> Callable[[float], str]:
    """Numbers with this many digits behind the point."""
    return lambda value: f"{value:.{digits}f}"


def show_short(value: float) -> str:
    """Three digits and a unit: 265k, 1.97G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            value /= size
            return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}{unit}"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def show_count(value: float) -> str:
    """A number without a fraction: 40000."""
    return f"{value:.0f}"


def show_duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def plain_value(value: Any) -> Value:
    """A value of a configuration as a cell."""
    if value is None:
        return "null"
    return value if isinstance(value, str | int | float | bool) else str(value).replace("'", "")
