"""A table and its forms: Markdown, LaTeX and CSV. Needs nothing but the standard library."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from mtrl.report.stats import Interval

MISSING = "\N{EN DASH}"
_WHOLE = 100.0  # decimals of a return say nothing
Cell = str | int | float | Interval | None

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
_LATEX |= {character: "\\" + character for character in "&%$#_{}"}


class Table(NamedTuple):
    """Named columns, rows of cells; the first column names the row."""

    name: str  # of its files
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    note: str = ""  # what the numbers are
    decimals: int = 2

    def text(self, cell: Cell) -> str:
        """Return a cell as people read it; intervals as `value [low, high]`, what is missing as a dash."""
        if cell is None:
            return MISSING
        if isinstance(cell, Interval):
            value = self.text(cell.value)
            ends = f" [{self.text(cell.low)}, {self.text(cell.high)}]"
            return value if math.isnan(cell.low) else value + ends
        if isinstance(cell, float):
            if math.isnan(cell):
                return MISSING
            return f"{cell:,.0f}" if abs(cell) >= _WHOLE else f"{cell:.{self.decimals}f}"
        return f"{cell:,}" if isinstance(cell, int) else cell

    def markdown(self) -> str:
        """Return a table in GitHub's Markdown, the note below."""
        rules = ["---:" if i and self.is_number(i) else "---" for i in range(len(self.columns))]
        lines = [_markdown(self.columns), f"|{'|'.join(rules)}|"]
        lines += [_markdown([self.text(cell) for cell in row]) for row in self.rows]
        note = f"\n{self.note}\n" if self.note else ""
        return "\n".join(lines) + "\n" + note

    def latex(self) -> str:
        """Return a `tabular` with the rules of the package booktabs, title and note as comments."""
        numbers = map(self.is_number, range(1, len(self.columns)))
        alignment = "l" + "".join("r" if number else "l" for number in numbers)
        rows = [" & ".join(map(_latex, (self.text(cell) for cell in row))) + r" \\" for row in self.rows]
        head = " & ".join(map(_latex, self.columns)) + r" \\"
        comments = [f"% {line}" for line in (self.title, self.note) if line]
        begin = rf"\begin{{tabular}}{{{alignment}}}"
        body = [begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
        return "\n".join([*comments, *body]) + "\n"

    def csv(self) -> str:
        """Return comma-separated values, unrounded; an interval takes three columns."""
        wide = [any(isinstance(cell, Interval) for cell in cells) for cells in zip(*self.rows, strict=True)]
        head = []
        for column, is_wide in zip(self.columns, wide, strict=True):
            head += [column, f"{column} low", f"{column} high"] if is_wide else [column]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for row in self.rows:
            values: list[Any] = []
            for cell, is_wide in zip(row, wide, strict=True):
                values += cell if isinstance(cell, Interval) else [cell, None, None] if is_wide else [cell]
            writer.writerow([None if isinstance(v, float) and math.isnan(v) else v for v in values])
        return file.getvalue()

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers, and is aligned to the right."""
        return all(not isinstance(row[column], str) for row in self.rows)


def _markdown(cells: Sequence[str]) -> str:
    escaped = (text.replace("|", r"\|").replace("\n", " ") for text in cells)
    return f"| {' | '.join(escaped)} |"


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return escaped.replace(MISSING, "--").replace("Δ", r"$\Delta$")
