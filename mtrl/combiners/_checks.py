"""Checks of a method's arguments and inputs. Messages name the argument, its rule and the value found."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_MOST = 10**12  # far above any useful constant, far below those whose squares overflow


def check_number(name: str, value: float, *, low: float, high: float = _MOST) -> float:
    """Return `value` as a float if it is a number in [low, high], else raise ValueError."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and low <= value <= high):
        rule = f">= {low:g} and <= {high:g}" if high == _MOST else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{name} must be a finite number {rule}; found {value!r}.")
    return float(value)


def check_decay(name: str, value: float) -> float:
    """Return `value` in [0, 0.99999], the decay of a running mean: at 1 it would stay zero."""
    return check_number(name, value, low=0.0, high=0.99999)


def check_count(name: str, value: int) -> int:
    """Return `value` if it is an integer in [1, 10^12], else raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
        raise ValueError(f"{name} must be an integer >= 1 and <= {_MOST:g}; found {value!r}.")
    return value


def check_flag(name: str, value: bool) -> bool:
    """Return `value` if it is True or False, else raise ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False; found {value!r}.")
    return value


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if isinstance(value, bool) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; found {value!r}.")


def check_order(name: str, value: Sequence[int], num_tasks: int) -> list[int]:
    """Return `value` as a list if it is empty or holds each task number once, else raise ValueError."""
    order = list(value)
    if order and sorted(order) != list(range(num_tasks)):
        raise ValueError(f"{name} must hold each task number below {num_tasks} once; found {value!r}.")
    return order


def check_weights(name: str, value: Iterable[float], num_tasks: int) -> Tensor:
    """Return T weights as float64 [T], 1/T each for an empty `value`.

    Raises:
        ValueError: not one finite number >= 0 for each task, or all of them 0.
    """
    try:
        weights = [float(number) for number in value] or [1.0 / num_tasks] * num_tasks
    except (TypeError, ValueError):
        weights = []
    fits = all(math.isfinite(weight) and weight >= 0.0 for weight in weights) and any(weights)
    if not fits or len(weights) != num_tasks:
        raise ValueError(
            f"{name} must be {num_tasks} finite numbers >= 0, one per task and not all 0; found {value!r}."
        )
    return torch.tensor(weights, dtype=torch.float64)


def check_input(
    name: str, kind: str, value: Tensor, tasks: int, *, signed: bool, squared: bool = False
) -> None:
    """Check a "jacobian", "losses" or "gram" of `tasks` tasks for the method `name`; waits for the device.

    Raises:
        ValueError: wrong type, shape or dtype; non-finite entries (names the tasks); losses below 0 unless
            `signed`; gradients whose products overflow, for a method that forms them (`squared`).
    """
    expected = {"losses": (tasks,), "gram": (tasks, tasks)}.get(kind)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{kind} must be a floating-point tensor; found {found}.")
    wrong = value.shape != expected if expected else (value.dim() != 2 or value.shape[0] != tasks)
    if wrong or value.numel() == 0:
        rule = list(expected) if expected else f"[{tasks}, P] with P >= 1"
        raise ValueError(f"{kind} of {name} must have shape {rule}; found {list(value.shape)}.")
    # Sums show whether something is wrong at a fraction of the time; they may also overflow by themselves.
    if not bool(value.sum(dim=-1).isfinite().all()):
        finite = torch.isfinite(value)
        if not bool(finite.all()):
            bad = _non_finite_tasks(kind, finite)
            raise ValueError(f"{kind} has non-finite entries in tasks {bad}: fix or drop these.")
    if squared:
        _check_squares(name, value)
    if kind == "losses" and not signed and not bool((value >= 0.0).all()):
        raise ValueError(
            f"{name} needs losses of at least 0; found others in tasks {_tasks(value < 0.0)}. "
            "Pass shift='minimum' to measure losses from the lowest value of each task, plus one."
        )


def _check_squares(name: str, jacobian: Tensor) -> None:
    dtype = torch.promote_types(jacobian.dtype, torch.float32)
    norms = torch.linalg.vector_norm(jacobian, dim=1, dtype=dtype)
    long = _tasks(~(norms < torch.finfo(dtype).max ** 0.5))
    if long:
        wider = "" if dtype == torch.float64 else ", or pass jacobian.double()"
        raise ValueError(
            f"{name} needs products of gradients; those of tasks {long} overflow {str(dtype)[6:]}. "
            f"Divide the losses by a constant{wider}."
        )


def _non_finite_tasks(kind: str, finite: Tensor) -> list[int]:
    if kind == "gram":  # a bad gradient spoils its row and column; the diagonal tells whose it is
        diagonal = _tasks(~finite.diagonal())
        if diagonal:
            return diagonal
    return _tasks(~(finite if finite.dim() == 1 else finite.all(dim=1)))


def _tasks(chosen: Tensor) -> list[int]:
    return list(map(int, chosen.nonzero().flatten()))
