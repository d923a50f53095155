"""Meta-World tasks as one gymnasium.vector.VectorEnv over worker processes and shared memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from gymnasium.error import (
    AlreadyPendingCallError,
    ClosedEnvironmentError,
    NoAsyncCallError,
    ResetNeeded,
)
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from mtrl.envs.arguments import check_choices, check_positive, check_seed, read_goals
from mtrl.envs.goals import GOALS_PER_TASK, GoalSets, goal_sets
from mtrl.envs.pool import WorkerPool, balanced
from mtrl.envs.shared import INFO_KEYS
from mtrl.envs.tasks import ACTION_SIZE, OBS_SIZE
from mtrl.envs.worker import Build, Rules
from mtrl.errors import NonFiniteError, UserError

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
StepResult = tuple[Floats, Floats, Flags, Flags, dict[str, Any]]

_BACKEND = "mtrl.envs.metaworld"
_STATE_SCHEMA = 1


class MetaWorldVectorEnv(VectorEnv[Any, Any, Any]):
    """T tasks x E copies in task-major order: row t * E + e is copy e of task t.

    Episodes that end restart in the same step (SAME_STEP). Each environment draws its goals from a stream of
    its own, (seed, task, copy), whatever the workers or the other tasks. Arrays handed out are copies.
    `backend` and `goals` replace the simulation and its goal sets in tests.
    """

    def __init__(
        self,
        task_names: Sequence[str],
        *,
        seed: int,
        envs_per_task: int = 1,
        num_workers: int | None = None,
        reward_version: str = "v2",
        num_goals: int = GOALS_PER_TASK,
        max_episode_steps: int = 500,
        terminate_on_success: bool = False,
        render_mode: str | None = None,
        step_timeout: float = 60.0,
        backend: str = _BACKEND,
        goals: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> None:
        self.closed = True  # so that a failing check leaves nothing for __del__ to close
        check_seed(seed)
        check_positive(envs_per_task=envs_per_task, max_episode_steps=max_episode_steps)
        check_positive(num_workers=1 if num_workers is None else num_workers, num_goals=num_goals)
        check_choices(reward_version, num_goals, render_mode, step_timeout)
        self.task_names = tuple(task_names)
        self.num_tasks, self.envs_per_task = len(self.task_names), envs_per_task
        self.num_envs = self.num_tasks * envs_per_task
        self.num_goals = num_goals
        self.render_mode = render_mode
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_fps": 80}
        self.single_observation_space = Box(-np.inf, np.inf, (OBS_SIZE,), np.float32)
        self.single_action_space = Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._rules = Rules(reward_version, num_goals, max_episode_steps, terminate_on_success)
        self._pending = self._started = False
        self._row_tasks = tuple(name for name in self.task_names for _ in range(envs_per_task))
        rows = balanced(self.num_envs, num_workers or len(os.sched_getaffinity(0)))
        self.num_workers = len(rows)
        self._pool = WorkerPool(backend, self._row_tasks, rows, step_timeout)
        self.closed = False
        try:
            self._build(seed, goals)
        except BaseException:
            self.close(terminate=True)
            raise

    def _build(self, seed: int, goals: Mapping[str, NDArray[np.float64]] | None) -> None:
        self.versions: dict[str, str] = self._pool.call("versions", starting=True)[0]
        if goals is None:
            goals = goal_sets(self.task_names, seed, self.versions["metaworld"], self._generate_goals)
        count = self._rules.num_goals
        self._goals: GoalSets = {name: goals[name][:count] for name in self.task_names}
        builds = {}
        for worker, rows in enumerate(self._pool.rows):
            slots = [(row, self._row_tasks[row], row % self.envs_per_task) for row in rows]
            builds[worker] = (
                Build(
                    slots=slots,
                    goals={task: self._goals[task] for _, task, _ in slots},
                    seed=seed,
                    rules=self._rules,
                    render_mode=self.render_mode,
                ),
            )
        self._pool.scatter("build", builds, starting=True)

    def _generate_goals(self, names: Sequence[str], seed: int) -> GoalSets:
        sets: GoalSets = self._pool.call("generate_goals", names, seed, workers=[0], starting=True)[0]
        return sets

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close(terminate=exception[0] is not None)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        return self._pool.pids

    @property
    def observations(self) -> Floats:
        """The observations [T*E, 39] that the next actions answer, for instance after `set_state`."""
        self._check_idle()
        return self._pool.arrays.obs.copy()

    @property
    def goal_sets(self) -> GoalSets:
        """The goal vectors [num_goals, D] of each task."""
        return {name: goals.copy() for name, goals in self._goals.items()}

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Start new episodes everywhere; return observations [T*E, 39] and infos with `goal` int64 [T*E].

        Args:
            seed: If given, starts every goal stream anew; the goal sets stay those of the constructor's seed.
            options: `{"goal": int array [T*E]}` starts these goals and leaves the streams where they are.
        """
        self._check_idle()
        if seed is not None:
            check_seed(seed)
        goals = read_goals(options, self.num_envs, self._rules.num_goals)
        self._started = False
        started = self._pool.call("reset", seed, goals)
        self._started = True
        goal = np.empty(self.num_envs, np.int64)
        for rows, own in zip(self._pool.rows, started, strict=True):
            goal[list(rows)] = own
        obs = self._pool.arrays.obs.copy()
        self._check_finite(obs, "observation")
        return obs, {"goal": goal}

    def step(self, actions: Floats) -> StepResult:
        """Step every environment with actions [T*E, 4]; `step_async` followed by `step_wait`."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: ArrayLike) -> None:
        """Start stepping with actions [T*E, 4] and return at once.

        Raises:
            NonFiniteError: an action is not finite; no environment has stepped.
        """
        self._check_idle()
        if not self._started:
            raise ResetNeeded("call reset() or set_state() before stepping.")
        actions = np.asarray(actions, np.float32)
        if actions.shape != (self.num_envs, ACTION_SIZE):
            raise UserError(
                f"actions must have shape {[self.num_envs, ACTION_SIZE]} (tasks x copies, action); "
                f"found {list(actions.shape)}."
            )
        self._check_finite(actions, "action")
        self._pool.arrays.action[:] = actions
        self._pending = True
        self._pool.begin_step()

    def step_wait(self) -> StepResult:
        """Return observations, rewards [T*E], terminations, truncations and infos of the step under way.

        `infos` holds upstream's info entries as float32 [T*E] on every step, `success` among them; where any
        episode ended also `final_obs` [T*E, 39], the rows of the others being their current observation.

        Raises:
            NonFiniteError: the simulation returned a non-finite observation or reward; names the tasks.
            EnvironmentFailure: a worker died, raised or hung; close() is all that is left to do.
        """
        if self.closed:
            raise ClosedEnvironmentError("the environments are closed.")
        if not self._pending:
            raise NoAsyncCallError("step_wait() without a step_async() before it.", "step")
        self._pool.finish_step()
        self._pending = False
        shared = self._pool.arrays
        obs, reward = shared.obs.copy(), shared.reward.copy()
        terminated, truncated = shared.terminated.copy(), shared.truncated.copy()
        infos: dict[str, Any] = dict(zip(INFO_KEYS, shared.info.T.copy(), strict=True))
        ended = terminated | truncated
        if ended.any():
            infos["final_obs"] = np.where(ended[:, None], shared.final_obs, obs)
            self._check_finite(infos["final_obs"], "observation")
        self._check_finite(obs, "observation")
        self._check_finite(reward, "reward")
        return obs, reward, terminated, truncated, infos

    def get_state(self) -> dict[str, Any]:
        """Return the state in mid-episode: plain containers of arrays, numbers and strings."""
        self._check_idle()
        if not self._started:
            raise ResetNeeded("call reset() or set_state() before get_state().")
        envs: list[Any] = [None] * self.num_envs
        for rows, states in zip(self._pool.rows, self._pool.call("get_state"), strict=True):
            for row, state in zip(rows, states, strict=True):
                envs[row] = state
        return {
            "schema": _STATE_SCHEMA,
            "versions": dict(self.versions),
            "task_names": list(self.task_names),
            "envs_per_task": self.envs_per_task,
            "rules": self._rules._asdict(),
            "goals": self.goal_sets,
            "envs": envs,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue, bit for bit, where `get_state` was called; any seed and number of workers on both sides.

        Raises:
            UserError: the state belongs to other tasks, other rules or other versions of the simulation.
        """
        self._check_idle()
        for key, mine in (
            ("schema", _STATE_SCHEMA),
            ("task_names", list(self.task_names)),
            ("envs_per_task", self.envs_per_task),
            ("rules", self._rules._asdict()),
            ("versions", self.versions),
        ):
            if state.get(key) != mine:
                raise UserError(
                    f"the saved environment state does not fit these environments: {key} is "
                    f"{state.get(key)} there and {mine} here. Make environments with the saved values."
                )
        self._started = False
        args = {
            worker: ({row: state["envs"][row] for row in rows}, dict(state["goals"]))
            for worker, rows in enumerate(self._pool.rows)
        }
        self._pool.scatter("set_state", args)
        self._goals = {name: np.array(goals) for name, goals in state["goals"].items()}
        self._started = True

    def render(self, rows: Sequence[int] | None = None) -> tuple[Any, ...]:
        """Return one frame for each of the given rows, by default for all environments."""
        self._check_idle()
        chosen = list(range(self.num_envs) if rows is None else rows)
        frames: dict[int, Any] = {}
        for own in self._pool.call("render", chosen):
            frames.update(own)
        return tuple(frames[row] for row in chosen)

    def close_extras(self, *, terminate: bool = False, **kwargs: Any) -> None:
        """End the workers; at once if `terminate`, if a step is under way or if one has failed."""
        self._pool.close(at_once=terminate or self._pending)

    def worker_modules(self) -> list[list[str]]:
        """Return the names of the modules imported in each worker."""
        self._check_idle()
        modules: list[list[str]] = self._pool.call("modules")
        return modules

    def _check_idle(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("the environments are closed.")
        if self._pending:
            raise AlreadyPendingCallError("a step is under way: call step_wait() first.", "step")

    def _check_finite(self, values: Floats, what: str) -> None:
        finite = np.isfinite(values)
        if finite.all():
            return
        bad = ~finite.reshape(self.num_envs, -1).all(axis=1)
        tasks = dict.fromkeys(self._row_tasks[row] for row in np.flatnonzero(bad))
        raise NonFiniteError(f"non-finite {what} in {', '.join(tasks)} (environments {np.flatnonzero(bad)}).")
