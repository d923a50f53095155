"""Configuration of a run: frozen dataclasses, one docstring per field (unit, source). Imports no torch.

The order of precedence is dataclass default < YAML preset < command line (`mtrl.config.presets`, `mtrl.cli`).
Sources: "MW+" is the Meta-World+ protocol (design of arXiv 2505.11289, its public JAX code, 2026-05 fixes).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mtrl.errors import UserError

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Meta-World environments."""

    envs_per_task: int = 1
    """Parallel copies of each task; a vector step yields tasks x copies transitions."""
    num_workers: int | None = None
    """Environment processes; None: one per available core, at most one per environment."""
    reward_version: Literal["v1", "v2"] = "v2"
    """Meta-World reward functions; v2 is the v3-environments' default (MW+)."""
    num_goals: int | None = None
    """Goals per task, one drawn at each reset; None: all that the suite has (Meta-World and MW+: 50)."""
    max_episode_steps: int = 500
    """Episode length in env steps; every episode ends by truncation (MW+: 500)."""
    step_timeout: float = 60.0
    """Seconds without an answer after which a worker counts as hung."""
    worker_niceness: int = 0
    """Added to the workers' scheduling priority number (0 to 19): above 0 they yield to other processes."""
    max_restarts: int = 3
    """Workers restarted when they die, raise or hang; one more ends the run (checkpoint, exit code 75)."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Per-task replay buffers on the training device."""

    capacity_per_task: int = 100_000
    """Transitions kept per task, oldest overwritten first (MW+: 100k)."""
    reward_scaling: Literal["none", "ema", "shrink"] = "none"
    """`ema`: divide sampled rewards by a running deviation per task (rate 1e-3); `shrink`: if over 1."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Actor and twin critics."""

    architecture: str = "mlp"
    """`mlp`, or package.module:Name or file.py:Name of a class of your own (mtrl.networks.build)."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of your own class; the mlp takes those below."""
    actor_width: int = 400
    """Units per hidden layer of the actor (MW+: 400)."""
    actor_depth: int = 3
    """Hidden layers of the actor (MW+: 3)."""
    critic_width: int = 400
    """Units per hidden layer of each critic (MW+: 400)."""
    critic_depth: int = 3
    """Hidden layers of each critic (MW+: 3)."""
    activation: Literal["relu", "tanh", "silu", "gelu"] = "relu"
    """Non-linearity of the hidden layers."""
    actor_layer_norm: bool = False
    """Normalise each hidden layer of the actor before its non-linearity (no gain, no bias)."""
    critic_layer_norm: bool = False
    """Normalise each hidden layer of the critics before its non-linearity (no gain, no bias)."""
    heads: Literal["shared", "per_task"] = "shared"
    """`per_task`: a linear head per task on a shared torso (multi-head SAC); only the torso is combined."""
    task_identity: Literal["one_hot", "none"] = "one_hot"
    """Whether the first layer sees a one-hot task identity (MW+: yes; the mtrl line: no)."""


@dataclass(frozen=True, kw_only=True)
class SacConfig:
    """Soft actor-critic."""

    gamma: float = 0.99
    """Discount per env step."""
    tau: float = 0.005
    """Step of the target network towards the critic at each update."""
    actor_lr: float = 3e-4
    """Adam step size of the actor."""
    critic_lr: float = 3e-4
    """Adam step size of the critics."""
    temperature_lr: float = 3e-4
    """Adam step size of the log temperatures."""
    final_lr_fraction: float = 1.0
    """Share of the three step sizes left at the end of the run, reached geometrically (MW+: 1, constant)."""
    lr_hold_fraction: float = 0.0
    """Share of the run before the step sizes begin to fall."""
    actor_average_rate: float | None = None
    """Rate per update of an average of the actor's parameters that evaluation uses; None: no average."""
    adam_eps: float = 1e-5
    """Adam epsilon of actor and critics (MW+: 1e-5; torch's own default and the mtrl line: 1e-8)."""
    batch_per_task: int = 128
    """Transitions sampled per task and update (MW+: 128)."""
    max_grad_norm: float | None = 1.0
    """Global gradient norm bound applied after combining (MW+: 1.0); None: no bound."""
    temperature: Literal["per_task", "shared"] = "per_task"
    """One temperature per task (MW+) or one for all."""
    initial_temperature: float = 1.0
    """Starting value of every temperature."""
    target_entropy: float | None = None
    """Target entropy in nats; None: minus the number of action dimensions."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop around the agent. A vector step moves every environment by one env step."""

    warmup_steps: int = 4_000
    """Vector steps with uniformly random actions before the first update (MW+: 4000)."""
    warmup_updates: int = 0
    """Updates made at once when warm-up ends (mtrl line: 1500)."""
    updates_per_step: int = 1
    """Updates per vector step after warm-up."""
    log_interval: int = 1_000
    """Vector steps between two lines of metrics."""
    checkpoint_interval: int = 50_000
    """Vector steps between two checkpoints; one more is written at the end and on Ctrl-C."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept on disk."""
    sinks: tuple[str, ...] = ("tensorboard",)
    """Where numbers go besides the JSON lines: tensorboard, or classes of your own as package.module:Name."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """torch.set_float32_matmul_precision: faster with TF32 or bfloat16 units. Gramians stay exact."""
    num_threads: int | None = None
    """Threads of the learner on the CPU; None: all available cores."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation in environments of its own, deterministic policy, fixed goals, full-length episodes."""

    interval: int = 50_000
    """Vector steps between two evaluations; one more is made at the end."""
    episodes_per_task: int = 10
    """Episodes per task of the evaluations during training; episode k uses goal k."""
    final_episodes_per_task: int = 50
    """Episodes per task of the evaluation at the end: each goal once."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that defines a run."""

    tasks: tuple[str, ...] = ("MT10",)
    """One benchmark (MT10, MT25, MT50) or task names such as reach-v3 push-v3."""
    suite: str = "metaworld"
    """Suite of tasks, a name in mtrl.envs.suite.SUITES or package.module:Name."""
    suite_options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword-only arguments of the suite; those left out take its defaults."""
    method: str = "mean"
    """Gradient combiner, a name in mtrl.combiners.COMBINERS."""
    method_options: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters of the combiner; those left out take the combiner's defaults."""
    critic_method: str | None = None
    """Gradient combiner of the critics alone; None: as `method`."""
    critic_method_options: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters of `critic_method`."""
    actor_method: str | None = None
    """Gradient combiner of the actor alone; None: as `method`."""
    actor_method_options: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters of `actor_method`."""
    steps: int = 2_000_000
    """Length of the run in vector steps, which is env steps per task and copy (MW+: 2M)."""
    seed: int = 0
    """Seed of goals, networks, sampling and exploration."""
    device: Device = "auto"
    """Training device; auto: CUDA if there is one."""
    env: EnvConfig = EnvConfig()
    replay: ReplayConfig = ReplayConfig()
    network: NetworkConfig = NetworkConfig()
    sac: SacConfig = SacConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    def __post_init__(self) -> None:
        # From Python a single name or a list is as natural as a tuple.
        tasks = (self.tasks,) if isinstance(self.tasks, str) else tuple(self.tasks)
        object.__setattr__(self, "tasks", tasks)
        _check_ranges(self)
        warmup = self.train.warmup_steps * self.env.envs_per_task
        if warmup < self.sac.batch_per_task:
            raise UserError(
                "sac.batch_per_task must be at most the transitions per task collected in warm-up, "
                f"train.warmup_steps x env.envs_per_task = {warmup}; "
                f"found {self.sac.batch_per_task}. Raise train.warmup_steps or lower sac.batch_per_task."
            )
        if self.replay.capacity_per_task < self.sac.batch_per_task:
            raise UserError(
                f"replay.capacity_per_task must be at least sac.batch_per_task = {self.sac.batch_per_task}; "
                f"found {self.replay.capacity_per_task}."
            )

    def method_of(self, network: Literal["critic", "actor"]) -> tuple[str, Mapping[str, Any]]:
        """Return name and options of the method that combines this network's gradients."""
        own = self.critic_method if network == "critic" else self.actor_method
        if own is None:
            return self.method, self.method_options
        return own, self.critic_method_options if network == "critic" else self.actor_method_options


# Fields that may be zero; every other number must be positive (target_entropy has any sign).
_MAY_BE_ZERO = {"seed", "gamma", "lr_hold_fraction", "warmup_updates", "max_restarts", "worker_niceness"}
_ANY_SIGN = {"target_entropy"}
_AT_MOST_ONE = {"gamma", "tau", "final_lr_fraction", "lr_hold_fraction", "actor_average_rate"}


def _check_ranges(section: Any, prefix: str = "") -> None:
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        name = prefix + item.name
        if dataclasses.is_dataclass(value):
            _check_ranges(value, name + ".")
        if isinstance(value, bool) or not isinstance(value, int | float) or item.name in _ANY_SIGN:
            continue
        low_ok = value >= 0 if item.name in _MAY_BE_ZERO else value > 0
        rule = "zero or positive" if item.name in _MAY_BE_ZERO else "positive"
        if not low_ok or value != value or value in (float("inf"), float("-inf")):
            raise UserError(f"{name} must be {rule} and finite; found {value}.")
        if item.name in _AT_MOST_ONE and value > 1:
            raise UserError(f"{name} must be at most 1; found {value}.")
