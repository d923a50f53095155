"""Environments that keep state in unusual places: saved exactly, or refused before training starts."""

from __future__ import annotations

import pickle
import random
import re
from typing import Any

import numpy as np
import pytest

from mtrl.envs import TaskVectorEnv
from mtrl.envs.engine.worker import _own_global_streams, try_state
from mtrl.envs.gymnasium.env import GymnasiumEnv
from mtrl.envs.gymnasium.suite import GymnasiumSuite
from mtrl.errors import UserError
from tests.helpers.counting_env import CountingEnv, CountingSuite
from tests.helpers.stateful_envs import name

SAVED = ["GlobalDraws", "Closure", "FunctionAttribute", "PlainNames", "Aliases", "Referring"]
REFUSED = {
    "CallableObject": r"CallableObject\.count is a callable .*_Count",
    "ClassCounter": r"ClassCounter\.count, an attribute of the class",
    "ClassList": r"ClassList\.seen, an attribute of the class",
    "TwoNames": r"TwoNames\.second shares a random generator with TwoNames\.first",
    "SharingWrapper": r"_Wrapper\.seen shares memory with Stateful\.seen",
    "LateDeque": r"LateDeque\.last is a collections\.deque",
    "ModuleState": "continues with other numbers",
}


def make(cls: str) -> GymnasiumEnv:
    return GymnasiumEnv({"id": name(cls)}, max_episode_steps=30, render_mode=None)


def play(env: GymnasiumEnv, steps: int = 12) -> list[float]:
    obs = [env.step(np.zeros(1, np.float32))[0] for _ in range(steps)]
    return [float(row[1]) for row in (*obs, env.reset(5), env.step(np.zeros(1, np.float32))[0])]


@pytest.mark.parametrize("cls", SAVED)
def test_state_in_generators_and_functions_continues_in_another_environment(cls: str) -> None:
    env = make(cls)
    env.reset(3)
    play(env, 4)
    state = pickle.loads(pickle.dumps(env.get_state()))
    expected = play(env)
    other = make(cls)
    other.reset(8)
    np.random.seed(9)
    random.seed(9)
    other.set_state(state)
    assert play(other) == expected
    assert len(set(expected)) > 10  # the numbers change at all


def test_global_generators_are_each_environments_own() -> None:
    alone, first, second = (make("GlobalDraws") for _ in range(3))
    alone.reset(3)
    expected = play(alone)
    first.reset(3)
    numbers = []
    for _ in range(12):
        second.reset(4)
        numbers.append(float(first.step(np.zeros(1, np.float32))[0][1]))
        second.step(np.zeros(1, np.float32))
    assert numbers == expected[:12]
    first.reset(3)
    installed = np.random.get_bit_generator()  # type: ignore[attr-defined]
    with _own_global_streams():
        make("GlobalDraws").reset(4)
    assert np.random.get_bit_generator() is installed  # type: ignore[attr-defined]
    assert play(first) == expected


def test_attributes_that_former_checkpoints_do_not_hold_stay() -> None:
    env = make("PlainNames")
    env.reset(3)
    state = env.get_state()
    for layer in state["simulation"]["layers"]:
        for absent in ("data", "model", "env"):
            layer.pop(absent, None)
    env.set_state(state)
    assert len(play(env)) == 14


@pytest.mark.dear
@pytest.mark.parametrize("cls", REFUSED)
def test_what_cannot_be_saved_is_found_at_the_start(cls: str) -> None:
    with TaskVectorEnv(GymnasiumSuite([name(cls)]), seed=0, num_workers=1) as envs:
        problem = envs.state_problem()
        assert problem is not None
        assert re.search(REFUSED[cls], problem), problem
        assert envs.reset()[0].shape == (1, 2)  # training may start all the same


def test_an_environment_that_breaks_after_it_was_restored_cannot_be_saved() -> None:
    class Stale(CountingEnv):
        stale = False

        def set_state(self, state: Any) -> None:
            self.stale = True

        def step(self, action: Any) -> Any:
            if self.stale:
                raise TypeError("a handle that is gone")
            return super().step(action)

    problem, _ = try_state(Stale("task-1", np.arange(50.0), 0.0), "task-1", CountingSuite(["task-1"]))
    assert problem is not None and problem.startswith("task task-1 cannot be saved in mid-episode: TypeError")


def test_a_task_with_one_goal_can_be_saved() -> None:
    suite = CountingSuite(["task-1"], num_goals=1)
    assert try_state(CountingEnv("task-1", np.arange(1.0), 0.0), "task-1", suite)[0] is None


@pytest.mark.parametrize("cls", SAVED)
def test_what_can_be_saved_is_left_alone_at_the_start(cls: str) -> None:
    with TaskVectorEnv(GymnasiumSuite([name(cls)]), seed=0, num_workers=1) as envs:
        assert envs.state_problem() is None


def test_a_state_without_environments_begins_the_next_episodes_of_the_streams() -> None:
    def envs() -> TaskVectorEnv:
        return TaskVectorEnv(GymnasiumSuite([name("LateDeque")]), seed=0, envs_per_task=2, num_workers=1)

    action = np.zeros((2, 1), np.float32)
    with envs() as first, envs() as second:
        first.reset()
        first.step(action)
        state = first.get_state(environments=False)
        _, infos = first.reset()  # the goals that come next
        second.set_state(state)
        assert second.get_state(environments=False)["envs"][0]["goal"] == infos["goal"][0]
        assert second.observations[:, 0].tolist() == [0.0, 0.0]
        _, _, _, truncated, infos = second.step(action)
        assert infos["restarted"].tolist() == truncated.tolist() == [True, True]
        assert not second.step(action)[4]["restarted"].any()


def test_integer_actions_are_rounded_and_reach_every_value() -> None:
    env = make("Integers")
    env.reset(0)
    taken = [env.step(np.array([action], np.float32))[1] for action in np.linspace(-1, 1, 81)]
    assert np.array_equal(np.unique(taken), [0, 1, 2, 3, 4])
    assert taken[0] == 0
    assert taken[-1] == 4


def test_flattened_padded_observations_array_rewards_and_late_success() -> None:
    suite = GymnasiumSuite(
        [name("Goal"), name("Wide")], flatten_observations=True, pad_observations=True, num_goals=4
    )
    assert (suite.obs_dim, suite.action_dim) == (4, 1)
    assert suite.action_bounds[name("Goal")] == ([-2.0], [3.0])
    with TaskVectorEnv(suite, seed=0, num_workers=1, max_episode_steps=5) as envs:
        obs, _ = envs.reset()
        assert obs.tolist() == [[0, 0, 0, 0], [0, 0, 7, 0]]
        successes = []
        for _ in range(10):
            obs, reward, _, _, infos = envs.step(np.zeros((2, 1), np.float32))
            assert reward.tolist() == [1.5, 0.0]
            successes.append(infos["success"][0])
        np.testing.assert_array_equal(successes, [np.nan] * 4 + [1.0] + [0.0] * 4 + [1.0])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([name("Goal")], r"--suite\.flatten-observations"),
        ([name("LateDeque"), name("Wide")], r"found .*: 2 and 1.*: 3 and 1.*--suite\.pad-observations"),
        (["FetchReach-v4"], r"name the package as well.*gymnasium_robotics:FetchReach-v4"),
        (["CartPole-v1"], "its action must be a vector"),
    ],
)
def test_errors_name_the_option_that_helps(tasks: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GymnasiumSuite(tasks)
