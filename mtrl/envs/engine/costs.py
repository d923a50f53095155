"""Which worker steps which environments: balanced by what a step of each task costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_TYPICAL = 1.0


def balanced(
    tasks: Sequence[str], num_workers: int, step_costs: Mapping[str, float]
) -> list[tuple[int, ...]]:
    """Split rows with the given tasks among at most num_workers workers of nearly equal cost.

    The dearest rows are dealt first, each to the worker with the least to do so far (Graham, "Bounds on
    multiprocessing timing anomalies", SIAM J. Applied Mathematics 17, 1969). Results do not depend on it.
    """
    workers = min(num_workers, len(tasks))
    costs = [step_costs.get(task, _TYPICAL) for task in tasks]
    load = [0.0] * workers
    rows: list[list[int]] = [[] for _ in range(workers)]
    for row in sorted(range(len(tasks)), key=lambda row: (-costs[row], row)):
        worker = min(range(workers), key=lambda worker: (load[worker], len(rows[worker]), worker))
        load[worker] += costs[row]
        rows[worker].append(row)
    return [tuple(sorted(own)) for own in rows]
