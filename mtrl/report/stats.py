"""Statistics of a few seeds on several tasks: aggregates, intervals, comparisons. Knows numbers, not files.

Scores are [R, T]: run (seed) by task; curves [R, K]: run by evaluation. More axes in front are allowed where
a signature says `...`, so that the bootstrap evaluates all its resamples at once.

Sources: interquartile mean, stratified bootstrap, performance profile, probability of improvement: Agarwal et
al., "Deep reinforcement learning at the edge of the statistical precipice", NeurIPS 2021, sections 4 and A.
The test suite checks them against the authors' package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.integrate
import scipy.stats
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[..., Any]  # arrays [..., R, T] -> [...]
Unit = Literal["run", "task"]

RESAMPLES = 5_000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate and the ends of its bootstrap interval; the ends are NaN where there is one run."""

    value: float
    low: float
    high: float


class Selection(NamedTuple):
    """One number per rule by which the field picks it from the curves of all seeds, smallest first."""

    final: Interval  # mean over seeds of the last evaluation: Meta-World+
    best_of_mean: Interval  # highest point of the seeds' mean curve: CARE, CAGrad, App. B.3
    mean_of_best: Interval  # mean of each seed's highest point: Nash-MTL, App. B


def mean(scores: Floats) -> Any:
    """Mean over runs and tasks: [..., R, T] -> [...]."""
    return scores.mean(axis=(-2, -1))


def iqm(scores: Floats) -> Any:
    """Interquartile mean over runs and tasks together: [..., R, T] -> [...].

    The mean of the middle half of all R*T numbers; a quarter is cut off at each end, rounded down.
    """
    return scipy.stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def bootstrap(
    statistic: Statistic,
    *scores: Floats,
    unit: Unit = "run",
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Return `statistic(*scores)` and its percentile bootstrap interval.

    Args:
        statistic: takes arrays [..., R, T], one for each of `scores`, and reduces the last two axes.
        scores: [R, T] each; R may differ between them.
        unit: what is drawn with replacement. "run" draws whole runs, since the tasks of one run share an
            agent and rise and fall together; "task" draws runs anew for each task, the paper's stratified
            bootstrap, made for agents of one task each and narrower where tasks move together.
        resamples: number of resamples.
        confidence: coverage of the interval, in (0, 1).
        seed: of the resampling.
    """
    low, high = _ends(statistic, scores, unit, resamples, confidence, seed)
    return Interval(float(statistic(*scores)), float(low), float(high))


def band(curves: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean of curves [R, K] over runs and the ends of its bootstrap interval, pointwise, each [K]."""

    def over_runs(resampled: Floats) -> Any:
        return resampled.mean(axis=-2)

    center = over_runs(curves)
    # Fewer resamples than for a table: nobody reads a third decimal off a band.
    low, high = _ends(over_runs, (curves,), "run", 1_000, CONFIDENCE, seed=0)
    return center, np.broadcast_to(low, center.shape), np.broadcast_to(high, center.shape)


def _ends(
    statistic: Statistic, scores: Sequence[Floats], unit: Unit, resamples: int, confidence: float, seed: int
) -> tuple[Any, Any]:
    """Return the ends of the percentile interval, shaped as the statistic; NaN where there is one run.

    Percentiles, not BCa: BCa needs the jackknife, which has two values at two seeds, and is undefined where
    all runs score the same.
    """
    if any(len(array) < 2 for array in scores):
        return np.nan, np.nan
    columns = [1 if unit == "run" else array.shape[1] for array in scores]
    pairs = list(zip(scores, columns, strict=True))
    samples = [np.arange(len(array)) for array, count in pairs for _ in range(count)]

    def of_indices(*indices: NDArray[Any], axis: int) -> Any:
        # scipy resamples each sequence of run indices on its own: one sequence for all tasks, or one a task.
        assert axis == -1
        resampled, start = [], 0
        for array, count in pairs:
            picked = np.stack(indices[start : start + count], axis=-1)  # [..., R, 1 or T]
            resampled.append(array[picked, np.arange(array.shape[1])])
            start += count
        found = np.asarray(statistic(*resampled))
        return np.moveaxis(found, 0, -1) if indices[0].ndim > 1 else found  # scipy: resamples come last

    result = scipy.stats.bootstrap(
        samples,
        of_indices,
        n_resamples=resamples,
        batch=500,  # bounds memory: 500 resamples of ten runs on fifty tasks are 2 MB
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return result.confidence_interval.low, result.confidence_interval.high


def probability_of_improvement(scores: Floats, other: Floats) -> Any:
    """Chance that a run of the first beats one of the second on a task, mean over tasks; a tie counts half.

    [..., R, T] and [..., S, T] -> [...]. Per task this is the Mann-Whitney U statistic over R*S.
    """
    difference = scores[..., :, None, :] - other[..., None, :, :]
    return (np.sign(difference).mean(axis=(-3, -2, -1)) + 1.0) / 2.0


def performance_profile(scores: Floats, thresholds: Floats) -> Floats:
    """Share of all R*T scores above each threshold: [..., R, T], [K] -> [..., K]."""
    above = scores[..., None] > thresholds
    result: Floats = above.mean(axis=(-3, -2))
    return result


def delta_m(scores: Floats, single_task: Floats) -> Any:
    """Delta m: mean relative drop against single-task agents in percent; [..., T], [T] -> [...].

    Higher scores are better; negative where the multi-task agent is. Maninis et al., CVPR 2019, with the sign
    of CAGrad and Nash-MTL. A task whose single-task score is not positive has no relative drop: leave it out.

    Raises:
        ValueError: a single-task score is not positive.
    """
    if not (single_task > 0.0).all():
        raise ValueError(f"Delta m needs positive single-task scores; found {single_task.tolist()}.")
    return 100.0 * ((single_task - scores) / single_task).mean(axis=-1)


def average_rank(scores: Floats) -> Floats:
    """Rank of each method on a task, mean over tasks: [M, T], higher is better -> [M]; ties share ranks."""
    result: Floats = scipy.stats.rankdata(-scores, axis=0).mean(axis=1)
    return result


def selection(curves: Floats, *, seed: int = 0) -> Selection:
    """Return the three numbers that papers report of one set of curves [R, K], with intervals over runs.

    final <= best_of_mean <= mean_of_best: the last two pick their evaluations on the very episodes that they
    report, and the more evaluations there are, the more they gain.
    """
    rules: tuple[Statistic, ...] = (
        lambda x: x[..., -1].mean(axis=-1),
        lambda x: x.mean(axis=-2).max(axis=-1),
        lambda x: x.max(axis=-1).mean(axis=-1),
    )
    return Selection(*(bootstrap(rule, curves, seed=seed) for rule in rules))


def area_under_curve(steps: Floats, curves: Floats) -> Any:
    """Mean height of curves between first and last evaluation (trapezoids): [K], [..., K] -> [...].

    Nothing is made up before the first evaluation: the area depends on when that is.
    """
    if len(steps) == 1:
        return curves[..., 0]
    return scipy.integrate.trapezoid(curves, steps, axis=-1) / (steps[-1] - steps[0])


def first_crossing(at: Floats, curves: Floats, threshold: float) -> Floats:
    """Where each curve is first at `threshold` or above; infinity where it never is.

    `at`: steps [K] or seconds [R, K]; curves [R, K] -> [R]. Only evaluations count, no interpolation.
    """
    reached = curves >= threshold
    first = reached.argmax(axis=-1)
    places = np.broadcast_to(at, curves.shape)
    found = np.take_along_axis(places, first[..., None], axis=-1)[..., 0]
    return np.where(reached.any(axis=-1), found, np.inf)


def rank_agreement(identifier: Floats, success: Floats) -> tuple[float, float]:
    """Kendall's tau-b of two sequences [N] and its p-value; NaN where one of them is constant."""
    if len(identifier) < 2 or np.ptp(identifier) == 0.0 or np.ptp(success) == 0.0:
        return np.nan, np.nan
    result = scipy.stats.kendalltau(identifier, success)
    return float(result.statistic), float(result.pvalue)
