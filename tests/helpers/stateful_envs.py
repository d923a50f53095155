"""Environments whose numbers depend on state in unusual places, and a suite that draws from its seed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mtrl.envs.suite import StepOutcome, TaskSuite

PREFIX = "tests.helpers.stateful_envs:tests/"
STEPS_OF_THE_MODULE = [0]


class Stateful(gymnasium.Env[Any, Any]):
    """The second entry of the observation is what `number` returns."""

    observation_space: Any = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space: Any = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, **_: Any) -> None:
        self.steps = 0

    def number(self) -> float:
        return 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.array([0.0, self.number()]), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.array([float(self.steps), self.number()]), float(action[0]), False, False, {}


class GlobalDraws(Stateful):
    def number(self) -> float:
        return float(np.random.uniform() + random.random())


def _counter() -> Callable[[], float]:
    count = 0

    def following() -> float:
        nonlocal count
        count += 1
        return float(count)

    return following


class Closure(Stateful):
    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.number = _counter()  # type: ignore[method-assign]


class FunctionAttribute(Stateful):
    def __init__(self, **_: Any) -> None:
        super().__init__()

        def number() -> float:
            vars(number)["count"] = vars(number).get("count", 0) + 1
            return float(vars(number)["count"])

        self.number = number  # type: ignore[method-assign]


class PlainNames(Stateful):
    """Names that MuJoCo's environments and wrappers use for something else."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.data, self.model, self.env = np.zeros(1), 0.0, [0.0]

    def number(self) -> float:
        self.data[0] += 1
        self.model += 2
        self.env[0] += 3
        return float(self.data[0] + 10 * self.model + 100 * self.env[0])


class Aliases(Stateful):
    def number(self) -> float:
        if self.steps == 0:
            self.rng, self.more = self.np_random, [self.np_random]
        return float(self.rng.uniform() + self.np_random.uniform() + self.more[0].uniform())


class TwoNames(Stateful):
    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.first = self.second = np.random.default_rng(0)


class _Wrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Refers to the bare environment, of which it shows the number of steps."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.base = env.unwrapped

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return np.add(obs, [0, self.base.steps]), *rest


def Referring(**_: Any) -> Any:
    return _Wrapper(Stateful())


def SharingWrapper(**_: Any) -> Any:
    env = _Wrapper(Stateful())
    env.seen = env.base.seen = np.zeros(1)  # type: ignore[attr-defined]
    return env


class _Count:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> float:
        self.count += 1
        return float(self.count)


class CallableObject(Stateful):
    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.count = _Count()

    def number(self) -> float:
        return self.count()


class ClassCounter(Stateful):
    count = 0

    def number(self) -> float:
        type(self).count += 1
        return float(self.count)


class ClassList(Stateful):
    seen: Any = []  # noqa: RUF012 - shared by all instances, which is the fault to be found

    def number(self) -> float:
        self.seen.append(1)
        return 0.0


class LateDeque(Stateful):
    def number(self) -> float:
        if self.steps == 1:
            self.last = deque([1.0], maxlen=3)
        return 0.0


class ModuleState(Stateful):
    def number(self) -> float:
        STEPS_OF_THE_MODULE[0] += 1
        return float(STEPS_OF_THE_MODULE[0])


class Integers(Stateful):
    action_space: Any = gymnasium.spaces.Box(0, 4, (1,), np.int64)

    def step(self, action: Any) -> Any:
        assert action.dtype == np.int64
        return super().step(action)


class Wide(Stateful):
    observation_space: Any = gymnasium.spaces.Box(-np.inf, np.inf, (3,))

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return np.append(obs, 7.0), *rest

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = super().reset(seed=seed)
        return np.append(obs, 7.0), info


class Goal(Stateful):
    """Success in the last info only, rewards as arrays, observations as dicts."""

    action_space: Any = gymnasium.spaces.Box(-2, 3, (1,))
    observation_space: Any = gymnasium.spaces.Dict(
        {"goal": gymnasium.spaces.Box(-1, 1, (2,)), "at": gymnasium.spaces.Box(-9, 9, (1, 2))}
    )

    def _dict(self, obs: Any) -> Any:
        return {"goal": np.zeros(2), "at": obs[None]}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = super().reset(seed=seed)
        return self._dict(obs), info

    def step(self, action: Any) -> Any:
        obs, *_ = super().step(action)
        last = self.steps == 5
        info = {"is_success": np.array([self.steps == 5])} if last else {}
        return self._dict(obs), np.array([1.5]), last, False, info


class WithoutViews(Stateful):
    """An environment whose constructor takes no render_mode."""

    def __init__(self) -> None:
        super().__init__()
        self.wish = [0.0]


class OnlyWhereSolved(Stateful):
    """Ends after five steps; every second episode is solved, and only those say so."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.seed = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seed = seed or 0
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        obs, reward, *_ = super().step(action)
        last = self.steps == 5
        return obs, reward, last, False, {"success": True} if last and self.seed % 2 else {}


_ALL = (GlobalDraws, Closure, FunctionAttribute, CallableObject, ClassCounter, ClassList, LateDeque)
_SHARING: Any = (PlainNames, Aliases, TwoNames, Referring, SharingWrapper)
for _cls in (*_ALL, *_SHARING, ModuleState, Integers, Wide, Goal, WithoutViews, OnlyWhereSolved):
    gymnasium.register(f"tests/{_cls.__name__}-v0", entry_point=_cls)


def name(cls: str) -> str:
    """Return the id that GymnasiumSuite takes."""
    return f"{PREFIX}{cls}-v0"


class DrawingSuite(TaskSuite):
    """Tasks whose observations and rewards are drawn from a generator that begins with the environment."""

    obs_dim, action_dim, info_keys = 2, 1, ("success",)

    def __init__(self, tasks: str | Sequence[str], *, num_goals: int | None = None) -> None:
        self.task_names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        self.num_goals = num_goals or 3

    def make_env(self, task: str, goals: Any, *, seed: np.random.SeedSequence, **_: Any) -> DrawingEnv:
        return DrawingEnv(seed)


class DrawingEnv:
    def __init__(self, seed: np.random.SeedSequence) -> None:
        self.rng = np.random.default_rng(seed)

    def reset(self, goal: int) -> NDArray[Any]:
        return self.rng.normal(size=2)

    def step(self, action: NDArray[np.float32]) -> StepOutcome:
        return self.rng.normal(size=2), float(self.rng.normal()), False, False, {"success": np.nan}

    def get_state(self) -> Any:
        return dict(self.rng.bit_generator.state)

    def set_state(self, state: Any) -> None:
        self.rng.bit_generator.state = state

    def render(self) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass


class EndingSuite(DrawingSuite):
    """A DrawingSuite in which goal g takes g + 1 steps."""

    def make_env(self, task: str, goals: Any, *, seed: np.random.SeedSequence, **_: Any) -> DrawingEnv:
        return _EndingEnv(seed)


class _EndingEnv(DrawingEnv):
    def reset(self, goal: int) -> NDArray[Any]:
        self.left = goal + 1
        return super().reset(goal)

    def step(self, action: NDArray[np.float32]) -> StepOutcome:
        self.left -= 1
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, self.left == 0, truncated, info
