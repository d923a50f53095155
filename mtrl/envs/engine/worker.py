"""A worker process: steps several environments in place in shared memory; imports no torch.

A backend is a module with `versions()`, `generate_goals(names, seed)`,
`make_env(task, goals, rules, render_mode)` and `notes()`, texts about them that users should see;
`mtrl.envs.metaworld.simulation` is the real one, tests bring others.
Messages of one byte start and acknowledge steps; everything rarer is a pickled command between two processes.
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
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from multiprocessing.connection import Connection
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.engine.shared import INFO_KEYS, SharedArrays

STEP, COMMAND, DONE, RESULT, ERROR = b"s", b"c", b"d", b"r", b"e"
_IN_ORDER = itemgetter(*INFO_KEYS)


class SimEnv(Protocol):
    """One simulated task, as a backend's `make_env` returns it."""

    def set_goals(self, goals: NDArray[np.float64]) -> None:
        """Replace the goal set [G, D]."""

    def reset(self, goal: int) -> NDArray[Any]:
        """Start an episode; return the first observation [39]."""

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[Any], float, dict[str, Any]]:
        """Return observation [39], reward and info with the keys of `INFO_KEYS`."""

    def get_state(self) -> dict[str, Any]:
        """Return the simulation's state as plain containers and arrays."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the simulation's state."""

    def render(self) -> Any:
        """Return a frame."""

    def close(self) -> None:
        """Free what the simulation holds."""


class Rules(NamedTuple):
    """What defines an episode; part of a saved state."""

    reward_version: str
    num_goals: int
    max_episode_steps: int
    terminate_on_success: bool


class Build(NamedTuple):
    """What a worker needs to build its environments."""

    slots: list[tuple[int, str]]  # row in the shared arrays, task
    goals: dict[str, NDArray[np.float64]]  # [G, D] of each of the worker's tasks
    rules: Rules
    render_mode: str | None


class Slot:
    """One environment with its episode clock and its rows of the shared arrays."""

    def __init__(self, row: int, task: str, build: Build, arrays: SharedArrays, backend: Any) -> None:
        self.row, self.task = row, task
        self.env: SimEnv = backend.make_env(task, build.goals[task], build.rules, build.render_mode)
        self.action, self.obs, self.final_obs = arrays.action[row], arrays.obs[row], arrays.final_obs[row]
        self.info = arrays.info[row]
        self.upcoming = arrays.goal[row : row + 1]
        self.goal = -1
        self.elapsed = 0

    def start(self) -> None:
        """Begin an episode with the goal that the learner has announced."""
        self.goal = int(self.upcoming[0])
        self.elapsed = 0
        self.obs[:] = self.env.reset(self.goal)

    def get_state(self) -> dict[str, Any]:
        """Return everything that decides this environment's future but its goal stream."""
        return {
            "goal": self.goal,
            "elapsed": self.elapsed,
            "obs": self.obs.copy(),
            "env": self.env.get_state(),
        }

    def set_state(self, state: dict[str, Any], goals: NDArray[np.float64]) -> None:
        """Restore what `get_state` returned, with the goal set it belongs to; a lost episode starts anew."""
        self.env.set_goals(np.asarray(goals))
        if state["env"] is None:
            self.start()
            return
        self.goal, self.elapsed = int(state["goal"]), int(state["elapsed"])
        self.obs[:] = state["obs"]
        self.env.set_state(state["env"])


class Worker:
    """Executes the learner's messages."""

    def __init__(self, backend: str, arrays: SharedArrays) -> None:
        self.backend_name = backend
        self.arrays = arrays
        self.slots: list[Slot] = []
        self.rules: Rules
        self.stepping = arrays.stepping[:0]

    @cached_property
    def backend(self) -> Any:
        """The simulation's module, imported at the first command, so that failing is reported."""
        return import_module(self.backend_name)

    def step(self) -> None:
        """Step every environment; reset in the same step those whose episode ended."""
        arrays, rules = self.arrays, self.rules
        rewards, horizon, stepping = arrays.reward, rules.max_episode_steps, self.stepping
        for slot in self.slots:
            row = slot.row
            # Where the learner looks if this process dies or hangs in the middle of it.
            stepping[0] = row + 1
            obs, reward, info = slot.env.step(slot.action.copy())
            slot.elapsed += 1
            rewards[row] = reward
            slot.info[:] = _IN_ORDER(info)
            truncated = slot.elapsed >= horizon
            terminated = rules.terminate_on_success and info["success"] == 1.0
            arrays.truncated[row], arrays.terminated[row] = truncated, terminated
            if truncated or terminated:
                slot.final_obs[:] = obs
                slot.start()
            else:
                slot.obs[:] = obs
        stepping[0] = 0

    def versions(self) -> dict[str, str]:
        """Return the backend's versions."""
        result: dict[str, str] = self.backend.versions()
        return result

    def modules(self) -> list[str]:
        """Return the names of the modules imported in this process."""
        return sorted(sys.modules)

    def generate_goals(self, names: Sequence[str], seed: int) -> dict[str, NDArray[np.float64]]:
        """Return the goal sets of a benchmark's first tasks."""
        result: dict[str, NDArray[np.float64]] = self.backend.generate_goals(names, seed)
        return result

    def build(self, build: Build) -> list[str]:
        """Construct the environments; return the backend's notes."""
        self.rules = build.rules
        first = build.slots[0][0]
        self.stepping = self.arrays.stepping[first : first + 1]
        for row, task in build.slots:
            self.stepping[0] = row + 1
            self.slots.append(Slot(row, task, build, self.arrays, self.backend))
        self.stepping[0] = 0
        _return_freed_memory()
        notes: list[str] = self.backend.notes()
        return notes

    def reset(self) -> None:
        """Start an episode in every environment, with the goals that the learner has announced."""
        for slot in self.slots:
            self.stepping[0] = slot.row + 1
            slot.start()
        self.stepping[0] = 0

    def get_state(self) -> list[dict[str, Any]]:
        """Return the state of each environment."""
        return [slot.get_state() for slot in self.slots]

    def set_state(self, states: dict[int, dict[str, Any]], goals: dict[str, NDArray[np.float64]]) -> None:
        """Restore the state of each environment, given by row."""
        for slot in self.slots:
            self.stepping[0] = slot.row + 1
            slot.set_state(states[slot.row], goals[slot.task])
        self.stepping[0] = 0

    def render(self, rows: Sequence[int]) -> dict[int, Any]:
        """Return frames of the given rows, those of other workers left out."""
        return {slot.row: slot.env.render() for slot in self.slots if slot.row in rows}

    def close(self) -> None:
        """Free the environments."""
        for slot in self.slots:
            slot.env.close()
        self.slots.clear()


def _return_freed_memory() -> None:
    """Give back to the system what building took for a while; glibc keeps it otherwise, 40 MB per worker."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def serve(connection: Connection, backend: str, arrays: SharedArrays) -> None:
    """Answer messages until the learner closes the connection or asks for the end."""
    worker = Worker(backend, arrays)
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
        except Exception:  # noqa: BLE001 - whatever the simulation raises is reported to the learner
            connection.send_bytes(ERROR + pickle.dumps(traceback.format_exc()))


def main(channel: int, memory: int, num_envs: int, backend: str) -> None:
    """Run a worker on inherited descriptors of its channel and of the shared memory."""
    # Schedulers may signal every process of a job; the learner decides when the workers end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Where cores are short the learner goes first: one thread preempted in a parallel region, all wait.
    os.nice(19)
    threading.Thread(target=_exit_with_parent, args=(channel, os.getppid()), daemon=True).start()
    connection = Connection(channel)
    arrays = SharedArrays.attach(memory, num_envs)
    os.close(memory)
    try:
        serve(connection, backend, arrays)
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
