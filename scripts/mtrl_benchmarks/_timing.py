"""Times of combiners, implementations of a method taking turns."""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence

from torch import Tensor

from mtrl.combiners.solvers.gramian import gramian
from mtrl_benchmarks._families import jacobian, widened
from mtrl_benchmarks._implementations import Implementation, implementation
from mtrl_benchmarks._measures import OBJECTIVES, objective
from mtrl_benchmarks.report import Row, note

_LONGEST = 6.0  # a call may take this many times the seconds for repetitions
_SHORT = 20.0  # ms below which a call follows an untimed one: the peers before it have emptied the caches
_CHEAP = 100.0  # ms below which a call is not extrapolated


def times(
    methods: Sequence[str], names: Sequence[str], all_tasks: Sequence[int], arguments: argparse.Namespace
) -> list[Row]:
    """Return the rows of every method, implementation and number of tasks."""
    for method in methods:
        if method in OBJECTIVES:
            note(f"objective of {method}: {OBJECTIVES[method][0]}")
    rows: list[Row] = []
    for tasks in sorted(all_tasks):
        base = jacobian(arguments.family, tasks, arguments.seed)
        wide = widened(base, arguments.parameters, arguments.seed)
        for method in methods:
            found = _chosen(method, names, tasks, arguments.seconds, rows)
            rows += _of_method(method, found, wide, arguments.repetitions, arguments.seconds)
    return rows


def _chosen(
    method: str, names: Sequence[str], tasks: int, seconds: float, before: Sequence[Row]
) -> dict[str, Implementation]:
    """Return the implementations of a method, but for those that would take minutes with so many tasks."""
    found: dict[str, Implementation] = {}
    for name in names:
        expected = _expected_seconds(name, method, tasks, before)
        if expected > _LONGEST * seconds:
            note(f"{name} {method}, {tasks} tasks: skipped, would take about {expected:.0f} s a call")
            continue
        try:
            one = implementation(name, method, tasks)
        except ValueError as error:
            note(f"{name} {method}, {tasks} tasks: skipped. {error}")
            continue
        if one is not None:
            found[name] = one
    return found


def _expected_seconds(name: str, method: str, tasks: int, before: Sequence[Row]) -> float:
    """Extrapolate from the last smaller number of tasks: solvers' factorisations grow with its cube."""
    for row in reversed(before):
        ms, fewer = row["ms_combine"], row["tasks"]
        if (row["implementation"], row["method"]) == (name, method) and isinstance(ms, float):
            return 1e-3 * ms * (tasks / float(fewer or 1)) ** 3 if ms > _CHEAP else 0.0
    return 0.0


def _of_method(
    method: str, found: dict[str, Implementation], wide: Tensor, repetitions: int, seconds: float
) -> list[Row]:
    tasks = len(wide)
    solve = {name: one.weights for name, one in found.items() if one.weights is not None}
    combine = {name: one.combine for name, one in found.items()}
    gram = gramian(wide)
    what = f"{method}, {tasks} tasks"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peers' solvers say of their own problems
        solved = _turns(solve, gram, _next_gram, repetitions, seconds, what)
        combined = _turns(combine, wide, _next_rows, repetitions, seconds, what)
    rows: list[Row] = []
    for name in found:
        ms_weights, weights = solved.get(name, (None, None))
        value = None if weights is None else objective(method, gram, weights)
        rows.append(
            {
                "implementation": name, "method": method, "tasks": tasks,
                "ms_weights": ms_weights, "ms_combine": combined[name][0], "objective": value,
            }
        )  # fmt: skip
    return rows


def _turns(
    functions: dict[str, Callable[[Tensor], Tensor]],
    start: Tensor,
    following: Callable[[Tensor], Tensor],
    repetitions: int,
    seconds: float,
    what: str,
) -> dict[str, tuple[float | None, Tensor | None]]:
    """Return median milliseconds and the result for `start` of every function; None where it raised."""
    limit = 1e3 * seconds
    first: dict[str, float] = {}
    results: dict[str, Tensor] = {}

    def failed(name: str, error: Exception) -> None:
        results.pop(name, None)
        note(f"{name} {what}: failed. {type(error).__name__}: {error}")

    for name, function in functions.items():
        try:
            first[name], results[name] = _timed(function, start)
            for _ in range(2 if first[name] < limit else 0):
                # Recordings are made at the first call and optimised at the second.
                first[name] = min(first[name], _timed(function, following(start))[0])
        except Exception as error:  # noqa: BLE001  # a peer may fail in any way: its row says so by a dash
            failed(name, error)
    samples: dict[str, list[float]] = {name: [] for name in results}
    value = start
    for _ in range(repetitions):
        value = following(value)
        for name in tuple(results):
            taken = samples[name]
            if not (first[name] < limit and sum(taken) < limit):
                continue
            try:
                if first[name] < _SHORT:
                    functions[name](value)
                taken.append(_timed(functions[name], value)[0])
            except Exception as error:  # noqa: BLE001  # likewise
                failed(name, error)
                del samples[name]
    medians = {name: statistics.median(taken or [first[name]]) for name, taken in samples.items()}
    return {name: (medians.get(name), results.get(name)) for name in functions}


def _timed(function: Callable[[Tensor], Tensor], value: Tensor) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = function(value)
    return 1e3 * (time.perf_counter() - start), result


def _next_rows(jacobian: Tensor) -> Tensor:
    return jacobian.roll(1, 0)


def _next_gram(gram: Tensor) -> Tensor:
    return gram.roll((1, 1), (0, 1))
