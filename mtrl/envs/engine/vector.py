"""A suite of tasks as one gymnasium.vector.VectorEnv over worker processes and shared memory."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError, ResetNeeded
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from mtrl.device.resources import available_cores
from mtrl.envs.engine.arguments import (
    check_choices,
    check_finite,
    check_header,
    check_seed,
    check_suite,
    read_goals,
    read_integers,
    read_rows,
)
from mtrl.envs.engine.episodes import Episodes
from mtrl.envs.engine.pool import WorkerPool, balanced
from mtrl.envs.engine.shared import Flags, Floats, Sizes, StepResult, collect
from mtrl.envs.engine.supervision import Notify, Supervisor, warn
from mtrl.envs.engine.worker import Blueprint, pack
from mtrl.envs.suite import TaskSuite
from mtrl.errors import EnvironmentFailure, UserError

_STATE_SCHEMA = 2


class TaskVectorEnv(VectorEnv[Any, Any, Any]):
    """T tasks x E copies in task-major order: row t * E + e is copy e of task t.

    Episodes that end restart in the same step (SAME_STEP). Each environment draws its goals from a stream of
    its own, seeded by (seed, task, copy), which neither the number of workers nor the other tasks change.
    Arrays returned are copies.

    A worker that dies, raises or hangs is restarted, up to `max_restarts` times. Each of its environments
    begins a new episode with the next goal of its stream, and `infos["restarted"]` marks the row for that
    step: truncated, reward 0, infos NaN, `final_obs` the last observation returned. Such a row is not a
    transition.

    Args:
        suite: the tasks.
        seed: of the suite's goals and of each environment's own streams.
        envs_per_task: copies of each task, E.
        num_workers: processes; None: one per core this process may use. Never more than environments.
        max_episode_steps: env steps after which an episode is truncated.
        render_mode: None, "human", "rgb_array" or "depth_array".
        step_timeout: seconds without an answer after which a worker counts as hung.
        max_restarts: restarts of workers in all, after which stepping raises.
        worker_niceness: added to the workers' niceness; above 0 they yield to other processes.
        notify: called with a text for each restart and each note of the suite; by default a RuntimeWarning.
        goals: used instead of those that the suite draws for the seed.

    Raises:
        UserError: a number out of range, a suite that cannot be sent to workers, or a mistake in its code.
        EnvironmentFailure: a worker could not start.
    """

    def __init__(
        self,
        suite: TaskSuite,
        *,
        seed: int,
        envs_per_task: int = 1,
        num_workers: int | None = None,
        max_episode_steps: int = 500,
        render_mode: str | None = None,
        step_timeout: float = 60.0,
        max_restarts: int = 3,
        worker_niceness: int = 0,
        notify: Notify = warn,
        goals: Mapping[str, Any] | None = None,
    ) -> None:
        self.closed = True  # __del__ calls close, which has nothing to close if a check below raises
        seed = check_seed(seed)
        num_workers = available_cores() if num_workers is None else num_workers
        envs_per_task, max_episode_steps, num_workers = read_integers(
            1, envs_per_task=envs_per_task, max_episode_steps=max_episode_steps, num_workers=num_workers
        )
        max_restarts, worker_niceness = read_integers(
            0, max_restarts=max_restarts, worker_niceness=worker_niceness
        )
        check_choices(render_mode, step_timeout)
        self.obs_dim, self.action_dim, self.num_goals = check_suite(suite)
        self.suite, self._seed = suite, seed
        self.task_names = tuple(suite.task_names)
        self.num_tasks, self.envs_per_task = len(self.task_names), envs_per_task
        self.num_envs = self.num_tasks * envs_per_task
        self.max_episode_steps = max_episode_steps
        self.versions = suite.versions()
        self.render_mode = render_mode
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = Box(-np.inf, np.inf, (self.obs_dim,), np.float32)
        self.single_action_space = Box(-1.0, 1.0, (self.action_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._pending = self._started = False
        self._row_tasks = tuple(name for name in self.task_names for _ in range(envs_per_task))
        rows = balanced(self._row_tasks, num_workers, suite.step_costs)
        self.num_workers = len(rows)
        parcel = pack(suite)
        self._pool = WorkerPool(
            Sizes(self.num_envs, self.obs_dim, self.action_dim, len(suite.info_keys)),
            rows,
            step_timeout,
            niceness=worker_niceness,
            variables=suite.worker_variables(render_mode),
        )
        copies = [row % envs_per_task for row in range(self.num_envs)]
        self._episodes = Episodes(self._row_tasks, copies, self.num_goals, self._pool.arrays.goal)
        self._blueprint = Blueprint(parcel, self._row_tasks, max_episode_steps, render_mode, goals or {})
        self._workers = Supervisor(
            self._pool, self._blueprint, self._episodes, seed=seed, max_restarts=max_restarts, notify=notify
        )
        self._nobody: Flags = np.zeros(self.num_envs, np.bool_)
        self._lost = self._nobody  # rows whose episode was lost before the current step
        self._shown = self._pool.arrays.obs.copy()  # the observations returned last
        self.closed = False
        notes: list[str] = []
        try:
            if goals is None:
                self._blueprint.goals, notes = self._workers.draw_goals(seed)
            self._episodes.seed(seed)
            for note in dict.fromkeys([*notes, *self._workers.start()]):
                notify(note)
        except BaseException:
            self.close(terminate=True)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close(terminate=exception[0] is not None)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        return self._pool.pids

    def hurry_when(self, asked: Callable[[], bool]) -> None:
        """While `asked()` is true, a worker counts as hung after eight seconds, and none is restarted.

        This also holds while `renew` or `set_state` makes environments, so restore a run first. Rows of a
        worker that has failed are `restarted` in each step, and their episodes are stored as lost.
        """
        self._pool.hurried = asked

    @property
    def restarts(self) -> int:
        """Workers restarted so far."""
        return self._workers.restarts

    @property
    def observations(self) -> Floats:
        """The observations [T*E, O] for which the next actions are chosen, for instance after `set_state`."""
        self._check_idle()
        return self._pool.arrays.obs.copy()

    @property
    def goals(self) -> NDArray[np.int64]:
        """The goal of each row's current episode, int64 [T*E]."""
        return self._episodes.goal.copy()

    @property
    def goal_sets(self) -> dict[str, Any]:
        """The goals of each task, as the suite drew them."""
        return copy.deepcopy(dict(self._blueprint.goals))

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Start new episodes everywhere; return observations [T*E, O] and infos with `goal` int64 [T*E].

        Args:
            seed: starts every goal stream anew; the goal sets stay those of the constructor's seed.
            options: `{"goal": int array [T*E]}` begins episodes with these goals; streams stay unchanged.
        """
        self._check_idle()
        goals = read_goals(options, self.num_envs, self.num_goals)
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
        """Step every environment with actions [T*E, A]; `step_async` followed by `step_wait`."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: ArrayLike) -> None:
        """Start stepping with actions [T*E, A] and return at once.

        Raises:
            NonFiniteError: an action is not finite; no environment has stepped.
        """
        self._check_idle()
        self._workers.check()
        if not self._started:
            raise ResetNeeded("call reset() or set_state() before stepping.")
        actions = np.asarray(actions, np.float32)
        if actions.shape != (self.num_envs, self.action_dim):
            raise UserError(
                f"actions must have shape {[self.num_envs, self.action_dim]} (tasks x copies, action); "
                f"found {list(actions.shape)}."
            )
        check_finite(actions, self._row_tasks, "action")
        self._pool.arrays.action[:] = actions
        self._pending = True
        self._pool.begin_step()

    def step_wait(self) -> StepResult:
        """Return observations, rewards [T*E], terminations, truncations and infos of the current step.

        `infos` always holds the suite's info entries as float32 [T*E], `success` among them, and `restarted`,
        bool [T*E]: the rows whose episode was lost with its worker; their info entries are NaN. If any
        episode ended, it also holds `final_obs` [T*E, O], and `_final_obs`, bool [T*E]: the rows whose
        episode ended. The others have their current observation in `final_obs`.

        Raises:
            UserError: the suite's code raised one, or an observation has another shape.
            NonFiniteError: the simulation returned a non-finite observation or reward; names the tasks.
            EnvironmentFailure: a worker failed and no restarts are left. The error's `step_result` holds the
                rows of the other workers. After it only get_state() and close() work.
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
        obs, reward, terminated, truncated, infos = collect(
            arrays, self.suite.info_keys, self._shown, unstepped, lost
        )
        in_next = begun | ((arrays.terminated | arrays.truncated) & ~unstepped)
        if in_next.any():
            self._episodes.began(np.flatnonzero(in_next))
            check_finite(infos["final_obs"], self._row_tasks, "observation")
        check_finite(obs, self._row_tasks, "observation")
        check_finite(reward, self._row_tasks, "reward")
        self._shown, self._lost = obs.copy(), self._nobody
        return obs, reward, terminated, truncated, infos

    def get_state(self, *, environments: bool = True) -> dict[str, Any]:
        """Return the state in mid-episode: plain containers of arrays, numbers and strings.

        Environments of a worker that has died are stored as lost, and `set_state` begins an episode in them.
        If `environments` is false, all environments are stored as lost.

        Raises:
            UserError: an environment cannot be saved.
        """
        self._check_idle()
        if not self._started:
            raise ResetNeeded("call reset() or set_state() before get_state().")
        states = self._workers.states() if environments else [None] * self.num_envs
        envs = [self._episodes.stored(row, env) for row, env in enumerate(states)]
        makings = self._workers.former + self._workers.restarts
        own = {"goals": self.goal_sets, "envs": envs, "lost": self._lost.copy(), "makings": makings}
        return {**self._header(), **own}

    def state_problem(self, check: Callable[[Any], object] = lambda state: None) -> str | None:
        """Return why the environments cannot be saved in mid-episode, None if they can.

        Tries it with another environment of each task, unless the suite says that its states are exact.
        `check` is called with the states taken and raises TypeError if one cannot be written.
        """
        self._check_idle()
        if self.suite.exact:
            return None
        for problem, states in self._workers.try_states(range(0, self.num_envs, self.envs_per_task)):
            if problem is not None:
                return problem
            try:
                check(states)
            except TypeError as error:
                return f"the state of an environment cannot be written: {error}"
        return None

    def renew(self) -> None:
        """Make all environments anew, as at the start, unless the suite says that resets decide everything.

        Evaluations begin with it: their numbers then depend on the policy only, not on earlier evaluations.
        The next reset restarts workers that fail.

        Raises:
            EnvironmentFailure: no more steps are possible.
        """
        self._check_idle()
        if not self.suite.exact:
            self._started = False
            self._episodes.seed(self._seed)  # of the episodes that rows play while others finish theirs
            self._workers.renew()

    def set_state(self, state: Mapping[str, Any], *, any_version: bool = False) -> None:
        """Continue bit for bit where `get_state` was called, with any seed and number of workers.

        With `any_version` the versions of the simulation are not compared.

        Raises:
            UserError: the state belongs to another suite, other tasks, rules or versions of the simulation.
            EnvironmentFailure: a worker failed while restoring.
        """
        self._check_idle()
        header = self._header()
        # Packages without a saved version are not compared.
        known = state.get("versions", {})
        header["versions"] = {name: found for name, found in self.versions.items() if name in known}
        if any_version:
            del header["versions"]
        check_header(state, header)
        self._started = False
        envs = state["envs"]
        anew = np.array([env["env"] is None for env in envs])
        # Environments that begin anew draw what no environment of this run has drawn before.
        redrawn = bool(anew.any()) and not self.suite.exact
        self._workers.former = int(state.get("makings", 0)) + redrawn
        if redrawn or not _same(state["goals"], self._blueprint.goals):
            self._blueprint.goals = copy.deepcopy(state["goals"])
            self._workers.start()
        self._episodes.restore(envs)
        self._workers.restore(envs)
        self._episodes.began(np.flatnonzero(anew))
        self._lost = anew | np.asarray(state["lost"], np.bool_)
        self._shown = self._pool.arrays.obs.copy()
        self._started = True

    def _header(self) -> dict[str, Any]:
        # `terminate_on_success` was an option once; saved states are compared with it.
        rules = {"max_episode_steps": self.max_episode_steps, "terminate_on_success": False}
        return {
            "schema": _STATE_SCHEMA,
            "suite": type(self.suite).__name__,
            "versions": dict(self.versions),
            "task_names": list(self.task_names),
            "envs_per_task": self.envs_per_task,
            "num_goals": self.num_goals,
            "rules": {**self.suite.rules(), **rules},
        }

    def render(self, rows: Sequence[int] | None = None) -> tuple[Any, ...]:
        """Return one frame for each of the given rows, by default for all environments.

        Raises:
            UserError: no such row.
            EnvironmentFailure: rendering failed; the environments can still be stepped.
        """
        self._check_idle()
        chosen = read_rows(range(self.num_envs) if rows is None else rows, self.num_envs)
        frames = self._workers.render(chosen)
        return tuple(frames[row] for row in chosen)

    def close_extras(self, *, terminate: bool = False, **kwargs: Any) -> None:
        """End the workers, by SIGKILL if `terminate`, during a step or after a failure."""
        self._pool.close(at_once=terminate or self._pending)

    def _check_idle(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("the environments are closed.")
        if self._pending:
            raise AlreadyPendingCallError("a step has been started: call step_wait() first.", "step")


def _same(first: Any, second: Any) -> bool:
    """Whether two trees of plain values and arrays are equal."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(np.array_equal(first, second))
