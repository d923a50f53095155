"""Groups of tasks that help each other most, and an order that puts similar tasks next to each other."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

_MOST_GROUPS = 200_000  # candidate groups: more of them make the program too large to be solved in minutes

Matrix = NDArray[np.float64]


def group_gain(gains: Matrix, group: Sequence[int]) -> float:
    """Sum over the group's tasks of the mean gain that the group's steps bring them."""
    return float(gains[np.ix_(group, group)].sum() / len(group))


def best_groups(
    gains: Matrix, *, budget: int, smallest: int = 1, largest: int | None = None
) -> list[list[int]]:
    """Return at most `budget` groups that hold every task at least once, their sum of `group_gain` largest.

    A mixed-integer program over all groups of the sizes asked for, solved to optimality.

    Args:
        gains: [T, T]; gains[i, j] is what a step of task i brings task j.
        budget: most groups.
        smallest: least tasks of a group.
        largest: most tasks of a group; None: T.

    Raises:
        ValueError: sizes that cannot hold all tasks, or too many candidate groups.
    """
    tasks = len(gains)
    largest = tasks if largest is None else min(largest, tasks)
    if not 1 <= smallest <= largest or budget < 1 or budget * largest < tasks:
        raise ValueError(
            f"{budget} groups of {smallest} to {largest} tasks must be able to hold all {tasks} tasks."
        )
    count = sum(math.comb(tasks, size) for size in range(smallest, largest + 1))
    if count > _MOST_GROUPS:
        raise ValueError(f"{count} candidate groups are too many (at most {_MOST_GROUPS}): lower `largest`.")
    groups = [
        group for size in range(smallest, largest + 1) for group in itertools.combinations(range(tasks), size)
    ]
    holds = np.zeros((tasks, len(groups)))
    for index, group in enumerate(groups):
        holds[list(group), index] = 1.0
    values = np.array([group_gain(gains, group) for group in groups])
    scale = float(np.abs(values).max()) or 1.0
    result = milp(
        -values / scale,
        integrality=np.ones(len(groups)),
        bounds=Bounds(0.0, 1.0),
        constraints=[LinearConstraint(holds, lb=1.0), LinearConstraint(np.ones(len(groups)), ub=budget)],
    )
    if result.x is None:
        raise ValueError(f"no groups found: {result.message}")
    return [list(group) for group, chosen in zip(groups, result.x, strict=True) if chosen > 0.5]


def task_order(similarity: Matrix, *, seed: int = 0, steps: int = 20_000) -> list[int]:
    """Return a round trip through all tasks on which neighbours are similar, by simulated annealing.

    Data-CUBE, Min et al., ACL Findings 2024 (arXiv:2401.03563, of which only the abstract could be read):
    minimises the sum of 1 - similarity between neighbours. Begins with task 0.

    Args:
        similarity: [T, T], symmetric, of at most 1.
        seed: of the proposals.
        steps: number of proposals, each a stretch of the trip reversed.
    """
    tasks = len(similarity)
    generator = np.random.default_rng(seed)
    cost = 1.0 - similarity
    trip = np.arange(tasks)
    best, length = trip.copy(), trip_length(cost, trip)
    shortest = length
    heat = float(cost.std()) or 1.0
    for step in range(steps if tasks > 3 else 0):
        first, last = np.sort(generator.choice(np.arange(1, tasks + 1), 2, replace=False))
        proposal = np.concatenate((trip[:first], trip[first:last][::-1], trip[last:]))
        change = trip_length(cost, proposal) - length
        # Accepts a longer trip less and less: the heat falls to a thousandth.
        if change <= 0.0 or generator.random() < math.exp(-change / (heat * 1e-3 ** (step / steps))):
            trip, length = proposal, length + change
            if length < shortest - 1e-12:
                best, shortest = trip.copy(), length
    return [int(task) for task in best]


def trip_length(cost: Matrix, trip: Sequence[int] | NDArray[np.int64]) -> float:
    """Sum of the costs between neighbours of a round trip."""
    order = np.asarray(trip)
    return float(cost[order, np.roll(order, -1)].sum())
