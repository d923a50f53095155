"""Trajectories of the methods on the two-task landscapes of the CAGrad and Nash-MTL papers.

All starts of all landscapes descend side by side, each with a combiner of its own.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrl.combiners import Combiner, make_combiner
from mtrl.config.files import write_file
from mtrl.errors import UserError
from mtrl.gradients.model_gradients import ModelGradients
from mtrl.gradients.scope import Scope

POINTS = 400  # kept of a trajectory
OPTIMUM = (0.0, -8.3552)  # of the mean loss of the CAGrad landscape, where that is -15.09
WITHIN = 0.2  # an end no farther from the optimum is said to be there
NEAR = -14.8  # mean loss below which a path counts as near the optimum; it is flat, so some points are 3 away
PARETO_Y = -8.36  # of the Pareto set, which spans x from -7 to 7
# Losses are at least -20; methods get them shifted by this, so that those for positive losses work as well.
_SHIFT = 21.0


class Landscape(NamedTuple):
    """A problem: factors of the two losses and named starts (x, y)."""

    title: str
    factors: tuple[float, float]
    starts: Mapping[str, tuple[float, float]]


# Liu et al., NeurIPS 2021, figure 2 and the authors' code; Navon et al., ICML 2022, figure 1.
LANDSCAPES: dict[str, Landscape] = {
    "cagrad": Landscape(
        "CAGrad's landscape",
        (1.0, 1.0),
        {
            "A": (-8.5, 7.5), "B": (-8.5, 5.0), "C": (-8.5, -5.0),
            "D": (0.0, 0.0), "E": (9.0, 9.0), "F": (10.0, -8.0),
        },
    ),
    "nash": Landscape(
        "Nash-MTL's landscape",
        (0.1, 1.0),
        {"A": (-8.5, 7.5), "B": (0.0, 0.0), "C": (9.0, 9.0), "D": (-7.5, -0.5), "E": (9.0, -1.0)},
    ),
}  # fmt: skip


class Run(NamedTuple):
    """Trajectories of one method: `paths[landscape][start]` [N, 2], `steps` optimiser steps at `lr`."""

    method: str
    steps: int
    lr: float
    paths: dict[str, dict[str, Tensor]]


def toy_losses(theta: Tensor, factors: Tensor) -> Tensor:
    """The two losses [2, ...] at theta [2, ...], for factors [2] or one pair per point [2, ...]."""
    # A plateau with a valley for each task above y = 0, bowls below.
    x, y = theta
    first = ((-x - 7.0) / 2.0 - torch.tanh(-y)).abs().clamp(min=5e-6).log() + 6.0
    second = ((-x + 3.0) / 2.0 + torch.tanh(-y) + 2.0).abs().clamp(min=5e-6).log() + 6.0
    above, below = torch.tanh(y / 2.0).clamp(min=0.0), torch.tanh(-y / 2.0).clamp(min=0.0)
    bowls = [((side - x) ** 2 + 0.1 * (y + 8.0) ** 2) / 10.0 - 20.0 for side in (7.0, -7.0)]
    losses = torch.stack((above * first + below * bowls[0], above * second + below * bowls[1]))
    return factors.view(*factors.shape, *[1] * (theta.dim() - factors.dim())) * losses


def descend(method: str, *, steps: int, lr: float, landscapes: Sequence[str] = tuple(LANDSCAPES)) -> Run:
    """Return the trajectories of `method` from every start.

    Raises:
        ValueError: the method needs what only an agent has; says what.
    """
    chosen = [LANDSCAPES[name] for name in landscapes]
    starts = [start for landscape in chosen for start in landscape.starts.values()]
    factors = [landscape.factors for landscape in chosen for _ in landscape.starts]
    combiners = [make_combiner(method, num_tasks=2) for _ in starts]
    theta = torch.tensor(starts, dtype=torch.float64)
    with ExitStack() as quick:
        for combiner in combiners:
            combiner.partition((1, 1))  # each coordinate counts as a module
            quick.enter_context(combiner.unchecked())
        points = _points(combiners, theta, torch.tensor(factors, dtype=torch.float64), steps, lr)
    paths = iter(points.unbind(1))
    return Run(
        method,
        steps,
        lr,
        {
            name: {start: next(paths) for start in landscape.starts}
            for name, landscape in zip(landscapes, chosen, strict=True)
        },
    )


def _points(combiners: Sequence[Combiner], theta: Tensor, factors: Tensor, steps: int, lr: float) -> Tensor:
    """Return up to POINTS points of every trajectory and both its ends [N, starts, 2]."""
    theta = theta.requires_grad_()
    own_step = combiners[0].preconditioned
    # Every operation of either is by coordinate: together the starts move as each would alone.
    optimizer = (torch.optim.SGD if own_step else torch.optim.Adam)([theta], lr=lr)
    every = _every(steps)
    points = [theta.detach().clone()]
    for index in range(1, steps + 1):
        if combiners[0].needs_also:
            moving = zip(combiners, theta, factors, strict=True)
            directions = [own.direction(_looking_around(*place)) for own, *place in moving]
        else:
            evaluated = zip(combiners, *_rows_and_losses(theta, factors), strict=True)
            directions = [own.combine(rows, losses) for own, rows, losses in evaluated]
        theta.grad = torch.stack(directions)
        optimizer.step()
        if combiners[0].looks_again:
            after = toy_losses(theta.detach().T, factors.T).T + _SHIFT
            for combiner, again in zip(combiners, after, strict=True):
                combiner.after_step(again)
        if index % every == 0 or index == steps:
            points.append(theta.detach().clone())
    return torch.stack(points)


def _rows_and_losses(theta: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """The tasks' gradients [S, T, 2] and shifted losses [S, T] at points [S, 2]."""
    points = theta.detach().requires_grad_()
    losses = toy_losses(points.T, factors.T)
    rows = [torch.autograd.grad(own.sum(), points, retain_graph=True)[0] for own in losses]
    return torch.stack(rows, 1), losses.detach().T + _SHIFT


def _looking_around(theta: Tensor, factors: Tensor) -> ModelGradients:
    """Return the gradients at other points, for methods that need them; all batches are the same."""
    point = theta.detach().requires_grad_()
    return ModelGradients(lambda batch: toy_losses(point, factors) + _SHIFT, Scope([point]), len(factors))


def _every(steps: int) -> int:
    """Steps between two kept points."""
    return max(1, math.ceil(steps / POINTS))


def final_rows(run: Run) -> list[dict[str, Any]]:
    """Return one flat row per start: where it ended, with which mean loss, when it came near the optimum.

    `reached_step` is the first kept step with a mean loss below NEAR, None where there is none and on the
    other landscape than CAGrad's; `on_pareto_set` says whether the end is within 0.1 of the Pareto set.
    """
    rows = []
    for name, paths in run.paths.items():
        factors = torch.tensor(LANDSCAPES[name].factors, dtype=torch.float64)
        for start, path in paths.items():
            means = toy_losses(path.T, factors).mean(0)
            below = (means < NEAR).nonzero().flatten()
            reached = None
            if name == "cagrad" and len(below):
                reached = min(int(below[0]) * _every(run.steps), run.steps)
            x, y = path[-1].tolist()
            rows.append(
                {
                    "method": run.method, "landscape": name, "start": start, "steps": run.steps, "lr": run.lr,
                    "x": round(x, 3), "y": round(y, 3), "mean_loss": round(float(means[-1]), 3),
                    "reached_step": reached,
                    "on_pareto_set": abs(x) < 7.1 and abs(y - PARETO_Y) < 0.1,
                }
            )  # fmt: skip
    return rows


def former_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that the folder has of each method; none if it has no final.json.

    Raises:
        UserError: final.json is not what `write_table` writes.
    """
    file = folder / "final.json"
    of_methods: dict[str, list[dict[str, Any]]] = {}
    try:
        for row in json.loads(file.read_text(encoding="utf-8")) if file.exists() else []:
            of_methods.setdefault(row["method"], []).append(row)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"'{file}' is no table of the gallery: {error!r}. Delete it.") from error
    return of_methods


def write_table(runs: Sequence[Run], folder: Path) -> str:
    """Write final.json and table.md into the folder, made if missing; returns the table.

    What the folder has of other methods stays.

    Raises:
        UserError: the folder has a final.json of something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    of_methods = former_rows(folder)
    of_methods |= {run.method: final_rows(run) for run in runs}
    of_methods = dict(sorted(of_methods.items()))
    rows = [row for own in of_methods.values() for row in own]
    write_file(folder / "final.json", (json.dumps(rows, indent=0) + "\n").encode())
    lines = []
    for name, landscape in LANDSCAPES.items():
        titles = [f"{start} {point}" for start, point in landscape.starts.items()]
        lines += [
            f"{landscape.title}: where each start ended",
            "",
            "| method | steps, lr | " + " | ".join(titles) + " |",
        ]
        lines.append("|---" * (2 + len(titles)) + "|")
        for method, own in of_methods.items():
            ends = [_cell(row) for row in own if row["landscape"] == name]
            cells = [method, f"{own[0]['steps']}, {own[0]['lr']:g}", *ends]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines.append(
        f"**optimum**: ended within {WITHIN} of the optimum of the mean loss, {OPTIMUM}; in brackets the "
        f"first step with a mean loss below {NEAR} (the optimum's is -15.09). (x, y)*: on the Pareto set."
    )
    table = "\n".join(lines) + "\n"
    write_file(folder / "table.md", table.encode())
    return table


def at_optimum(row: Mapping[str, Any]) -> bool:
    """Whether a path ended at the optimum of CAGrad's landscape."""
    return row["landscape"] == "cagrad" and math.dist((row["x"], row["y"]), OPTIMUM) <= WITHIN


def _cell(row: Mapping[str, Any]) -> str:
    if at_optimum(row):
        return f"**optimum** [{row['reached_step']}]"
    return f"({row['x']:.2f}, {row['y']:.2f})" + ("*" if row["on_pareto_set"] else "")
