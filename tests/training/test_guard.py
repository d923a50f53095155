"""The guard against divergence: what it says, how often, and that it stops a run that is to be stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from scipy.stats import fisher_exact

from mtrl import train
from mtrl.agents.base import Bound
from mtrl.errors import Diverged
from mtrl.training.guard import DivergenceGuard, _chance
from tests.helpers.short_runs import COUNTING, config

pytestmark = pytest.mark.usefixtures("worker_threads")

TASKS = ("door", "drawer")


def guard(action: str = "warn") -> tuple[DivergenceGuard, list[str]]:
    said: list[str] = []
    return DivergenceGuard({"critic_loss": Bound(0.0, 100.0, "Lower it.")}, TASKS, action, said.append), said  # type: ignore[arg-type]


def test_a_loss_beyond_its_bound_is_told_once_with_its_task_until_it_is_back() -> None:
    watch, said = guard()
    for step, loss in enumerate((99.0, 101.0, 5000.0, 50.0, 101.0)):
        watch.metrics(step, {"critic_loss": [1.0, loss], "unbounded": [1e30, 1e30]})
    assert len(said) == 2
    assert "step 1: critic_loss beyond [0, 100] in drawer (101). Lower it." in said[0]
    assert "step 4" in said[1]


def test_an_infinite_number_is_beyond_every_bound_and_an_unknown_one_beyond_none() -> None:
    watch, said = guard()
    watch.metrics(1, {"critic_loss": [float("nan"), float("inf")]})
    assert "drawer (inf)" in said[0]
    assert "door" not in said[0]


@pytest.mark.parametrize(
    ("rates", "told"), [((0.9, 0.1), 1), ((0.7, 0.0), 0), ((0.9, 0.3), 0), ((None, 0.1), 0)]
)
def test_a_solved_task_that_is_lost_is_told(rates: tuple[float | None, float], told: int) -> None:
    watch, said = guard()
    for step, rate in enumerate(rates):
        watch.evaluation(step, {"door": 1.0, "drawer": rate}, 50)
    assert len(said) == told
    assert all("drawer (0.1)" in text and "train.keep_best" in text for text in said)


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ((1.0, 5), (0.0, 5), 0),  # by chance in 1 of 252 evaluations
        ((0.8, 10), (0.2, 10), 0),  # 1 of 87
        ((1.0, 10), (0.0, 10), 1),
        ((0.9, 50), (0.2, 10), 1),
        ((0.8, 50), (0.2, 50), 1),
    ],
)
def test_a_fall_that_few_episodes_may_show_by_chance_is_none(
    before: tuple[float, int], now: tuple[float, int], told: int
) -> None:
    watch, said = guard()
    watch.evaluation(1, {"door": before[0]}, before[1])
    watch.evaluation(2, {"door": now[0]}, now[1])
    assert len(said) == told


def test_the_chance_of_a_fall_is_that_of_drawing_so_few_successes_from_both_evaluations() -> None:
    for (best, many), (rate, few) in (((0.9, 10), (0.2, 5)), ((1.0, 8), (0.5, 8)), ((0.8, 5), (0.0, 9))):
        table = [
            [round(rate * few), few - round(rate * few)],
            [round(best * many), many - round(best * many)],
        ]
        assert _chance((best, many), (rate, few)) == pytest.approx(fisher_exact(table, "less").pvalue)


def test_what_former_processes_saw_counts() -> None:
    watch, said = guard()
    solved, unknown = {"success": 0.8, "episodes": 50}, {"success": None, "episodes": 50}
    watch.remember([{"tasks": {"door": solved, "drawer": unknown}}])
    watch.evaluation(5, {"door": 0.2, "drawer": 0.2}, 50)
    assert len(said) == 1 and "door" in said[0]


def test_off_says_nothing_and_stop_raises() -> None:
    watch, said = guard("off")
    watch.metrics(1, {"critic_loss": [1e9, 1.0]})
    assert said == []
    with pytest.raises(Diverged, match=r"door \(1e\+09\).*on_divergence=stop"):
        guard("stop")[0].metrics(1, {"critic_loss": [1e9, 1.0]})


def test_a_run_warns_or_stops_as_configured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(**COUNTING)
    tight = dataclasses.replace(settings, sac=dataclasses.replace(settings.sac, critic_loss_bound=1e-3))
    train(dataclasses.replace(tight, steps=30), tmp_path / "warned")
    assert capsys.readouterr().err.count("learning may have diverged at vector step 20") == 1
    stop = dataclasses.replace(tight, train=dataclasses.replace(tight.train, on_divergence="stop"))
    with pytest.raises(Diverged, match=r"critic_loss beyond .* in task-1 .*, task-2 "):
        train(stop, tmp_path / "stopped")
