"""Checks of the methods' arguments: every message names the argument, its rule and the value found."""

from __future__ import annotations

import math
from collections.abc import Sequence


def check_number(name: str, value: float, *, low: float, high: float = math.inf) -> float:
    """Return `value` as a float if it is a finite number in [low, high], else raise ValueError."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and low <= value <= high):
        rule = f">= {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{name} must be a finite number {rule}; found {value!r}.")
    return float(value)


def check_count(name: str, value: int) -> int:
    """Return `value` if it is an integer of at least 1, else raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1; found {value!r}.")
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
