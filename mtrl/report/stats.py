"""Statistics of a few seeds on several tasks: aggregates, intervals and comparisons of arrays.

Scores are [R, T]: run (seed) by task; curves [R, K]: run by evaluation. Where a shape says `...` more axes
may come first, so that the bootstrap evaluates many resamples at once. Arrays may hold any numbers, counts
and bools too; all functions compute with float64.

Sources: interquartile mean, stratified bootstrap, performance profile, probability of improvement: Agarwal et
al., "Deep reinforcement learning at the edge of the statistical precipice", NeurIPS 2021, sections 4 and A.
The test suite checks them against the authors' package.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.integrate
import scipy.stats
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[..., Any]  # arrays [..., R, T] -> [...]
Unit = Literal["run", "task"]

RESAMPLES = 5_000
CONFIDENCE = 0.95
_DIGITS = 9  # after the decimal point: what differs by less is equal, but was added up in another order
_BATCH = 2_000_000  # numbers that a batch of resamples holds at most: bounds memory


class Interval(NamedTuple):
    """An estimate and the ends of its interval; the ends are NaN where there is one run."""

    value: float
    low: float
    high: float


class Selection(NamedTuple):
    """The numbers that papers select from the curves of all seeds, one per rule, smallest first."""

    final: Interval  # mean over seeds of the last evaluation: Meta-World+
    best_of_mean: Interval  # highest point of the seeds' mean curve: CARE, CAGrad, App. B.3
    mean_of_best: Interval  # mean of each seed's highest point: Nash-MTL, App. B


def mean(scores: ArrayLike) -> Any:
    """Mean over runs and tasks: [..., R, T] -> [...]."""
    return _floats(scores).mean(axis=(-2, -1))


def iqm(scores: ArrayLike) -> Any:
    """Interquartile mean over runs and tasks together: [..., R, T] -> [...].

    The mean of the middle half of all R*T numbers; a quarter is cut off at each end, rounded down.
    """
    scores = _floats(scores)
    return scipy.stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def bootstrap(
    statistic: Statistic,
    *scores: ArrayLike,
    unit: Unit = "run",
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Return `statistic(*scores)` and its percentile bootstrap interval.

    Percentiles and not BCa: BCa needs the jackknife, which has only two values at two seeds, and it is
    undefined if all runs score the same.

    Args:
        statistic: takes arrays [..., R, T], one for each of `scores`, and reduces the last two axes.
        scores: [R, T] each; R may differ between them.
        unit: what is drawn with replacement. "run" draws whole runs, since the tasks of one run share an
            agent and are correlated; "task" draws runs separately for each task, the paper's stratified
            bootstrap, which is made for agents of one task each and narrower if tasks are correlated.
        resamples: number of resamples.
        confidence: coverage of the interval, in (0, 1).
        seed: of the resampling.
    """
    arrays = tuple(map(_floats, scores))
    value = float(statistic(*arrays))
    if any(len(array) < 2 for array in arrays):
        return Interval(value, math.nan, math.nan)
    random = np.random.default_rng(seed)
    batch = max(1, _BATCH // sum(array.size for array in arrays))
    found = []
    for start in range(0, resamples, batch):
        size = min(batch, resamples - start)
        found.append(statistic(*(_resampled(array, unit, size, random) for array in arrays)))
    return Interval(value, *_ends(np.concatenate(found), confidence))


def paired(differences: ArrayLike, *, comparisons: int = 1, confidence: float = CONFIDENCE) -> Interval:
    """Mean of differences [R] between runs of one seed, with one of several simultaneous intervals.

    The intervals of all `comparisons` hold together with probability `confidence` at least: Student's t at
    Bonferroni's level 1 - (1 - confidence) / comparisons, for differences that are about normal, however the
    comparisons are correlated. Runs of one seed share what the seed draws, so their differences vary less
    than those of runs of different seeds. The ends are NaN for fewer than two runs, and if all differences
    are equal and not 0, as few coarse scores can be: their spread is then unknown.
    """
    differences = _floats(differences)
    rounded = differences.round(_DIGITS)
    if rounded.size and not np.ptp(rounded):
        differences = rounded
    runs, value = len(differences), float(differences.mean()) if len(differences) else math.nan
    if runs < 2 or (value and not np.ptp(differences)):
        return Interval(value, math.nan, math.nan)
    quantile = scipy.stats.t.ppf(1.0 - (1.0 - confidence) / (2.0 * comparisons), runs - 1)
    reach = float(quantile * differences.std(ddof=1) / math.sqrt(runs))
    return Interval(value, value - reach, value + reach)


def band(curves: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Mean of curves [R, ...] over runs and the ends of its bootstrap interval, pointwise, each [...]."""
    curves = _floats(curves)
    center = curves.mean(axis=0)
    if len(curves) < 2:
        nothing = np.full_like(center, math.nan)
        return center, nothing, nothing
    # Fewer resamples than for a table: the third decimal of a band is not visible.
    weights = _weights(len(curves), 1_000, np.random.default_rng(0))
    low, high = _ends(np.tensordot(weights, curves, axes=1), CONFIDENCE)
    return center, low, high


def improvement(scores: ArrayLike, other: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the probability of improvement of [R, T] over [S, T], with an interval over whole runs.

    The mean over tasks of the comparisons is one matrix [R, S]. A resample only weights its rows and columns,
    so its cost does not depend on T.
    """
    scores, other = _floats(scores), _floats(other)
    wins = np.mean([(np.sign(a[:, None] - b) + 1.0) / 2.0 for a, b in zip(scores.T, other.T, strict=True)], 0)
    value = float(wins.mean())
    if min(wins.shape) < 2:
        return Interval(value, math.nan, math.nan)
    random = np.random.default_rng(seed)
    rows, columns = (_weights(count, RESAMPLES, random) for count in wins.shape)
    return Interval(value, *_ends(((rows @ wins) * columns).sum(axis=1), CONFIDENCE))


def _floats(array: ArrayLike) -> Floats:
    return np.asarray(array, np.float64)


def _resampled(scores: Floats, unit: Unit, size: int, random: np.random.Generator) -> Floats:
    """Draw runs with replacement: [R, T] -> [size, R, T]."""
    runs, tasks = scores.shape
    if unit == "run":
        return scores[random.integers(runs, size=(size, runs))]
    return scores[random.integers(runs, size=(size, runs, tasks)), np.arange(tasks)]


def _weights(runs: int, size: int, random: np.random.Generator) -> Floats:
    """Return the share of each run in a resample [size, R]: the mean of a resample is a product with it."""
    return random.multinomial(runs, np.full(runs, 1.0 / runs), size=size) / runs


def _ends(resampled: Floats, confidence: float) -> Any:
    """Return the ends of the percentile interval of values [resamples, ...]: [2, ...]."""
    return np.quantile(resampled, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0], axis=0)


def mean_of_known(values: ArrayLike, axis: int | None = None) -> Any:
    """Mean over `axis` of the numbers that are not NaN; NaN where there are none."""
    values = _floats(values)
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis), known.sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Share of all R*T scores above each threshold: [..., R, T], [K] -> [..., K]."""
    above = _floats(scores)[..., None] > _floats(thresholds)
    result: Floats = above.mean(axis=(-3, -2))
    return result


def delta_m(scores: ArrayLike, single_task: ArrayLike) -> Any:
    """Delta m: mean relative drop against single-task agents in percent; [..., T], [T] -> [...].

    Higher scores are better, so Delta m is negative if the multi-task agent is better. Maninis et al., CVPR
    2019, with the sign of CAGrad and Nash-MTL. Leave out tasks whose single-task score is not positive: they
    have no relative drop.

    Raises:
        ValueError: a single-task score is not positive.
    """
    scores, single_task = _floats(scores), _floats(single_task)
    if not (single_task > 0.0).all():
        raise ValueError(f"Delta m needs positive single-task scores; found {single_task.tolist()}.")
    return 100.0 * ((single_task - scores) / single_task).mean(axis=-1)


def average_rank(scores: ArrayLike) -> Floats:
    """Rank of each method on a task, mean over tasks: [M, T], higher is better -> [M]; ties share ranks."""
    result: Floats = scipy.stats.rankdata(-_floats(scores).round(_DIGITS), axis=0).mean(axis=1)
    return result


def selection(curves: ArrayLike, *, seed: int = 0) -> Selection:
    """Return the three numbers that papers report of one set of curves [R, K], with intervals over runs.

    final <= best_of_mean <= mean_of_best. The last two select evaluations by the episodes that they report,
    so they grow with the number of evaluations.
    """
    rules: tuple[Statistic, ...] = (
        lambda x: x[..., -1].mean(axis=-1),
        lambda x: x.mean(axis=-2).max(axis=-1),
        lambda x: x.max(axis=-1).mean(axis=-1),
    )
    return Selection(*(bootstrap(rule, curves, seed=seed) for rule in rules))


def area_under_curve(steps: ArrayLike, curves: ArrayLike) -> Any:
    """Mean height of curves between first and last evaluation (trapezoids): [K], [..., K] -> [...].

    The time before the first evaluation does not count.
    """
    steps, curves = _floats(steps), _floats(curves)
    if len(steps) == 1:
        return curves[..., 0]
    return scipy.integrate.trapezoid(curves, steps, axis=-1) / (steps[-1] - steps[0])


def first_crossing(at: ArrayLike, curves: ArrayLike, threshold: float) -> Floats:
    """Return where each curve first reaches `threshold`; infinity if it never does.

    `at`: steps [K] or seconds [R, K]; curves [R, K] -> [R]. Only evaluations count, no interpolation.
    """
    at, curves = _floats(at), _floats(curves)
    reached = curves.round(_DIGITS) >= threshold
    first = reached.argmax(axis=-1)
    places = np.broadcast_to(at, curves.shape)
    found = np.take_along_axis(places, first[..., None], axis=-1)[..., 0]
    return np.where(reached.any(axis=-1), found, np.inf)


def rank_agreement(identifier: ArrayLike, success: ArrayLike) -> tuple[float, float]:
    """Kendall's tau-b of two sequences [N] and its p-value; NaN where one of them is constant."""
    identifier, success = _floats(identifier), _floats(success)
    # Losses and norms may all be small. They are single-precision numbers, of which six digits count.
    identifier = (identifier / (np.abs(identifier).max(initial=0.0) or 1.0)).round(6)
    success = success.round(_DIGITS)
    if len(identifier) < 2 or np.ptp(identifier) == 0.0 or np.ptp(success) == 0.0:
        return np.nan, np.nan
    result = scipy.stats.kendalltau(identifier, success)
    return float(result.statistic), float(result.pvalue)
