"""Trajectories of the methods on the two-task landscapes of the CAGrad and Nash-MTL papers.

All starts of all landscapes descend side by side: one step of a method, Adam included, is recorded once over
a batch of starts and then repeated.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from mtrl.combiners import Combiner, make_combiner
from mtrl.combiners.solvers.roads import on_tensors

POINTS = 400  # kept of a trajectory
OPTIMUM = (0.0, -8.3552)  # of the mean loss of the CAGrad landscape
REACHED = -14.8  # mean loss from which on that optimum, -15.09, counts as reached
PARETO_Y = -8.36  # of the Pareto set, which spans x from -7 to 7
# Losses are at least -20; methods get them shifted by this, so that those for positive losses work as well.
_SHIFT = 21.0
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8  # Adam


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
    """Trajectories of one method: `paths[landscape][start]` [N, 2], of `steps` steps of Adam at `lr`."""

    method: str
    steps: int
    lr: float
    paths: dict[str, dict[str, Tensor]]


def toy_losses(theta: Tensor, factors: Tensor) -> Tensor:
    """The two losses [2, ...] at theta [2, ...]: a plateau with a valley each above y = 0, bowls below."""
    x, y = theta
    first = ((-x - 7.0) / 2.0 - torch.tanh(-y)).abs().clamp(min=5e-6).log() + 6.0
    second = ((-x + 3.0) / 2.0 + torch.tanh(-y) + 2.0).abs().clamp(min=5e-6).log() + 6.0
    above, below = torch.tanh(y / 2.0).clamp(min=0.0), torch.tanh(-y / 2.0).clamp(min=0.0)
    bowls = [((side - x) ** 2 + 0.1 * (y + 8.0) ** 2) / 10.0 - 20.0 for side in (7.0, -7.0)]
    losses = torch.stack((above * first + below * bowls[0], above * second + below * bowls[1]))
    return factors.view(2, *[1] * (theta.dim() - 1)) * losses


def descend(method: str, *, steps: int, lr: float, landscapes: Sequence[str] = tuple(LANDSCAPES)) -> Run:
    """Return the trajectories of `method` from every start.

    Raises:
        ValueError: the method cannot be run on two tasks' bare gradients and losses; says why.
    """
    combiner = make_combiner(method, num_tasks=2)
    if combiner.needs_also:
        raise ValueError(f"It needs {combiner.needs_also}.")
    if not combiner.capturable:
        # A recording holds one sequence of operations: a method that chooses between two would be another.
        raise ValueError(
            "It reads numbers on the host or decides there; only fixed tensor operations can run here."
        )
    chosen = [LANDSCAPES[name] for name in landscapes]
    starts = [start for landscape in chosen for start in landscape.starts.values()]
    factors = [landscape.factors for landscape in chosen for _ in landscape.starts]
    theta = torch.tensor(starts, dtype=torch.float64)
    with combiner.unchecked(), torch.no_grad():
        points = _points(_Step(combiner, lr), theta, torch.tensor(factors, dtype=torch.float64), steps)
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


class _Step(nn.Module):
    """One step of descent from one start."""

    def __init__(self, combiner: Combiner, lr: float) -> None:
        super().__init__()
        self.combiner = combiner
        self.lr = lr

    def forward(
        self, theta: Tensor, first: Tensor, second: Tensor, count: Tensor, factors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the next parameters [2], Adam's moments [2] and count; the combiner's state is updated."""

        def twice(parameters: Tensor) -> tuple[Tensor, Tensor]:
            losses = toy_losses(parameters, factors)
            return losses, losses

        rows, losses = torch.func.jacrev(twice, has_aux=True)(theta)
        direction = self.combiner.combine(rows, losses + _SHIFT)
        if self.combiner.preconditioned:
            theta = theta - self.lr * direction
        else:
            count = count + 1.0
            first = first.lerp(direction, 1.0 - _BETA1)
            second = second.lerp(direction.square(), 1.0 - _BETA2)
            root = (second / (1.0 - _BETA2**count)).sqrt() + _EPS
            theta = theta - self.lr * (first / (1.0 - _BETA1**count)) / root
        if self.combiner.looks_again:
            self.combiner.after_step(toy_losses(theta, factors) + _SHIFT)
        return theta, first, second, count


def _points(step: _Step, theta: Tensor, factors: Tensor, steps: int) -> Tensor:
    """Return up to POINTS points of every trajectory and both its ends [N, starts, 2]."""
    step.combiner.prepare(theta[0])
    starts = len(theta)
    moving = (theta, torch.zeros_like(theta), torch.zeros_like(theta), theta.new_zeros(starts))
    state = {
        name: value.detach().expand(starts, *value.shape).clone() for name, value in step.named_buffers()
    }
    repeat = _recorded(step, list(state), (*moving, factors, *state.values()))
    every = _every(steps)
    points = [theta]
    for index in range(1, steps + 1):
        moving = repeat(*moving, factors, *state.values())
        if index % every == 0 or index == steps:
            points.append(moving[0].clone())
    return torch.stack(points)


def _every(steps: int) -> int:
    """Steps between two kept points."""
    return max(1, math.ceil(steps / POINTS))


def _recorded(step: _Step, names: list[str], tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    """Return the step over a batch of starts as a recording; state is written in place, as by the method."""

    def one(*values: Tensor) -> Any:
        state = dict(zip(names, values[5:], strict=True))
        return torch.func.functional_call(step, state, values[:5])

    with on_tensors(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about operations that vmap takes start by start
        try:
            graph = make_fx(torch.vmap(one))(*(value.clone() for value in tensors))
        except RuntimeError as error:  # what torch.vmap raises when a number is read on the host
            raise ValueError(
                "It reads numbers on the host; only fixed tensor operations can run here."
            ) from error
        examples = tuple(torch.ones_like(value) for value in tensors)
        recorded: Callable[..., Any] = torch.jit.trace(
            lambda *values: graph(*values), examples, check_trace=False
        )
        return recorded


def final_rows(run: Run) -> list[dict[str, Any]]:
    """Return one flat row per start: where it ended, with which mean loss, when it reached the optimum.

    `reached_step` is the first kept step with a mean loss below REACHED, None where there is none and on the
    other landscape than CAGrad's; `on_pareto_set` says whether the end is within 0.1 of the Pareto set.
    """
    rows = []
    for name, paths in run.paths.items():
        factors = torch.tensor(LANDSCAPES[name].factors, dtype=torch.float64)
        for start, path in paths.items():
            means = toy_losses(path.T, factors).mean(0)
            below = (means < REACHED).nonzero().flatten()
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


def write_table(runs: Sequence[Run], folder: Path) -> str:
    """Write final.json and table.md into the folder, made if missing; returns the table."""
    of_runs = [final_rows(run) for run in runs]
    rows = [row for own in of_runs for row in own]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "final.json").write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")
    lines = []
    for name, landscape in LANDSCAPES.items():
        titles = [f"{start} {point}" for start, point in landscape.starts.items()]
        lines += [
            f"{landscape.title}: where each start ended",
            "",
            "| method | steps, lr | " + " | ".join(titles),
        ]
        lines[-1] += " |"
        lines.append("|---" * (2 + len(titles)) + "|")
        for run, own in zip(runs, of_runs, strict=True):
            ends = [_cell(row) for row in own if row["landscape"] == name]
            cells = [run.method, f"{run.steps}, {run.lr:g}", *ends]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines.append(
        "**optimum**: of the mean loss, with the first step that was there; (x, y)*: on the Pareto set."
    )
    table = "\n".join(lines) + "\n"
    (folder / "table.md").write_text(table, encoding="utf-8")
    return table


def _cell(row: dict[str, Any]) -> str:
    if row["reached_step"] is not None and row["mean_loss"] < REACHED:
        return f"**optimum** [{row['reached_step']}]"
    return f"({row['x']:.2f}, {row['y']:.2f})" + ("*" if row["on_pareto_set"] else "")
