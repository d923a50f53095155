"""Statistics against formulas written out, exhaustive resampling and the package of the paper's authors."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from mtrl.report import stats

# Two small tables of scores with ties: 5 and 4 runs of 6 tasks.
SCORES = np.array([[(7 * i * i + 3 * j + i * j) % 11 / 10 for j in range(6)] for i in range(5)])
OTHER = np.array([[(5 * i + 4 * j * j + i * j) % 11 / 10 for j in range(6)] for i in range(4)])

# Printed by rliable 1.2.0 for these scores; the interval is stratified by task, with 50 000 resamples.
RLIABLE_IQM, RLIABLE_IQM_INTERVAL = 0.5062500000000001, [0.36875, 0.64375]
RLIABLE_BETTER = 0.525


def _middle_half(numbers: list[float]) -> float:
    cut = len(numbers) // 4
    kept = sorted(numbers)[cut : len(numbers) - cut]
    return sum(kept) / len(kept)


def test_iqm_is_the_mean_of_the_middle_half() -> None:
    assert stats.iqm(SCORES) == pytest.approx(_middle_half([*SCORES.flat]), abs=1e-12)


def test_probability_of_improvement_counts_pairs() -> None:
    wins = 0.0
    for task in range(6):
        for a, b in itertools.product(SCORES[:, task], OTHER[:, task]):
            wins += 1.0 if a > b else 0.5 if a == b else 0.0
    expected = wins / (6 * 5 * 4)
    assert stats.improvement(SCORES, OTHER).value == pytest.approx(expected, abs=1e-12)
    assert stats.improvement(OTHER, SCORES).value == pytest.approx(1.0 - expected, abs=1e-12)


def test_estimates_and_intervals_are_those_of_rliable() -> None:
    assert stats.iqm(SCORES) == pytest.approx(RLIABLE_IQM, abs=1e-12)
    assert stats.improvement(SCORES, OTHER).value == pytest.approx(RLIABLE_BETTER, abs=1e-12)
    iqm = stats.bootstrap(stats.iqm, SCORES, unit="task", resamples=20_000)
    assert [iqm.low, iqm.high] == pytest.approx(RLIABLE_IQM_INTERVAL, abs=0.01)


def test_statistics_equal_rliable_where_it_is_installed() -> None:
    metrics = pytest.importorskip("rliable.metrics")
    library = pytest.importorskip("rliable.library")
    thresholds = np.linspace(0.0, 1.0, 21)
    assert stats.iqm(SCORES) == pytest.approx(metrics.aggregate_iqm(SCORES), abs=1e-12)
    better = metrics.probability_of_improvement(SCORES, OTHER)
    assert stats.improvement(SCORES, OTHER).value == pytest.approx(better, abs=1e-12)
    expected = library.score_distributions(SCORES, thresholds)
    np.testing.assert_allclose(stats.performance_profile(SCORES, thresholds), expected, atol=1e-12)


def _all_resamples(scores: NDArray[Any], unit: str) -> list[float]:
    """The mean of every equally likely resample of a small table."""
    runs, tasks = scores.shape
    draws = list(itertools.product(range(runs), repeat=runs))
    if unit == "run":
        return [float(scores[list(draw)].mean()) for draw in draws]
    columns = [[float(scores[list(draw), task].mean()) for draw in draws] for task in range(tasks)]
    return [sum(means) / tasks for means in itertools.product(*columns)]


@pytest.mark.parametrize("unit", ["run", "task"])
def test_intervals_are_quantiles_of_all_possible_resamples(unit: stats.Unit) -> None:
    scores = np.array([[0.0, 0.1], [0.31, 0.47], [0.83, 1.0]])
    expected = np.quantile(_all_resamples(scores, unit), [0.1, 0.9])
    found = stats.bootstrap(stats.mean, scores, unit=unit, resamples=20_000, confidence=0.8)
    assert [found.low, found.high] == pytest.approx(expected, abs=0.02)
    assert found.value == pytest.approx(scores.mean(), abs=1e-12)


def test_drawing_whole_runs_widens_the_interval_of_tasks_that_move_together() -> None:
    scores = np.linspace(0.2, 0.8, 6)[:, None].repeat(8, axis=1)
    whole = stats.bootstrap(stats.mean, scores, unit="run")
    apart = stats.bootstrap(stats.mean, scores, unit="task")
    # Means of 8 independent columns spread sqrt(8) times less.
    assert (whole.high - whole.low) / (apart.high - apart.low) == pytest.approx(np.sqrt(8), rel=0.1)


def test_one_run_has_no_interval() -> None:
    found = stats.bootstrap(stats.mean, SCORES[:1])
    assert found.value == pytest.approx(SCORES[0].mean())
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_selection_rules_on_curves_that_peak_at_different_times() -> None:
    curves = np.array([[0.2, 0.9, 0.5], [0.6, 0.1, 0.4]])
    found = stats.selection(curves)
    assert found.final.value == pytest.approx(0.45)
    assert found.best_of_mean.value == pytest.approx(0.5)
    assert found.mean_of_best.value == pytest.approx(0.75)


def test_profile_is_the_share_above_each_threshold() -> None:
    scores = np.array([[0.0, 1.0], [0.5, 1.0]])
    np.testing.assert_array_equal(
        stats.performance_profile(scores, np.array([-1.0, 0.0, 0.5, 1.0])), [1, 0.75, 0.5, 0]
    )


def test_delta_m_is_a_relative_drop_and_refuses_tasks_without_a_baseline() -> None:
    single = np.array([0.8, 0.5])
    assert stats.delta_m(np.array([0.4, 0.5]), single) == pytest.approx(25.0)
    assert stats.delta_m(np.array([0.8, 0.75]), single) == pytest.approx(-25.0)
    with pytest.raises(ValueError, match="positive single-task"):
        stats.delta_m(np.array([0.4, 0.5]), np.array([0.8, 0.0]))


def test_ranks_are_averaged_over_tasks_and_shared_by_ties() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.7, 0.2], [0.1, 0.6, 0.3]])
    np.testing.assert_allclose(
        stats.average_rank(scores), [(1.5 + 3 + 3) / 3, (1.5 + 1 + 2) / 3, (3 + 2 + 1) / 3]
    )


def test_area_is_the_mean_height_between_the_evaluations() -> None:
    steps = np.array([10.0, 20.0, 50.0])
    curves = np.array([[0.0, 1.0, 1.0], [0.4, 0.4, 0.4]])
    np.testing.assert_allclose(stats.area_under_curve(steps, curves), [35 / 40, 0.4])
    np.testing.assert_allclose(stats.area_under_curve(steps[:1], curves[:, :1]), [0.0, 0.4])


def test_thresholds_are_crossed_at_the_first_evaluation_that_reaches_them() -> None:
    curves = np.array([[0.1, 0.5, 0.4], [0.2, 0.3, 0.9], [0.0, 0.1, 0.2]])
    np.testing.assert_array_equal(
        stats.first_crossing(np.array([1.0, 2.0, 3.0]), curves, 0.5), [2, 3, np.inf]
    )
    seconds = np.array([[7.0, 8.0, 9.0], [70.0, 80.0, 90.0], [1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(stats.first_crossing(seconds, curves, 0.5), [8, 90, np.inf])


def test_rank_agreement_of_known_permutations() -> None:
    order = np.array([1.0, 2.0, 3.0, 4.0])
    assert stats.rank_agreement(order, 10 * order)[0] == pytest.approx(1.0)
    assert stats.rank_agreement(order, -order)[0] == pytest.approx(-1.0)
    # One of six pairs is out of order: (5 - 1) / 6.
    assert stats.rank_agreement(order, np.array([1.0, 2.0, 4.0, 3.0]))[0] == pytest.approx(4 / 6)
    assert np.isnan(stats.rank_agreement(order, np.ones(4))[0])


def test_a_band_is_the_intervals_of_the_mean_at_each_evaluation() -> None:
    center, low, high = stats.band(SCORES)
    np.testing.assert_allclose(center, SCORES.mean(axis=0))
    for index in range(SCORES.shape[1]):
        expected = stats.bootstrap(stats.mean, SCORES[:, index : index + 1])
        assert [low[index], high[index]] == pytest.approx([expected.low, expected.high], abs=0.05)


def test_one_paired_interval_is_that_of_scipys_t_test() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1.0, 7)
    found = stats.paired(differences)
    expected = scipy.stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)
    assert found.value == pytest.approx(differences.mean())
    assert np.isnan(stats.paired(differences[:1]).low)
    # Equal coarse scores are no proof of a difference, and equal methods do not differ.
    assert np.isnan(stats.paired(np.full(3, 0.02)).low)
    assert tuple(stats.paired(np.zeros(3))) == (0.0, 0.0, 0.0)


def test_what_is_equal_up_to_rounding_counts_as_equal() -> None:
    sixths = np.array([0.3 - 0.1, 0.7 - 0.5, 1.2 - 1.0])  # all .2, added up in another way each
    assert np.ptp(sixths) > 0
    assert np.isnan(stats.paired(sixths).low)
    assert tuple(stats.paired(sixths - 0.2)) == (0.0, 0.0, 0.0)
    assert np.isnan(stats.rank_agreement(sixths, np.arange(3.0))[0])
    assert np.isnan(stats.rank_agreement(np.arange(3.0), sixths)[0])
    assert stats.rank_agreement(np.array([1e-12, 2e-12, 3e-12]), np.arange(3.0))[0] == pytest.approx(1.0)
    assert stats.average_rank(sixths[:, None]).tolist() == [2.0, 2.0, 2.0]
    just_below = np.array([[0.1 + 0.2 + 0.3 - 0.3, 0.7 + 0.1]])  # .3 and .8
    assert just_below[0, 1] < 0.8
    assert stats.first_crossing(np.array([1.0, 2.0]), just_below, 0.8) == 2.0


@pytest.mark.dear
def test_all_paired_intervals_hold_together_as_often_as_they_say() -> None:
    """Five comparisons with one baseline, whose seeds also move all scores alike: 95 % or a little more."""
    random, truth, hits = np.random.default_rng(1), np.array([0.0, 0.1, -0.2, 0.5, 0.0]), 0
    for _ in range(1_000):
        seed, baseline = random.normal(0, 5, (6, 1)), random.normal(0, 0.1, (6, 1))
        differences = truth + seed + random.normal(0, 0.1, (6, 5)) - (seed + baseline)
        found = [stats.paired(column, comparisons=5) for column in differences.T]
        hits += all(low <= value <= high for value, (_, low, high) in zip(truth, found, strict=True))
    assert 0.94 <= hits / 1_000 <= 0.985


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.bool_, np.float16, list])
def test_scores_of_any_kind_of_number_count_as_the_floats_that_they_are(kind: Any) -> None:
    random = np.random.default_rng(0)
    floats = [random.integers(0, 2, shape).astype(float) for shape in ((3, 4), (5, 4), (4,), (4,))]
    given: list[Any] = [array.tolist() if kind is list else array.astype(kind) for array in floats]
    for statistic in (
        lambda a, *_: (stats.mean(a), stats.iqm(a), stats.paired(a[0]), stats.selection(a)),
        lambda a, b, *_: (stats.bootstrap(stats.mean, a), stats.improvement(a, b), stats.average_rank(a)),
        lambda a, b, c, d: (*stats.band(a), stats.mean_of_known(a), stats.performance_profile(a, c)),
        lambda a, b, c, d: (stats.first_crossing(c, a, 0.5), stats.rank_agreement(c, d)),
        lambda a, *_: (stats.delta_m(a, [True] * 4), stats.area_under_curve([0, 1, 2, 9], a)),
    ):
        for found, expected in zip(statistic(*given), statistic(*floats), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_counts_without_a_sign_are_compared_and_ranked_by_hand() -> None:
    few, many = np.array([[1], [2]], np.uint8), np.array([[3], [4]], np.uint8)
    assert stats.improvement(few, many).value == 0.0
    assert stats.average_rank(np.array([[0, 0], [1, 2], [2, 1]], np.uint8)).tolist() == [3.0, 1.5, 1.5]
    assert stats.delta_m(np.array([3], np.uint8), np.array([2], np.uint8)) == -50.0
