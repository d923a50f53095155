"""Which worker steps which environments: balanced by what a step of each task costs."""

from __future__ import annotations

from collections.abc import Sequence

_TYPICAL = 1.0
# CPU time of an env step with its share of a reset every 500 steps, relative to MT50's mean: half random
# actions, half upstream's scripted policies; what an agent does lies between. Measured on one core of an
# x86-64 server. Only its proportions matter, and only for speed.
_COSTS = {
    "assembly-v3": 1.22,
    "basketball-v3": 0.86,
    "bin-picking-v3": 1.15,
    "box-close-v3": 1.23,
    "button-press-topdown-v3": 1.12,
    "button-press-topdown-wall-v3": 0.99,
    "button-press-v3": 1.61,
    "button-press-wall-v3": 1.01,
    "coffee-button-v3": 1.04,
    "coffee-pull-v3": 1.30,
    "coffee-push-v3": 1.08,
    "dial-turn-v3": 0.81,
    "disassemble-v3": 0.99,
    "door-close-v3": 0.98,
    "door-lock-v3": 0.83,
    "door-open-v3": 0.88,
    "door-unlock-v3": 0.78,
    "hand-insert-v3": 1.11,
    "drawer-close-v3": 0.89,
    "drawer-open-v3": 0.71,
    "faucet-open-v3": 0.91,
    "faucet-close-v3": 0.87,
    "hammer-v3": 1.10,
    "handle-press-side-v3": 0.78,
    "handle-press-v3": 0.74,
    "handle-pull-side-v3": 0.92,
    "handle-pull-v3": 0.70,
    "lever-pull-v3": 0.88,
    "pick-place-wall-v3": 1.12,
    "pick-out-of-hole-v3": 0.86,
    "pick-place-v3": 1.12,
    "plate-slide-v3": 0.87,
    "plate-slide-side-v3": 1.34,
    "plate-slide-back-v3": 0.74,
    "plate-slide-back-side-v3": 0.87,
    "peg-insert-side-v3": 1.23,
    "peg-unplug-side-v3": 1.01,
    "soccer-v3": 1.05,
    "stick-push-v3": 1.43,
    "stick-pull-v3": 1.52,
    "push-v3": 1.02,
    "push-wall-v3": 1.12,
    "push-back-v3": 0.92,
    "reach-v3": 0.67,
    "reach-wall-v3": 0.68,
    "shelf-place-v3": 1.06,
    "sweep-into-v3": 1.24,
    "sweep-v3": 0.85,
    "window-open-v3": 0.85,
    "window-close-v3": 0.92,
}


def balanced(tasks: Sequence[str], num_workers: int) -> list[tuple[int, ...]]:
    """Split rows with the given tasks among at most num_workers workers of nearly equal cost.

    The dearest rows are dealt first, each to the worker with the least to do so far (Graham, "Bounds on
    multiprocessing timing anomalies", SIAM J. Applied Mathematics 17, 1969). Results do not depend on it.
    """
    workers = min(num_workers, len(tasks))
    costs = [_COSTS.get(task, _TYPICAL) for task in tasks]
    load = [0.0] * workers
    rows: list[list[int]] = [[] for _ in range(workers)]
    for row in sorted(range(len(tasks)), key=lambda row: (-costs[row], row)):
        worker = min(range(workers), key=lambda worker: (load[worker], len(rows[worker]), worker))
        load[worker] += costs[row]
        rows[worker].append(row)
    return [tuple(sorted(own)) for own in rows]
