"""The interface between the training loop and an agent. It knows no replay and no temperatures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Policy = Callable[[Floats], Floats]  # observations [T*E, O] -> actions [T*E, A] in [-1, 1]


class TaskSpec(NamedTuple):
    """Sizes that an agent is built for."""

    task_names: tuple[str, ...]  # T
    envs_per_task: int  # E
    obs_dim: int  # O
    action_dim: int  # A

    @property
    def num_tasks(self) -> int:
        """T."""
        return len(self.task_names)


class Transitions(NamedTuple):
    """One vector step of all environments, rows in task-major order."""

    obs: Floats  # [T*E, O]
    action: Floats  # [T*E, A]
    reward: Floats  # [T*E]
    next_obs: Floats  # [T*E, O], the true successor: the final observation where an episode ended
    terminated: Flags  # [T*E], the task itself ended the episode; never the time limit
    truncated: Flags  # [T*E], the time limit ended it
    lost: Flags  # [T*E], no transition: the environment was restarted


class Metrics(NamedTuple):
    """An agent's numbers for one log line."""

    scalars: dict[str, float]  # "train/critic_loss" -> mean since the last call
    per_task: dict[str, NDArray[Any]]  # "critic_loss" -> [T]; pairs of tasks, "critic_cosine" -> [T, T]


class GaussianPolicy(NamedTuple):
    """A policy as data: a network whose outputs are a Gaussian, squashed into [-1, 1]."""

    architecture: str  # of the network, for `mtrl.networks.make.make_network`
    arguments: Mapping[str, Any]  # likewise, plain values
    parameters: Mapping[str, Tensor]  # of the network, by name
    standardisation: tuple[Tensor, Tensor] | None  # mean and deviation [O] of observations
    squash: Literal["tanh", "clip"] = "tanh"


class Bound(NamedTuple):
    """The range in which a per-task quantity of `Metrics` makes sense."""

    low: float
    high: float
    advice: str  # what to change when a value lies outside
    diverged: bool = True  # learning has diverged outside; if not so, the guard warns and never stops a run


class Agent(Protocol):
    """Acts, observes, learns; built as `plugin(config, spec, device)`, see `mtrl.agents`."""

    def act(self, obs: Floats) -> Floats:
        """Return exploring actions [T*E, A] in [-1, 1]; uniformly random ones while the agent warms up."""

    def observe(self, transitions: Transitions) -> None:
        """Take in one vector step."""

    def learn(self, progress: float) -> None:
        """Learn for one vector step, while the environments step; progress in [0, 1] through the run.

        An agent with `LearnsBetweenSteps.behind` that is not behind has nothing to do here.
        """

    def wait(self) -> None:
        """Wait until the device has finished the work that `learn` started and that `act` depends on."""

    def policy(self, envs_per_task: int) -> Policy:
        """Return the deterministic policy for evaluation; each call of it uses the present parameters."""

    def metrics(self) -> Metrics:
        """Return means since the last call."""

    def failures(self) -> dict[str, list[int]]:
        """Return, by network, the indices of tasks that made a step non-finite since the start."""

    def bounds(self) -> dict[str, Bound]:
        """Return ranges of per-task quantities, under their names in `metrics`."""

    def facts(self) -> dict[str, str]:
        """Return lines for the start screen: label -> text.

        Called before the environments start: a UserError about a lack of memory shows at once.
        """

    def state(self) -> dict[str, Any]:
        """Return part name -> tree, one file each in a checkpoint; `load_policy` needs the part "policy".

        The parts "envs" and "loop" are the engine's: an agent that has one of them is refused at the start.
        A tree is copied before training goes on. A tree that is too large for that is given as a function: it
        is called once, later and in another thread, and must return the tree as it is now.
        """

    def load_state(self, parts: Mapping[str, Any]) -> None:
        """Restore `state`, on whatever device this agent is."""

    def policy_state(self) -> Any:
        """Return the part "policy" of `state`."""

    def load_policy(self, part: Any) -> None:
        """Restore what `policy` needs from the part "policy" alone."""


@runtime_checkable
class CountsUpdates(Protocol):
    """An agent that tells how many updates it has made, over all resumes."""

    updates: int


@runtime_checkable
class NotesSuccess(Protocol):
    """An agent that learns from how often tasks succeed."""

    def note_success(self, rates: NDArray[np.float64]) -> None:
        """Take note of the tasks' success rates [T] in the evaluation just made, NaN where unknown."""
        ...


@runtime_checkable
class LearnsBetweenSteps(Protocol):
    """An agent for whose learning the environments wait, such as one that learns on-policy.

    After each vector step the loop calls `learn` as long as the agent is behind. Each call should take a few
    seconds at most, because signals are answered in between. A checkpoint may be made there as well: after a
    resume the agent is behind as it was, and learns on before it acts.
    """

    def behind(self) -> bool:
        """Return whether `learn` has work left to do before the next `act`."""
        ...


@runtime_checkable
class Exportable(Protocol):
    """An agent whose policy `mtrl-export` can write."""

    def gaussian_policy(self) -> GaussianPolicy:
        """Return the policy of `policy` as data."""
        ...
