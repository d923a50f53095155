"""Workers that fail are replaced: reports, rows, goal streams, budget, nothing left behind."""

from __future__ import annotations

import errno
import gc
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mtrl.envs.engine.shared import StepResult
from mtrl.envs.engine.vector import TaskVectorEnv
from mtrl.errors import EnvironmentFailure
from tests.helpers import counting_env
from tests.helpers.counting_env import CountingSuite
from tests.helpers.counting_workers import action, gone

TASKS = ("task-0", "task-1", "task-2", "task-3")
STEPS, GOAL, EPISODES, CODE, TOTAL = range(5)
MINE, OTHERS = [1, 3], [0, 2]  # rows of worker 1, in which the faults are injected, and of worker 0
FAULTS = {
    counting_env.KILL: "SIGKILL",
    counting_env.RAISE: "ZeroDivisionError",
    counting_env.HANG: "no answer",
}


def make(reports: list[str] | None = None, **options: Any) -> TaskVectorEnv:
    options = {"num_workers": 2, "step_timeout": 20.0, "max_restarts": 2, "max_episode_steps": 5} | options
    return TaskVectorEnv(
        CountingSuite(TASKS),
        seed=0,
        notify=([] if reports is None else reports).append,
        **options,
    )


def plain(envs: TaskVectorEnv) -> StepResult:
    return envs.step(np.ones((4, 4), np.float32))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_that_fails_is_reported_and_replaced_and_the_others_go_on(fault: float) -> None:
    reports: list[str] = []
    with make(reports, step_timeout=0.4 if fault == counting_env.HANG else 20.0) as envs:
        envs.reset()
        before = plain(envs)[0]
        pids = envs.worker_pids
        obs, reward, terminated, truncated, infos = envs.step(action(3, fault))
        assert gone(pids[1:])
        assert envs.worker_pids[0] == pids[0]
        (report,) = reports
        assert "worker 1 of 2" in report
        assert "in task task-3 (copy 0, goal" in report
        assert "env step 2" in report
        assert FAULTS[fault] in report
        assert "1 of at most 2 restarts" in report
        assert envs.restarts == 1
        assert infos["restarted"].tolist() == truncated.tolist() == [False, True, False, True]
        assert not terminated.any()
        assert obs[:, STEPS].tolist() == [2, 0, 2, 0]
        assert reward[MINE].tolist() == [0, 0]
        assert reward[OTHERS].tolist() == [2, 202]
        assert np.isnan(infos["success"]).tolist() == [False, True, False, True]  # unknown, not unsolved
        np.testing.assert_array_equal(infos["final_obs"][MINE], before[MINE])
        obs, _, _, truncated, infos = plain(envs)
        assert obs[:, STEPS].tolist() == [3, 1, 3, 1]
        assert not infos["restarted"].any()
        assert not truncated.any()


def goals_of_episodes(envs: TaskVectorEnv, fault_at: int | None) -> list[list[float]]:
    """The goals of each row's episodes, in order, over 30 steps; worker 1 is killed in one of them."""
    obs, _ = envs.reset(seed=0)
    goals: list[list[float]] = [[goal] for goal in obs[:, GOAL].tolist()]
    for step in range(30):
        obs = envs.step(action(3, counting_env.KILL if step == fault_at else 0.0))[0]
        for row in np.flatnonzero(obs[:, STEPS] == 0):
            goals[row].append(float(obs[row, GOAL]))
    return goals


@pytest.mark.dear
def test_goal_streams_go_on_after_a_restart_as_without_it() -> None:
    with make() as undisturbed:
        expected = goals_of_episodes(undisturbed, None)
        afresh = undisturbed.reset(seed=3)[1]["goal"]
    with make(max_restarts=4) as envs:
        for fault_at in (0, 3, 4, 7):  # the first step, one within, the last of an episode, one of a later
            found = goals_of_episodes(envs, fault_at)
            for row in OTHERS:
                assert found[row] == expected[row], fault_at
            for row in MINE:
                # One episode was cut short, or its last step lost; it is one of the stream all the same.
                both = min(len(found[row]), len(expected[row]))
                assert both >= 6
                assert found[row][:both] == expected[row][:both], fault_at
            np.testing.assert_array_equal(envs.reset(seed=3)[1]["goal"], afresh)


def test_a_worker_killed_between_steps_is_replaced_in_the_next() -> None:
    reports: list[str] = []
    with make(reports) as envs:
        envs.reset()
        os.kill(envs.worker_pids[0], signal.SIGKILL)
        *_, infos = plain(envs)
        assert infos["restarted"].tolist() == [True, False, True, False]
        assert re.search(r"worker 0 of 2 .*task-0, task-2.*SIGKILL", reports[0])


@pytest.mark.dear
def test_a_stopped_worker_counts_as_hung() -> None:
    reports: list[str] = []
    with make(reports, step_timeout=0.5) as envs:
        envs.reset()
        os.kill(envs.worker_pids[1], signal.SIGSTOP)
        *_, infos = plain(envs)
        assert infos["restarted"].tolist() == [False, True, False, True]
        assert "no answer within 0.5 s" in reports[0]


@pytest.mark.dear
@pytest.mark.parametrize("hangs", [False, True])
def test_the_time_in_which_a_job_is_suspended_does_not_count(
    hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Slurm, `docker pause` or SIGSTOP, which stop all processes; the clock goes on."""
    reports: list[str] = []
    clock = [0.0, 0.0, 3600.0]  # two readings before the first poll, which comes back an hour later

    def monotonic() -> float:
        return time.monotonic() + (clock.pop(0) if len(clock) > 1 else clock[0])

    with make(reports, step_timeout=0.8 if hangs else 20.0) as envs:
        envs.reset()
        if hangs:
            os.kill(envs.worker_pids[1], signal.SIGSTOP)
        monkeypatch.setattr(
            "mtrl.envs.engine.pool.time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep)
        )
        *_, infos = envs.step(action(1, counting_env.SLOW))
        assert infos["restarted"].tolist() == [False, hangs, False, hangs]
        assert ["no answer within 0.8 s;" in report for report in reports] == [True] * hangs


@pytest.mark.dear
def test_all_workers_may_fail_at_once() -> None:
    with make() as envs:
        envs.reset()
        actions = action(3, counting_env.KILL)
        actions[0, 3] = counting_env.RAISE
        obs, *_, infos = envs.step(actions)
        assert infos["restarted"].all()
        assert obs[:, STEPS].tolist() == [0, 0, 0, 0]
        assert plain(envs)[0][:, STEPS].tolist() == [1, 1, 1, 1]


@pytest.mark.dear
def test_a_worker_killed_before_a_reset_is_replaced_in_it() -> None:
    with make() as envs:
        envs.reset()
        os.kill(envs.worker_pids[1], signal.SIGKILL)
        goals = np.array([5, 6, 7, 8])
        obs, _ = envs.reset(options={"goal": goals})
        assert obs[:, GOAL].tolist() == goals.tolist()
        assert not plain(envs)[4]["restarted"].any()
        assert envs.restarts == 1


@pytest.mark.dear
def test_a_worker_killed_before_environments_are_made_anew_is_replaced() -> None:
    """As at the start of an evaluation of a suite whose resets do not decide everything."""
    with make() as envs:
        envs.reset()
        os.kill(envs.worker_pids[1], signal.SIGKILL)
        envs.renew()
        obs, _ = envs.reset()
        assert obs[:, EPISODES].tolist() == [1, 1, 1, 1]
        assert envs.restarts == 1


@pytest.mark.dear
def test_workers_that_die_in_every_reset_use_up_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTING_ENV_DIES_IN_RESET", "1")
    envs = make(max_restarts=3)
    with pytest.raises(EnvironmentFailure, match="2 of at most 3 restarts are used up"):
        envs.reset()
    assert envs.restarts == 2  # two workers at a time
    envs.close()


@pytest.mark.dear
def test_a_worker_that_cannot_be_made_again_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with make() as envs:
        envs.reset()
        monkeypatch.setenv("COUNTING_ENV_BROKEN", "1")
        with pytest.raises(EnvironmentFailure, match="asked not to be made") as caught:
            envs.step(action(3, counting_env.KILL))
        assert envs.restarts == 2
        assert caught.value.step_result[4]["restarted"].tolist() == [False, True, False, True]


class Scarce(subprocess.Popen[bytes]):
    """Processes that cannot be started from the first to the last of these numbers, as without memory."""

    started = first = last = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        type(self).started += 1
        if self.first <= self.started <= self.last:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        super().__init__(*args, **options)


@pytest.mark.dear
@pytest.mark.parametrize("in_vain", [1, 3])
def test_a_process_that_cannot_be_started_is_a_failure_of_the_worker(
    in_vain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[str] = []
    monkeypatch.setattr(subprocess, "Popen", type("Own", (Scarce,), {"first": 3, "last": 2 + in_vain}))
    with make(reports, max_restarts=3) as envs:
        envs.reset()
        plain(envs)
        before = descriptors()
        if in_vain < 3:
            infos = envs.step(action(3, counting_env.KILL))[4]
            assert descriptors() == before
        else:
            with pytest.raises(EnvironmentFailure, match=r"started again: .*\n3 of at most 3") as caught:
                envs.step(action(3, counting_env.KILL))
            infos = caught.value.step_result[4]
            lost = [env["env"] is None for env in envs.get_state()["envs"]]
            assert lost == [False, True, False, True]  # a checkpoint can be written
            assert descriptors() == before - 1
        assert infos["restarted"].tolist() == [False, True, False, True]
        assert "SIGKILL" in reports[0]
        assert re.search(r"worker 1 of 2 .*could not be started again: .*temporarily unavailable", reports[1])


def test_a_first_process_that_cannot_be_started_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", type("Own", (Scarce,), {"first": 2, "last": 2}))
    before = descriptors()
    with pytest.raises(EnvironmentFailure, match=r"worker 1 of 2 could not be started: .*fewer workers"):
        make()
    assert descriptors() == before


@pytest.mark.dear
def test_past_the_budget_the_last_step_and_the_state_are_still_there() -> None:
    with make(max_restarts=0) as envs:
        envs.reset()
        before = plain(envs)[0]
        with pytest.raises(EnvironmentFailure, match="0 of at most 0 restarts") as caught:
            envs.step(action(3, counting_env.KILL))
        obs, _, _, truncated, infos = caught.value.step_result
        assert infos["restarted"].tolist() == truncated.tolist() == [False, True, False, True]
        np.testing.assert_array_equal(obs[MINE], before[MINE])
        assert obs[OTHERS, STEPS].tolist() == [2, 2]
        for _ in range(2):
            with pytest.raises(EnvironmentFailure, match="SIGKILL"):
                plain(envs)
        state = envs.get_state()
    with make() as undisturbed, make(num_workers=3) as other:
        streams = goals_of_episodes(undisturbed, None)
        other.set_state(state)
        assert other.observations[:, STEPS].tolist() == [2, 0, 2, 0]
        assert other.observations[MINE, GOAL].tolist() == [streams[row][1] for row in MINE]
        obs, *_, infos = plain(other)  # the caller's action answered an observation of the lost episode
        assert infos["restarted"].tolist() == [False, True, False, True]
        assert obs[:, STEPS].tolist() == [3, 1, 3, 1]
        assert not plain(other)[4]["restarted"].any()


@pytest.mark.dear
def test_a_state_taken_while_a_worker_is_dead_stores_its_episodes_as_lost() -> None:
    with make() as envs, make() as other:
        envs.reset()
        plain(envs)
        os.kill(envs.worker_pids[1], signal.SIGKILL)
        state = envs.get_state()
        assert [env["env"] is None for env in state["envs"]] == [False, True, False, True]
        expected = plain(envs)
        assert envs.restarts == 1
        other.set_state(state)
        assert other.observations[:, STEPS].tolist() == [1, 0, 1, 0]
        obs, *_, infos = plain(other)
        np.testing.assert_array_equal(infos["restarted"], expected[4]["restarted"])
        np.testing.assert_array_equal(obs[OTHERS], expected[0][OTHERS])
        np.testing.assert_array_equal(obs[MINE, GOAL], expected[0][MINE, GOAL])


def descriptors() -> int:
    gc.collect()  # what earlier tests left in cycles would be closed between two counts
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.dear
def test_restarts_leave_no_descriptors_and_no_processes_behind() -> None:
    with make(max_restarts=10) as envs:
        envs.reset()
        plain(envs)
        before, pids = descriptors(), []
        for _ in range(4):
            pids += envs.worker_pids
            envs.step(action(1, counting_env.KILL))
        assert descriptors() == before
        alive = set(envs.worker_pids)
    assert gone([pid for pid in pids if pid not in alive])
    assert gone(list(alive))


def restarted_rows(tasks: tuple[str, ...], workers: int, copies: int) -> NDArray[np.bool_]:
    with TaskVectorEnv(
        CountingSuite(tasks),
        seed=0,
        num_workers=workers,
        envs_per_task=copies,
        notify=print,
    ) as envs:
        envs.reset()
        os.kill(envs.worker_pids[0], signal.SIGKILL)
        restarted: NDArray[np.bool_] = envs.step(np.zeros((envs.num_envs, 4), np.float32))[4]["restarted"]
        return restarted


@pytest.mark.dear
def test_all_copies_of_a_worker_are_marked_and_no_others() -> None:
    assert restarted_rows(TASKS[:2], workers=1, copies=3).all()
    assert restarted_rows(TASKS, workers=4, copies=2).sum() == 2


def test_by_default_a_restart_is_a_warning() -> None:
    with TaskVectorEnv(CountingSuite(TASKS), seed=0) as envs:
        envs.reset()
        os.kill(envs.worker_pids[0], signal.SIGKILL)
        with pytest.warns(RuntimeWarning, match="SIGKILL"):
            plain(envs)
