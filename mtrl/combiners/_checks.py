"""Checks of a method's arguments and inputs. Messages name the argument, its rule and the value found."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NoReturn

import torch
from torch import Tensor

_MOST = 10**12  # far above any useful constant, far below those whose squares overflow


def check_number(name: str, value: float, *, low: float, high: float = _MOST) -> float:
    """Return `value` as a float if it is a number in [low, high], else raise ValueError."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and low <= value <= high):
        rule = f">= {low:g} and <= {high:g}" if high == _MOST else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{name} must be a finite number {rule}; found {value!r}.")
    return float(value)


def check_decay(name: str, value: float) -> float:
    """Return `value` in [0, 0.99999], the decay of a running mean: at 1 it would stay zero."""
    return check_number(name, value, low=0.0, high=0.99999)


def check_count(name: str, value: int) -> int:
    """Return `value` as an int if it is an integer in [1, 10^12], else raise ValueError."""
    if not is_integer(value) or not 1 <= value <= _MOST:
        raise ValueError(f"{name} must be an integer >= 1 and <= {_MOST:g}; found {value!r}.")
    return int(value)


def is_integer(value: object) -> bool:
    """Whether `value` is an integer, NumPy's included, and neither True nor False."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def integers(value: Any) -> list[int] | None:
    """Return a collection of integers as a list, None for anything else."""
    try:
        numbers = list(value)
        return None if any(isinstance(one, bool) for one in numbers) else list(map(operator.index, numbers))
    except TypeError:  # no collection, or something in it that is no integer
        return None


def check_flag(name: str, value: bool) -> bool:
    """Return `value` if it is True or False, else raise ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False; found {value!r}.")
    return value


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if not (isinstance(value, str) or is_integer(value)) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; found {value!r}.")


def check_order(name: str, value: Sequence[int], num_tasks: int) -> list[int]:
    """Return `value` as a list if it is empty or holds each task number once, else raise ValueError."""
    order = integers(value)
    if order is None or (order and sorted(order) != list(range(num_tasks))):
        raise ValueError(f"{name} must hold each task number below {num_tasks} once; found {value!r}.")
    return order


def check_weights(name: str, value: Iterable[float], num_tasks: int) -> Tensor:
    """Return T weights as float64 [T], 1/T each for an empty `value`.

    Raises:
        ValueError: not one finite number >= 0 for each task, or all of them 0.
    """
    try:
        numbers = list(value)
        texts = isinstance(value, str) or any(isinstance(number, str) for number in numbers)
        weights = [] if texts else list(map(float, numbers)) or [1.0 / num_tasks] * num_tasks
    except (TypeError, ValueError, OverflowError):
        weights = []
    fits = all(math.isfinite(weight) and weight >= 0.0 for weight in weights) and any(weights)
    if not fits or len(weights) != num_tasks:
        raise ValueError(
            f"{name} must be {num_tasks} finite numbers >= 0, one per task and not all 0; found {value!r}."
        )
    return torch.tensor(weights, dtype=torch.float64)


def check_input(name: str, kind: str, value: Tensor, tasks: int) -> None:
    """Check type, dtype and shape of a "jacobian", "losses" or "gram" of `tasks` tasks for the method `name`.

    Raises:
        ValueError: one of them is wrong.
    """
    expected = {"losses": (tasks,), "gram": (tasks, tasks)}.get(kind)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{kind} must be a floating-point tensor; found {found}.")
    wrong = value.shape != expected if expected else (value.dim() != 2 or value.shape[0] != tasks)
    if wrong or value.numel() == 0:
        rule = list(expected) if expected else f"[{tasks}, P] with P >= 1"
        raise ValueError(f"{kind} of {name} must have shape {rule}; found {list(value.shape)}.")


def check_same_device(name: str, own: torch.device, kind: str, device: torch.device) -> None:
    """Raise ValueError if an input, called `kind`, is on another `device` than the method `name`."""
    if own == device:
        return
    way = f"move the combiner once, before the first step, by combiner.to('{device}')"
    if device.type == "mps":
        way = (
            "that device has no float64, which methods need. Combine on the CPU: "
            "combiner.combine(jacobian.cpu(), losses.cpu())"
        )
    raise ValueError(f"{name} is on {own} and the {kind} on {device}: {way}.")


def check_losses(name: str, losses: Tensor, *, signed: bool, shift_options: Mapping[str, Any]) -> None:
    """Raise ValueError, which names the tasks, for losses [T] not finite, or below 0 unless `signed`.

    `shift_options` are those with which the method takes losses of either sign; empty: there are none.
    """
    check_finite("losses", losses)
    if not signed and not bool((losses >= 0.0).all()):
        text = f"{name} needs losses of at least 0; found others in tasks {_numbers(losses < 0.0)}."
        if shift_options:
            way = ", ".join(f"{option}={value!r}" for option, value in shift_options.items())
            text += f" Pass {way} to measure losses from the lowest value of each task, plus one."
        raise ValueError(text)


def check_rates(rates: Tensor, tasks: int) -> None:
    """Raise ValueError for success rates that are not `tasks` numbers in [0, 1] or NaN."""
    if not isinstance(rates, Tensor):
        raise ValueError(f"success rates must be a tensor of {tasks} numbers; found {type(rates).__name__}.")
    if rates.shape != (tasks,) or bool(((rates < 0.0) | (rates > 1.0)).any()):
        raise ValueError(f"success rates must be {tasks} numbers in [0, 1], or NaN; found {rates.tolist()}.")


def check_finite(kind: str, value: Tensor, tasks: Sequence[int] | None = None) -> None:
    """Raise ValueError, which names the tasks, for non-finite entries of a "jacobian", "losses" or "gram".

    `tasks` are those of the rows; not given: 0, 1, 2, ...
    """
    finite = torch.isfinite(value)
    if not bool(finite.all()):
        bad = _numbers(_non_finite_rows(kind, finite), tasks)
        raise ValueError(f"{kind} has non-finite entries in tasks {bad}: fix or drop these.")


def check_gradients(name: str, rows: Tensor, *, products: bool, tasks: Tensor | None = None) -> None:
    """Check gradients [N, P] for the method `name`, which forms their `products` or does not.

    `tasks` are those of the rows; not given: 0, 1, 2, ...

    Raises:
        ValueError: non-finite entries, or `products` that overflow; it names the tasks.
    """

    # One pass over memory decides the usual case. For products, norms must be below the limit. Otherwise the
    # sum must be finite, at a fraction of the cost in half precision. A non-finite entry fails either test.
    def numbers() -> list[int] | None:
        return None if tasks is None else tasks.tolist()

    if not products:
        if not bool(rows.sum().isfinite()):
            check_finite("jacobian", rows, numbers())
        return
    dtype = torch.promote_types(rows.dtype, torch.float32)
    long = ~(torch.linalg.vector_norm(rows, dim=1, dtype=dtype) < torch.finfo(dtype).max ** 0.5)
    if bool(long.any()):
        check_finite("jacobian", rows, numbers())
        refuse_products(name, long, dtype, numbers())


def refuse_products(
    name: str, long: Tensor, dtype: torch.dtype, tasks: Sequence[int] | None = None, of: str = "gradients"
) -> NoReturn:
    """Raise ValueError for gradients whose products overflow `dtype`, those of the rows chosen by `long`."""
    wider = "" if dtype == torch.float64 else ", or pass jacobian.double()"
    raise ValueError(
        f"{name} needs products of {of}; those of tasks {_numbers(long, tasks)} overflow "
        f"{str(dtype)[6:]}. Divide the losses by a constant{wider}."
    )


def check_squares(name: str, losses: Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError, which names the tasks, for losses [T] that overflow `dtype` when squared.

    Half of the limit is left for losses that are measured from the lowest value so far.
    """
    long = ~(losses.abs() < torch.finfo(dtype).max ** 0.5 / 2.0)
    if bool(long.any()):
        refuse_products(name, long, dtype, of="losses")


def check_products(name: str, gram: Tensor, rows: Tensor) -> None:
    """Check gradients [T, P] as `check_gradients` does, by their Gramian [T, T].

    If the Gramian is finite, so are the gradients, and no further pass over them is needed.
    """
    finite = gram.isfinite()
    if not bool(finite.all()):
        check_finite("jacobian", rows)
        refuse_products(name, _non_finite_rows("gram", finite), gram.dtype)


def check_direction(name: str, direction: Tensor) -> None:
    """Raise ValueError if the direction [P] of finite gradients exceeds the range of its dtype."""
    if not bool(direction.sum().isfinite()) and not bool(direction.isfinite().all()):
        way = "divide the losses by a constant"
        if direction.dtype != torch.float64:
            way = f"pass the gradients in float{32 if direction.dtype == torch.float16 else 64}, or {way}"
        raise ValueError(f"the direction of {name} exceeds {str(direction.dtype)[6:]}: {way}.")


def _non_finite_rows(kind: str, finite: Tensor) -> Tensor:
    if kind == "gram":  # a bad gradient spoils its row and column; the diagonal tells whose it is
        diagonal = ~finite.diagonal()
        if bool(diagonal.any()):
            return diagonal
    return ~(finite if finite.dim() == 1 else finite.all(dim=1))


def _numbers(chosen: Tensor, tasks: Sequence[int] | None = None) -> list[int]:
    """Return the tasks of the chosen rows."""
    rows = list(map(int, chosen.nonzero().flatten()))
    return rows if tasks is None else [int(tasks[row]) for row in rows]
