"""Equality with metaworld's own environments, bit for bit after the cast to float32."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from typing import Any

import gymnasium
import metaworld
import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3_ARGS_KWARGS
from metaworld.envs import sawyer_reach_v3
from metaworld.policies import ENV_POLICY_MAP
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.types import Task
from metaworld.utils import reward_utils
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mtrl.envs import BENCHMARKS
from mtrl.envs.engine.vector import TaskVectorEnv
from mtrl.envs.metaworld.suite import INFO_KEYS, MetaWorldSuite

pytestmark = [
    pytest.mark.meta,
    pytest.mark.filterwarnings("ignore:Constant"),  # the scripted policies' own
    pytest.mark.filterwarnings(
        "ignore:.*:UserWarning:gymnasium"
    ),  # about spaces of an unwrapped upstream env
]
SEED = 0
Floats = NDArray[np.float32]


class UpstreamVector:
    """One plain upstream environment per task, with upstream's goal sets."""

    def __init__(
        self, names: Sequence[str], goals: dict[str, NDArray[np.float64]], reward_version: str
    ) -> None:
        self.envs = [ALL_V3_ENVIRONMENTS[name](reward_function_version=reward_version) for name in names]
        self.policies = [ENV_POLICY_MAP[name]() for name in names]
        self.tasks = [[upstream_task(name, vector) for vector in goals[name]] for name in names]
        self.obs: list[NDArray[np.float64]] = []

    def reset(self, goal: Sequence[int]) -> Floats:
        for env, tasks, index in zip(self.envs, self.tasks, goal, strict=True):
            env.set_task(tasks[index])
        self.obs = [env.reset()[0] for env in self.envs]
        return np.array(self.obs).astype(np.float32)

    def scripted(self) -> Floats:
        # Some policies write into the observation they are given.
        actions = [policy.get_action(obs.copy()) for policy, obs in zip(self.policies, self.obs, strict=True)]
        clipped: Floats = np.clip(np.array(actions), -1, 1).astype(np.float32)
        return clipped

    def step(self, actions: Floats) -> tuple[Floats, Floats, list[dict[str, Any]]]:
        results = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        self.obs = [result[0] for result in results]
        rewards = np.array([float(result[1]) for result in results])
        return (
            np.array(self.obs).astype(np.float32),
            rewards.astype(np.float32),
            [result[4] for result in results],
        )


def upstream_task(name: str, vector: NDArray[np.float64]) -> Task:
    data = {"env_cls": ALL_V3_ENVIRONMENTS[name], "rand_vec": vector, "partially_observable": False}
    return Task(env_name=name, data=pickle.dumps(data))


def compare(
    names: Sequence[str], *, episodes: Sequence[str], steps: int, reward_version: str, seed: int = SEED
) -> None:
    """Run episodes with "random", "scripted" or "mixed" actions on both sides, one goal each."""
    rng = np.random.default_rng(1)
    suite = MetaWorldSuite(names, reward_version=reward_version)  # type: ignore[arg-type]
    with TaskVectorEnv(suite, seed=seed, max_episode_steps=steps) as ours:
        theirs = UpstreamVector(names, ours.goal_sets, reward_version)
        obs, infos = ours.reset()
        for kind in episodes:
            expected = theirs.reset(infos["goal"])
            np.testing.assert_array_equal(obs, expected)
            for step in range(steps):
                actions = rng.uniform(-1, 1, (len(names), 4)).astype(np.float32)
                if kind == "scripted" or (kind == "mixed" and step % 3):
                    actions = theirs.scripted()
                obs, reward, terminated, truncated, result = ours.step(actions)
                expected, rewards, upstream_infos = theirs.step(actions)
                last = step == steps - 1
                assert truncated.all() == truncated.any() == last
                assert not terminated.any()
                np.testing.assert_array_equal(result["final_obs"] if last else obs, expected)
                np.testing.assert_array_equal(reward, rewards)
                for row, key in itertools.product(range(len(names)), INFO_KEYS):
                    assert result[key][row] == np.float32(upstream_infos[row][key]), (names[row], key)
            obs, infos = ours.reset()


def test_the_oracle_of_this_file_is_upstreams_own_code() -> None:
    # Workers speed some of upstream's functions up; in this process nothing may have done so.
    assert SawyerXYZEnv.step.__module__ == "metaworld.sawyer_xyz_env"
    assert reward_utils.tolerance.__module__ == "metaworld.utils.reward_utils"
    assert sawyer_reach_v3.np is np
    assert SawyerXYZEnv.touching_object.__module__ == "metaworld.sawyer_xyz_env"
    assert SawyerXYZEnv._get_curr_obs_combined_no_goal.__module__ == "metaworld.sawyer_xyz_env"
    assert sawyer_reach_v3.Rotation is Rotation


def test_tasks_equal_upstream_with_random_and_scripted_actions() -> None:
    """All tasks: slow, below."""
    compare(BENCHMARKS["MT10"][1::3], episodes=["scripted", "mixed"], steps=60, reward_version="v2")


@pytest.mark.dear
def test_the_first_reward_version_equals_upstreams() -> None:
    """All tasks: slow, below."""
    compare(BENCHMARKS["MT10"][::3], episodes=["mixed"], steps=30, reward_version="v1")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("reward_version", ["v1", "v2"])
def test_all_tasks_equal_upstream_over_whole_episodes(reward_version: str, seed: int) -> None:
    compare(
        BENCHMARKS["MT50"],
        episodes=["scripted", "random", "mixed"],
        steps=500,
        reward_version=reward_version,
        seed=seed,
    )


@pytest.mark.slow
def test_all_tasks_begin_each_of_many_episodes_as_upstream() -> None:
    # Resets leave out what upstream simulates in vain; what it leaves behind must not differ.
    names = BENCHMARKS["MT50"]
    for seed in (0, 1, 2):
        compare(names, episodes=["mixed"] * 8, steps=12, reward_version="v2", seed=seed)


@pytest.mark.dear
def test_episode_longer_than_upstreams_limit_goes_on() -> None:
    with TaskVectorEnv(MetaWorldSuite(["reach-v3"]), seed=SEED, max_episode_steps=503) as envs:
        envs.reset()
        ends = [bool(envs.step(np.zeros((1, 4), np.float32))[3][0]) for _ in range(503)]
        assert ends.index(True) == 502


@pytest.mark.dear
def test_goals_of_a_benchmarks_first_tasks_equal_upstreams_train_tasks() -> None:
    """All tasks of all benchmarks: slow, in test_goals."""
    ours = MetaWorldSuite("MT10").draw_goals(SEED)
    first = dict(itertools.islice(MT10_V3_ARGS_KWARGS.items(), 3))
    override = {"partially_observable": False}
    upstream = metaworld._make_tasks(ALL_V3_ENVIRONMENTS, first, override, seed=SEED)
    for name in first:
        vectors = [pickle.loads(task.data)["rand_vec"] for task in upstream if task.env_name == name]
        np.testing.assert_array_equal(ours[name], vectors)


@pytest.mark.dear
def test_wrappers_of_make_vec_change_no_number() -> None:
    name = "push-v3"
    with TaskVectorEnv(MetaWorldSuite([name]), seed=SEED, num_workers=1) as ours:
        wrapped = gymnasium.make("Meta-World/MT1", env_name=name, seed=SEED)
        task_select = wrapped
        while not hasattr(task_select, "tasks"):
            task_select = task_select.env  # type: ignore[attr-defined]
        task_select.tasks = [upstream_task(name, ours.goal_sets[name][4])]
        expected, _ = wrapped.reset()
        obs, _ = ours.reset(options={"goal": np.array([4])})
        np.testing.assert_array_equal(obs[0], expected.astype(np.float32))
        for action in np.random.default_rng(0).uniform(-1, 1, (40, 4)).astype(np.float32):
            expected, reward, *_ = wrapped.step(action)
            obs, rewards, *_ = ours.step(action[None])
            np.testing.assert_array_equal(obs[0], expected.astype(np.float32))
            assert rewards[0] == np.float32(reward)
        wrapped.close()


def rollout(names: Sequence[str], columns: Sequence[int], **options: Any) -> list[Floats]:
    """Observations and rewards of the chosen rows under actions that depend on the task alone."""
    with TaskVectorEnv(MetaWorldSuite(names), seed=SEED, max_episode_steps=20, **options) as envs:
        obs, _ = envs.reset()
        rows = [obs[list(columns)]]
        for step in range(45):
            actions = np.sin(np.arange(4) * 7 + step / 5).astype(np.float32)
            obs, reward, *_ = envs.step(np.tile(actions, (envs.num_envs, 1)))
            rows += [obs[list(columns)], reward[list(columns)]]
    return rows


@pytest.mark.dear
def test_trajectories_depend_on_neither_workers_nor_copies_nor_other_tasks() -> None:
    np.random.seed(5)
    before = np.random.get_state(legacy=True)
    reference = rollout(["push-v3", "reach-v3"], [1], num_workers=2)
    other = rollout(["reach-v3"], [0], num_workers=1, envs_per_task=2)
    for ours, theirs in zip(reference, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # The caller's global random state is left alone.
    assert repr(np.random.get_state(legacy=True)) == repr(before)


def test_other_seeds_give_other_goals() -> None:
    one, two = (MetaWorldSuite(["reach-v3"]).draw_goals(seed)["reach-v3"] for seed in (1, 2))
    # Entry 2, the height of the object, is a constant.
    assert not np.isin(one[:, 3:], two[:, 3:]).any()
