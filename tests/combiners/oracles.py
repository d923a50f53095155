"""THE table: one row per registered method, with what its definition says about special and general cases."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import UPGrad

from mtrl.combiners import Combiner, make_combiner
from tests.helpers.gramian_methods import (
    assert_aligned,
    assert_best_steered,
    assert_equal_projections,
    assert_fair,
    assert_on_the_simplex,
    assert_shortest,
    assert_unconflicted,
)
from tests.helpers.loss_methods import (
    assert_adam_per_task,
    assert_dual_balance,
    assert_equal_contributions,
    assert_exponential,
    assert_half_mean,
    assert_inverse_losses,
    assert_one_sign_per_parameter,
    assert_unit_pull,
)
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
    for a Jacobian of one of `oracle_families` with `oracle_tasks` rows. The scale law holds for s of at least
    `scale_law_from`. `reads_host` says why a method reads from the device, which no other may.

    Every method is given `losses_of(rows)` along with the rows; `needs_losses` marks those that refuse to
    work without. A method that looks at each parameter alone, and so leaves the span of the rows, or that
    draws its weights has None for `identical` or `orthonormal`, or opposite rows that do not cancel.
    `starts_as_mean` marks weights that are learned: the first direction is along the mean.
    """

    identical: Callable[[int, float], float] | None
    orthonormal: Callable[[int], float] | None
    oracle: Callable[[Tensor, Tensor], None]
    options: dict[str, Any] = field(default_factory=dict)
    scale_power: float = 1.0
    scale_law_from: float = 0.0
    reads_host: str = ""
    opposite_cancel: bool = True
    needs_losses: bool = False
    starts_as_mean: bool = False
    row_scale_invariant: bool = False
    permutation_equivariant: bool = True
    oracle_tasks: tuple[int, ...] = (2, 3, 10)
    oracle_families: tuple[str, ...] = ("iid", "common", "conflicting", "spread_2", "spread_3", "deficient")

    def make(self, name: str, num_tasks: int) -> Combiner:
        return make_combiner(name, num_tasks=num_tasks, **self.options)


def _stretched(rows: Callable[[Tensor, Tensor], None], factor: float) -> Callable[[Tensor, Tensor], None]:
    return lambda jacobian, direction: rows(jacobian, direction * factor)


def _torchjd(jacobian: Tensor, direction: Tensor) -> None:
    """The direction is what the library itself returns."""
    torch.testing.assert_close(direction, UPGrad()(jacobian), rtol=0.0, atol=0.0)


_CAGRAD = 1.9 / 1.81  # (1 + c) / (1 + c^2) at c = 0.9
_IN_BALL = _stretched(functools.partial(assert_best_in_ball, c=0.9), 1.81)
_SOLVABLE = ("iid", "common", "conflicting", "spread_2", "spread_3")  # a common descent direction exists

ORACLES: dict[str, Row] = {
    # Adam's first step is the sign of each entry.
    "adatask": Row(
        None,
        None,
        assert_adam_per_task,
        options={"eps": 1e-30},  # a larger one breaks the scale law where gradients are small
        scale_power=0.0,
        row_scale_invariant=True,
    ),
    "aligned_mtl": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_aligned,
        reads_host="the eigenvalue routine checks for failure on the host",
    ),
    "bmtl": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        functools.partial(assert_exponential, temperature=0.5),
        options={"temperature": 0.5},
        needs_losses=True,
    ),
    "cagrad": Row(lambda tasks, norm: _CAGRAD, lambda tasks: _CAGRAD / tasks, _IN_BALL),
    # With at least T gradients sampled it is CAGrad itself; test_sampling.py has the rest.
    "cagrad_fast": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        _stretched(functools.partial(assert_best_in_ball, c=0.9), 1.9),
        options={"sampled": 64},
    ),
    "conicgrad": Row(
        lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, functools.partial(assert_best_in_cap, c=0.5)
    ),
    # Losses of 2 for equal rows, an average that keeps 0.9 of its zero start, a sum over tasks.
    "db_mtl": Row(
        lambda tasks, norm: 0.05 * tasks, lambda tasks: 0.05, assert_dual_balance, needs_losses=True
    ),
    "emtl": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_equal_contributions,
        needs_losses=True,
        oracle_families=_SOLVABLE,
    ),
    "fairgrad": Row(
        lambda tasks, norm: tasks * (tasks * norm**2) ** (-2.0 / 3.0),
        lambda tasks: 1.0,
        functools.partial(assert_fair, alpha=2.0),
        scale_power=-1.0 / 3.0,
        oracle_families=_SOLVABLE,
    ),
    "famo": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_inverse_losses, needs_losses=True),
    "fs_mtl": Row(lambda tasks, norm: _CAGRAD, lambda tasks: _CAGRAD / tasks, _IN_BALL),
    # At each parameter one sign is kept.
    "graddrop": Row(
        lambda tasks, norm: 1.0,
        None,
        assert_one_sign_per_parameter,
        opposite_cancel=False,
    ),
    "gradnorm": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_mean,
        needs_losses=True,
        starts_as_mean=True,
    ),
    # Its first update is PCGrad's; test_gradvac.py has the rest.
    "gradvac": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_two_task_surgery,
        permutation_equivariant=False,  # the drawn orders belong to task numbers
        oracle_tasks=(2,),
    ),
    "imgrad": Row(
        lambda tasks, norm: 1.2,  # (1 + c) / (1 + c^2) at c = 0.5
        lambda tasks: 1.2 / tasks,
        _stretched(functools.partial(assert_best_steered, c=0.5), 1.25),
    ),
    "imtl_g": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_equal_projections,
        oracle_families=_SOLVABLE,
    ),
    "mean": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_mean),
    "mgda": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_shortest),
    "nash_mtl": Row(
        lambda tasks, norm: 1.0 / norm,
        lambda tasks: tasks**-0.5,
        assert_bargaining,
        scale_power=0.0,
        row_scale_invariant=True,
        oracle_families=_SOLVABLE,
    ),
    "ngdiff": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_unit_pull),
    "pcgrad": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_two_task_surgery,
        permutation_equivariant=False,  # the drawn orders belong to task numbers
        oracle_tasks=(2,),
    ),
    # Its weights are drawn: equal tasks get unequal ones.
    "rlw": Row(
        lambda tasks, norm: 1.0,
        None,
        assert_on_the_simplex,
        opposite_cancel=False,
        permutation_equivariant=False,  # the drawn weights belong to task numbers
        oracle_families=_SOLVABLE,
    ),
    "sdmgrad": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        functools.partial(assert_direction_oriented, lam=0.6),
    ),
    # With all tasks sampled it is SDMGrad itself; test_sampling.py has the rest.
    "sdmgrad_os": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        functools.partial(assert_direction_oriented, lam=0.6),
        options={"sampled": 64},
    ),
    "slaw": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_mean,
        needs_losses=True,
        starts_as_mean=True,
    ),
    "upgrad": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_unconflicted),
    "uw": Row(
        lambda tasks, norm: 0.5,
        lambda tasks: 0.5 / tasks,
        assert_half_mean,
        needs_losses=True,
        starts_as_mean=True,
    ),
    "torchjd": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        _torchjd,
        scale_law_from=1.0,  # below a squared norm of 1e-4 it takes the Jacobian for zero
        reads_host="TorchJD solves with quadprog and cvxpy, on the host",
    ),
}
