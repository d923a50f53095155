"""What the training loop asks of an agent; replay and temperature are the agent's own affair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

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
    """What an agent reports for one log line."""

    scalars: dict[str, float]  # "train/critic_loss" -> mean since the last call
    per_task: dict[str, NDArray[Any]]  # "critic_loss" -> [T]; "critic_cosine", between two tasks -> [T, T]


class GaussianPolicy(NamedTuple):
    """A deterministic or sampled policy as data: the tanh of a Gaussian that a network puts out."""

    architecture: str  # of the actor's network, as `mtrl.networks.make.make_network` takes it
    arguments: Mapping[str, Any]  # likewise: plain values
    parameters: Mapping[str, Tensor]  # of the network, by name
    standardisation: tuple[Tensor, Tensor] | None  # mean and deviation [O] of what the network sees


class Bound(NamedTuple):
    """The range in which a per-task quantity of `Metrics` makes sense."""

    low: float
    high: float
    advice: str  # what to try where it is left


class Agent(Protocol):
    """Acts, observes, learns; built as `plugin(config, spec, device)`, see `mtrl.agents`."""

    def act(self, obs: Floats) -> Floats:
        """Return exploring actions [T*E, A] in [-1, 1]; random ones as long as the agent warms up."""
        ...

    def observe(self, transitions: Transitions) -> None:
        """Take in one vector step."""
        ...

    def learn(self, progress: float) -> None:
        """Do the learning of one vector step, while the environments step; progress in [0, 1] of the run."""
        ...

    def wait(self) -> None:
        """Wait until the device has done what `learn` started."""
        ...

    def policy(self, envs_per_task: int) -> Policy:
        """Return the deterministic policy for evaluation, on the parameters of the moment of each call."""
        ...

    def metrics(self) -> Metrics:
        """Return means since the last call."""
        ...

    def failures(self) -> dict[str, list[int]]:
        """Return, by network, the indices of tasks that made a step non-finite since the start."""
        ...

    def bounds(self) -> dict[str, Bound]:
        """Return ranges of per-task quantities, by the names they have in `metrics`."""
        ...

    def facts(self) -> dict[str, str]:
        """Return lines for the start screen: label -> text."""
        ...

    def state(self) -> dict[str, Any]:
        """Return part name -> tree, one file each in a checkpoint; "policy" is what `load_policy` needs.

        A tree is copied before training goes on. What is too large for that is a function that returns it:
        it is called once, later and in another thread, and must return the tree as it is now.
        """
        ...

    def load_state(self, parts: Mapping[str, Any]) -> None:
        """Restore `state`, on whatever device this agent is."""
        ...

    def policy_state(self) -> Any:
        """Return the part "policy" of `state`."""
        ...

    def load_policy(self, part: Any) -> None:
        """Restore what `policy` needs from the part "policy" alone."""
        ...


class Exportable(Protocol):
    """What `mtrl-export` asks of an agent besides."""

    def gaussian_policy(self) -> GaussianPolicy:
        """Return what `policy` computes, as data."""
        ...
