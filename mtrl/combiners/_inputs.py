"""Checks of what a user hands to a method: every message names the kind of input, its rule and the tasks."""

from __future__ import annotations

import torch
from torch import Tensor


def check_input(name: str, kind: str, value: Tensor, tasks: int, *, signed: bool) -> None:
    """Check a "jacobian", "losses" or "gram" of `tasks` tasks, which reads from the device.

    Raises:
        ValueError: wrong type, shape or dtype; non-finite entries (names the tasks); losses below 0 where not
            `signed`. `name` is the method's.
    """
    expected = {"losses": (tasks,), "gram": (tasks, tasks)}.get(kind)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{kind} must be a floating-point tensor; found {found}.")
    wrong = value.shape != expected if expected else (value.dim() != 2 or value.shape[0] != tasks)
    if wrong:
        rule = list(expected) if expected else f"[{tasks}, P]"
        raise ValueError(f"{kind} of {name} must have shape {rule}; found {list(value.shape)}.")
    finite = torch.isfinite(value)
    if not bool(finite.all()):
        bad = _non_finite_tasks(kind, finite)
        raise ValueError(f"{kind} has non-finite entries in tasks {bad}: fix or drop these.")
    if kind == "losses" and not signed and not bool((value >= 0.0).all()):
        raise ValueError(
            f"{name} needs losses of at least 0; found others in tasks {_tasks(value < 0.0)}. "
            "Pass shift='minimum' to measure losses from the lowest value of each task, plus one."
        )


def _non_finite_tasks(kind: str, finite: Tensor) -> list[int]:
    if kind == "gram":  # a bad gradient spoils its row and column; its own diagonal entry names it
        diagonal = _tasks(~finite.diagonal())
        if diagonal:
            return diagonal
    return _tasks(~(finite if finite.dim() == 1 else finite.all(dim=1)))


def _tasks(chosen: Tensor) -> list[int]:
    return list(map(int, chosen.nonzero().flatten()))
