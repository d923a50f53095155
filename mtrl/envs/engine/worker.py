"""A worker process, which steps several environments in place in shared memory. It imports no torch.

One-byte messages start and acknowledge steps. Everything rarer is a pickled command. The shared arrays need
no locks because messages order the accesses: between a message and its answer only the worker uses its rows,
at all other times only the learner does. A worker that misses its deadline is killed before the learner
continues.
"""

import ctypes
import os
import pickle
import random
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from mtrl.envs.engine.arguments import check_observation
from mtrl.envs.engine.shared import SharedArrays, Sizes
from mtrl.envs.suite import TaskEnv, TaskSuite
from mtrl.errors import EnvironmentFailure, UserError
from mtrl.registry import FILE_MODULE, load_object

STEP, COMMAND, DONE, RESULT, ERROR, REFUSAL = b"s", b"c", b"d", b"r", b"e", b"n"
_TRIAL_STEPS = 8


class Parcel(NamedTuple):
    """A pickled suite, and the file that defines its class if that file is not an importable module."""

    file: str | None
    name: str
    body: bytes

    def open(self) -> TaskSuite:
        """Return the suite; called in a worker."""
        if self.file is not None:
            # Unpickling looks the module up in sys.modules, where this enters it.
            load_object(f"{self.file}:{self.name}", "suite")
        suite: TaskSuite = pickle.loads(self.body)
        return suite


def pack(suite: TaskSuite) -> Parcel:
    """Pack a suite for the workers.

    Raises:
        UserError: another process cannot find the class, or an attribute cannot be pickled.
    """
    cls: type[Any] = type(suite)
    if cls.__module__ == "__main__":
        raise UserError(
            f"the suite class {cls.__name__} is defined in the script itself, which workers never run. "
            "Move it to a module of its own and import it from there."
        )
    try:
        body = pickle.dumps(suite)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"the suite {cls.__name__} cannot be sent to the workers ({error}): it must be a class at the "
            "top of a module and hold plain data only. Open files and make simulations in make_env."
        ) from error
    file = sys.modules[cls.__module__].__file__ if cls.__module__.startswith(FILE_MODULE) else None
    return Parcel(file, cls.__qualname__, body)


@dataclass
class Blueprint:
    """What all environments are made from."""

    suite: Parcel
    tasks: Sequence[str]  # of each row
    max_episode_steps: int
    render_mode: str | None
    goals: Mapping[str, Any]  # the goals in use, by task


class HostedEnv:
    """One environment of this process, its env steps in the episode, and its rows of the shared arrays."""

    def __init__(self, row: int, task: str, simulation: TaskEnv, arrays: SharedArrays) -> None:
        self.row, self.task, self.simulation = row, task, simulation
        self.action, self.obs, self.final_obs = arrays.action[row], arrays.obs[row], arrays.final_obs[row]
        self.info = arrays.info[row]
        self.upcoming = arrays.goal[row : row + 1]
        self.elapsed = 0

    def start(self) -> None:
        """Begin an episode with the goal that the learner has written into the shared arrays."""
        self.elapsed = 0
        obs = self.simulation.reset(int(self.upcoming[0]))
        check_observation(obs, self.obs.size, self.task)
        self.obs[:] = obs

    def get_state(self) -> dict[str, Any]:
        """Return the observation and the simulation's state; the learner knows goal and env steps."""
        return {"obs": self.obs.copy(), "env": self.simulation.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned; begin a new episode where that one was lost."""
        if state["env"] is None:
            self.start()
            return
        self.elapsed = int(state["elapsed"])
        self.obs[:] = state["obs"]
        self.simulation.set_state(state["env"])


class Worker:
    """Executes the learner's commands."""

    def __init__(self, arrays: SharedArrays) -> None:
        self.arrays = arrays
        self.envs: list[HostedEnv] = []
        self.suite: TaskSuite
        self.blueprint: Blueprint
        self.seeds: Mapping[int, np.random.SeedSequence]
        self.in_order: Callable[[Mapping[str, Any]], Any]  # info -> entries in the order of the arrays
        self.stepping = arrays.stepping[:0]

    def step(self) -> None:
        """Step every environment, and reset those whose episode ended within the same step."""
        arrays, in_order, stepping = self.arrays, self.in_order, self.stepping
        rewards, horizon = arrays.reward, self.blueprint.max_episode_steps
        for env in self.envs:
            row = env.row
            # If this process dies or hangs, the learner reads here in which environment it happened.
            stepping[0] = row + 1
            obs, reward, terminated, truncated, info = env.simulation.step(env.action.copy())
            env.elapsed += 1
            if env.elapsed == 1:  # checking each would cost time
                check_observation(obs, env.obs.size, env.task)
            rewards[row] = reward
            env.info[:] = in_order(info)
            truncated = truncated or env.elapsed >= horizon
            arrays.truncated[row], arrays.terminated[row] = truncated, terminated
            if truncated or terminated:
                env.final_obs[:] = obs
                env.start()
            else:
                env.obs[:] = obs
        stepping[0] = 0

    def draw_goals(self, suite: Parcel, seed: int) -> tuple[dict[str, Any], list[str]]:
        """Return the suite's goals and notes for the user."""
        with _noted() as notes:
            goals = dict(suite.open().draw_goals(seed))
        return goals, notes

    def build(self, blueprint: Blueprint, seeds: Mapping[int, np.random.SeedSequence]) -> list[str]:
        """Make the environments of the rows that `seeds` has, in place of any before; return notes."""
        self.close()
        self.blueprint, self.seeds = blueprint, seeds
        first = min(seeds)
        self.stepping = self.arrays.stepping[first : first + 1]
        with _noted() as notes:
            self.suite = blueprint.suite.open()
            self.in_order = itemgetter(*self.suite.info_keys)
            for row in seeds:
                self.stepping[0] = row + 1
                self.envs.append(HostedEnv(row, blueprint.tasks[row], self._make(row), self.arrays))
        self.stepping[0] = 0
        _return_freed_memory()
        return notes

    def _make(self, row: int) -> TaskEnv:
        task = self.blueprint.tasks[row]
        return self.suite.make_env(
            task,
            self.blueprint.goals[task],
            seed=self.seeds[row],
            max_episode_steps=self.blueprint.max_episode_steps,
            render_mode=self.blueprint.render_mode,
        )

    def try_states(self, rows: Sequence[int]) -> tuple[str | None, list[Any]]:
        """For each of the given rows that this worker owns, make another environment and try to save it.

        Returns:
            What is wrong with the first that cannot be saved, None if all can, and the states taken.
        """
        states = []
        for row in (row for row in rows if row in self.seeds):
            self.stepping[0] = row + 1
            with warnings.catch_warnings(), _own_global_streams():
                warnings.simplefilter("ignore")
                env = self._make(row)
                problem, state = try_state(env, self.blueprint.tasks[row], self.suite)
                env.close()
            self.stepping[0] = 0
            if problem is not None:
                return problem, []
            states.append(state)
        return None, states

    def reset(self) -> None:
        """Begin an episode in every environment."""
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
        """Return frames of those of the given rows that belong to this worker."""
        try:
            return {env.row: env.simulation.render() for env in self.envs if env.row in rows}
        except Exception as error:
            # The simulations are unharmed, so this must not count as a failure of the worker.
            reason = traceback.format_exception_only(error)[-1].strip()
            raise EnvironmentFailure(f"rendering failed: {reason}") from error

    def close(self) -> None:
        """Free the environments."""
        for env in self.envs:
            env.simulation.close()
        self.envs.clear()


def try_state(env: TaskEnv, task: str, suite: TaskSuite) -> tuple[str | None, Any]:
    """Save and restore an environment within an episode; return the problem, None without one, and the state.

    Eight steps, a reset and eight more steps are compared. This finds state outside of the environment, such
    as a global random generator or a variable of a module.
    """
    actions = np.random.default_rng(0).uniform(-1, 1, (_TRIAL_STEPS, suite.action_dim)).astype(np.float32)

    def played() -> list[Any]:
        numbers: list[Any] = []
        for goal in (0, min(1, suite.num_goals - 1)):
            for action in actions:
                obs, reward, terminated, truncated, _ = env.step(action)
                numbers.append((np.asarray(obs).tobytes(), repr(reward), terminated, truncated))
                if terminated or truncated:
                    break
            numbers.append(np.asarray(env.reset(goal)).tobytes())
        return numbers

    env.reset(0)
    env.step(actions[0])
    try:
        state = env.get_state()
        copied = pickle.loads(pickle.dumps(state))
        expected = played()
        env.set_state(copied)
        again = played()
    except UserError as error:
        return str(error), None
    except Exception as error:  # noqa: BLE001 - a class of the user's own may raise anything
        return f"task {task} cannot be saved in mid-episode: {type(error).__name__}: {error}", None
    if again != expected:
        return (
            f"task {task} cannot be saved in mid-episode: restored by set_state, it continues with other "
            "numbers, so something outside of its state decides them, such as a global random generator."
        ), None
    return None, state


@contextmanager
def _own_global_streams() -> Iterator[None]:
    """Keep the global random generators as they are, on which environments of this process may depend."""
    installed: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]
    before = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_bit_generator(installed)  # type: ignore[attr-defined]
        np.random.set_state(before[0])
        random.setstate(before[1])


@contextmanager
def _noted() -> Iterator[list[str]]:
    """Collect the texts of RuntimeWarnings for the learner; other warnings are shown as usual."""
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
    """Return the memory that building used temporarily: glibc would keep 40 MB per worker."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def serve(connection: Connection, arrays: SharedArrays) -> None:
    """Answer messages until the learner sends "close" or closes the connection."""
    worker = Worker(arrays)
    while True:
        message, name = connection.recv_bytes(), None
        try:
            if message == STEP:
                worker.step()
                answer = DONE
            else:
                name, args = pickle.loads(message[1:])
                answer = RESULT + pickle.dumps(getattr(worker, name)(*args))
        except Exception as error:  # noqa: BLE001 - the simulation may raise anything; the learner reports it
            # Only a command can be refused: a step that raises has not stepped all environments.
            if message != STEP and isinstance(error, UserError | EnvironmentFailure):
                worker.stepping[:] = 0  # this row must not be blamed for a later failure
                answer = REFUSAL + pickle.dumps(error)
            else:
                classes = [cls.__name__ for cls in type(error).__mro__]
                answer = ERROR + pickle.dumps((traceback.format_exc(), classes))
        connection.send_bytes(answer)
        if name == "close":
            return


def main(channel: int, memory: int, sizes: Sequence[int], niceness: int) -> None:
    """Run a worker with the inherited descriptors of its channel and of the shared memory."""
    # Schedulers signal every process of a job, but only the learner decides when the workers end.
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
        _exit_at_once()


def _exit_with_parent(channel: int, parent: int) -> None:
    """End this process when the learner's process has ended, even in the middle of a step that hangs."""
    poll = select.poll()
    poll.register(channel, 0)
    # A process forked by the learner may hold the channel open, so the parent's id is checked too.
    while not poll.poll(1000) and os.getppid() == parent:
        pass
    _exit_at_once()


def _exit_at_once() -> None:
    """End this process, whose learner is gone, and what its environments have started.

    Interpreter shutdown may hang in a rendering context, so it is skipped.
    """
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
