"""Workers that die, raise or hang, and parents that die: clear errors in time, nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mtrl.envs.engine.shared import SharedArrays, Sizes, allocate
from mtrl.envs.engine.vector import TaskVectorEnv
from mtrl.envs.engine.worker import HostedEnv
from mtrl.errors import EnvironmentFailure, UserError
from tests.helpers import counting_env
from tests.helpers.counting_env import CountingEnv, CountingSuite
from tests.helpers.counting_workers import TASKS, action, alive, gone, make


def assert_closes(envs: TaskVectorEnv) -> None:
    """Waiting for what a hanging worker does would take ten minutes, twice the suite's time limit."""
    pids = envs.worker_pids
    envs.close()
    assert gone(pids)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (counting_env.RAISE, "ZeroDivisionError: the counting environment was asked to raise"),
        (counting_env.DISCONNECT, "ConnectionResetError: the counting environment was asked to lose its sim"),
    ],
)
def test_exception_arrives_with_traceback_and_task(fault: float, error: str) -> None:
    envs = make()
    envs.reset()
    with pytest.raises(EnvironmentFailure) as caught:
        envs.step(action(3, fault))
    message = str(caught.value)
    assert re.search(r"worker 1 of 2 .*in task task-3 .*goal \d+, env step 1\), raised", message)
    assert error in message
    assert "counting_env.py" in message
    assert_closes(envs)


@pytest.mark.dear
@pytest.mark.parametrize("end", ["hangs", "closed", "killed", "died", "ended"])
def test_what_an_environment_has_started_does_not_outlive_its_worker(end: str) -> None:
    if end == "killed":
        then = (
            "obs = envs.step(t.action(1, counting_env.SPAWN))[0]; print(int(obs[1, 5]), flush=True); "
            "os.kill(os.getpid(), 9)"
        )
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(then=then)], stdout=subprocess.PIPE, text=True, timeout=60
        )
        assert gone([int(run.stdout.split()[-1])])
        return
    envs = make(step_timeout=1.0)
    envs.reset()
    pid = int(envs.step(action(1, counting_env.SPAWN))[0][1, 5])
    assert alive(pid)
    if end in ("hangs", "died"):
        with pytest.raises(EnvironmentFailure):
            envs.step(action(1, counting_env.HANG if end == "hangs" else counting_env.KILL))
        assert gone([pid])
    envs.close(terminate=end != "ended")
    assert gone([pid])


def test_a_hanging_worker_is_given_up_soon_once_the_run_is_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtrl.envs.engine.pool._HURRY_SECONDS", 0.2)
    reports: list[str] = []
    envs = make(step_timeout=600, notify=reports.append)
    stops: list[float] = []
    envs.hurry_when(lambda: bool(stops))
    envs.reset()
    pids = envs.worker_pids
    before = signal.signal(signal.SIGALRM, lambda *_: stops.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 0.1)  # the request comes while the step is waited for
    try:
        obs, *_, infos = envs.step(action(1, counting_env.HANG))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert 0.1 < time.monotonic() - stops[0] < 5
    # A new worker would be of no use, and its environments may take minutes.
    assert (envs.restarts, envs.worker_pids) == (0, pids)
    (report,) = reports
    assert re.search(r"worker 1 of 2 .*task task-1 .*no answer within .*\n.* not restarted", report)
    assert infos["restarted"].tolist() == [False, True, False, True]
    assert obs[:, 0].tolist() == [1, 0, 1, 0]
    assert [env["env"] is None for env in envs.get_state()["envs"]] == [False, True, False, True]
    assert_closes(envs)


def test_new_environments_that_take_too_long_are_given_up_once_the_run_is_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mtrl.envs.engine.pool._HURRY_SECONDS", 0.2)
    reports: list[str] = []
    envs = make(max_restarts=3, notify=reports.append)
    envs.hurry_when(lambda: bool(reports))  # the stop comes while the worker is restarted
    envs.reset()
    monkeypatch.setenv("COUNTING_ENV_BROKEN", "slow")  # in processes that are started from now on
    began = time.monotonic()
    *_, infos = envs.step(action(1, counting_env.KILL))
    assert time.monotonic() - began < 10
    assert envs.restarts == 1
    assert infos["restarted"].tolist() == [False, True, False, True]
    assert [env["env"] is None for env in envs.get_state()["envs"]] == [False, True, False, True]
    assert_closes(envs)


def test_a_suite_that_workers_cannot_import_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    home = types.ModuleType("only_here")
    suite_class = type("OnlyHere", (CountingSuite,), {"__module__": "only_here"})
    home.OnlyHere = suite_class  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "only_here", home)
    with pytest.raises(UserError, match=r"No module named 'only_here'"):
        TaskVectorEnv(suite_class(TASKS), seed=0)


@pytest.mark.dear
def test_a_mistake_in_the_code_that_makes_environments_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Job scripts try again after an EnvironmentFailure."""
    for mistake in ("KeyError", "JSONDecodeError"):  # the second is a ValueError
        monkeypatch.setenv("COUNTING_ENV_BROKEN", mistake)
        with pytest.raises(UserError, match=rf"worker 0 of 2(.|\n)*counting_env\.py(.|\n)*{mistake}"):
            make()
    # These may be the machine's: the second is an OSError as well, the third is what MuJoCo raises.
    for kind in ("RuntimeError", "UnsupportedOperation", "opening file"):
        monkeypatch.setenv("COUNTING_ENV_BROKEN", kind)
        with pytest.raises(EnvironmentFailure, match="asked not to be made"):
            make()


@pytest.mark.dear
def test_an_observation_that_numpy_would_repeat_is_refused() -> None:
    class OneNumber(CountingEnv):
        def _obs(self) -> NDArray[np.float64]:
            return super()._obs()[:1]

    sizes = Sizes(1, 8, 4, 2)
    arrays = SharedArrays.attach(allocate(sizes), sizes)
    env = HostedEnv(0, "task-1", OneNumber("task-1", np.arange(3.0), 0.0), arrays)
    expected = r"must have the suite's shape, \[8\]; found \[1\]"
    with pytest.raises(UserError, match=f"observations of task task-1 {expected}"):
        env.start()
    for special, message in ((counting_env.ONE_NUMBER, expected), (counting_env.REFUSE, "asked to refuse")):
        with make(max_restarts=9) as envs:  # which would end as the first attempt
            envs.reset()
            with pytest.raises(UserError, match=rf"in task task-3 (.|\n)*{message}"):
                envs.step(action(3, special))
            assert envs.restarts == 0


def test_close_ends_all_workers_in_the_middle_of_a_step_too() -> None:
    envs = make()
    envs.reset()
    envs.step_async(action(0, counting_env.HANG))
    assert_closes(envs)


def test_dropping_the_last_reference_ends_the_workers() -> None:
    envs = make()
    pids = envs.worker_pids
    del envs
    assert gone(pids)


@pytest.mark.dear
def test_workers_ignore_what_a_scheduler_sends_to_every_process_of_a_job() -> None:
    with make() as envs:
        envs.reset()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            for pid in envs.worker_pids:
                os.kill(pid, number)
            envs.step(action(0, 0.0))
            assert envs.restarts == 0, number


def test_a_step_interrupted_in_the_learner_can_be_waited_for_again() -> None:
    with make() as envs:
        envs.reset()
        envs.step_async(action(3, counting_env.SLOW))
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            with pytest.raises(KeyboardInterrupt):
                envs.step_wait()
        finally:
            signal.signal(signal.SIGALRM, before)
        obs, *_ = envs.step_wait()
        assert obs[:, 0].tolist() == [1, 1, 1, 1]
        assert len(envs.get_state()["envs"]) == 4


def test_workers_load_no_torch() -> None:
    with make() as envs:
        for pid in envs.worker_pids:
            libraries = Path(f"/proc/{pid}/maps").read_text()
            assert "numpy" in libraries
            assert "libtorch" not in libraries


@pytest.mark.gpu
def test_workers_of_a_learner_on_cuda_hold_nothing_of_the_device() -> None:
    import torch

    torch.zeros(1, device="cuda")

    def has_driver(pid: int) -> bool:
        return "libcuda.so" in Path(f"/proc/{pid}/maps").read_text()

    with make(max_restarts=1) as envs:
        envs.reset()
        os.kill(envs.worker_pids[0], signal.SIGKILL)
        with pytest.warns(RuntimeWarning, match="SIGKILL"):
            envs.step(np.zeros((envs.num_envs, 4), np.float32))  # the one started anew is one of these
        assert has_driver(os.getpid())
        assert not any(has_driver(pid) for pid in envs.worker_pids)


SCRIPT = """
import os, sys, time, warnings
warnings.simplefilter("ignore")
import tests.helpers.counting_workers as t
from tests.helpers import counting_env
envs = t.make()
envs.reset()
print(*envs.worker_pids, flush=True)
{then}
"""


@pytest.mark.dear
@pytest.mark.parametrize(
    ("then", "code"),
    [
        ("", 0),  # neither guarded by __main__ nor closed
        ("raise SystemExit(3)", 3),
        ("os.kill(os.getpid(), 9)", -9),
        ("envs.step_async(t.action(0, counting_env.HANG)); time.sleep(0.3); os.kill(os.getpid(), 9)", -9),
        # after a restart: the second line of process ids names the new worker
        (
            "envs.close(); envs = t.make(max_restarts=1); envs.reset()\n"
            "envs.step(t.action(0, counting_env.KILL)); print(*envs.worker_pids, flush=True); "
            "os.kill(os.getpid(), 9)",
            -9,
        ),
        ("os.fork() or os._exit(0); os.kill(os.getpid(), 15)", -15),
    ],
)
def test_no_worker_outlives_its_parent(then: str, code: int) -> None:
    before = set(os.listdir("/dev/shm"))
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(then=then)], stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert run.returncode == code
    pids = [int(pid) for pid in run.stdout.split()]
    assert len(pids) in (2, 4)
    assert gone(pids)
    assert {name for name in os.listdir("/dev/shm") if name not in before and "mtrl" in name} == set()


@pytest.mark.dear
def test_signals_to_the_learners_process_group_do_not_reach_the_workers() -> None:
    then = "[signal.signal(s, signal.SIG_IGN) for s in (1, 2, 15)]; [os.killpg(0, s) for s in (1, 2, 15)]"
    step = "time.sleep(0.1); envs.step(t.action(0, 0.0)); print('ok')"
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(then=f"import signal; {then}; {step}")],
        capture_output=True,
        text=True,
        timeout=60,
        process_group=0,
    )
    assert run.stdout.split()[-1] == "ok", run.stderr


@pytest.mark.dear
def test_a_forked_child_that_exits_leaves_the_parents_workers_alone() -> None:
    step = "envs.step(t.action(0, 0.0)); print('ok')"
    fork = f"pid = os.fork()\nif pid == 0: sys.exit(0)\nos.waitpid(pid, 0); {step}"
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(then=fork)], capture_output=True, text=True, timeout=60
    )
    assert run.stdout.split()[-1] == "ok", run.stderr


STARTED_BY_A_LEARNER_ON_CUDA = """
import torch, tests.helpers.counting_workers as t
if torch.cuda.is_available():
    torch.zeros(1, device="cuda")
with t.make(max_restarts=1) as envs:
    envs.reset()
    import os, warnings
    warnings.simplefilter("ignore")
    os.kill(envs.worker_pids[0], 9)
    envs.step(t.action(0, 0.0))
    print(torch.cuda.is_initialized(), [sorted(t.libraries(pid)) for pid in envs.worker_pids])
"""


def worker_libraries() -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", STARTED_BY_A_LEARNER_ON_CUDA], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split(maxsplit=1)


@pytest.mark.dear
def test_workers_and_their_replacements_are_no_copies_of_the_learner() -> None:
    assert worker_libraries()[1].strip() == "[[], []]"


@pytest.mark.gpu
def test_workers_of_a_learner_on_cuda_have_no_cuda_context() -> None:
    assert worker_libraries() == ["True", "[[], []]\n"]
