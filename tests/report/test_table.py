"""How numbers and tables are written: text, Markdown, LaTeX."""

from __future__ import annotations

from typing import Any

from mtrl.report.stats import Interval
from mtrl.report.table import Table, number


def test_an_interval_is_written_with_its_ends() -> None:
    table = Table(
        "a",
        "A",
        ("method", "x_1"),
        [["m & n", Interval(0.5, 0.25, 0.75)], ["o|p", Interval(0.5, float("nan"), float("nan"))]],
    )
    assert "| m & n | 0.50 [0.25, 0.75] |" in table.markdown()
    assert r"| o\|p | 0.50 |" in table.markdown()
    assert r"m \& n & 0.50 [0.25, 0.75] \\" in table.latex()
    assert r"method & x\_1 \\" in table.latex()
    assert table.csv() == "method,x_1,x_1 low,x_1 high\nm & n,0.5,0.25,0.75\no|p,0.5,,\n"


def test_a_label_in_brackets_is_no_argument_of_the_line_before_it_in_latex() -> None:
    latex = Table("t", "T", ("[m]", "s"), [["[0.5, 1]", 0.5], ["*", 1.0]]).latex()
    assert [line for line in latex.splitlines() if line.startswith(("{", "[", "*"))] == [
        r"{[}m] & s \\", r"{[}0.5, 1] & 0.50 \\", r"{*} & 1.00 \\"
    ]  # fmt: skip


def test_a_cell_that_becomes_a_formula_when_its_folders_are_left_out_is_text() -> None:
    assert Table("t", "T", ("a",), [["/x/=1+1"], ["\t=2"]]).csv() == "a\n'=1+1\n' =2\n"


def test_one_number_has_one_text_however_it_was_added_up() -> None:
    up, down = sum([0.1] * 6) + 0.075, 0.075 + sum([0.2] * 3)
    assert up != down
    assert number(up) == number(down) == number(0.675)
    assert number(-1e-12) == "0.00"
    # Halves go up in all rows: formatted as binary fractions, .175 went down and .225 up.
    assert [number(value) for value in (0.175, 0.225, 0.125, -0.175)] == ["0.18", "0.23", "0.13", "-0.18"]
    assert number(1e30, 0) == f"{1e30:,.0f}"
    assert number(float("inf")) == "inf"
    assert number(float("nan")) == "\N{EN DASH}"


def test_numbers_of_a_column_have_equally_many_decimals_and_the_best_is_bold_in_latex() -> None:
    rows: list[list[Any]] = [["a", 99.5, 0.25, 2.0], ["b", 1234.25, 0.5, 1.0], ["c", 7.0, 0.5, 3.0]]
    table = Table(
        "t", "T & U", ("m", "return", "s", "rank"), rows, "n_1", best=("return", "s"), lowest=("rank",)
    )
    assert table.texts() == [
        ["a", "100", "0.25", "2.00"],
        ["b", "1,234", "0.50", "1.00"],
        ["c", "7", "0.50", "3.00"],
    ]
    latex = table.latex()
    assert r"b & \textbf{1,234} & \textbf{0.50} & \textbf{1.00} \\" in latex
    assert r"c & 7 & \textbf{0.50} & 3.00 \\" in latex
    assert r"\caption{T \& U. n\_1}" in latex
    assert r"\label{tab:t}" in latex
    equal = Table("t", "T", ("m", "s"), [["a", 0.5], ["b", 0.5]], best=("s",))
    assert "textbf" not in equal.latex()


def test_a_wide_table_is_split_into_blocks_that_each_name_the_rows() -> None:
    columns = ("method", *(f"a-rather-long-task-name-{i}" for i in range(9)))
    latex = Table("t", "T", columns, [["cagrad", *(i / 10 for i in range(9))]]).latex()
    blocks = latex.split(r"\begin{tabular}")[1:]
    assert len(blocks) == 3
    assert all(block.count("cagrad") == 1 for block in blocks)
    assert all(latex.count(name) == 1 for name in columns[1:])
