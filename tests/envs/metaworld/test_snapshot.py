"""A state taken in mid-episode continues bit for bit in another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray

from mtrl.envs import BENCHMARKS
from mtrl.envs.engine.shared import StepResult
from mtrl.envs.engine.vector import TaskVectorEnv
from mtrl.envs.metaworld.simulation import MetaWorldEnv
from mtrl.envs.metaworld.suite import MetaWorldSuite

pytestmark = [
    pytest.mark.meta,
    pytest.mark.filterwarnings("ignore:Constant"),  # the scripted policies' own
]
PLAIN = (bool, int, float, str, type(None))


def scripted(policies: Sequence[Any], obs: NDArray[np.float32]) -> NDArray[np.float32]:
    actions = [policy.get_action(row.astype(np.float64)) for policy, row in zip(policies, obs, strict=True)]
    clipped: NDArray[np.float32] = np.clip(np.array(actions), -1, 1).astype(np.float32)
    return clipped


def some_goals(names: Sequence[str], seed: int) -> dict[str, NDArray[np.float64]]:
    """Goals from the tasks' own spaces: cheaper than a whole benchmark's goal sets."""
    rng = np.random.default_rng(seed)
    goals = {}
    for name in names:
        space = ALL_V3_ENVIRONMENTS[name]()._random_reset_space
        drawn = rng.uniform(space.low, space.high, (5000, len(space.low)))
        if drawn.shape[1] == 6:  # upstream draws again, for ever, while object and target are this close
            drawn = drawn[np.argsort(-np.linalg.norm(drawn[:, :2] - drawn[:, -3:-1], axis=1))]
        goals[name] = drawn[:50]
    return goals


def drive(
    envs: TaskVectorEnv, steps: int, seed: int, between: Callable[[], object] = lambda: None
) -> list[StepResult]:
    """Scripted actions, so that hands are in contact, with some noise."""
    rng = np.random.default_rng(seed)
    policies = [ENV_POLICY_MAP[name]() for name in envs.task_names for _ in range(envs.envs_per_task)]
    results = []
    for _ in range(steps):
        noise = rng.normal(0, 0.1, (envs.num_envs, 4)).astype(np.float32)
        results.append(envs.step(np.clip(scripted(policies, envs.observations) + noise, -1, 1)))
        between()
    return results


def assert_same(first: list[StepResult], second: list[StepResult]) -> None:
    for a, b in zip(first, second, strict=True):
        for ours, theirs in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert a[4].keys() == b[4].keys()
        for key in a[4]:
            np.testing.assert_array_equal(a[4][key], b[4][key])


def assert_continues(
    names: str | list[str], before: Sequence[int], after: int, horizon: int, workers: int = 1
) -> None:
    """Take states after each number of steps; continue each in fresh environments of other seed and goals."""
    states, rest = [], []
    with TaskVectorEnv(MetaWorldSuite(names), seed=0, num_workers=workers, max_episode_steps=horizon) as envs:
        envs.reset()
        for steps in before:
            drive(envs, steps, 1)
            states.append(envs.get_state())
            rest.append(drive(envs, after, 2))
    goals = {name: vectors[::-1] for name, vectors in envs.goal_sets.items()}  # drawing others takes seconds
    suite = MetaWorldSuite(list(goals))
    with TaskVectorEnv(suite, seed=1, num_workers=1, max_episode_steps=horizon, goals=goals) as other:
        other.reset()  # so that the states land in used environments as well
        for state, expected in zip(states, rest, strict=True):
            other.set_state(state)
            assert_same(expected, drive(other, after, 2))


@pytest.mark.dear
def test_tasks_continue_from_reset_from_contact_and_across_the_next_reset() -> None:
    """All tasks: slow, below."""
    assert_continues(list(BENCHMARKS["MT10"][2::3]), before=[0, 50], after=30, horizon=60)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_tasks_continue() -> None:
    assert_continues("MT50", before=[0, 60], after=120, horizon=150, workers=2)


@pytest.mark.dear
def test_state_fits_environments_that_were_never_reset() -> None:
    names = ["basketball-v3", "door-lock-v3"]  # attributes become live views at their first reset
    goals = some_goals(names, 0)
    with TaskVectorEnv(MetaWorldSuite(names), seed=0, goals=goals) as envs:
        envs.reset()
        drive(envs, 30, 1)
        state = envs.get_state()
        expected = drive(envs, 30, 2)
    others = {name: vectors[::-1] for name, vectors in goals.items()}
    with TaskVectorEnv(MetaWorldSuite(names), seed=0, goals=others) as other:
        other.set_state(state)
        assert_same(expected, drive(other, 30, 2))


@pytest.fixture(scope="module")
def two() -> Iterator[TaskVectorEnv]:
    with TaskVectorEnv(MetaWorldSuite(["reach-v3", "push-v3"]), seed=0) as envs:
        yield envs


def test_taking_a_state_changes_nothing(two: TaskVectorEnv) -> None:
    goal = {"goal": np.array([3, 3])}
    two.reset(options=goal)
    plain = drive(two, 30, 1)
    two.reset(options=goal)
    disturbed = drive(two, 30, 1, between=two.get_state)
    assert_same(plain, disturbed)


def assert_plain(value: Any, path: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) is str, path
            assert_plain(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            assert_plain(item, f"{path}[{index}]")
    elif isinstance(value, np.ndarray):
        assert value.dtype != object, path
    else:
        assert type(value) in PLAIN, f"{path}: {type(value)}"


def test_state_holds_plain_containers_arrays_and_numbers_only(two: TaskVectorEnv) -> None:
    two.reset()
    drive(two, 5, 1)
    assert_plain(two.get_state(), "state")


def simulation_arrays(owner: Any) -> list[NDArray[Any]]:
    found = []
    for name in dir(owner):
        if name.startswith("_"):
            continue
        try:
            value = getattr(owner, name)
        except (AttributeError, TypeError, ValueError):
            continue
        if isinstance(value, np.ndarray) and value.size:
            found.append(value)
    return found


def assert_views_survive(names: Sequence[str]) -> None:
    """Every attribute that looks into the simulation looks into the restored one as well."""
    for name in names:
        goals = some_goals([name], 0)[name]
        source, target = MetaWorldEnv(name, goals), MetaWorldEnv(name, goals)
        source.reset(0)
        for _ in range(3):
            source.step(np.zeros(4, np.float32))
        target.set_state(source.get_state())
        memory = [*simulation_arrays(source.env.data), *simulation_arrays(source.env.model)]
        views = {
            key
            for key, value in vars(source.env).items()
            if isinstance(value, np.ndarray) and any(np.shares_memory(value, array) for array in memory)
        }
        assert {"init_left_pad", "init_right_pad"} <= views
        memory = [*simulation_arrays(target.env.data), *simulation_arrays(target.env.model)]
        for key in views:
            theirs, ours = getattr(source.env, key), getattr(target.env, key)
            np.testing.assert_array_equal(theirs, ours)
            assert any(np.shares_memory(ours, array) for array in memory), f"{name}.{key}"


@pytest.mark.dear
def test_live_views_stay_live_views() -> None:
    assert_views_survive(["basketball-v3", "pick-place-v3"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_live_views_of_all_tasks_stay_live_views() -> None:
    assert_views_survive(BENCHMARKS["MT50"])
