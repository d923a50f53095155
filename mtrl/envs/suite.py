"""What the engine asks of a suite of tasks, and the registry of suites. Imports no simulation."""

import os
import sys
from collections.abc import Mapping, Sequence
from ctypes.util import find_library
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtrl.errors import UserError, unknown_name
from mtrl.registry import Registry

StepOutcome = tuple[NDArray[Any], float, bool, bool, Mapping[str, Any]]


class TaskEnv(Protocol):
    """One task in one worker, without time limit and automatic reset, which the engine adds."""

    def reset(self, goal: int) -> NDArray[Any]:
        """Begin an episode with the goal of that number; return the first observation [O]."""

    def step(self, action: NDArray[np.float32]) -> StepOutcome:
        """Advance by one env step with an action [A] in [-1, 1].

        Returns, as in Gymnasium, observation [O], reward, terminated, truncated, and an info that has every
        key of the suite's `info_keys`.
        """

    def get_state(self) -> Any:
        """Return everything that later steps depend on, as plain containers, numbers, strings and arrays.

        Raises:
            UserError: this environment cannot be saved.
        """

    def set_state(self, state: Any) -> None:
        """Restore what `get_state` returned, possibly in another process."""

    def render(self) -> Any:
        """Return a frame [H, W, 3] uint8."""

    def close(self) -> None:
        """Free what the environment holds."""


class TaskSuite(Protocol):
    """A list of tasks with one observation and one action shape.

    An instance is pickled to the workers, so it holds plain data only. `draw_goals` and `make_env` run in a
    worker and import the simulation; a RuntimeWarning issued there is shown to the user. Subclass this class
    to inherit the members that have a default.

    Attributes:
        task_names: T names, the order of the task axis.
        obs_dim: O.
        action_dim: A.
        info_keys: entries of `info` that the learner receives, as float32. "success" must be among them: 1 if
            the task is solved at this step, 0 if not, NaN if the task does not define success.
        num_goals: number of goals of each task. A goal fixes the start and the target of an episode (it may
            be a seed). Training draws among the goals; evaluation plays them in order.
        step_costs: cost of an env step of each task relative to 1; used to balance the workers.
        cameras: valid values of `camera`, the first one being the default for videos; empty: only one view.
        camera: the camera from which environments of `make_env` render; None: the simulation's default.
        action_bounds: lower and upper bounds to which the suite stretches actions in [-1, 1], by task; a task
            without an entry takes actions in [-1, 1].
        reward_factors: factor of the rewards that the agent learns from, by task; 1 without an entry. The
            engine's rewards, and with them all returns that are logged, are without it.
        exact: True if `get_state` is known to be exact, and an episode to depend on its goal and its actions
            only. Otherwise a run tries `get_state` at its start, and evaluations make environments anew.
    """

    task_names: tuple[str, ...]
    obs_dim: int
    action_dim: int
    info_keys: tuple[str, ...]
    num_goals: int
    step_costs: Mapping[str, float] = {}
    cameras: tuple[str, ...] = ()
    camera: str | None = None
    action_bounds: Mapping[str, tuple[Sequence[float], Sequence[float]]] = {}
    reward_factors: Mapping[str, float] = {}
    exact: bool = False

    def make_env(
        self,
        task: str,
        goals: Any,
        *,
        seed: np.random.SeedSequence,
        max_episode_steps: int,
        render_mode: str | None,
    ) -> TaskEnv:
        """Return an environment of one task; called in a worker.

        Args:
            task: one of `task_names`.
            goals: the task's entry of `draw_goals`.
            seed: of randomness beyond the goals; each environment and each restart of it has its own.
            max_episode_steps: env steps after which the engine truncates an episode.
            render_mode: None, "human", "rgb_array" or "depth_array".
        """

    def draw_goals(self, seed: int) -> Mapping[str, Any]:
        """Return, for each task, plain data that defines its `num_goals` goals."""
        return dict.fromkeys(self.task_names, ())

    def describe_goals(self) -> str:
        """Return the start screen's text about the goals of each task."""
        return f"{self.num_goals} goals"

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that simulate, by name."""
        return {}

    def rules(self) -> dict[str, Any]:
        """Return plain values that define the tasks; a saved state is restored under equal rules only."""
        return {}

    def worker_variables(self, render_mode: str | None) -> dict[str, str]:
        """Return environment variables of the worker processes."""
        return {}


SUITES = Registry(
    "suite",
    {
        "metaworld": "mtrl.envs.metaworld.suite:MetaWorldSuite",
        "gymnasium": "mtrl.envs.gymnasium.suite:GymnasiumSuite",
    },
    given=("tasks", "task_names", "num_goals", "seed"),
)


def build_suite(
    name: str, tasks: Sequence[str], *, num_goals: int | None = None, options: Mapping[str, Any] | None = None
) -> TaskSuite:
    """Return the suite of that name, or of "package.module:Name", with the given tasks.

    Args:
        name: a name in SUITES or a path to a class of the user's own.
        tasks: as the suite understands them.
        num_goals: goals of each task; None: as many as the suite has.
        options: keyword-only arguments of the suite class.

    Raises:
        UserError: no such suite, option or task.
    """
    cls = SUITES[name]
    known, options = SUITES.options(name), options or {}
    for option in options:
        if option not in known:
            raise UserError(unknown_name(f"option of the suite {name}", option, known))
    suite: TaskSuite = cls(tasks, num_goals=num_goals, **options)
    return suite


def renderer_variables(render_mode: str | None) -> dict[str, str]:
    """Return the environment variables with which workers choose MuJoCo's renderer.

    `import mujoco` fails if MUJOCO_GL names a renderer that is not installed, so workers that do not render
    load none. If MUJOCO_GL is not set, MuJoCo needs a screen even for frames, so EGL is preferred where it is
    installed.
    """
    if render_mode is None:
        return {"MUJOCO_GL": "disabled"}
    window = render_mode == "human" or os.environ.get("MUJOCO_GL") or not sys.platform.startswith("linux")
    return {} if window or find_library("EGL") is None else {"MUJOCO_GL": "egl"}
