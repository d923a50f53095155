"""Gymnasium environments in the engine against the same ones stepped by hand."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from mtrl.envs import TaskVectorEnv, build_suite
from mtrl.envs.gymnasium.env import GymnasiumEnv, make
from mtrl.envs.gymnasium.suite import GymnasiumSuite
from mtrl.errors import UserError
from tests.helpers.stateful_envs import name

PENDULUMS = {
    "moon": {"id": "Pendulum-v1", "kwargs": {"g": 1.6}, "success_return": -400.0},
    "earth": {"id": "Pendulum-v1", "success_return": -1e9},
    "short": {"id": "Pendulum-v1", "set": {"l": 0.5}, "success_return": 0.0},
}
MUJOCO = ["HalfCheetah-v5", "Hopper-v5", "Ant-v5", "Humanoid-v5", "Pusher-v5", "Reacher-v5", "Swimmer-v5"]
CLASSIC = ["Pendulum-v1", "MountainCarContinuous-v0"]


def actions(steps: int, size: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, size)).astype(np.float32)


def test_vector_env_equals_plain_environments_and_ends_episodes_at_the_time_limit() -> None:
    suite = GymnasiumSuite("all", environments=PENDULUMS)
    assert (suite.obs_dim, suite.action_dim, suite.task_names) == (3, 1, tuple(PENDULUMS))
    theirs: list[Any] = [gymnasium.make("Pendulum-v1", g=g) for g in (1.6, 10.0, 10.0)]
    theirs[2].unwrapped.l = 0.5
    with TaskVectorEnv(suite, seed=0, num_workers=1, max_episode_steps=200) as ours:
        obs, infos = ours.reset()
        assert len(set(infos["goal"].tolist())) == 3
        expected = [env.reset(seed=int(seed))[0] for env, seed in zip(theirs, infos["goal"], strict=True)]
        np.testing.assert_array_equal(obs, np.array(expected, np.float32))
        returns = np.zeros(3)
        for step, action in enumerate(actions(200, 3)):
            obs, reward, terminated, truncated, infos = ours.step(action[:, None])
            results = [env.step(2 * a[None]) for env, a in zip(theirs, action, strict=True)]
            last = step == 199
            np.testing.assert_array_equal(
                infos["final_obs"] if last else obs, np.array([r[0] for r in results], np.float32)
            )
            np.testing.assert_array_equal(reward, np.array([r[1] for r in results], np.float32))
            returns += [r[1] for r in results]
            assert truncated.tolist() == [last] * 3 == [r[3] for r in results]
            assert not terminated.any()
            if not last:
                assert infos["success"].tolist() == [0, 0, 0]
        assert infos["success"].tolist() == [float(returns[0] >= -400), 1.0, 0.0]


@pytest.mark.filterwarnings("ignore:Hopper-v5 is registered")
def test_tasks_that_end_are_terminated_with_their_final_observation() -> None:
    suite = GymnasiumSuite(["Hopper-v5"])
    plain = gymnasium.make("Hopper-v5")
    with TaskVectorEnv(suite, seed=0, num_workers=1) as envs:
        _, infos = envs.reset()
        plain.reset(seed=int(infos["goal"][0]))
        for action in actions(300, 3):
            _, _, terminated, truncated, infos = envs.step(action[None])
            expected, _, ends, _, _ = plain.step(action)
            assert bool(terminated[0]) == ends
            assert not truncated.any()
            assert np.isnan(infos["success"]).all()
            if ends:
                np.testing.assert_array_equal(infos["final_obs"][0], expected.astype(np.float32))
                return
    raise AssertionError("the hopper did not fall")


CONTINUE = """
import pickle, sys
import numpy as np
from mtrl.envs.gymnasium.env import GymnasiumEnv
name, file = sys.argv[1:]
state, actions = pickle.load(open(file, "rb"))
env = GymnasiumEnv({"id": name}, max_episode_steps=500, render_mode=None)
env.reset(99)
env.step(actions[0])
env.set_state(state)
pickle.dump([env.step(a)[:3] for a in actions] + [env.reset(3)], open(file, "wb"))
"""


@pytest.mark.filterwarnings("ignore:.*is registered with")
@pytest.mark.parametrize("name", [*CLASSIC, "HalfCheetah-v5", "Ant-v5"])
def test_state_continues_bit_for_bit_in_another_process(name: str, tmp_path: Path) -> None:
    file = tmp_path / "state"
    env = GymnasiumEnv({"id": name}, max_episode_steps=500, render_mode=None)
    env.reset(1)
    chosen = actions(40, env._env.action_space.shape[0])
    for action in chosen[:23]:
        env.step(action)
    file.write_bytes(pickle.dumps((env.get_state(), chosen)))
    expected = [*(env.step(action)[:3] for action in chosen), env.reset(3)]
    subprocess.run([sys.executable, "-W", "ignore", "-c", CONTINUE, name, str(file)], check=True)
    assert pickle.dumps(pickle.loads(file.read_bytes())) == pickle.dumps(expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is registered with")
@pytest.mark.parametrize("name", [*CLASSIC, *MUJOCO])
def test_state_of_every_environment_continues(name: str, tmp_path: Path) -> None:
    test_state_continues_bit_for_bit_in_another_process(name, tmp_path)


def test_edits_change_the_physics_as_mujoco_computes_it() -> None:
    import mujoco

    definition = {
        "id": "HalfCheetah-v5",
        "set": {"model.opt.gravity": [0.0, 0.0, -5.0]},
        "scale": {"model.body_mass": 2.0, "model.body_inertia": 2.0},
    }
    env: Any = GymnasiumEnv(definition, max_episode_steps=1000, render_mode=None)
    model = env._env.unwrapped.model
    plain: Any = gymnasium.make("HalfCheetah-v5").unwrapped
    assert model.opt.gravity.tolist() == [0.0, 0.0, -5.0]
    np.testing.assert_allclose(mujoco.mj_getTotalmass(model), 2 * mujoco.mj_getTotalmass(plain.model))
    np.testing.assert_allclose(model.body_subtreemass, 2 * plain.model.body_subtreemass)


class Scales(gymnasium.Env[Any, Any]):
    """Its arrays belong to the class, to a part that the class has, and to a module."""

    MASS = np.array([1.0, 2.0])
    PART = SimpleNamespace(inner=SimpleNamespace(length=np.array([3.0])))
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, render_mode: str | None = None) -> None:
        self.goal = GOAL


GOAL = np.array([4, 0])
gymnasium.register("Scales-v0", lambda **arguments: Scales(**arguments))


def test_edits_change_one_environment_alone() -> None:
    """Tasks of one class share a process, and an evaluation makes its environments anew."""
    edits = {"MASS": 2.0, "PART.inner.length": 2.0, "goal": 2.0}
    first, second = (make({"id": "Scales-v0", "scale": edits}, render_mode=None).unwrapped for _ in range(2))
    plain = make({"id": "Scales-v0"}, render_mode=None).unwrapped
    for env, factor in ((first, 2.0), (second, 2.0), (plain, 1.0)):
        assert env.MASS.tolist() == [factor, 2.0 * factor]
        assert env.PART.inner.length.tolist() == [3.0 * factor]
        assert env.goal.tolist() == [4 * factor, 0]


@pytest.mark.parametrize("edit", [{"set": {"goal": [0.5, 0.7]}}, {"scale": {"goal": 0.3}}])
def test_an_array_of_whole_numbers_is_not_cut(edit: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"goal has whole numbers \(int64\) and cannot be \["):
        make({"id": "Scales-v0", **edit}, render_mode=None)
    assert make({"id": "Scales-v0", "set": {"goal": [2.0, 3.0]}}, render_mode=None).unwrapped.goal[1] == 3


class Handle:
    """What cannot be saved: an object that only this process knows."""


class Unsavable(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, **_: Any) -> None:
        self.thing: Any = Handle()

    def reset(self, **options: Any) -> Any:
        return np.zeros(2), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2), 0.0, False, False, {}


gymnasium.register("tests/Unsavable-v0", entry_point="tests.envs.gymnasium.test_gymnasium:Unsavable")


def test_what_cannot_be_saved_is_refused_by_name_and_goes_on() -> None:
    suite = GymnasiumSuite(["tests.envs.gymnasium.test_gymnasium:tests/Unsavable-v0"])
    with TaskVectorEnv(suite, seed=0) as envs:
        envs.reset()
        with pytest.raises(UserError, match=r"cannot be saved.*Unsavable\.thing is a .*Handle"):
            envs.get_state()
        envs.step(np.zeros((1, 1), np.float32))
        assert envs.restarts == 0


@pytest.mark.parametrize(
    ("tasks", "environments", "message"),
    [
        (["Pendulum-v1", "Hopper-v5"], {}, "one size of observation.*Pendulum-v1: 3 and 1"),
        (["CartPole-v1"], {}, "its action must be a vector"),
        (["Pendulum-v9"], {}, "Pendulum-v9.*cannot be used"),
        (["Pendulum"], {}, r"cannot be used: its id must name a version, such as Pendulum-v1\.$"),
        (["moo"], PENDULUMS, "Names in environments: moon"),
        ("all", {"a": {"id": "Pendulum-v1", "kwargs": {"gravity": 1}}}, "environment 'a'.*gravity"),
        ("all", {"a": {"id": "Pendulum-v1", "set": {"length": 1}}}, "environment 'a'.*length"),
        ("all", {"a": {"id": "Pendulum-v1", "sucess_return": 1}}, "Did you mean 'success_return'"),
        ("all", {"a": {"id": "Pendulum-v1", "success_return": "high"}}, "success_return"),
        ("all", {"a": {"id": "Pendulum-v1", "reward_factor": -1}}, "reward_factor must be a positive number"),
        ("all", {"a": {}}, "mapping with the key 'id'"),
        (["Pendulum-v1", "Pendulum-v1"], {}, "different names"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(tasks: Any, environments: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_suite("gymnasium", tasks, options={"environments": environments})


def test_packages_that_ids_name_are_among_the_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = 'import gymnasium; gymnasium.register("Own-v0", "gymnasium.envs.classic_control:PendulumEnv")'
    (tmp_path / "own_pendulums.py").write_text(register)
    metadata = tmp_path / "own_pendulums-1.2.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: own-pendulums\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(tmp_path)
    suite = GymnasiumSuite(["own_pendulums:Own-v0", "Pendulum-v1"])
    assert suite.versions() == {**GymnasiumSuite("Pendulum-v1").versions(), "own_pendulums": "1.2"}
    with TaskVectorEnv(suite, seed=0, num_workers=1, max_episode_steps=200) as envs:
        envs.reset()
        state = envs.get_state()
        envs.versions["own_pendulums"] = "1.3"
        with pytest.raises(UserError, match=r"versions is .*'1\.2'.* there and .*'1\.3'"):
            envs.set_state(state)
        del state["versions"]["own_pendulums"]  # as a former version wrote it
        envs.set_state(state)


def test_unknown_options_of_a_suite_are_refused_with_advice() -> None:
    with pytest.raises(UserError, match="Did you mean 'environments'"):
        build_suite("gymnasium", ["Pendulum-v1"], options={"environment": {}})


@pytest.mark.processes
def test_an_id_that_only_this_process_has_registered_is_refused_with_advice() -> None:
    gymnasium.register("OnlyHere-v0", entry_point="gymnasium.envs.classic_control:PendulumEnv")
    try:
        with pytest.raises(UserError, match=r"do not run your script\..*'MODULE:OnlyHere-v0'"):
            TaskVectorEnv(GymnasiumSuite(["OnlyHere-v0"]), seed=0, num_workers=1)
    finally:
        del gymnasium.registry["OnlyHere-v0"]


def test_an_environment_without_views_needs_no_render_mode() -> None:
    suite = GymnasiumSuite([name("WithoutViews")])
    with TaskVectorEnv(suite, seed=0, num_workers=1) as envs:
        envs.reset()
        assert envs.step(np.zeros((1, suite.action_dim), np.float32))[0].shape == (1, suite.obs_dim)


def test_more_goals_than_seeds_are_refused() -> None:
    with pytest.raises(UserError, match="num_goals are seeds, at most 2,147,483,647 of them; found 5,000,"):
        GymnasiumSuite(CLASSIC[:1], num_goals=5_000_000_000)


def test_what_an_environment_is_given_it_does_not_share() -> None:
    definition = {"id": name("WithoutViews"), "set": {"wish": [1.0]}}
    first, second = (make(definition, render_mode=None).unwrapped for _ in range(2))
    first.wish[0] = 5.0
    assert (second.wish, definition["set"]) == ([1.0], {"wish": [1.0]})
