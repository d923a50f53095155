"""Figures of reports: their size and font, the digits of their axes, and that no text hides another."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtrl.cli.report import main as main_report
from mtrl.errors import UserError
from mtrl.report import compare, write_report
from tests.helpers.written_runs import write_run

pytest.importorskip("matplotlib", reason="matplotlib is an extra")

from matplotlib.text import Text

from mtrl.report import drawing
from mtrl.report.drawing import Figure, Look
from mtrl.report.figures import score_figures
from mtrl.report.fit import fitted
from mtrl.report.gradient_figures import gradient_figures
from mtrl.report.ticks import tick_texts

TASKS = ("reach-v3", "push-v3", "button-press-topdown-v3")


@pytest.mark.dear
def test_figures_have_the_size_and_font_that_are_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"reach-v3": (0.0, 0.5)})
    one = compare([tmp_path / "run"])
    write_report(one, tmp_path, look=Look(3.25, 2.0, "serif", 8.0))
    svg = (tmp_path / "figures/curves.svg").read_text()
    assert 'width="234pt" height="144pt"' in svg  # 72 points an inch
    assert "serif" in svg
    pdf = (tmp_path / "figures/curves.pdf").read_bytes()
    assert b"/MediaBox [ 0 0 234 144 ]" in pdf
    assert b"/Type3" not in pdf
    with pytest.raises(UserError, match="not installed"):
        write_report(one, tmp_path, look=Look(font="No Such Font"))


def _grid(folder: Path, rows: int) -> Path:
    """Runs of a grid of two settings with long names, two seeds of each, with logged gradients."""
    rng = np.random.default_rng(rows)
    for row, seed in itertools.product(range(rows), range(2)):
        config = {
            "sac": {"gamma": 0.9 + row / 1000},
            "network": {"critic_hidden_width_of_each_layer": 16 + row},
        }
        rates = {task: (0.0, rng.random(), row / rows) for task in TASKS}
        metrics = [
            {
                "vector_step": step,
                "time/update_ms": 7.0 + row,
                "grad/critic_conflict_fraction": rng.random(),
                "grad/critic_cos_mean": rng.normal(),
                "weight": {task: rng.random() for task in TASKS},
                "critic_grad_norm": {task: float(np.exp(rng.normal())) for task in TASKS},
                "critic_cosine": {
                    a: {b: 1.0 if a == b else rng.uniform(-1, 1) for b in TASKS} for a in TASKS
                },
            }
            for step in (10, 20, 30)
        ]
        path = folder / f"{row}-{seed}"
        write_run(path, rates, seed=seed, config=config, method="nash_mtl", metrics=metrics)
    return folder


def _figures(runs: Path, look: Look, kinds: str = "scores and gradients") -> Iterator[Figure]:
    found = compare([runs])
    builds = [*score_figures(found), *(gradient_figures(found) if "gradients" in kinds else ())]
    with drawing.style(look):
        for build in builds:
            done = fitted(build, look, len(found.groups), len(found.tasks))
            if done is not None:
                assert done.fits
                yield done.figure


def _seen(figure: Any) -> list[Text]:
    """Texts that are drawn: of ticks only those inside the view of their axis."""
    hidden = {id(text) for axes in figure.axes if not axes.get_visible() for text in axes.findobj(Text)}
    for axes in figure.axes:
        for axis, place in ((axes.xaxis, 0), (axes.yaxis, 1)):
            low, high = sorted(axis.get_view_interval())
            outside = (
                t for t in axis.get_ticklabels(which="both") if not low <= t.get_position()[place] <= high
            )
            hidden |= {id(text) for text in outside}
    texts = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text for text in texts if id(text) not in hidden and text.get_text().strip()]


@pytest.mark.dear
@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (2, (None, None)),
        (2, (3.3, 2.5)),
        *(
            pytest.param(rows, size, marks=pytest.mark.slow)
            for rows in (8, 24)
            for size in ((None, None), (3.3, 2.5), (3.3, None), (6.0, 3.0))
        ),
    ],
)
def test_no_text_of_a_grids_figures_is_cut_off_or_covers_another(
    rows: int, size: tuple[float | None, float | None], tmp_path: Path
) -> None:
    kinds = "scores" if rows == 2 else "scores and gradients"  # fewer figures in the default suite
    for figure in _figures(_grid(tmp_path, rows), Look(*size), kinds):
        canvas, texts = figure.drawing.bbox, _seen(figure.drawing)
        for wanted, found in zip(size, figure.drawing.get_size_inches(), strict=True):
            assert wanted is None or found == pytest.approx(wanted)
        boxes = {text: text.get_window_extent() for text in texts}
        for text, box in boxes.items():
            inside = box.x0 >= -2 and box.y0 >= -2 and box.x1 <= canvas.x1 + 2 and box.y1 <= canvas.y1 + 2
            assert inside, (figure.name, text.get_text())
        upright = [text for text in texts if text.get_rotation() % 90 == 0]
        for one, other in itertools.combinations(upright, 2):
            a, b = boxes[one], boxes[other]
            width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert width < 2 or height < 2, (figure.name, one.get_text(), other.get_text())
        for legend in figure.drawing.legends:
            frame = legend.get_window_extent()
            visible = [axes for axes in figure.drawing.axes if axes.get_visible()]
            assert not any(frame.overlaps(axes.bbox) for axes in visible), figure.name
        for axes in figure.drawing.axes:
            for axis in (axes.xaxis, axes.yaxis):
                _check_digits([label for label in axis.get_ticklabels() if label in boxes], figure.name)


def _check_digits(labels: list[Text], name: str) -> None:
    """All ticks of an axis have equally many decimals, and not all of them end in a needless 0."""
    texts = [label.get_text() for label in labels]
    if all(re.fullmatch("\N{MINUS SIGN}?[0-9.]+[kM]?", text) for text in texts):
        decimals = {text.rstrip("kM").partition(".")[2] for text in texts}
        assert len({len(text) for text in decimals}) <= 1, (name, texts)
        assert "0" not in {text[-1:] for text in decimals} or len(decimals) > 1, (name, texts)


@pytest.mark.dear
def test_what_a_small_figure_leaves_out_is_said_below_it(tmp_path: Path) -> None:
    curves = next(_figures(_grid(tmp_path, 6), Look(3.3, 2.0, font_size=10.0), "scores"))
    found = re.search(r"Shown: the (\d) of 6 rows with the best final mean", curves.caption)
    assert found is not None
    panels = [axes for axes in curves.drawing.axes if axes.get_visible()]
    assert len(panels) == int(found[1]) or int(found[1]) <= 3  # these share a panel


def test_unfinished_runs_are_thin_lines_in_the_panels_of_all_figures_of_curves(tmp_path: Path) -> None:
    rates = {"reach-v3": (0.0, 0.5), "push-v3": (0.25, 1.0)}
    write_run(tmp_path / "run", rates, finished=False)
    means, per_task = itertools.islice(_figures(tmp_path / "run", Look(), "scores"), 2)
    wanted = ((means, ((0.125, 0.75),)), (per_task, rates.values()))
    for figure, scores in wanted:
        panels = [axes for axes in figure.drawing.axes if axes.get_visible()]
        for axes, task_scores in zip(panels, scores, strict=True):
            drawn = [line.get_xydata() for line in axes.lines]
            (points,) = [np.asarray(line) for line in drawn if np.size(line) > 0]
            assert points.T.tolist() == [[10.0, 20.0], list(task_scores)]
        assert "Thin lines: unfinished runs" in figure.caption


def test_a_size_that_holds_no_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", {"reach-v3": (0.0, 0.5)})
    flags = ["--size", "1x1", "--font-size", "30", "--out", str(tmp_path / "out")]
    assert main_report([str(tmp_path / "run"), *flags]) == 0
    assert "warning: text does not fit at --size 1x1: curves" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0, 0.5, 1.0], ["0.0", "0.5", "1.0"]),
        ([0.0, 0.2, 0.4, 0.6000000000000001], ["0.0", "0.2", "0.4", "0.6"]),
        ([0.85, 0.9, 0.95], ["0.85", "0.90", "0.95"]),
        ([0.0, 1.0], ["0", "1"]),
        ([0.0, 20_000.0, 40_000.0], ["0", "20k", "40k"]),
        ([0.0, 500_000.0, 1_000_000.0], ["0.0M", "0.5M", "1.0M"]),
        ([0.0, 500.0, 1000.0], ["0", "500", "1000"]),
        ([-2000.0, -1000.0, 0.0], ["-2k", "-1k", "0"]),
        ([-0.0, 1e-5, 2e-5], ["0", "1e-5", "2e-5"]),
        ([3.0], ["3"]),
        ([], []),
    ],
)
def test_ticks_have_the_fewest_digits_that_tell_them_apart(values: list[float], texts: list[str]) -> None:
    assert tick_texts(values) == texts


def test_unfinished_rows_are_drawn_beside_many_others_or_said_to_be_left_out(tmp_path: Path) -> None:
    for number in range(26):
        write_run(tmp_path / f"m{number}", {"reach-v3": (0.0, 0.5)}, method=f"m{number}", finished=False)
    curves = next(_figures(tmp_path, Look(), "scores"))
    drawn = [line for axes in curves.drawing.axes for line in axes.lines if np.size(line.get_xdata())]
    assert len(drawn) >= 24
    assert "Not shown: 2 rows without a finished run." in curves.caption
    for number in range(20):  # these have just begun
        (tmp_path / f"m{number}/evaluations.jsonl").write_text("")
    curves = next(_figures(tmp_path, Look(), "scores"))
    drawn = [line for axes in curves.drawing.axes for line in axes.lines if np.size(line.get_xdata())]
    assert len(drawn) >= 6
    assert "Not shown" not in curves.caption
