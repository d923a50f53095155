"""Which worker steps which environments: balanced by what a step of each task costs."""

from __future__ import annotations

from collections.abc import Sequence

_TYPICAL = 1.0
# CPU time of an env step, random actions, with its share of a reset every 500 steps, relative to MT50's mean;
# measured on one core of an x86-64 server. Only its proportions matter, and only for speed.
_COSTS = {
    "assembly-v3": 1.28,
    "basketball-v3": 0.91,
    "bin-picking-v3": 1.18,
    "box-close-v3": 1.38,
    "button-press-topdown-v3": 0.76,
    "button-press-topdown-wall-v3": 0.78,
    "button-press-v3": 0.79,
    "button-press-wall-v3": 0.78,
    "coffee-button-v3": 0.92,
    "coffee-pull-v3": 1.14,
    "coffee-push-v3": 1.15,
    "dial-turn-v3": 0.98,
    "disassemble-v3": 1.24,
    "door-close-v3": 1.06,
    "door-lock-v3": 0.95,
    "door-open-v3": 0.96,
    "door-unlock-v3": 0.96,
    "hand-insert-v3": 1.22,
    "drawer-close-v3": 0.96,
    "drawer-open-v3": 0.83,
    "faucet-open-v3": 0.90,
    "faucet-close-v3": 0.90,
    "hammer-v3": 1.23,
    "handle-press-side-v3": 0.78,
    "handle-press-v3": 0.82,
    "handle-pull-side-v3": 0.84,
    "handle-pull-v3": 0.82,
    "lever-pull-v3": 0.85,
    "pick-place-wall-v3": 1.11,
    "pick-out-of-hole-v3": 0.96,
    "pick-place-v3": 1.07,
    "plate-slide-v3": 0.83,
    "plate-slide-side-v3": 0.81,
    "plate-slide-back-v3": 0.85,
    "plate-slide-back-side-v3": 0.86,
    "peg-insert-side-v3": 1.06,
    "peg-unplug-side-v3": 1.15,
    "soccer-v3": 1.07,
    "stick-push-v3": 1.38,
    "stick-pull-v3": 1.36,
    "push-v3": 1.05,
    "push-wall-v3": 1.07,
    "push-back-v3": 1.09,
    "reach-v3": 0.86,
    "reach-wall-v3": 0.89,
    "shelf-place-v3": 1.09,
    "sweep-into-v3": 1.20,
    "sweep-v3": 1.06,
    "window-open-v3": 0.80,
    "window-close-v3": 0.99,
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
