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

from mtrl.envs.engine.arguments import (
    check_choices,
    check_finite,
    check_fits,
    check_positive,
    check_seed,
    read_goals,
)
from mtrl.envs.engine.costs import balanced
from mtrl.envs.engine.episodes import Episodes
from mtrl.envs.engine.pool import WorkerPool
from mtrl.envs.engine.results import Flags, Floats, StepResult, collect
from mtrl.envs.engine.supervision import Blueprint, Report, Supervisor, warn
from mtrl.envs.engine.worker import Rules
from mtrl.envs.metaworld.goals import GOALS_PER_TASK, GoalSets, goal_sets
from mtrl.envs.metaworld.tasks import ACTION_SIZE, OBS_SIZE
from mtrl.errors import EnvironmentFailure, UserError

_BACKEND = "mtrl.envs.metaworld.simulation"
_STATE_SCHEMA = 1


class MetaWorldVectorEnv(VectorEnv[Any, Any, Any]):
    """T tasks x E copies in task-major order: row t * E + e is copy e of task t.

    Episodes that end restart in the same step (SAME_STEP). Each environment draws its goals from a stream of
    its own, (seed, task, copy), whatever the workers or the other tasks. Arrays handed out are copies.

    A worker that dies, raises or hangs is restarted, up to `max_restarts` times; each of its environments
    begins a new episode with the next goal of its stream, and `infos["restarted"]` marks the row for that
    step: truncated, reward 0, `final_obs` the last observation handed out. Such a row is no transition.
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
        max_restarts: int = 3,
        report: Report = warn,
        backend: str = _BACKEND,
        goals: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> None:
        self.closed = True  # so that a failing check leaves nothing for __del__ to close
        check_seed(seed)
        check_positive(envs_per_task=envs_per_task, max_episode_steps=max_episode_steps)
        check_positive(num_workers=1 if num_workers is None else num_workers, num_goals=num_goals)
        check_choices(reward_version, num_goals, render_mode, step_timeout, max_restarts)
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
        rows = balanced(self._row_tasks, num_workers or len(os.sched_getaffinity(0)))
        self.num_workers = len(rows)
        self._pool = WorkerPool(backend, self.num_envs, rows, step_timeout)
        copies = [row % envs_per_task for row in range(self.num_envs)]
        self._episodes = Episodes(self._row_tasks, copies, num_goals, self._pool.arrays.goal)
        self._blueprint = Blueprint(self._row_tasks, {}, self._rules, render_mode)
        self._workers = Supervisor(self._pool, self._blueprint, self._episodes, max_restarts, report)
        self._nobody: Flags = np.zeros(self.num_envs, np.bool_)
        self._lost = self._nobody  # rows whose episode was lost before the step under way
        self._shown = self._pool.arrays.obs.copy()  # observations handed out last
        self.closed = False
        try:
            self._start(seed, goals, report)
        except BaseException:
            self.close(terminate=True)
            raise

    def _start(self, seed: int, goals: Mapping[str, NDArray[np.float64]] | None, report: Report) -> None:
        self.versions: dict[str, str] = self._workers.all_of("versions", {0: ()}, starting=True)[0]
        if goals is None:
            goals = goal_sets(self.task_names, seed, self.versions["metaworld"], self._workers.generate_goals)
        count = self._rules.num_goals
        self._blueprint.goals = {name: goals[name][:count] for name in self.task_names}
        self._episodes.seed(seed)
        for note in self._workers.start():
            report(note)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close(terminate=exception[0] is not None)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        return self._pool.pids

    @property
    def restarts(self) -> int:
        """Workers restarted so far."""
        return self._workers.restarts

    @property
    def observations(self) -> Floats:
        """The observations [T*E, 39] that the next actions answer, for instance after `set_state`."""
        self._check_idle()
        return self._pool.arrays.obs.copy()

    @property
    def goal_sets(self) -> GoalSets:
        """The goal vectors [num_goals, D] of each task."""
        return {name: goals.copy() for name, goals in self._blueprint.goals.items()}

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Start new episodes everywhere; return observations [T*E, 39] and infos with `goal` int64 [T*E].

        Args:
            seed: If given, starts every goal stream anew; the goal sets stay those of the constructor's seed.
            options: `{"goal": int array [T*E]}` starts these goals and leaves the streams where they are.
        """
        self._check_idle()
        goals = read_goals(options, self.num_envs, self._rules.num_goals)
        if seed is not None:
            self._episodes.seed(check_seed(seed))
        self._started = False
        with self._episodes.beginning(goals):
            self._workers.begin(range(self.num_workers))
        self._started = True
        self._lost = self._nobody
        obs = self._pool.arrays.obs.copy()
        check_finite(obs, self._row_tasks, "observation")
        self._shown = obs.copy()
        return obs, {"goal": self._episodes.goal.copy()}

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
        self._workers.check()
        if not self._started:
            raise ResetNeeded("call reset() or set_state() before stepping.")
        actions = np.asarray(actions, np.float32)
        if actions.shape != (self.num_envs, ACTION_SIZE):
            raise UserError(
                f"actions must have shape {[self.num_envs, ACTION_SIZE]} (tasks x copies, action); "
                f"found {list(actions.shape)}."
            )
        check_finite(actions, self._row_tasks, "action")
        self._pool.arrays.action[:] = actions
        self._pending = True
        self._pool.begin_step()

    def step_wait(self) -> StepResult:
        """Return observations, rewards [T*E], terminations, truncations and infos of the step under way.

        `infos` holds upstream's info entries as float32 [T*E] on every step, `success` among them, and
        `restarted`, bool [T*E]: the rows whose episode was lost with its worker. Where any episode ended also
        `final_obs` [T*E, 39], the rows of the others being their current observation.

        Raises:
            NonFiniteError: the simulation returned a non-finite observation or reward; names the tasks.
            EnvironmentFailure: a worker failed once more than `max_restarts` allows; the rows of the others
                are in the error's `step_result`. get_state() and close() are of use then, nothing else.
        """
        if self.closed:
            raise ClosedEnvironmentError("the environments are closed.")
        if not self._pending:
            raise NoAsyncCallError("step_wait() without a step_async() before it.", "step")
        self._pool.finish_step()
        self._pending = False
        self._episodes.elapsed += 1
        if not self._pool.failures:
            return self._collect(self._nobody, self._nobody)
        try:
            self._workers.begin()
        except EnvironmentFailure as failure:
            failure.step_result = self._collect(*self._workers.failed_rows())
            raise
        return self._collect(*self._workers.failed_rows())

    def _collect(self, begun: Flags, dead: Flags) -> StepResult:
        unstepped = begun | dead
        lost = self._lost | unstepped
        arrays = self._pool.arrays
        if dead is not self._nobody:
            arrays.obs[dead] = self._shown[dead]
        obs, reward, terminated, truncated, infos = collect(arrays, self._shown, unstepped, lost)
        in_next = begun | ((arrays.terminated | arrays.truncated) & ~unstepped)
        if in_next.any():
            self._episodes.began(np.flatnonzero(in_next))
            check_finite(infos["final_obs"], self._row_tasks, "observation")
        check_finite(obs, self._row_tasks, "observation")
        check_finite(reward, self._row_tasks, "reward")
        self._shown, self._lost = obs.copy(), self._nobody
        return obs, reward, terminated, truncated, infos

    def get_state(self) -> dict[str, Any]:
        """Return the state in mid-episode: plain containers of arrays, numbers and strings.

        Environments of a worker that has died are stored as lost: `set_state` begins an episode in them.
        """
        self._check_idle()
        if not self._started:
            raise ResetNeeded("call reset() or set_state() before get_state().")
        envs = [self._episodes.stored(row, env) for row, env in enumerate(self._workers.states())]
        return {**self._header(), "goals": self.goal_sets, "envs": envs, "lost": self._lost.copy()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue, bit for bit, where `get_state` was called; any seed and number of workers on both sides.

        Raises:
            UserError: the state belongs to other tasks, other rules or other versions of the simulation.
            EnvironmentFailure: a worker failed while restoring.
        """
        self._check_idle()
        check_fits(state, self._header())
        self._started = False
        envs = state["envs"]
        self._blueprint.goals = {name: np.array(goals) for name, goals in state["goals"].items()}
        self._episodes.restore(envs)
        self._workers.restore(envs, state["goals"])
        anew = np.array([env["env"] is None for env in envs])
        self._episodes.began(np.flatnonzero(anew))
        self._lost = anew | np.asarray(state.get("lost", self._nobody), np.bool_)
        self._shown = self._pool.arrays.obs.copy()
        self._started = True

    def _header(self) -> dict[str, Any]:
        return {
            "schema": _STATE_SCHEMA,
            "versions": dict(self.versions),
            "task_names": list(self.task_names),
            "envs_per_task": self.envs_per_task,
            "rules": self._rules._asdict(),
        }

    def render(self, rows: Sequence[int] | None = None) -> tuple[Any, ...]:
        """Return one frame for each of the given rows, by default for all environments."""
        self._check_idle()
        chosen = list(range(self.num_envs) if rows is None else rows)
        frames: dict[int, Any] = {}
        for own in self._workers.each("render", chosen):
            frames.update(own)
        return tuple(frames[row] for row in chosen)

    def close_extras(self, *, terminate: bool = False, **kwargs: Any) -> None:
        """End the workers; at once if `terminate`, if a step is under way or if one has failed."""
        self._pool.close(at_once=terminate or self._pending)

    def worker_modules(self) -> list[Any]:
        """Return the names of the modules imported in each worker."""
        return self._workers.each("modules")

    def _check_idle(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("the environments are closed.")
        if self._pending:
            raise AlreadyPendingCallError("a step is under way: call step_wait() first.", "step")
