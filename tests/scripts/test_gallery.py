"""The gallery's descent of all starts at once against a plain loop over one; its tables and pictures."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from mtrl_gallery.command import main as main_gallery
from mtrl_gallery.descent import (
    LANDSCAPES,
    Run,
    at_optimum,
    descend,
    final_rows,
    toy_losses,
    write_table,
)
from torch import Tensor

from mtrl import mtl_step
from mtrl.combiners import make_combiner

STORED = Path(__file__).parents[2] / "results" / "gallery"
SHIFT = 21.0  # the gallery's: losses start at -20
# By losses, by the Gramian, deciding on the host, at random, with a look at the losses after a step, with its
# own optimiser.
KINDS = ("mean", "imtl_g", "nash_mtl", "aligned_mtl", "pcgrad", "famo", "adatask")


def plain_loop(method: str, landscape: str, start: str, steps: int, lr: float) -> Tensor:
    theta = torch.tensor(LANDSCAPES[landscape].starts[start], dtype=torch.float64, requires_grad=True)
    factors = torch.tensor(LANDSCAPES[landscape].factors, dtype=torch.float64)
    combiner = make_combiner(method, num_tasks=2)
    optimizer: torch.optim.Optimizer
    optimizer = (torch.optim.SGD if combiner.preconditioned else torch.optim.Adam)([theta], lr=lr)
    points = [theta.detach().clone()]
    for _ in range(steps):
        losses = toy_losses(theta, factors)
        rows = torch.stack([torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in losses])
        theta.grad = combiner.combine(rows, losses.detach() + SHIFT)
        optimizer.step()
        if combiner.looks_again:
            combiner.after_step(toy_losses(theta, factors).detach() + SHIFT)
        points.append(theta.detach().clone())
    return torch.stack(points)


@pytest.mark.parametrize("method", KINDS)
def test_trajectories_are_those_of_a_plain_loop(method: str) -> None:
    run = descend(method, steps=5, lr=0.05)
    for landscape, start in (("cagrad", "B"), ("nash", "D")):
        expected = plain_loop(method, landscape, start, 5, 0.05)
        torch.testing.assert_close(run.paths[landscape][start], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["fs_mtl", "modo", "normscale"])
def test_trajectories_of_methods_that_look_around_are_those_of_mtl_step(method: str) -> None:
    run = descend(method, steps=5, lr=0.05, landscapes=("nash",))
    theta = torch.nn.Parameter(torch.tensor(LANDSCAPES["nash"].starts["D"], dtype=torch.float64))
    model = torch.nn.ParameterList([theta])
    factors = torch.tensor(LANDSCAPES["nash"].factors, dtype=torch.float64)
    combiner = make_combiner(method, num_tasks=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for index in range(5):
        mtl_step(combiner, lambda batch: toy_losses(theta, factors) + SHIFT, model, optimizer)
        torch.testing.assert_close(run.paths["nash"]["D"][index + 1], theta.detach())


def test_methods_that_need_an_agent_are_left_out() -> None:
    with pytest.raises(ValueError, match="needs the tasks' temperatures"):
        descend("inverse_alpha", steps=1, lr=0.1)


def test_long_trajectories_are_thinned_and_keep_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtrl_gallery.descent.POINTS", 40)
    short = descend("mean", steps=30, lr=1e-3, landscapes=("cagrad",)).paths["cagrad"]["C"]
    long = descend("mean", steps=91, lr=1e-3, landscapes=("cagrad",)).paths["cagrad"]["C"]
    assert len(short) == 31
    assert len(long) == 32  # every third, and the last one
    torch.testing.assert_close(long[:11], short[::3])


def test_losses_at_known_points() -> None:
    """The optimum of the mean and the ends of the Pareto set, from an independent minimisation."""
    points = torch.tensor([[0.0, 7.0, -7.0], [-8.3552] * 3], dtype=torch.float64)
    values = toy_losses(points, torch.ones(2, dtype=torch.float64))
    expected = [[-15.0916, -19.9893, -0.3986], [-15.0916, -0.3986, -19.9893]]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=0.0, atol=2e-3)
    scaled = toy_losses(points, torch.tensor([0.1, 1.0], dtype=torch.float64))
    torch.testing.assert_close(scaled, values * torch.tensor([[0.1], [1.0]], dtype=torch.float64))


def _run_to(x: float, y: float) -> Run:
    path = torch.tensor([[-8.5, 7.5], [x, y]], dtype=torch.float64)
    return Run("mine", 50, 0.1, {"cagrad": {"A": path}, "nash": {"A": path}})


def test_the_table_says_who_reached_the_optimum_or_the_pareto_set(tmp_path: Path) -> None:
    assert [row["reached_step"] for row in final_rows(_run_to(0.0, -8.36))] == [1, None]
    assert [row["on_pareto_set"] for row in final_rows(_run_to(-6.0, -8.4))] == [True, True]
    assert [row["on_pareto_set"] for row in final_rows(_run_to(-6.0, 2.0))] == [False, False]
    there = write_table([_run_to(0.0, -8.36)], tmp_path / "new")
    assert "| mine | 50, 0.1 | **optimum** [1] |" in there
    table = write_table([_run_to(-6.0, 2.0)], tmp_path / "new")
    assert "| mine | 50, 0.1 | (-6.00, 2.00) |" in table
    assert (tmp_path / "new" / "table.md").read_text() == table
    other = _run_to(0.0, -8.36)._replace(method="another")
    both = write_table([other], tmp_path / "new")
    assert both.index("| another |") < both.index("| mine | 50, 0.1 | (-6.00, 2.00) |")
    assert len(json.loads((tmp_path / "new" / "final.json").read_text())) == 4


def test_flat_ground_around_the_optimum_is_not_the_optimum(tmp_path: Path) -> None:
    """At (1.5, -8.36) the mean loss is -14.86, less than .3 above its least."""
    assert [row["reached_step"] for row in final_rows(_run_to(1.5, -8.36))] == [1, None]
    assert "| mine | 50, 0.1 | (1.50, -8.36)* |" in write_table([_run_to(1.5, -8.36)], tmp_path)


def test_the_stored_table_is_that_of_the_stored_ends_and_the_page_speaks_of_them(tmp_path: Path) -> None:
    shutil.copy(STORED / "final.json", tmp_path)
    assert write_table([], tmp_path) == (STORED / "table.md").read_text(encoding="utf-8")
    there: dict[str, set[str]] = {}
    for row in json.loads((STORED / "final.json").read_text(encoding="utf-8")):
        if row["landscape"] == "cagrad" and math.dist((row["x"], row["y"]), (0.0, -8.3552)) < 0.2:
            there.setdefault(row["method"], set()).add(row["start"])
    assert there["conicgrad"] == set("ABCDEF")
    assert there["cagrad"] == there["mean"] == set("BCDF")
    assert there["mgda"] == there["nash_mtl"] == there["pcgrad"] == {"D"}


def test_the_script_draws_what_can_run_and_says_what_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--methods", "inverse_alpha", "--long", "mean", "--steps", "4", "--out"]
    assert main_gallery([*arguments, str(tmp_path)]) == 0
    for name in ("mean.png", "contact-sheet.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "inverse_alpha.png").exists()
    assert {row["steps"] for row in json.loads((tmp_path / "final.json").read_text())} == {12}
    assert "inverse_alpha: left out. inverse_alpha needs the tasks' temperatures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "cagrat"], "unknown method 'cagrat'. Did you mean 'cagrad'?"),
        (["--steps", "0"], "--steps must be positive; found 0"),
        (["--step", "5"], "unknown flag '--step'. Did you mean '--steps'?"),
    ],
)
def test_mistakes_end_with_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_gallery(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_conicgrad_reaches_the_optimum_from_where_the_mean_is_stuck() -> None:
    # Not CAGrad: at this learning rate rounding decides when it leaves the valley of start E.
    mean, conicgrad = (
        {row["start"]: at_optimum(row) for row in final_rows(run)}
        for run in (
            descend(name, steps=26_000, lr=3e-3, landscapes=("cagrad",)) for name in ("mean", "conicgrad")
        )
    )
    assert not mean["A"]
    assert not mean["E"]
    assert all(conicgrad.values())


def test_pictures_of_a_method_of_ones_own_stay_in_the_folder(tmp_path: Path) -> None:
    run = descend("mean", steps=3, lr=0.05)._replace(method=str(tmp_path / "own.py:Own"))
    from mtrl_gallery.pictures import draw

    assert {path.parent for path in draw([run], tmp_path / "out")} == {tmp_path / "out"}


@pytest.mark.parametrize("content", ['[{"me', '[{"x": 1}]', "3"])
def test_a_table_that_cannot_be_read_is_known_before_the_work(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "final.json").write_text(content)
    assert main_gallery(["--methods", "mean", "--steps", "3", "--out", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert "is no table of the gallery" in printed
    assert "done" not in printed
    assert (tmp_path / "final.json").read_text() == content
