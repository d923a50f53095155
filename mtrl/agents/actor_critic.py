"""Base of the agents: actor and critic, their combiners and optimisers, saved state and log numbers."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtrl import seeds
from mtrl.agents.acting import ActingPolicy
from mtrl.agents.base import GaussianPolicy, Metrics, Policy, TaskSpec
from mtrl.agents.captured import CapturedUpdate, Result
from mtrl.agents.methods import check_numbers, network_combiner
from mtrl.agents.totals import TaskTotals
from mtrl.agents.unread import unread_settings
from mtrl.config.schema import Config, PpoConfig, SacConfig
from mtrl.device.random_stream import RandomStream
from mtrl.device.resources import check_fits
from mtrl.gradients.descent import Descent, load_in_place, set_lr
from mtrl.gradients.per_task import FlatParameters
from mtrl.networks.base import Network, Parameters, Projects
from mtrl.networks.gaussian import Squash, mode_action
from mtrl.networks.layers import ObservationNorm
from mtrl.networks.make import describe_network, make_network, network_arguments

_MOST_TASKS_IN_PAIRS = 25  # a log line with a number for each pair of 50 tasks would take 70 kB


class ActorCritic(nn.Module):
    """The networks of an agent with their combiners and optimisers; base class of the agents' updates.

    Args:
        config: of the run. Only `network`, `seed`, the methods and the agent's own section are read.
        spec: sizes.
        device: of the parameters.
        settings: of the agent.
        critic: sizes of its network: stack, inputs, outputs, and `actions`, the number of inputs that are
            actions (default 0).
        critic_heads: task heads [T, ...] beside those of the critic's network.
        of_actor: names of the means that the actor's losses have in their `aux` (`TaskTotals`).
        others: names of the numbers that each step counts besides.
        squash: how a sample of the policy becomes an action.

    Attributes:
        actor_arguments: of the actor's network, as `make_network` takes them.
        critic_arguments: of the critic's.
        num_batches: K, the number of independent batches that a step takes.

    Raises:
        UserError: a method whose numbers cannot be logged (`check_numbers`).
    """

    def __init__(
        self,
        config: Config,
        spec: TaskSpec,
        device: torch.device,
        settings: SacConfig | PpoConfig,
        *,
        critic: Mapping[str, int],
        critic_heads: Parameters,
        of_actor: Sequence[str],
        others: Sequence[str] = (),
        squash: Squash = "tanh",
    ) -> None:
        super().__init__()
        self.num_tasks, self.squash, network = spec.num_tasks, squash, config.network
        self.observation_norm: ObservationNorm | None = None
        if network.observation_norm == "warmup":
            self.observation_norm = ObservationNorm(spec.obs_dim).to(device)
        actor = {"stack": 1, "inputs": spec.obs_dim, "outputs": 2 * spec.action_dim}
        names = spec.task_names
        self.actor_arguments = network_arguments(network, "actor", **actor, task_names=names)
        self.critic_arguments = network_arguments(network, "critic", **critic, task_names=names)
        self.actor_network = make_network(network.architecture, self.actor_arguments)
        self.critic_network = make_network(network.architecture, self.critic_arguments)
        # The actor first: both networks draw their parameters from one stream.
        stream = torch.Generator().manual_seed(seeds.integer(config.seed, "networks"))

        def descent(role: Literal["actor", "critic"], made: Network, lr: float, heads: Parameters) -> Descent:
            fresh = made.initial_parameters(stream)
            dtype = torch.bfloat16 if role == "critic" and network.critic_dtype == "bfloat16" else None
            return Descent(
                FlatParameters(*fresh._replace(heads=fresh.heads | dict(heads)), dtype=dtype).to(device),
                network_combiner(config, role, spec.num_tasks).to(device),
                lr=lr,
                eps=settings.adam_eps,
                max_norm=settings.max_grad_norm,
                weight_decay=network.weight_decay,
                # Those heads are the agent's, as PopArt's change of units; a decay would move all values.
                undecayed=sum(head.numel() for head in heads.values()),
                project=made.project if isinstance(made, Projects) else None,
            ).to(device)

        self.actor = descent("actor", self.actor_network, settings.actor_lr, {})
        self.critic = descent("critic", self.critic_network, settings.critic_lr, critic_heads)
        self.num_batches = max(network.combiner.num_batches for network in self.networks.values())
        self.totals = TaskTotals(of_actor, spec.num_tasks, others).to(device)
        taken = {name.replace("/", "_") for name in (*self.totals.names, "actor/weight")}
        for role, (method, _) in config.methods().items():
            check_numbers(self.networks[role].combiner, method, role, taken)

    @property
    def networks(self) -> dict[str, Descent]:
        """The steps of critic and actor, by their names in logs and checkpoints."""
        return {"critic": self.critic, "actor": self.actor}

    @property
    def optimizers(self) -> tuple[torch.optim.Adam, ...]:
        """Of the actor and the critic."""
        return self.actor.optimizer, self.critic.optimizer

    @property
    def acting(self) -> Tensor:
        """Parameters of the deterministic policy."""
        return self.actor.flat.vector.detach()

    @torch.no_grad()
    def mode(self, obs: Tensor) -> Tensor:
        """Return the deterministic policy's actions [T, E, A] in [-1, 1] for observations [T, E, O]."""
        outputs = self.policy_outputs(self.actor.flat.named(self.acting), self.standardised(obs))
        return mode_action(outputs, self.squash)

    def policy_outputs(self, parameters: Parameters, obs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Return outputs of the actor's network [T, B, 2A] for standardised observations [T, B, O]."""
        return self.actor_network.apply(parameters, obs, tasks)[0]

    def standardised(self, obs: Tensor) -> Tensor:
        """Return observations as the networks see them."""
        result: Tensor = obs if self.observation_norm is None else self.observation_norm(obs)
        return result


Update = TypeVar("Update", bound=ActorCritic)


class ActorCriticAgent(Generic[Update]):
    """An agent of an actor and a critic without its data and its learning (`mtrl.agents.base.Agent`).

    Attributes:
        update: networks, combiners and optimisers, and the steps that change them.
        updates: number of updates so far.
        never_read: sections and settings that it never reads.
    """

    never_read: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def unread(cls, config: Config) -> dict[str, str]:
        """Return the settings that have no effect in a run, as `unread_settings`."""
        return unread_settings(config, cls.never_read)

    def __init__(self, config: Config, spec: TaskSpec, device: torch.device, update: Update) -> None:
        self.config, self.spec, self.device, self.update = config, spec, device, update
        self.updates = 0
        self._noise_stream = RandomStream(seeds.integer(config.seed, "agent"), device)
        self._policies: dict[int, Policy] = {}  # of evaluations, by their copies of each task
        self._fitted = update.observation_norm is None  # whether observations are standardised for good

    @property
    @abstractmethod
    def data_memory(self) -> dict[str, int]:
        """Bytes on the device of what the agent learns from, by purpose."""

    def policy(self, envs_per_task: int) -> Policy:
        """Return the deterministic policy for T*E observations; it follows the parameters."""
        # Kept, because on CUDA each policy captures a graph.
        if envs_per_task not in self._policies:
            spec = self.spec._replace(envs_per_task=envs_per_task)
            self._policies[envs_per_task] = ActingPolicy(
                lambda obs, _: self.update.mode(obs), spec, None, self.device
            )
        return self._policies[envs_per_task]

    def gaussian_policy(self) -> GaussianPolicy:
        """Return what `policy` computes, as data."""
        update, norm = self.update, self.update.observation_norm
        return GaussianPolicy(
            self.config.network.architecture,
            update.actor_arguments,
            update.actor.flat.named(update.acting),
            None if norm is None else (norm.mean, norm.deviation),
            update.squash,
        )

    def wait(self) -> None:
        """Wait for the work that `learn` started."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def note_success(self, rates: NDArray[Any]) -> None:
        """Hand the tasks' success rates [T] to methods that look at them (`pivrg`)."""
        for network in self.update.networks.values():
            network.combiner.note_success(torch.from_numpy(rates))

    def failures(self) -> dict[str, list[int]]:
        """Return the tasks whose losses or gradients were non-finite, by network."""
        networks = self.update.networks.items()
        flags = {name: network.failures.nonzero().flatten().tolist() for name, network in networks}
        return {name: tasks for name, tasks in flags.items() if tasks}

    def _logged(self, values: Mapping[str, Tensor], *averaged: str) -> Metrics:
        """Return values and the combiners' metrics as a log line, with "train/NAME", means over tasks.

        Numbers [T] and [T, T] go by task, 0-dim ones are called "grad/...".
        """
        values = dict(values)
        for name, network in self.update.networks.items():
            # A user's method need not repeat the weights among its numbers.
            numbers = {"weights": network.combiner.last_weights, **network.combiner.metrics()}
            values |= {f"{name}/{key}": value for key, value in numbers.items()}
        arrays = {name: value.cpu().numpy().copy() for name, value in values.items()}
        scalars: dict[str, float] = {}
        # "weight" is the critics': people compare these. The actor's get a name of their own.
        per_task = {"weight": arrays.pop("critic/weights"), "actor_weight": arrays.pop("actor/weights")}
        for name, array in arrays.items():
            if array.ndim == 2 and len(array) > _MOST_TASKS_IN_PAIRS:
                continue
            if array.ndim:
                per_task[name.replace("/", "_")] = array
            else:
                scalars[f"grad/{name.replace('/', '_')}"] = float(array)
        for name in averaged:
            known = per_task[name][np.isfinite(per_task[name])]
            scalars[f"train/{name}"] = float(known.mean()) if known.size else math.nan
        return Metrics(scalars, per_task)

    @property
    def parameter_count(self) -> int:
        """Number of trained parameters; those of target networks do not count."""
        return sum(parameter.numel() for parameter in self.update.parameters())

    @property
    def jacobian_bytes(self) -> int:
        """Bytes of the per-task gradients that actor and critic keep."""
        return sum(network.jacobian_bytes for network in self.update.networks.values())

    def memory(self) -> dict[str, int]:
        """Return the bytes that training takes on the device, by purpose; allocates what it learns from."""
        # Each parameter has a gradient and two moments of Adam. Buffers: targets, states of combiners.
        trained = 4 * sum(value.nbytes for value in self.update.parameters())
        return {
            **self.data_memory,
            "networks and optimisers": trained + sum(value.nbytes for value in self.update.buffers()),
            "per-task gradients": self.jacobian_bytes,
        }

    def _facts(self, critic: str, **own: str) -> dict[str, str]:
        """Return lines of the start screen, where the critic has this name; may raise UserError."""
        arguments = {"actor": self.update.actor_arguments, critic: self.update.critic_arguments}
        sizes = ", ".join(f"{name} {_size(count)}" for name, count in self.memory().items())
        architecture = self.config.network.architecture
        networks = "; ".join(f"{name} {describe_network(architecture, of)}" for name, of in arguments.items())
        networks += f"; {self.parameter_count:,} trained parameters"
        return {"networks": networks, **own, "memory": sizes}

    def _check_gradients_fit(self) -> None:
        """Raise UserError if the gradients of a step do not fit into the device's memory."""
        check_fits(
            self.jacobian_bytes,
            self.device,
            what=f"the gradients of {self.spec.num_tasks} tasks",
            advice="Use smaller networks (network.critic_width) or a method that looks at losses alone.",
        )

    def policy_state(self) -> dict[str, Tensor]:
        """Return the parameters that evaluation acts with."""
        policy, norm = {"parameters": self.update.acting}, self.update.observation_norm
        if norm is not None:
            policy |= {"observation_mean": norm.mean, "observation_deviation": norm.deviation}
        return policy

    @torch.no_grad()
    def load_policy(self, part: Mapping[str, Tensor]) -> None:
        """Restore what `policy` needs."""
        self.update.acting.copy_(part["parameters"])
        norm = self.update.observation_norm
        if norm is not None:
            norm.mean.copy_(part["observation_mean"])
            norm.deviation.copy_(part["observation_deviation"])

    def _own_state(self, *, each_steps: bool = True) -> dict[str, Any]:
        """Return what part "agent" holds of networks, noise and progress.

        Args:
            each_steps: whether both networks step in each update.
        """
        # Where a log line may come before a network's next step; other states keep the entries that they had.
        # So may it where a method solves now and then: what it logs in between is of its last solve.
        solves = any(network.combiner.counters() for network in self.update.networks.values())
        due = not each_steps or solves or bool(self.update.totals.sums.any())
        return {
            **({"newest_step": [_of_newest_step(n) for n in self.update.networks.values()]} if due else {}),
            "update": dict(self.update.state_dict()),
            "optimizers": [optimizer.state_dict()["state"] for optimizer in self.update.optimizers],
            "learning_rates": [float(each.param_groups[0]["lr"]) for each in self.update.optimizers],
            "noise": self._noise_stream.state(),
            "fitted": self._fitted,
            "updates": self.updates,
        }

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        """Restore `_own_state`."""
        self.update.load_state_dict(state["update"])
        for optimizer, saved in zip(self.update.optimizers, state["optimizers"], strict=True):
            load_in_place(optimizer, saved)
        for optimizer, rate in zip(self.update.optimizers, state["learning_rates"], strict=True):
            set_lr(optimizer, rate)
        self._noise_stream.load_state(state["noise"])
        due = state.get("newest_step", ({}, {}))
        for network, saved in zip(self.update.networks.values(), due, strict=True):
            for name, value in _of_newest_step(network).items():
                value.copy_(saved.get(name, value))
        self._fitted, self.updates = state["fitted"], state["updates"]

    def _captured_update(self, step: Callable[..., Result]) -> CapturedUpdate[Result]:
        """Return `step`, which updates both networks, as a graph on CUDA."""
        return CapturedUpdate(step, [n.combiner for n in self.update.networks.values()], self.device)

    def _draw_noise(self, noise: Tensor) -> Tensor:
        return noise.normal_(generator=self._noise_stream.generator)

    def _by_task(self, values: NDArray[Any]) -> Tensor:
        """Return values [T*E, ...] as a tensor [T, E, ...]."""
        shape = (self.spec.num_tasks, self.spec.envs_per_task, *values.shape[1:])
        return torch.from_numpy(values).view(shape)


def _of_newest_step(network: Descent) -> dict[str, Tensor]:
    """Return the combiner's buffers that its `state_dict` leaves out, by name.

    Its log numbers need them, because a resumed run may log before its first step.
    """
    saved = network.combiner.state_dict()
    return {name: value for name, value in network.combiner.named_buffers() if name not in saved}


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
