"""Episodes followed by hand, and what a log line says of them."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from mtrl.agents.base import TaskSpec, Transitions
from mtrl.agents.sac.episode_starts import EpisodeStarts
from mtrl.training.guard import DivergenceGuard
from tests.helpers.agents import OBS, TASKS, sac_agent, sac_config

SPEC, GAMMA = TaskSpec(("a", "b"), 2, 1, 1), 0.5


def _seen(
    number: float, reward: list[float], ended: tuple[int, ...] = (), lost: tuple[int, ...] = ()
) -> Transitions:
    rows = np.arange(4)
    places = (number + rows.reshape(4, 1) / 10).astype(np.float32)
    nothing, over, gone = np.zeros(4, bool), np.isin(rows, ended), np.isin(rows, lost)
    return Transitions(places, -places, np.array(reward, np.float32), places, nothing, over, gone)


def test_the_newest_whole_episode_of_each_environment() -> None:
    starts = EpisodeStarts(SPEC, GAMMA)
    starts.add(_seen(1, [1, 1, 1, 1]))
    starts.add(_seen(2, [4, 4, 4, 4], ended=(0, 1), lost=(2,)))
    np.testing.assert_array_equal(starts.newest.realised, [3, 3, np.nan, np.nan])
    starts.add(_seen(3, [8, 8, 8, 8], ended=(1, 2, 3)))
    # Row 2 began anew after it was lost; row 3 is in its first episode, row 0 in its second.
    np.testing.assert_array_equal(starts.newest.realised, [3, 8, 8, 5])
    np.testing.assert_allclose(starts.newest.obs[:, 0], [1.0, 3.1, 3.2, 1.3])
    np.testing.assert_allclose(starts.newest.action[:, 0], [-1.0, -3.1, -3.2, -1.3])
    other = EpisodeStarts(SPEC, GAMMA)
    other.load_state_dict(copy.deepcopy(starts.state_dict()))
    for followed in (starts, other):
        followed.add(_seen(4, [16, 1, 1, 1], ended=(0,)))
        np.testing.assert_array_equal(followed.newest.realised, [16, 8, 8, 5])


@pytest.mark.parametrize("scaling", ["none", "ema", "return"])
def test_a_log_line_has_the_critics_value_of_first_actions_beside_the_scaled_return(scaling: str) -> None:
    agent = sac_agent(sac_config(replay={"reward_scaling": scaling}))
    rng, seen = np.random.default_rng(0), []
    for step in range(20):
        obs = rng.normal(size=(TASKS, OBS)).astype(np.float32)
        action, reward = agent.act(obs), rng.normal(size=TASKS).astype(np.float32)
        ended = np.full(TASKS, step == 16)
        ended[1:] = False  # only the first task ends an episode
        agent.learn(0.0)
        agent.observe(Transitions(obs, action, reward, obs, ended & False, ended, ended & False))
        seen.append((obs, action, reward))
    line = agent.metrics().per_task
    assert agent.bounds().keys() <= line.keys()
    inputs = torch.cat([torch.from_numpy(value[:, None]) for value in seen[0][:2]], dim=-1)
    critics = agent.update.critic_network.apply(agent.update.critic.flat.named(), inputs, None).squeeze(-1)
    expected = float(critics.amin(0)[0, 0])  # the smaller of the twins
    assert line["start_value"][0] == pytest.approx(expected, rel=1e-5)
    realised = sum(0.99**k * float(reward[0]) for k, (_, _, reward) in enumerate(seen[:17]))
    scale = agent.replay.reward_scale
    divisor = 1.0 if scale is None else float(scale[0])
    assert (divisor != 1.0) == (scaling != "none")
    assert line["start_return"][0] == pytest.approx(realised / divisor, rel=1e-5)
    assert np.isnan(line["start_value"][1:]).all()
    assert np.isnan(line["start_return"][1:]).all()


@pytest.mark.parametrize("scaling", ["ema", "return"])
@pytest.mark.parametrize("loss", ["squared", "histogram", "categorical"])
def test_returns_that_the_atoms_do_not_hold_are_told_and_stop_no_run(loss: str, scaling: str) -> None:
    replay = {"reward_scaling": scaling}
    agent = sac_agent(sac_config(critic_loss=loss, value_low=-2.0, value_high=5.0, replay=replay))
    told: list[str] = []
    guard = DivergenceGuard(agent.bounds(), ("a", "b", "c"), "stop", told.append)
    guard.metrics(1, {"start_return": [-2.0, 5.000001, math.nan]})
    assert not told
    guard.metrics(2, {"start_return": [-2.1, 5.0, 70.0]})
    if loss == "squared":
        assert not told
    else:
        (warning,) = told
        assert warning.startswith("vector step 2: start_return beyond [-2, 5] in a (-2.1), c (70).")
        assert ("replay.reward_scaling=return" in warning) == (scaling != "return")
        assert ("lower replay.return_bound" in warning) == (scaling == "return")
