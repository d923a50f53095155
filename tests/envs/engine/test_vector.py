"""The rules of the vector API, read off an environment that counts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from mtrl.envs import build_suite
from mtrl.envs.engine.vector import TaskVectorEnv
from mtrl.envs.metaworld.suite import MetaWorldSuite
from mtrl.errors import EnvironmentFailure, NonFiniteError, UserError
from tests.helpers import counting_env
from tests.helpers.counting_env import CountingSuite

TASKS = ("task-3", "task-1", "task-2")
STEPS, GOAL, EPISODES, CODE, TOTAL = range(5)

pytestmark = pytest.mark.usefixtures("worker_threads")


def make(tasks: tuple[str, ...] = TASKS, **options: Any) -> TaskVectorEnv:
    options = {"seed": 0, "num_workers": 1, "max_episode_steps": 4, "step_timeout": 20.0} | options
    suite = CountingSuite(tasks, num_goals=options.pop("num_goals", None))
    return TaskVectorEnv(suite, **options)


def zeros(envs: TaskVectorEnv) -> NDArray[np.float32]:
    return np.zeros((envs.num_envs, 4), np.float32)


def test_rows_are_task_major_and_described() -> None:
    with make(num_workers=2, envs_per_task=2) as envs:
        obs, _ = envs.reset()
        assert obs[:, CODE].tolist() == [3, 3, 1, 1, 2, 2]
        assert (envs.num_envs, envs.num_tasks, envs.envs_per_task) == (6, 3, 2)
        assert envs.task_names == TASKS
        assert envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
        assert envs.single_observation_space.shape == (8,)
        assert envs.observation_space.shape == (6, 8)
        assert envs.single_action_space.shape == (4,)
        assert envs.action_space.shape == (6, 4)
        assert envs.observation_space.dtype == envs.action_space.dtype == np.float32


def test_episode_is_truncated_on_its_last_step_and_restarts_in_it() -> None:
    with make(num_workers=2) as envs:
        envs.reset()
        for step in range(1, 10):
            obs, reward, terminated, truncated, infos = envs.step(zeros(envs))
            last = step % 4 == 0
            assert not terminated.any()
            assert truncated.tolist() == [last] * 3
            assert obs[:, STEPS].tolist() == [0 if last else step % 4] * 3
            assert reward.tolist() == [100 * code + (step - 1) % 4 + 1 for code in (3, 1, 2)]
            assert obs[:, EPISODES].tolist() == [1 + step // 4] * 3
            assert ("final_obs" in infos) == last
            if last:
                assert infos["final_obs"][:, STEPS].tolist() == [4, 4, 4]
                assert infos["final_obs"].dtype == np.float32
            assert infos["success"].dtype == np.float32
            assert infos["success"].shape == (3,)


def test_success_is_reported_on_the_last_step_too() -> None:
    with make() as envs:
        envs.reset()
        actions = zeros(envs)
        actions[1, 3] = counting_env.SUCCEED
        for _ in range(4):
            *_, terminated, truncated, infos = envs.step(actions)
            assert infos["success"].tolist() == [0, 1, 0]
            assert not terminated.any()
        assert truncated.all()


def test_each_row_receives_its_own_action() -> None:
    with make(num_workers=2, envs_per_task=2) as envs:
        envs.reset()
        actions = zeros(envs)
        actions[:, 0] = np.arange(6)
        envs.step(actions)
        obs, *_ = envs.step(actions)
        assert obs[:, TOTAL].tolist() == [0, 2, 4, 6, 8, 10]


def test_given_goals_are_started_and_reported() -> None:
    with make(num_workers=2, envs_per_task=2) as envs:
        goals = np.array([5, 0, 49, 7, 7, 1])
        obs, infos = envs.reset(options={"goal": goals})
        assert obs[:, GOAL].tolist() == infos["goal"].tolist() == goals.tolist()


def test_given_goals_do_not_move_the_goal_streams() -> None:
    with make() as envs:
        drawn = [envs.reset(seed=1)[1]["goal"], envs.reset()[1]["goal"]]
        envs.reset(seed=1)
        envs.reset(options={"goal": np.zeros(3, int)})
        np.testing.assert_array_equal(envs.reset()[1]["goal"], drawn[1])


def test_goals_are_drawn_from_the_first_ones_only() -> None:
    with make(num_goals=3) as envs:
        drawn = np.array([envs.reset()[1]["goal"] for _ in range(60)])
        assert set(drawn.ravel()) == {0, 1, 2}


def drawn_goals(envs: TaskVectorEnv, episodes: int = 8) -> NDArray[np.float32]:
    rows = [envs.reset()[0][:, GOAL]]
    for _ in range(4 * episodes):
        obs, *_ = envs.step(zeros(envs))
        rows.append(obs[:, GOAL])
    return np.array(rows)


@pytest.mark.dear
@pytest.mark.processes
def test_goal_streams_do_not_depend_on_the_number_of_workers() -> None:
    streams = []
    for workers in (1, 2, 100):
        with make(num_workers=workers) as envs:
            assert len(envs.worker_pids) == min(workers, 3)
            streams.append(drawn_goals(envs))
    np.testing.assert_array_equal(streams[0], streams[1])
    np.testing.assert_array_equal(streams[0], streams[2])


def test_goal_streams_do_not_depend_on_other_tasks_or_copies() -> None:
    with make(envs_per_task=2) as whole, make(("task-2",)) as alone:
        np.testing.assert_array_equal(drawn_goals(whole)[:, 4], drawn_goals(alone)[:, 0])


def test_copies_tasks_and_seeds_have_different_streams() -> None:
    with make(envs_per_task=2) as first, make(envs_per_task=2, seed=1) as second:
        columns = np.concatenate([drawn_goals(first), drawn_goals(second)], axis=1)
        assert len(np.unique(columns, axis=1).T) == 12


def test_reset_with_a_seed_starts_the_streams_of_that_seed() -> None:
    with make(seed=5) as envs, make(seed=6) as other:
        expected = drawn_goals(envs)
        obs, _ = other.reset(seed=5)
        np.testing.assert_array_equal(obs[:, GOAL], expected[0])


def test_returned_arrays_are_the_callers_own() -> None:
    with make() as envs:
        obs, _ = envs.reset()
        first = envs.step(zeros(envs))
        kept = [array.copy() for array in first[:4]]
        obs[:] = -1
        envs.step(zeros(envs))
        for array, copy in zip(first[:4], kept, strict=True):
            np.testing.assert_array_equal(array, copy)


@pytest.mark.dear
@pytest.mark.processes
def test_state_continues_with_another_seed_and_number_of_workers() -> None:
    with make(num_workers=2, envs_per_task=2, num_goals=9) as envs:
        envs.reset()
        for _ in range(6):
            envs.step(np.ones((6, 4), np.float32))
        state = envs.get_state()
        expected = [envs.step(np.ones((6, 4), np.float32)) for _ in range(9)]
    with make(envs_per_task=2, num_goals=9, seed=8, num_workers=3) as other:
        other.set_state(state)
        assert other.observations[:, STEPS].tolist() == [2] * 6
        for step in expected:
            for theirs, ours in zip(step[:4], other.step(np.ones((6, 4), np.float32))[:4], strict=True):
                np.testing.assert_array_equal(theirs, ours)


def test_state_of_other_environments_is_refused() -> None:
    with make() as envs:
        envs.reset()
        state = envs.get_state()
    others: list[dict[str, Any]] = [{"tasks": ("task-1",)}, {"envs_per_task": 2}, {"max_episode_steps": 5}]
    for other in others:
        with make(**other) as different, pytest.raises(UserError, match="does not fit"):
            different.set_state(state)


def test_calls_out_of_order_are_refused() -> None:
    envs = make(num_workers=2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        envs.step(zeros(envs))
    with pytest.raises(gymnasium.error.ResetNeeded):
        envs.get_state()
    envs.reset()
    with pytest.raises(gymnasium.error.NoAsyncCallError):
        envs.step_wait()
    envs.step_async(zeros(envs))
    pending: list[Callable[[], object]] = [envs.reset, envs.get_state, lambda: envs.step_async(zeros(envs))]
    for call in pending:
        with pytest.raises(gymnasium.error.AlreadyPendingCallError):
            call()
    envs.step_wait()
    envs.close()
    envs.close()
    closed: list[Callable[[], object]] = [envs.reset, envs.step_wait, lambda: envs.step_async(zeros(envs))]
    for call in closed:
        with pytest.raises(gymnasium.error.ClosedEnvironmentError):
            call()


def test_non_finite_action_reaches_no_environment() -> None:
    with make(num_workers=2) as envs:
        envs.reset()
        for value in (np.nan, np.inf):
            actions = zeros(envs)
            actions[1, 2] = value
            with pytest.raises(NonFiniteError, match="action in task-1"):
                envs.step(actions)
        obs, *_ = envs.step(zeros(envs))
        assert obs[:, STEPS].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("special", "what"), [(counting_env.NAN_OBS, "observation"), (counting_env.NAN_REWARD, "reward")]
)
def test_non_finite_simulation_names_the_task(special: float, what: str) -> None:
    with make(num_workers=2) as envs:
        for step in (1, 4):  # within an episode and at its end
            envs.reset()
            for _ in range(step - 1):
                envs.step(zeros(envs))
            actions = zeros(envs)
            actions[2, 3] = special
            with pytest.raises(NonFiniteError, match=f"{what} in task-2"):
                envs.step(actions)


@pytest.mark.parametrize(
    "options",
    [
        {"envs_per_task": 0},
        {"num_workers": 0},
        {"num_goals": 0},
        {"max_episode_steps": -1},
        {"envs_per_task": 1.5},
        {"seed": -1},
        {"seed": None},
        {"render_mode": "ascii"},
        {"step_timeout": 0.0},
        {"max_restarts": -1},
        {"worker_niceness": -5},
    ],
)
def test_values_out_of_range_are_refused_by_name(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UserError, match=name):
        make(**options)


@pytest.mark.parametrize("attribute", ["task_names", "info_keys"])
def test_one_name_without_a_comma_is_refused(attribute: str) -> None:
    suite = CountingSuite(TASKS)
    setattr(suite, attribute, "success")
    with pytest.raises(UserError, match=rf'{attribute} must be .*found "success"\. .*\("success",\)'):
        TaskVectorEnv(suite, seed=0)


def test_integers_of_numpy_are_as_good_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingSuite, "obs_dim", np.int64(8))
    monkeypatch.setattr(CountingSuite, "action_dim", np.int64(4))
    one, two, none = np.int64(1), np.int32(2), np.int64(0)
    numbers: dict[str, Any] = {"seed": one, "num_workers": one, "envs_per_task": two, "worker_niceness": none}
    with make(num_goals=np.int64(9), max_episode_steps=np.int64(4), max_restarts=one, **numbers) as envs:
        envs.reset()
        obs, *_ = envs.step(zeros(envs))
        state = envs.get_state()
    assert obs[:, STEPS].tolist() == [1] * 6
    with make(num_goals=9, envs_per_task=2) as other:
        other.set_state(state)
        assert other.observations.tolist() == obs.tolist()


def test_wrong_reset_options_and_wrong_shapes_of_actions_are_refused() -> None:
    with make() as envs:
        for goal in (np.zeros(2, int), np.zeros(3), np.full(3, 50)):
            with pytest.raises(UserError, match="goal"):
                envs.reset(options={"goal": goal})
        with pytest.raises(UserError, match="goal"):
            envs.reset(options={"gaol": np.zeros(3, int)})
        envs.reset()
        with pytest.raises(UserError, match=r"\[3, 4\]"):
            envs.step(np.zeros((4, 3), np.float32))


def test_frames_come_in_the_order_asked_for() -> None:
    with make(num_workers=2) as envs:
        assert [frame[0, 0, 0] for frame in envs.render()] == [3, 1, 2]
        assert [frame[0, 0, 0] for frame in envs.render([2, 0])] == [2, 3]
        with pytest.raises(UserError, match=r"rows must lie in 0..2; found -1, 3\."):
            envs.render([-1, 0, 3])


def test_a_task_that_ends_by_itself_is_terminated_and_not_truncated() -> None:
    with make(num_workers=2) as envs:
        envs.reset()
        actions = zeros(envs)
        actions[2, 3] = counting_env.END
        obs, _, terminated, truncated, infos = envs.step(actions)
        assert terminated.tolist() == [False, False, True]
        assert not truncated.any()
        assert obs[:, STEPS].tolist() == [1, 1, 0]
        assert infos["final_obs"][:, STEPS].tolist() == [1, 1, 1]
        assert infos["_final_obs"].tolist() == [False, False, True]


def test_a_frame_that_cannot_be_rendered_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTING_ENV_BLIND", "1")
    with make(max_restarts=0) as envs:
        envs.reset()
        with pytest.raises(EnvironmentFailure, match="rendering failed: RuntimeError: the counting"):
            envs.render()
        assert envs.step(zeros(envs))[0][:, STEPS].tolist() == [1, 1, 1]


def test_what_cannot_be_saved_is_refused_and_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTING_ENV_UNSAVABLE", "1")
    with make(max_restarts=0) as envs:
        envs.reset()
        with pytest.raises(UserError, match="asked not to be saved"):
            envs.get_state()
        assert envs.step(zeros(envs))[0][:, STEPS].tolist() == [1, 1, 1]


@pytest.mark.processes
def test_a_suite_in_a_file_reaches_the_workers(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from tests.helpers.counting_env import CountingSuite\n\n\nclass Mine(CountingSuite):\n    pass\n"
    )
    suite = build_suite(f"{file}:Mine", TASKS, num_goals=3, options={"step_seconds": 0.0})
    with TaskVectorEnv(suite, seed=0, num_workers=1) as envs:
        obs, _ = envs.reset()
        assert obs[:, CODE].tolist() == [3, 1, 2]


def test_a_suite_that_no_other_process_can_load_is_refused_with_advice() -> None:
    class Local(CountingSuite):
        pass

    with pytest.raises(UserError, match="class at the top of a module"):
        TaskVectorEnv(Local(TASKS), seed=0)


@pytest.mark.dear
@pytest.mark.meta
@pytest.mark.processes
def test_paths_that_are_no_text_and_a_renderer_that_is_missing_do_not_matter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.path", [*sys.path, tmp_path])
    monkeypatch.setenv("MUJOCO_GL", "osmesa")  # its library is missing on most machines
    with TaskVectorEnv(MetaWorldSuite(["reach-v3"]), seed=0) as envs:
        envs.reset()


def priority(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)


@pytest.mark.processes
def test_workers_have_the_priority_of_the_learner_unless_told_otherwise() -> None:
    with make() as envs, make(worker_niceness=3) as nice:
        envs.reset(), nice.reset()
        assert {priority(pid) for pid in envs.worker_pids} == {priority(0)}
        assert {priority(pid) for pid in nice.worker_pids} == {priority(0) + 3}


def test_goals_of_a_restored_state_stay_in_force_with_another_seed() -> None:
    suite = CountingSuite(TASKS, num_goals=2)
    shifted = {name: np.array([7.0, 7.0]) for name in TASKS}
    with TaskVectorEnv(suite, seed=0, goals=shifted, max_episode_steps=2) as envs:
        envs.reset()
        state = envs.get_state()
    with TaskVectorEnv(suite, seed=1, max_episode_steps=2) as other:
        other.set_state(state)
        for _ in range(2):
            obs, *_ = other.step(zeros(other))
        assert obs[:, GOAL].tolist() == [7, 7, 7]
