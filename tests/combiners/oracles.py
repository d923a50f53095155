"""THE table: one row per registered method, with what its definition says about special and general cases."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mtrl.combiners import Combiner, make_combiner
from tests.helpers.properties import (
    assert_bargaining,
    assert_best_in_ball,
    assert_best_in_cap,
    assert_direction_oriented,
    assert_mean,
    assert_two_task_surgery,
)


@dataclass(frozen=True)
class Row:
    """What a method must do.

    For T rows that all equal g, the direction is `identical(T, |g|)` times g; for T orthonormal rows each
    weighs `orthonormal(T)`; d(s J) = s^scale_power d(J). `oracle` asserts that a direction is the right one
    for a Jacobian of one of `oracle_families` with `oracle_tasks` rows.
    """

    identical: Callable[[int, float], float]
    orthonormal: Callable[[int], float]
    oracle: Callable[[Tensor, Tensor], None]
    options: dict[str, Any] = field(default_factory=dict)
    scale_power: float = 1.0
    row_scale_invariant: bool = False
    permutation_equivariant: bool = True
    oracle_tasks: tuple[int, ...] = (2, 3, 10)
    oracle_families: tuple[str, ...] = ("iid", "common", "conflicting", "spread_2", "spread_3", "deficient")

    def make(self, name: str, num_tasks: int) -> Combiner:
        return make_combiner(name, num_tasks=num_tasks, **self.options)


def _stretched(rows: Callable[[Tensor, Tensor], None], factor: float) -> Callable[[Tensor, Tensor], None]:
    return lambda jacobian, direction: rows(jacobian, direction * factor)


_CAGRAD = 1.9 / 1.81  # (1 + c) / (1 + c^2) at c = 0.9
_IN_BALL = _stretched(functools.partial(assert_best_in_ball, c=0.9), 1.81)
_SOLVABLE = ("iid", "common", "conflicting", "spread_2", "spread_3")  # a common descent direction exists

ORACLES: dict[str, Row] = {
    "cagrad": Row(lambda tasks, norm: _CAGRAD, lambda tasks: _CAGRAD / tasks, _IN_BALL),
    "conicgrad": Row(
        lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, functools.partial(assert_best_in_cap, c=0.5)
    ),
    "fs_mtl": Row(lambda tasks, norm: _CAGRAD, lambda tasks: _CAGRAD / tasks, _IN_BALL),
    "mean": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_mean),
    "nash_mtl": Row(
        lambda tasks, norm: 1.0 / norm,
        lambda tasks: tasks**-0.5,
        assert_bargaining,
        scale_power=0.0,
        row_scale_invariant=True,
        oracle_families=_SOLVABLE,
    ),
    "pcgrad": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_two_task_surgery,
        permutation_equivariant=False,  # the drawn orders belong to task numbers
        oracle_tasks=(2,),
    ),
    "sdmgrad": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        functools.partial(assert_direction_oriented, lam=0.6),
    ),
}
