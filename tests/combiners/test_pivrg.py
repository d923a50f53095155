from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtrl import train
from mtrl.agents.sac.agent import SACAgent
from mtrl.combiners import make_combiner
from mtrl.combiners.pivrg import PIVRG
from mtrl.config.schema import EvalConfig
from mtrl.runs.checkpoint import load_checkpoint
from tests.helpers.agents import sac_agent, sac_config
from tests.helpers.matrices import jacobian
from tests.helpers.short_runs import counting

RATES = (1.0, 0.25, 0.0, 0.5)


def preferences(rates: tuple[float, ...], bound: float = 2.0, temperature: float = 0.1) -> torch.Tensor:
    tau = max((max(rates) - min(rates)) / math.log(bound), temperature)
    powers = torch.tensor([math.exp((1.0 - rate) / tau) for rate in rates], dtype=torch.float64)
    return len(rates) * powers / powers.sum()


@pytest.mark.parametrize("family", ["iid", "common", "conflicting", "spread_3"])
@pytest.mark.parametrize(("bound", "temperature"), [(5.0, 0.1), (100.0, 0.3)])  # each decides tau once
def test_weights_solve_the_equation_of_the_paper(family: str, bound: float, temperature: float) -> None:
    rows = jacobian(family, 4, seed=2)
    combiner = PIVRG(num_tasks=4, bound=bound, temperature=temperature)
    combiner.note_success(torch.tensor(RATES))
    direction = combiner.combine(rows)
    weights = torch.linalg.lstsq(rows.T, direction).solution
    torch.testing.assert_close(
        rows @ direction, (preferences(RATES, bound, temperature) / weights).sqrt(), rtol=1e-6, atol=0.0
    )
    assert combiner.metrics()["residual"] < 1e-6


def test_equal_rates_and_none_are_fairgrad() -> None:
    rows = jacobian("conflicting", 4, seed=0)
    expected = make_combiner("fairgrad", num_tasks=4, alpha=2.0).combine(rows)
    for rates in (None, torch.full((4,), 0.7), torch.full((4,), torch.nan)):
        combiner = PIVRG(num_tasks=4)
        if rates is not None:
            combiner.note_success(rates)
        torch.testing.assert_close(combiner.combine(rows), expected)


def test_a_task_without_a_rate_keeps_a_preference_of_one() -> None:
    combiner = PIVRG(num_tasks=3)
    combiner.note_success(torch.tensor([0.0, torch.nan, 1.0]))
    found = combiner.metrics()["preference"]
    torch.testing.assert_close(found[[0, 2]], preferences((0.0, 1.0)))
    assert found[1] == 1.0


@pytest.mark.parametrize(("lowest", "ratio"), [(0.1, 2.0), (0.8, 2.0), (0.87, math.exp(0.3))])
def test_no_preference_exceeds_another_by_more_than_the_bound(lowest: float, ratio: float) -> None:
    combiner = PIVRG(num_tasks=3)
    combiner.note_success(torch.tensor([0.9, lowest, 0.9], dtype=torch.float64))
    found = combiner.metrics()["preference"]
    assert (found[1] / found[0]).item() == pytest.approx(ratio)


@pytest.mark.parametrize("rates", [[0.1, 0.2], [0.1, 1.2, 0.0], [-0.1, 0.0, 0.0]])
def test_what_is_no_rate_per_task_is_refused(rates: list[float]) -> None:
    with pytest.raises(ValueError, match=r"success rates must be 3 numbers in \[0, 1\]"):
        PIVRG(num_tasks=3).note_success(torch.tensor(rates))


@pytest.mark.parametrize("rates", [[0.5] * 3, np.full(3, 0.5)], ids=["list", "array"])
def test_rates_that_are_no_tensor_are_refused(rates: Any) -> None:
    with pytest.raises(ValueError, match="success rates must be a tensor of 3 numbers; found "):
        PIVRG(num_tasks=3).note_success(rates)


@pytest.mark.parametrize("name", ["turns", "smoothed", "blocks"])
@pytest.mark.parametrize("rates", [[0.5] * 3, [0.5] * 6, [0.5, 0.5, 0.5, 2.0]])
def test_methods_around_it_refuse_what_is_no_rate_per_task(name: str, rates: list[float]) -> None:
    combiner = make_combiner(name, num_tasks=4, base="pivrg")
    before = {key: value.clone() for key, value in combiner.state_dict().items()}
    with pytest.raises(ValueError, match=r"success rates must be 4 numbers in \[0, 1\], or NaN; found \["):
        combiner.note_success(torch.tensor(rates))
    assert all(torch.equal(value, before[key]) for key, value in combiner.state_dict().items())


def test_methods_around_it_hand_rates_on() -> None:
    grouped = make_combiner("turns", num_tasks=4, base="pivrg", order=(3, 1, 0, 2))
    smoothed = make_combiner("smoothed", num_tasks=4, base="pivrg")
    for combiner in (grouped, smoothed, make_combiner("mean", num_tasks=4)):
        combiner.note_success(torch.tensor(RATES))
    found = [base.preference for base in grouped.modules() if isinstance(base, PIVRG)]
    for group, preference in zip(((3, 1), (0, 2)), found, strict=True):
        torch.testing.assert_close(preference, preferences(tuple(RATES[task] for task in group)))
    (inner,) = [base for base in smoothed.modules() if isinstance(base, PIVRG)]
    torch.testing.assert_close(inner.preference, preferences(RATES))


def test_an_agent_tells_the_methods_of_both_networks() -> None:
    agent = sac_agent(sac_config("pivrg"))
    agent.note_success(torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64).numpy())
    for network in (agent.update.critic, agent.update.actor):
        found = cast(PIVRG, network.combiner).preference
        torch.testing.assert_close(found, preferences((1.0, 0.0, 0.5)))


@pytest.mark.dear
@pytest.mark.usefixtures("worker_threads")
def test_a_run_notes_its_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[list[float]] = []
    own = SACAgent.note_success

    def noting(agent: SACAgent, rates: NDArray[np.float64]) -> None:
        noted.append(rates.tolist())
        own(agent, rates)

    monkeypatch.setattr(SACAgent, "note_success", noting)
    settings = counting(
        method="pivrg", eval=EvalConfig(interval=30, episodes_per_task=2, final_episodes_per_task=2)
    )
    result = train(settings, tmp_path / "run")
    assert len(noted) == 2
    assert result.evaluation is not None
    assert noted[-1] == result.evaluation.success.mean(axis=1).tolist()
    state = load_checkpoint(tmp_path / "run")[1]["agent"]["update"]
    expected = preferences(tuple(noted[-1]))
    torch.testing.assert_close(state["critic.combiner.preference"], expected)
