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
    assert_discrepancies,
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

    oracle: Callable[[Tensor, Tensor], None]
    identical: Callable[[int, float], float] | None = lambda tasks, norm: 1.0
    orthonormal: Callable[[int], float] | None = lambda tasks: 1.0 / tasks
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
        assert_adam_per_task,
        identical=None,
        orthonormal=None,
        options={"eps": 1e-30},  # a larger one breaks the scale law where gradients are small
        scale_power=0.0,
        row_scale_invariant=True,
    ),
    "affinity": Row(
        _IN_BALL,
        identical=lambda tasks, norm: _CAGRAD,
        orthonormal=lambda tasks: _CAGRAD / tasks,
        needs_losses=True,
    ),
    "aligned_mtl": Row(assert_aligned, reads_host="the host finds the eigenvalues"),
    "bmtl": Row(
        functools.partial(assert_exponential, temperature=0.5),
        options={"temperature": 0.5},
        needs_losses=True,
    ),
    # One block is the base; test_blocks.py has the rest.
    "blocks": Row(
        assert_two_task_surgery,
        options={"sizes": (-1,)},
        permutation_equivariant=False,  # the drawn orders belong to task numbers
        oracle_tasks=(2,),
    ),
    "cagrad": Row(_IN_BALL, identical=lambda tasks, norm: _CAGRAD, orthonormal=lambda tasks: _CAGRAD / tasks),
    # With at least T gradients sampled it is CAGrad itself; test_sampling.py has the rest.
    "cagrad_fast": Row(
        _stretched(functools.partial(assert_best_in_ball, c=0.9), 1.9), options={"sampled": 64}
    ),
    "capped_mgda": Row(
        functools.partial(assert_shortest_within_caps, cap=0.6),
        options={"cap": 0.6},  # with two tasks the default is the mean
    ),
    "config": Row(assert_config, oracle_families=_SOLVABLE),
    "conicgrad": Row(functools.partial(assert_best_in_cap, c=0.5)),
    # Losses of 2 for equal rows, an average that keeps 0.9 of its zero start, a sum over tasks.
    "db_mtl": Row(
        assert_dual_balance,
        identical=lambda tasks, norm: 0.05 * tasks,
        orthonormal=lambda tasks: 0.05,
        needs_losses=True,
    ),
    "dual_proj": Row(assert_mean_unconflicted),
    # Losses have not fallen yet; test_loss_methods.py has the rest.
    "dwa": Row(assert_mean, needs_losses=True, starts_as_mean=True),
    # Half of the entries are dropped.
    "dropgrad": Row(
        functools.partial(assert_masked_mean, rate=0.5),
        identical=None,
        orthonormal=None,
        options={"rate": 0.5},
        opposite_cancel=False,
        permutation_equivariant=False,  # the noise belongs to task numbers
        oracle_tasks=(2, 3),
    ),
    "emtl": Row(
        functools.partial(assert_variance_regularised, lam=10.0), options={"lam": 10.0}, needs_losses=True
    ),
    "every": Row(_IN_BALL, identical=lambda tasks, norm: _CAGRAD, orthonormal=lambda tasks: _CAGRAD / tasks),
    "excess_mtl": Row(assert_mean, starts_as_mean=True),
    "fairgrad": Row(
        functools.partial(assert_fair, alpha=2.0),
        identical=lambda tasks, norm: tasks * (tasks * norm**2) ** (-2.0 / 3.0),
        orthonormal=lambda tasks: 1.0,
        scale_power=-1.0 / 3.0,
        oracle_families=_SOLVABLE,
    ),
    "famo": Row(assert_inverse_losses, needs_losses=True),
    "fs_mtl": Row(_IN_BALL, identical=lambda tasks, norm: _CAGRAD, orthonormal=lambda tasks: _CAGRAD / tasks),
    # Losses of 2 for equal rows.
    "gls": Row(assert_geometric_mean, needs_losses=True),
    # At each parameter one sign is kept.
    "graddrop": Row(assert_one_sign_per_parameter, orthonormal=None, opposite_cancel=False),
    "gradnorm": Row(assert_mean, needs_losses=True, starts_as_mean=True),
    # Its first update is PCGrad's; test_gradvac.py has the rest.
    "gradvac": Row(
        assert_two_task_surgery,
        permutation_equivariant=False,  # the drawn orders belong to task numbers
        oracle_tasks=(2,),
    ),
    "imgrad": Row(
        _stretched(functools.partial(assert_best_steered, c=0.5), 1.25),
        identical=lambda tasks, norm: 1.2,  # (1 + c) / (1 + c^2) at c = 0.5
        orthonormal=lambda tasks: 1.2 / tasks,
    ),
    "imtl_g": Row(assert_equal_projections, oracle_families=_SOLVABLE),
    "imtl_l": Row(assert_mean, needs_losses=True, starts_as_mean=True),
    "inverse_alpha": Row(assert_inverse_temperatures),
    "ldc_mtl": Row(
        functools.partial(assert_discrepancies, lam=0.4),
        orthonormal=None,  # rounding decides which of two equal losses is larger
        needs_losses=True,
        permutation_equivariant=False,  # neighbours in the tasks' order
        options={"lam": 0.4},
    ),
    "loss_proportional": Row(assert_equal_contributions, needs_losses=True, oracle_families=_SOLVABLE),
    # Optimiser's first step, the sign of each entry, once all tasks have had their turn.
    "m_config": Row(
        assert_signs_of_config,
        identical=None,
        orthonormal=None,
        scale_power=0.0,
        options={"eps": 1e-30},  # a larger one breaks the scale law where gradients are small
        row_scale_invariant=True,
        calls=lambda tasks: tasks,
        oracle_families=_SOLVABLE,
    ),
    "mean": Row(assert_mean),
    "mgda": Row(assert_shortest),
    # Losses of 2 for equal rows, half of which the first update tracks.
    "moco": Row(assert_tracked, identical=lambda tasks, norm: 1.0 / norm, scale_power=0.0, needs_losses=True),
    "modo": Row(
        functools.partial(assert_double_sampling, gamma=0.001, rho=0.1),
        scale_power=None,  # its step is taken on the Gramian as it is
        starts_as_mean=True,  # one step is small
    ),
    # The first running mean is the gradients themselves; test_wrappers.py has the rest.
    "momentum": Row(
        _IN_BALL, identical=lambda tasks, norm: _CAGRAD, orthonormal=lambda tasks: _CAGRAD / tasks
    ),
    "nash_mtl": Row(
        assert_bargaining,
        identical=lambda tasks, norm: 1.0 / norm,
        orthonormal=lambda tasks: tasks**-0.5,
        scale_power=0.0,
        row_scale_invariant=True,
        oracle_families=_SOLVABLE,
    ),
    "ngdiff": Row(assert_unit_pull),
    "normscale": Row(assert_harmonic),
    "ntkmtl": Row(
        assert_kernel_norms, identical=lambda tasks, norm: tasks**0.5, orthonormal=lambda tasks: tasks**-0.5
    ),
    "pcgrad": Row(
        assert_two_task_surgery,
        permutation_equivariant=False,  # the drawn orders belong to task numbers
        oracle_tasks=(2,),
    ),
    # Without success rates it is FairGrad; test_pivrg.py has the rest.
    "pivrg": Row(
        functools.partial(assert_fair, alpha=2.0),
        identical=lambda tasks, norm: tasks * (tasks * norm**2) ** (-2.0 / 3.0),
        orthonormal=lambda tasks: 1.0,
        scale_power=-1.0 / 3.0,
        oracle_families=_SOLVABLE,
    ),
    # Its weights are drawn: equal tasks get unequal ones.
    "rlw": Row(
        assert_on_the_simplex,
        orthonormal=None,
        opposite_cancel=False,
        permutation_equivariant=False,  # the drawn weights belong to task numbers
        oracle_families=_SOLVABLE,
    ),
    "sdmgrad": Row(functools.partial(assert_direction_oriented, lam=0.6)),
    # With all tasks sampled it is SDMGrad itself; test_sampling.py has the rest.
    "sdmgrad_os": Row(functools.partial(assert_direction_oriented, lam=0.6), options={"sampled": 64}),
    "slaw": Row(assert_mean, needs_losses=True, starts_as_mean=True),
    # Its first weights are the base's; test_wrappers.py has the rest.
    "smoothed": Row(assert_shortest),
    "stch": Row(
        assert_log_losses,
        identical=lambda tasks, norm: 0.5,
        orthonormal=lambda tasks: 0.5 / tasks,
        needs_losses=True,
    ),
    # One group is the base; test_wrappers.py has the rest.
    "turns": Row(
        _IN_BALL,
        identical=lambda tasks, norm: _CAGRAD,
        orthonormal=lambda tasks: _CAGRAD / tasks,
        options={"groups": 1},
    ),
    "upgrad": Row(assert_unconflicted),
    "uw": Row(
        assert_half_mean,
        identical=lambda tasks, norm: 0.5,
        orthonormal=lambda tasks: 0.5 / tasks,
        needs_losses=True,
        starts_as_mean=True,
    ),
    "uw_so": Row(
        functools.partial(assert_soft_inverse_losses, temperature=0.3),
        options={"temperature": 0.3},
        needs_losses=True,
    ),
    "torchjd": Row(
        _torchjd,
        scale_law_from=1.0,  # below a squared norm of 1e-4 it takes the Jacobian for zero
        reads_host="TorchJD solves with quadprog and cvxpy, on the host",
    ),
}
