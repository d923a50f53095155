"""A list of Gymnasium environments as a suite of tasks, for instance variants of one with other physics."""

import importlib
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from mtrl.envs.suite import TaskEnv, TaskSuite, renderer_variables
from mtrl.errors import UserError, unknown_name

ALL = "all"
_SEEDS = 2**31 - 1
_EXAMPLE = "gymnasium_robotics:FetchReach-v4"
_DEFINITION = {
    "id": str,
    "kwargs": dict,
    "set": dict,
    "scale": dict,
    "success_return": (int, float),
    "reward_factor": (int, float),
}


class GymnasiumSuite(TaskSuite):
    """Registered Gymnasium environments with one observation and one action shape, both vectors.

    A definition in `environments` is an id ("Hopper-v5", or "module:Name-v0", which imports the module first)
    or a mapping with the following keys, of which only `id` is required:

    * `id`: as above.
    * `kwargs`: keyword arguments of `gymnasium.make`, such as `{g: 5.0}` of Pendulum-v1.
    * `set`: values of attributes of the bare environment, by dotted path, such as `{l: 0.5}` of Pendulum-v1
      or `{model.opt.gravity: [0, 0, -5]}` of an environment on MuJoCo.
    * `scale`: factors of numbers and arrays, by dotted path: `{model.body_mass: 2, model.body_inertia: 2}`.
    * `success_return`: an episode counts as solved if its undiscounted return is at least this when it ends.
    * `reward_factor`: the agent learns from rewards that are this many times as large, as if they were given
      in another unit. Success and all returns in logs and evaluations stay in the environment's own.

    Actions in [-1, 1] are stretched to the environment's bounds. The success of a step is `info["success"]`
    or `info["is_success"]` if the environment has one of them. With `success_return` it is 0 except at the
    last step of an episode. With neither it is NaN. Goal k of a task is the reset with seed k: training draws
    a new seed for each episode, evaluation plays seeds 0, 1, ... The engine's time limit replaces the
    registered one.

    Args:
        tasks: names in `environments` or ids of registered environments; "all" means all names.
        num_goals: seeds to draw from; None: 2**31 - 1.
        environments: name -> definition.
        flatten_observations: flatten dicts and arrays with gymnasium.wrappers.FlattenObservation.
        pad_observations: append zeros to shorter observations, so that sizes may differ between tasks.

    Raises:
        UserError: an environment cannot be made, observations or actions are no vectors or differ in size
            between tasks, or actions have no bounds.
    """

    info_keys = ("success",)
    worker_variables = staticmethod(renderer_variables)

    def __init__(
        self,
        tasks: str | Sequence[str],
        *,
        num_goals: int | None = None,
        environments: Mapping[str, str | Mapping[str, Any]] | None = None,
        flatten_observations: bool = False,
        pad_observations: bool = False,
    ) -> None:
        self.flatten_observations, self.pad_observations = flatten_observations, pad_observations
        known = {name: _definition(name, given) for name, given in (environments or {}).items()}
        names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        self.task_names = tuple(known) if names == (ALL,) and known else names
        self.environments = {name: known.get(name, {"id": name}) for name in self.task_names}
        self.reward_factors = {
            name: float(own["reward_factor"])
            for name, own in self.environments.items()
            if "reward_factor" in own
        }
        self.num_goals = _SEEDS if num_goals is None else num_goals
        if self.num_goals > _SEEDS:
            raise UserError(f"num_goals are seeds, at most {_SEEDS:,} of them; found {self.num_goals:,}.")
        if len(self.environments) < len(names) or not names:
            raise UserError(f"tasks must be one or more different names; found {', '.join(names)}.")
        self.obs_dim, self.action_dim = self._shape(list(known))

    def _shape(self, known: list[str]) -> tuple[int, int]:
        """Return the sizes that all tasks share, by making each environment once."""
        shapes: dict[str, tuple[int, int]] = {}
        self.action_bounds = {}
        for name, definition in self.environments.items():
            with _named(name, definition, known), _importable_mujoco():
                from mtrl.envs.gymnasium.env import make, sizes

                with warnings.catch_warnings():  # the error below says the same
                    warnings.filterwarnings("ignore", ".*latest versioned environment")
                    env = make(definition, render_mode=None, flatten=self.flatten_observations)
                if env.spec is not None and env.spec.id != definition["id"].rpartition(":")[2]:
                    raise UserError(f"its id must name a version, such as {env.spec.id}")
                shapes[name] = sizes(env)
                space = env.action_space
                self.action_bounds[name] = (space.low.tolist(), space.high.tolist())
                env.close()
        observations, actions = (set(sizes) for sizes in zip(*shapes.values(), strict=True))
        if len(actions) > 1 or (len(observations) > 1 and not self.pad_observations):
            found = ", ".join(f"{name}: {obs} and {action}" for name, (obs, action) in shapes.items())
            advice = "Leave out tasks that differ, or give them one size in an environment of your own."
            if len(actions) == 1:
                advice = "--suite.pad-observations (YAML: suite_options.pad_observations) appends zeros."
            raise UserError(
                f"tasks must have one size of observation and one of action; found {found}. {advice}"
            )
        return max(observations), max(actions)

    def describe_goals(self) -> str:
        """Return how many seeds episodes start from."""
        return "any seed" if self.num_goals == _SEEDS else f"{self.num_goals} seeds"

    def versions(self) -> dict[str, str]:
        """Return the installed versions of gymnasium, of mujoco and of packages that ids name."""
        modules = (own["id"].rpartition(":")[0] for own in self.environments.values())
        packages = {module.partition(".")[0] for module in modules if module}
        found = {"gymnasium": version("gymnasium")}
        for package in ("mujoco", *sorted(packages)):
            with suppress(PackageNotFoundError):  # mujoco, or what is a module of the user's own
                found[package] = version(package)
        return found

    def rules(self) -> dict[str, Any]:
        """Return the definitions of the tasks and how their observations are changed."""
        options = [name for name in ("flatten_observations", "pad_observations") if getattr(self, name)]
        # Only the options that are set, so that states saved before the options existed still fit.
        return {"environments": self.environments, **dict.fromkeys(options, True)}

    def make_env(
        self,
        task: str,
        goals: Any,
        *,
        max_episode_steps: int,
        render_mode: str | None,
        **_: Any,
    ) -> TaskEnv:
        """Return one environment; resets seed all that it draws, so `seed` is not needed."""
        from gymnasium.error import UnregisteredEnv

        from mtrl.envs.gymnasium.env import GymnasiumEnv

        definition = self.environments[task]
        try:
            return GymnasiumEnv(
                definition,
                max_episode_steps=max_episode_steps,
                render_mode=render_mode,
                flatten=self.flatten_observations,
                obs_dim=self.obs_dim,
            )
        except UnregisteredEnv as error:  # this suite was made in a process where it is registered
            raise UserError(
                f"the environment '{task}' is registered in the process that trains, and not in its workers: "
                "they do not run your script. Register it in a module and name that too: "
                f"'MODULE:{definition['id']}'."
            ) from error


def _definition(name: str, given: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(given, str):
        return {"id": given}
    where = f"environments.{name}"
    if not isinstance(given, Mapping) or "id" not in given:
        raise UserError(f"{where} must be an id or a mapping with the key 'id'; found {given!r}.")
    for key, value in given.items():
        if key not in _DEFINITION:
            raise UserError(unknown_name(f"key of {where}", str(key), _DEFINITION))
        kind = _DEFINITION[key]
        if isinstance(value, bool) or not isinstance(value, Mapping if kind is dict else kind):  # type: ignore[arg-type]
            raise UserError(f"{where}.{key} has a value of the wrong kind: {value!r}.")
    factor = given.get("reward_factor", 1.0)
    if not 0.0 < factor < math.inf:
        raise UserError(f"{where}.reward_factor must be a positive number; found {factor!r}.")
    plain: dict[str, Any] = _plain(given)
    return plain


def _plain(value: Any) -> Any:
    """Return mappings as dicts and sequences as lists, which is how a checkpoint returns them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


@contextmanager
def _named(name: str, definition: Mapping[str, Any], known: list[str]) -> Iterator[None]:
    """Turn any error in making an environment into a UserError that names the environment."""
    try:
        yield
    except Exception as error:
        hint = f" Names in environments: {', '.join(known)}." if known and name not in known else ""
        if type(error).__name__ in ("NamespaceNotFound", "NameNotFound") and ":" not in definition["id"]:
            hint += (
                f" If a package registers it, name the package as well, as in '{_EXAMPLE}'; "
                f"here 'PACKAGE:{definition['id']}'."
            )
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        reason = f"{kind}{error}".removesuffix(".")
        raise UserError(f"the environment '{name}' ({definition}) cannot be used: {reason}.{hint}") from error


@contextmanager
def _importable_mujoco() -> Iterator[None]:
    """Import MuJoCo without a renderer if the renderer that MUJOCO_GL names is not installed."""
    before = os.environ.get("MUJOCO_GL")
    if before:
        try:
            importlib.import_module("mujoco")
        except ModuleNotFoundError:
            pass  # an environment that needs it raises an error of its own
        except Exception:  # noqa: BLE001 - a missing library raises one of several kinds of error
            os.environ["MUJOCO_GL"] = "disabled"
    try:
        yield
    finally:
        if before:
            os.environ["MUJOCO_GL"] = before
