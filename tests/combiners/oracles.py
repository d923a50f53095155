"""THE table: one row per registered method, with what its definition says about special and general cases."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtrl.combiners import Combiner, make_combiner
from tests.helpers.gramian_methods import (
    assert_aligned,
    assert_best_steered,
    assert_equal_projections,
    assert_fair,
    assert_mean_unconflicted,
    assert_on_the_simplex,
    assert_shortest,
    assert_shortest_within_caps,
    assert_unconflicted,
)
from tests.helpers.literature import (
    assert_config,
    assert_double_sampling,
    assert_harmonic,
    assert_inverse_temperatures,
    assert_kernel_norms,
    assert_log_losses,
    assert_masked_mean,
    assert_signs_of_config,
    assert_tracked,
    assert_variance_regularised,
)
from tests.helpers.loss_methods import (
    assert_adam_per_task,
    assert_dual_balance,
    assert_equal_contributions,
    assert_exponential,
    assert_geometric_mean,
    assert_half_mean,
    assert_inverse_losses,
    assert_one_sign_per_parameter,
    assert_soft_inverse_losses,
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
    `calls(T)` is the number of updates on one Jacobian of which the last is looked at: methods that evaluate
    one task per update do not know all of them before. `scale_power` is None where no scale law holds.
    `starts_as_mean` marks weights that are learned: the first direction is along the mean.
    """

    identical: Callable[[int, float], float] | None
    orthonormal: Callable[[int], float] | None
    oracle: Callable[[Tensor, Tensor], None]
    options: dict[str, Any] = field(default_factory=dict)
    scale_power: float | None = 1.0
    scale_law_from: float = 0.0
    reads_host: str = ""
    opposite_cancel: bool = True
    needs_losses: bool = False
    starts_as_mean: bool = False
    row_scale_invariant: bool = False
    permutation_equivariant: bool = True
    calls: Callable[[int], int] = lambda tasks: 1
    oracle_tasks: tuple[int, ...] = (2, 3, 10)
    oracle_families: tuple[str, ...] = ("iid", "common", "conflicting", "spread_2", "spread_3", "deficient")

    def make(self, name: str, num_tasks: int) -> Combiner:
        return make_combiner(name, num_tasks=num_tasks, **self.options)


def _stretched(rows: Callable[[Tensor, Tensor], None], factor: float) -> Callable[[Tensor, Tensor], None]:
    return lambda jacobian, direction: rows(jacobian, direction * factor)


def _torchjd(jacobian: Tensor, direction: Tensor) -> None:
    """The direction is what the library itself returns."""
    from torchjd.aggregation import UPGrad  # absent where only GPU tests run

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
    "affinity": Row(lambda tasks, norm: _CAGRAD, lambda tasks: _CAGRAD / tasks, _IN_BALL, needs_losses=True),
    "aligned_mtl": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_aligned,
        reads_host="the host finds the eigenvalues",
    ),
    "bmtl": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        functools.partial(assert_exponential, temperature=0.5),
        options={"temperature": 0.5},
        needs_losses=True,
    ),
    # One block is the base; test_blocks.py has the rest.
    "blocks": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_two_task_surgery,
        options={"sizes": (-1,)},
        permutation_equivariant=False,  # the drawn orders belong to task numbers
        oracle_tasks=(2,),
    ),
    "cagrad": Row(lambda tasks, norm: _CAGRAD, lambda tasks: _CAGRAD / tasks, _IN_BALL),
    # With at least T gradients sampled it is CAGrad itself; test_sampling.py has the rest.
    "cagrad_fast": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        _stretched(functools.partial(assert_best_in_ball, c=0.9), 1.9),
        options={"sampled": 64},
    ),
    "capped_mgda": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        functools.partial(assert_shortest_within_caps, cap=0.6),
        options={"cap": 0.6},  # with two tasks the default is the mean
    ),
    "config": Row(
        lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_config, oracle_families=_SOLVABLE
    ),
    "conicgrad": Row(
        lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, functools.partial(assert_best_in_cap, c=0.5)
    ),
    # Losses of 2 for equal rows, an average that keeps 0.9 of its zero start, a sum over tasks.
    "db_mtl": Row(
        lambda tasks, norm: 0.05 * tasks, lambda tasks: 0.05, assert_dual_balance, needs_losses=True
    ),
    "dual_proj": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_mean_unconflicted),
    # Losses have not fallen yet; test_loss_methods.py has the rest.
    "dwa": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_mean,
        needs_losses=True,
        starts_as_mean=True,
    ),
    # Half of the entries are dropped.
    "dropgrad": Row(
        None,
        None,
        functools.partial(assert_masked_mean, rate=0.5),
        options={"rate": 0.5},
        opposite_cancel=False,
        permutation_equivariant=False,  # the noise belongs to task numbers
        oracle_tasks=(2, 3),
    ),
    "emtl": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        functools.partial(assert_variance_regularised, lam=10.0),
        options={"lam": 10.0},
        needs_losses=True,
    ),
    "every": Row(lambda tasks, norm: _CAGRAD, lambda tasks: _CAGRAD / tasks, _IN_BALL),
    "excess_mtl": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_mean, starts_as_mean=True),
    "fairgrad": Row(
        lambda tasks, norm: tasks * (tasks * norm**2) ** (-2.0 / 3.0),
        lambda tasks: 1.0,
        functools.partial(assert_fair, alpha=2.0),
        scale_power=-1.0 / 3.0,
        oracle_families=_SOLVABLE,
    ),
    "famo": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_inverse_losses, needs_losses=True),
    "fs_mtl": Row(lambda tasks, norm: _CAGRAD, lambda tasks: _CAGRAD / tasks, _IN_BALL),
    # Losses of 2 for equal rows.
    "gls": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_geometric_mean, needs_losses=True),
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
    "imtl_l": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_mean,
        needs_losses=True,
        starts_as_mean=True,
    ),
    "inverse_alpha": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_inverse_temperatures),
    "ldc_mtl": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_mean,
        needs_losses=True,
        starts_as_mean=True,
    ),
    "loss_proportional": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_equal_contributions,
        needs_losses=True,
        oracle_families=_SOLVABLE,
    ),
    # Optimiser's first step, the sign of each entry, once all tasks have had their turn.
    "m_config": Row(
        None,
        None,
        assert_signs_of_config,
        scale_power=0.0,
        options={"eps": 1e-30},  # a larger one breaks the scale law where gradients are small
        row_scale_invariant=True,
        calls=lambda tasks: tasks,
        oracle_families=_SOLVABLE,
    ),
    "mean": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_mean),
    "mgda": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_shortest),
    # Losses of 2 for equal rows, half of which the first update tracks.
    "moco": Row(
        lambda tasks, norm: 1.0 / norm,
        lambda tasks: 1.0 / tasks,
        assert_tracked,
        scale_power=0.0,
        needs_losses=True,
    ),
    "modo": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        functools.partial(assert_double_sampling, gamma=0.001, rho=0.1),
        scale_power=None,  # its step is taken on the Gramian as it is
        starts_as_mean=True,  # one step is small
    ),
    # The first running mean is the gradients themselves; test_wrappers.py has the rest.
    "momentum": Row(lambda tasks, norm: _CAGRAD, lambda tasks: _CAGRAD / tasks, _IN_BALL),
    "nash_mtl": Row(
        lambda tasks, norm: 1.0 / norm,
        lambda tasks: tasks**-0.5,
        assert_bargaining,
        scale_power=0.0,
        row_scale_invariant=True,
        oracle_families=_SOLVABLE,
    ),
    "ngdiff": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_unit_pull),
    "normscale": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_harmonic),
    "ntkmtl": Row(lambda tasks, norm: tasks**0.5, lambda tasks: tasks**-0.5, assert_kernel_norms),
    "pcgrad": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        assert_two_task_surgery,
        permutation_equivariant=False,  # the drawn orders belong to task numbers
        oracle_tasks=(2,),
    ),
    # Without success rates it is FairGrad; test_pivrg.py has the rest.
    "pivrg": Row(
        lambda tasks, norm: tasks * (tasks * norm**2) ** (-2.0 / 3.0),
        lambda tasks: 1.0,
        functools.partial(assert_fair, alpha=2.0),
        scale_power=-1.0 / 3.0,
        oracle_families=_SOLVABLE,
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
    # Its first weights are the base's; test_wrappers.py has the rest.
    "smoothed": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_shortest),
    "stch": Row(lambda tasks, norm: 0.5, lambda tasks: 0.5 / tasks, assert_log_losses, needs_losses=True),
    # One group is the base; test_turns.py has the rest.
    "turns": Row(
        lambda tasks, norm: _CAGRAD,
        lambda tasks: _CAGRAD / tasks,
        _IN_BALL,
        options={"groups": 1},
    ),
    "upgrad": Row(lambda tasks, norm: 1.0, lambda tasks: 1.0 / tasks, assert_unconflicted),
    "uw": Row(
        lambda tasks, norm: 0.5,
        lambda tasks: 0.5 / tasks,
        assert_half_mean,
        needs_losses=True,
        starts_as_mean=True,
    ),
    "uw_so": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        functools.partial(assert_soft_inverse_losses, temperature=0.3),
        options={"temperature": 0.3},
        needs_losses=True,
    ),
    "torchjd": Row(
        lambda tasks, norm: 1.0,
        lambda tasks: 1.0 / tasks,
        _torchjd,
        scale_law_from=1.0,  # below a squared norm of 1e-4 it takes the Jacobian for zero
        reads_host="TorchJD solves with quadprog and cvxpy, on the host",
    ),
}
