"""A table and its forms: Markdown, LaTeX and CSV. All names are escaped: runs may come from anywhere."""

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, NamedTuple

from mtrl.report.stats import Interval

DASH = "\N{EN DASH}"
_WHOLE = 100.0  # a column with a number of at least this size has no decimals
_PAGE_CHARACTERS = 95  # that a line of a LaTeX page holds in \small
Cell = str | int | float | Interval | None

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
_LATEX |= {character: "\\" + character for character in "&%$#_{}"}
_LATEX |= {DASH: "--", "Δ": r"$\Delta$", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_MARKDOWN = {"<": "&lt;", "|": r"\|", "\\": r"\\", "`": r"\`", "*": r"\*"}
_FORMULA = ("=", "+", "-", "@")


def plain(text: str) -> str:
    """Return text as it may be shown anywhere: no control characters, no folders of an absolute path."""
    printable = "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
    return re.sub(r"(?<![^\s=,'\"(])/(?:[^/\s]+/)+(?=[^/\s])", "", printable)


def number(value: float, decimals: int = 2) -> str:
    """Return a number as people read it.

    It is rounded to nine digits first, so that sums of the same numbers in another order give the same text,
    and then as in school: halves away from zero (.175 to .18, .225 to .23).
    """
    if math.isnan(value):
        return DASH
    if not abs(value) < 1e15:  # nine digits mean nothing there, and infinity has none
        return f"{value:,.{decimals}f}"
    rounded = Decimal(repr(round(float(value), 9))).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    text = f"{rounded:,f}"
    return text if float(text.replace(",", "")) else text.replace("-", "")


class Table(NamedTuple):
    """Named columns, rows of cells; the first column names the row."""

    name: str  # of its files
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    note: str = ""  # what the numbers are
    decimals: int = 2
    best: tuple[str, ...] = ()  # columns whose highest number is bold in LaTeX
    lowest: tuple[str, ...] = ()  # columns whose lowest number is

    def texts(self) -> list[list[str]]:
        """Return all cells as people read them; the numbers of a column have equally many decimals."""
        decimals = [self._decimals(column) for column in range(len(self.columns))]
        return [
            [_text(cell, places) for cell, places in zip(row, decimals, strict=True)] for row in self.rows
        ]

    def markdown(self) -> str:
        """Return a table in GitHub's Markdown, the note below."""
        rules = ["---:" if is_number else "---" for is_number in self.numeric]
        lines = [_markdown(self.columns), f"|{'|'.join(rules)}|", *map(_markdown, self.texts())]
        note = f"\n{escaped(self.note)}\n" if self.note else ""
        return "\n".join(lines) + "\n" + note

    def latex(self) -> str:
        """Return a `table` with caption and label, for the package booktabs; the best numbers are bold.

        A table that is wider than a page is several `tabular`s below each other, each with the rows' names.
        """
        texts = [[_latex(text) for text in row] for row in self.texts()]
        for column, name in enumerate(self.columns):
            for row in self._best(column) if name in self.best + self.lowest else ():
                texts[row][column] = rf"\textbf{{{texts[row][column]}}}"
        blocks = []
        for columns in self._blocks():
            alignment = "".join("r" if self.numeric[column] else "l" for column in columns)
            lines = [[_latex(self.columns[column]) for column in columns]]
            lines += [[row[column] for column in columns] for row in texts]
            head, *rest = (" & ".join((_first(cells[0]), *cells[1:])) + r" \\" for cells in lines)
            begin = rf"\begin{{tabular}}{{{alignment}}}"
            blocks.append(
                "\n".join((begin, r"\toprule", head, r"\midrule", *rest, r"\bottomrule", r"\end{tabular}"))
            )
        caption = rf"\caption{{{_latex(f'{self.title}. {self.note}'.strip())}}}"
        label = rf"\label{{tab:{self.name}}}"
        body = "\n\n\\medskip\n".join(blocks)
        return "\n".join((r"\begin{table}", r"\centering\small", caption, label, body, r"\end{table}")) + "\n"

    def csv(self) -> str:
        """Return comma-separated values, unrounded; an interval takes three columns.

        Text that a spreadsheet would run as a formula begins with an apostrophe.
        """
        wide = [any(isinstance(cell, Interval) for cell in cells) for cells in zip(*self.rows, strict=True)]
        head: list[str] = []
        for column, is_wide in zip(map(_inert, self.columns), wide, strict=True):
            head += [column, f"{column} low", f"{column} high"] if is_wide else [column]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for row in self.rows:
            values: list[Any] = []
            for cell, is_wide in zip(row, wide, strict=True):
                values += cell if isinstance(cell, Interval) else [cell, None, None] if is_wide else [cell]
            writer.writerow([_inert(v) if isinstance(v, str) else None if v != v else v for v in values])
        return file.getvalue()

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers, and is aligned to the right; the first never does."""
        rest = list(zip(*self.rows, strict=True))[1:]
        return [False, *(all(not isinstance(cell, str) for cell in cells) for cells in rest)]

    def _decimals(self, column: int) -> int:
        values = (_value(row[column]) for row in self.rows if isinstance(row[column], float | Interval))
        return 0 if any(_WHOLE <= abs(value) < math.inf for value in values) else self.decimals

    def _best(self, column: int) -> list[int]:
        """Return the rows with the best number of a column; none if all are equal."""
        values = {index: round(_value(row[column]), 9) for index, row in enumerate(self.rows)}
        found = {index: value for index, value in values.items() if not math.isnan(value)}
        best = (min if self.columns[column] in self.lowest else max)(found.values(), default=0.0)
        return (
            [] if len(set(found.values())) < 2 else [index for index, value in found.items() if value == best]
        )

    def _blocks(self) -> Iterator[list[int]]:
        """Yield the columns of each `tabular`, the first column always among them."""
        rows = [self.columns, *self.texts()]
        widths = [max(len(row[column]) for row in rows) + 2 for column in range(len(self.columns))]
        block, width = [0], widths[0]
        for column in range(1, len(self.columns)):
            if width + widths[column] > _PAGE_CHARACTERS and len(block) > 1:
                yield block
                block, width = [0], widths[0]
            block.append(column)
            width += widths[column]
        yield block


def _text(cell: Cell, decimals: int) -> str:
    if isinstance(cell, Interval):
        value, low, high = (number(end, decimals) for end in cell)
        return value if math.isnan(cell.low) else f"{value} [{low}, {high}]"
    if isinstance(cell, float):
        return number(cell, decimals)
    return DASH if cell is None else f"{cell:,}" if isinstance(cell, int) else plain(str(cell))


def _value(cell: Cell) -> float:
    """Return the number of a cell; NaN if it has none."""
    found = cell.value if isinstance(cell, Interval) else cell
    return float(found) if isinstance(found, float | int) else math.nan


def escaped(text: str) -> str:
    """Return plain text for a cell or a line of Markdown."""
    return "".join(_MARKDOWN.get(character, character) for character in plain(text)).replace("](", r"]\(")


def _markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in plain(text))


def _first(cell: str) -> str:
    r"""Return the first cell of a LaTeX row so that it is no argument of the `\\` or rule before it."""
    return f"{{{cell[0]}}}{cell[1:]}" if cell.startswith(("[", "*")) else cell


def _inert(text: str) -> str:
    shown = plain(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown
