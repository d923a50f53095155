"""A worker process: steps several environments in place in shared memory; imports no torch.

Messages of one byte start and acknowledge steps; everything rarer is a pickled command. The shared arrays
need no locks because messages order the accesses: from a message to its answer a worker alone uses its rows,
otherwise the learner alone. A worker that does not answer in time is killed before the learner goes on.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from mtrl.envs.engine.shared import SharedArrays, Sizes
from mtrl.envs.suite import TaskEnv, TaskSuite
from mtrl.errors import EnvironmentFailure, UserError
from mtrl.registry import FILE_MODULE, load_object

STEP, COMMAND, DONE, RESULT, ERROR, REFUSAL = b"s", b"c", b"d", b"r", b"e", b"n"


class Parcel(NamedTuple):
    """A pickled suite, and the file that defines its class if no import finds that."""

    file: str | None
    name: str
    body: bytes

    def open(self) -> TaskSuite:
        """Return the suite; called in a worker."""
        if self.file is not None:
            # Enters the module into sys.modules under the name that pickle asks for.
            load_object(f"{self.file}:{self.name}", "suite")
        suite: TaskSuite = pickle.loads(self.body)
        return suite


def pack(suite: TaskSuite) -> Parcel:
    """Return the suite for the workers.

    Raises:
        UserError: its class cannot be found by another process, or it holds what cannot be pickled.
    """
    cls: type[Any] = type(suite)
    if cls.__module__ == "__main__":
        raise UserError(
            f"the suite class {cls.__name__} is defined in the script itself, which workers never run: "
            "move it to a module of its own and import it from there."
        )
    try:
        body = pickle.dumps(suite)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"the suite {cls.__name__} cannot be sent to the workers ({error}): it must be a class at the "
            "top of a module and hold plain data only. Open files and simulations in make_env."
        ) from error
    file = sys.modules[cls.__module__].__file__ if cls.__module__.startswith(FILE_MODULE) else None
    return Parcel(file, cls.__qualname__, body)


class Rules(NamedTuple):
    """What the engine makes an episode of; part of a saved state."""

    max_episode_steps: int
    terminate_on_success: bool


class Build(NamedTuple):
    """What a worker needs to build its environments."""

    suite: Parcel
    rows: list[tuple[int, str, np.random.SeedSequence]]  # row in the shared arrays, task, seed
    goals: dict[str, Any]  # of each of the worker's tasks
    rules: Rules
    render_mode: str | None


class HostedEnv:
    """One environment of this process, with its episode clock and its rows of the shared arrays."""

    def __init__(self, row: int, simulation: TaskEnv, arrays: SharedArrays) -> None:
        self.row, self.simulation = row, simulation
        self.action, self.obs, self.final_obs = arrays.action[row], arrays.obs[row], arrays.final_obs[row]
        self.info = arrays.info[row]
        self.upcoming = arrays.goal[row : row + 1]
        self.goal = -1
        self.elapsed = 0

    def start(self) -> None:
        """Begin an episode with the goal that the learner has announced."""
        self.goal = int(self.upcoming[0])
        self.elapsed = 0
        self.obs[:] = self.simulation.reset(self.goal)

    def get_state(self) -> dict[str, Any]:
        """Return everything that decides this environment's future but its goal stream."""
        return {
            "goal": self.goal,
            "elapsed": self.elapsed,
            "obs": self.obs.copy(),
            "env": self.simulation.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned; a lost episode starts anew."""
        if state["env"] is None:
            self.start()
            return
        self.goal, self.elapsed = int(state["goal"]), int(state["elapsed"])
        self.obs[:] = state["obs"]
        self.simulation.set_state(state["env"])


class Worker:
    """Executes the learner's messages."""

    def __init__(self, arrays: SharedArrays) -> None:
        self.arrays = arrays
        self.envs: list[HostedEnv] = []
        self.rules: Rules
        self.in_order: Callable[[Mapping[str, Any]], Any]  # info -> entries in the order of the arrays
        self.stepping = arrays.stepping[:0]

    def step(self) -> None:
        """Step every environment; reset in the same step those whose episode ended."""
        arrays, rules, in_order = self.arrays, self.rules, self.in_order
        rewards, horizon, stepping = arrays.reward, rules.max_episode_steps, self.stepping
        for env in self.envs:
            row = env.row
            # Where the learner looks if this process dies or hangs in this environment.
            stepping[0] = row + 1
            obs, reward, terminated, truncated, info = env.simulation.step(env.action.copy())
            env.elapsed += 1
            rewards[row] = reward
            env.info[:] = in_order(info)
            truncated = truncated or env.elapsed >= horizon
            if rules.terminate_on_success and info["success"] == 1.0:
                terminated = True
            arrays.truncated[row], arrays.terminated[row] = truncated, terminated
            if truncated or terminated:
                env.final_obs[:] = obs
                env.start()
            else:
                env.obs[:] = obs
        stepping[0] = 0

    def modules(self) -> list[str]:
        """Return the names of the modules imported in this process."""
        return sorted(sys.modules)

    def draw_goals(self, suite: Parcel, seed: int) -> tuple[dict[str, Any], list[str]]:
        """Return the suite's goals and notes for users."""
        with _noted() as notes:
            goals = dict(suite.open().draw_goals(seed))
        return goals, notes

    def build(self, build: Build) -> list[str]:
        """Construct the environments, instead of those there are; return notes for users."""
        self.close()
        self.rules = build.rules
        first = build.rows[0][0]
        self.stepping = self.arrays.stepping[first : first + 1]
        with _noted() as notes:
            suite = build.suite.open()
            self.in_order = itemgetter(*suite.info_keys)
            for row, task, seed in build.rows:
                self.stepping[0] = row + 1
                self.envs.append(HostedEnv(row, _make(suite, task, seed, build), self.arrays))
        self.stepping[0] = 0
        _return_freed_memory()
        return notes

    def reset(self) -> None:
        """Start an episode in every environment, with the goals that the learner has announced."""
        for env in self.envs:
            self.stepping[0] = env.row + 1
            env.start()
        self.stepping[0] = 0

    def get_state(self) -> list[dict[str, Any]]:
        """Return the state of each environment."""
        return [env.get_state() for env in self.envs]

    def set_state(self, states: dict[int, dict[str, Any]]) -> None:
        """Restore the state of each environment, given by row."""
        for env in self.envs:
            self.stepping[0] = env.row + 1
            env.set_state(states[env.row])
        self.stepping[0] = 0

    def render(self, rows: Sequence[int]) -> dict[int, Any]:
        """Return frames of the given rows, those of other workers left out."""
        try:
            return {env.row: env.simulation.render() for env in self.envs if env.row in rows}
        except Exception as error:
            # No picture, but the simulations are as they were: not a reason to end this process.
            reason = traceback.format_exception_only(error)[-1].strip()
            raise EnvironmentFailure(f"rendering failed: {reason}") from error

    def close(self) -> None:
        """Free the environments."""
        for env in self.envs:
            env.simulation.close()
        self.envs.clear()


def _make(suite: TaskSuite, task: str, seed: np.random.SeedSequence, build: Build) -> TaskEnv:
    return suite.make_env(
        task,
        build.goals[task],
        seed=seed,
        max_episode_steps=build.rules.max_episode_steps,
        render_mode=build.render_mode,
    )


@contextmanager
def _noted() -> Iterator[list[str]]:
    """Collect the texts of RuntimeWarnings, which the learner passes on; others are shown as always."""
    notes: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, RuntimeWarning):
                notes.append(str(message))
            else:
                show(message, category, *place, **more)

        warnings.showwarning = note
        warnings.simplefilter("always", RuntimeWarning)
        yield notes


def _return_freed_memory() -> None:
    """Give back to the system what building took for a while; glibc keeps it otherwise, 40 MB per worker."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def serve(connection: Connection, arrays: SharedArrays) -> None:
    """Answer messages until the learner closes the connection or asks for the end."""
    worker = Worker(arrays)
    while True:
        message = connection.recv_bytes()
        try:
            if message == STEP:
                worker.step()
                connection.send_bytes(DONE)
                continue
            name, args = pickle.loads(message[1:])
            result = getattr(worker, name)(*args)
            connection.send_bytes(RESULT + pickle.dumps(result))
            if name == "close":
                return
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except (UserError, EnvironmentFailure) as refused:
            connection.send_bytes(REFUSAL + pickle.dumps(refused))
        except Exception:  # noqa: BLE001 - whatever the simulation raises is reported to the learner
            connection.send_bytes(ERROR + pickle.dumps(traceback.format_exc()))


def main(channel: int, memory: int, sizes: Sequence[int], niceness: int) -> None:
    """Run a worker on inherited descriptors of its channel and of the shared memory."""
    # Schedulers may signal every process of a job; the learner decides when the workers end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.nice(niceness)
    threading.Thread(target=_exit_with_parent, args=(channel, os.getppid()), daemon=True).start()
    connection = Connection(channel)
    arrays = SharedArrays.attach(memory, Sizes(*sizes))
    os.close(memory)
    try:
        serve(connection, arrays)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The learner is gone; interpreter shutdown may hang in a rendering context, so skip it.
        os._exit(1)


def _exit_with_parent(channel: int, parent: int) -> None:
    """End this process when the learner's has ended, even in the middle of a step that hangs."""
    poll = select.poll()
    poll.register(channel, 0)
    # A process forked by the learner may hold the channel open: the parent's id tells as well.
    while not poll.poll(1000) and os.getppid() == parent:
        pass
    os._exit(1)
