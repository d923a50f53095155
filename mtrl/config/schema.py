"""Configuration of a run: frozen dataclasses. A field's type gives its range, the text below its meaning.

A Config is checked field by field, whether it comes from YAML (`mtrl.config.presets`), flags (`mtrl.cli`) or
Python. `mtrl.training.resolve` checks names of plug-ins, their options and the agent's own rules. Imports no
torch. Sources: "MW+" is the Meta-World+ protocol (arXiv 2505.11289, its public JAX code, 2026-05 fixes),
"2021 mtrl" is facebookresearch/mtrl.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mtrl.config.labels import methods_of
from mtrl.config.values import settings
from mtrl.errors import UserError


def _no_number(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("cuda:") and value[5:].isdigit():
        raise UserError(
            f"device must be one of auto, cpu, cuda; found '{value}'. To choose the GPU, set the "
            f"environment variable CUDA_VISIBLE_DEVICES={value[5:]} and device cuda."
        )
    return value


Device = Annotated[Literal["auto", "cpu", "cuda"], BeforeValidator(_no_number)]
Options = Mapping[str, Any]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]


def _as_tuple(value: Any) -> Any:
    """Accept a single name or a list for a tuple, as they are natural in Python and YAML."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


@settings("env.")
class EnvConfig:
    """Environments of any suite."""

    envs_per_task: PositiveInt = 1
    """Parallel copies of each task; a vector step yields tasks x copies transitions."""
    num_workers: PositiveInt | None = None
    """Environment processes; None: one per core (two fewer on CUDA), at most one per environment."""
    num_goals: PositiveInt | None = None
    """Goals per task, one drawn at each reset; None: all goals of the suite (Meta-World and MW+: 50)."""
    max_episode_steps: PositiveInt = 500
    """Env steps after which an episode is truncated (MW+: 500)."""
    resume: Literal["auto", "exact", "restart"] = "auto"
    """`exact`: checkpoints hold the environments, and a resumed run repeats the undisturbed one bit for bit.
    `restart`: they do not, and a resumed run begins new episodes. `auto`: exact where it is possible."""
    step_timeout: Positive = 60.0
    """Seconds without an answer after which a worker counts as hung."""
    worker_niceness: Annotated[int, Field(ge=0, le=19)] = 0
    """Nice value added to the workers' (0 to 19); above 0 they yield to other processes."""
    max_restarts: NonNegativeInt = 3
    """Restarts of workers that die, raise or hang; one more ends the run (checkpoint, exit code 75)."""


@settings("replay.")
class ReplayConfig:
    """Per-task replay buffers on the training device."""

    capacity_per_task: PositiveInt = 100_000
    """Transitions kept per task, oldest overwritten first (MW+: 100k)."""
    reward_scaling: Literal["none", "ema", "shrink", "return"] = "none"
    """Divisor of sampled rewards, per task. `ema`: their running standard deviation (rate 1e-3); `shrink`:
    the root of their running mean square if above 1; `return`: max(std G, max |G| / return_bound) of the
    returns G so far (FastTD3, FlashSAC)."""
    return_bound: Positive = 10.0
    """Largest scaled return under `return` (FastTD3: 10). Values look beyond the time limit: keeping a reward
    that was held for an episode's last m steps is worth 1 / (1 - gamma^m) times its return."""
    return_quantile: Annotated[float, Field(ge=0.9, lt=1)] | None = None
    """Under `return`, clip G at this quantile of |G| before both terms are taken, so that no lucky episode
    fixes the scale (.995 to .998; after DreamerV3's percentiles); None: no clip."""
    n_step: PositiveInt = 1
    """Rewards summed before the bootstrap; windows end with their episode (FastTD3: 8, MTBench SAC: 4)."""
    curriculum: Annotated[float, Field(ge=0.5, le=1)] = 1.0
    """Easy transitions first: at the start only those below this quantile of a task's TD errors are drawn; it
    rises to .99 over the run. 1: uniform draws (after Data-CUBE)."""


@settings("network.")
class NetworkConfig:
    """Actor and critics (SAC: two, PPO: one)."""

    architecture: str = "mlp"
    """Architecture of actor and critics: a name in docs/networks.md, package.module:Name or file.py:Name."""
    options: Options = field(default_factory=dict)
    """Options of the architecture; those of the mlp are the fields below."""
    actor_options: Options = field(default_factory=dict)
    """Options that differ for the actor; others are as in `options`."""
    critic_options: Options = field(default_factory=dict)
    """Options that differ for the critics; others are as in `options`."""
    actor_width: PositiveInt = 400
    """Units per hidden layer of the actor (MW+: 400)."""
    actor_depth: PositiveInt = 3
    """Hidden layers of the actor (MW+: 3)."""
    critic_width: PositiveInt = 400
    """Units per hidden layer of each critic (MW+: 400)."""
    critic_depth: PositiveInt = 3
    """Hidden layers of each critic (MW+: 3)."""
    activation: Literal["relu", "tanh", "silu", "gelu"] = "relu"
    """Non-linearity of the hidden layers."""
    actor_layer_norm: bool = False
    """Normalise each hidden layer of the actor before its non-linearity (no gain, no bias)."""
    critic_layer_norm: bool = False
    """Normalise each hidden layer of the critics before its non-linearity (no gain, no bias)."""
    heads: Literal["shared", "per_task"] = "shared"
    """`per_task`: a linear head per task on a shared torso (multi-head SAC); only the torso is combined."""
    critic_block: Literal["mlp", "residual"] = "mlp"
    """`residual`: input layer, then critic_depth - 1 residual blocks of two layers, each with LayerNorm
    (BroNet, arXiv 2405.16158)."""
    critic_loss: Literal["squared", "huber", "categorical", "histogram"] = "squared"
    """`huber`: linear beyond an error of 1. Cross-entropy over value_bins atoms: `categorical`, the target's
    own distribution projected (C51, arXiv 1707.06887); `histogram`, a normal around it (HL-Gauss)."""
    critic_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the critics' weights, activations and per-task gradients. `bfloat16` rounds to .4 % and is
    faster on CPUs with AMX or AVX-512 BF16; Adam, the weights that it moves, and Gramians keep float32."""
    value_bins: Annotated[int, Field(ge=2)] = 51
    """Atoms (bins) of a critic with a cross-entropy loss (C51: 51)."""
    value_low: float = -10.0
    """Lowest atom, in units of scaled reward (FastTD3, BRC: -10)."""
    value_high: float = 10.0
    """Highest atom, in units of scaled reward (FastTD3, BRC: 10)."""
    observation_norm: Literal["none", "warmup"] = "none"
    """`warmup`: standardise observations by their mean and standard deviation over the warm-up of all tasks
    (of PPO: over its first rollout)."""
    task_identity: Literal["one_hot", "embedding", "file", "none"] = "one_hot"
    """What the first layer gets of the task (MW+: one_hot; 2021 mtrl: none). `embedding`: a learnt vector
    of length 1; `file`: the numbers in identity_file, projected to such a vector."""
    identity_width: PositiveInt = 32
    """Length of the vectors of task_identity embedding and file (BRC: 32)."""
    identity_file: str | None = None
    """JSON file {"task": [numbers]} with what task_identity=file knows of each task."""
    initialisation: Literal["he_uniform", "orthogonal"] = "he_uniform"
    """Of the mlp's weights (MW+: he_uniform; PPO in CleanRL and Stable-Baselines3: orthogonal)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay (AdamW) per unit of learning rate, of all parameters of actor and critics, as in
    the authors' code of BRC (1e-4) and SimBa (1e-2); not of PopArt's scale and shift of each task."""


@settings("sac.")
class SacConfig:
    """Soft actor-critic."""

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Discount per env step."""
    tau: Fraction = 0.005
    """Step of the target network towards the critic at each update."""
    actor_lr: Positive = 3e-4
    """Adam learning rate of the actor."""
    critic_lr: Positive = 3e-4
    """Adam learning rate of the critics."""
    temperature_lr: Positive = 3e-4
    """Adam learning rate of the log temperatures."""
    final_lr_fraction: Fraction = 1.0
    """Final share of the three learning rates, which decay geometrically (MW+: 1, constant)."""
    lr_hold_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the run before the learning rates begin to decay."""
    actor_average_rate: Annotated[float, Field(ge=1e-9, le=1)] | None = None
    """Evaluate an exponential moving average of the actor's parameters. This is its rate per actor step; its
    start is bias-corrected as in Adam. None: evaluate the actor itself."""
    adam_eps: Positive = 1e-5
    """Adam epsilon of actor and critics (MW+: 1e-5; torch's own default and 2021 mtrl: 1e-8)."""
    batch_per_task: PositiveInt = 128
    """Transitions sampled per task and update (MW+: 128)."""
    q_reduce: Literal["min", "mean"] = "min"
    """How the values of the twin critics are combined, in the target and for the actor (BRC: mean)."""
    actor_every: PositiveInt = 1
    """Critic steps per step of actor and temperatures (FastTD3, FlashSAC: 2; holosoma: 4)."""
    act_on_snapshot: bool = False
    """Act with the actor from before the newest updates, so that a GPU acts and updates at the same time. The
    policy is then one vector step's updates old."""
    noise_hold: Annotated[int, Field(gt=0, le=10_000)] = 1
    """Exploration noise is held for k ~ Zeta(2) env steps, at most this many (FlashSAC: 16); 1: independent
    noise at every step."""
    noise_spread: Annotated[float, Field(ge=1)] = 1.0
    """Factor of the exploration noise of a task's last copy; it grows geometrically from 1 for the first copy
    (as Ape-X's epsilons). Above 1 actions are off-policy, for which n-step targets are not corrected."""
    max_grad_norm: Positive | None = 1.0
    """Global gradient norm bound applied after combining (MW+: 1.0); None: no bound."""
    temperature: Literal["per_task", "shared"] = "per_task"
    """One temperature per task (MW+) or one for all."""
    initial_temperature: Positive = 1.0
    """Starting value of every temperature."""
    target_entropy: float | None = None
    """Target entropy in nats; None: minus the number of action dimensions."""
    critic_loss_bound: Positive = 1e7
    """Critic loss of a task above which learning counts as diverged (train.on_divergence)."""
    q_bound: Positive = 1e5
    """Magnitude of a task's action values above which learning counts as diverged."""


@settings("ppo.")
class PpoConfig:
    """Proximal policy optimisation. Its agent reads neither the sections sac and replay nor the warm-up."""

    rollout_steps: PositiveInt = 2_048
    """Vector steps of a rollout; it has envs_per_task times as many rows of each task (CleanRL,
    Stable-Baselines3: 2048 rows; MW+: 10,000)."""
    epochs: PositiveInt = 10
    """Times that an update goes through its rows (MW+: 16; CleanRL, Stable-Baselines3: 10; MTBench: 5)."""
    minibatches: PositiveInt = 32
    """Parts of an epoch, each with equally many rows of every task (MW+, CleanRL: 32)."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Discount per env step."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Decay of generalised advantage estimation per env step (MW+: .97; CleanRL, MTBench: .95)."""
    clip: Positive = 0.2
    """Probability ratios are clipped to [1 - clip, 1 + clip] (all sources: .2)."""
    advantages: Literal["per_task", "minibatch", "none"] = "per_task"
    """Standardised over a task's rows of the rollout, over a minibatch of all tasks (MW+, CleanRL) or raw."""
    value_norm: Literal["none", "pop_art"] = "none"
    """`pop_art`: values in units of each task's returns (arXiv 1809.04474; statistics of the whole run as in
    TOPPO, arXiv 2605.11473)."""
    value_coefficient: Positive = 1.0
    """Factor of half the mean squared error of values (MW+: .001); affects clipping and how much Adam's
    epsilon matters."""
    entropy: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the policy's entropy, before squashing (MW+, MTBench: 5e-3; CleanRL: 0)."""
    final_entropy: Annotated[float, Field(ge=0)] | None = None
    """Weight of the entropy at the end of the run, to which it moves linearly; None: as `entropy`."""
    actor_lr: Positive = 3e-4
    """Adam learning rate of the actor (MW+, CleanRL, Stable-Baselines3: 3e-4)."""
    critic_lr: Positive = 3e-4
    """Adam learning rate of the critic."""
    final_lr_fraction: Fraction = 1.0
    """Final share of both learning rates, which fall linearly (MW+: 1, constant; CleanRL: down to 0)."""
    target_kl: Positive | None = None
    """Target KL divergence (nats) of an update: the actor's learning rate is divided by 1.5 after an update
    above twice this and multiplied by 1.5 after one below half of it, within 1e-5 to 1e-2 (arXiv 2109.11978:
    .01). final_lr_fraction then holds for the critic alone. None: no adaptation."""
    adam_eps: Positive = 1e-5
    """Adam epsilon (MW+, CleanRL, Stable-Baselines3: 1e-5)."""
    max_grad_norm: Positive | None = 1.0
    """Bound of each network's gradient norm after combining (MW+: 1; CleanRL: .5 for both); None: none."""
    squash: Literal["tanh", "clip"] = "tanh"
    """How a sample of the Gaussian becomes an action in [-1, 1] (MW+: tanh; CleanRL: clip)."""
    kl_bound: Positive = 1.0
    """KL divergence (nats) of a task's policy from the rollout's above which learning counts as diverged."""


@settings("train.")
class TrainConfig:
    """The loop around the agent. A vector step moves every environment by one env step."""

    warmup_steps: PositiveInt = 4_000
    """Vector steps with uniformly random actions before the first update (MW+: 4000)."""
    warmup_updates: NonNegativeInt = 0
    """Updates made at the end of the warm-up (2021 mtrl: 1500)."""
    updates_per_step: PositiveInt = 1
    """Updates per vector step after warm-up."""
    log_interval: PositiveInt = 1_000
    """Vector steps between two lines of metrics."""
    checkpoint_interval: PositiveInt = 50_000
    """Vector steps between two checkpoints; one more is written at the end and on Ctrl-C."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints kept on disk."""
    keep_best: bool = False
    """Also keep the policy of the best evaluation (success, else return), in the run's folder best/."""
    on_divergence: Literal["warn", "stop", "off"] = "warn"
    """What to do when losses, values or temperatures leave their range or a solved task is lost."""
    deterministic: bool = False
    """Use slower, deterministic CUDA kernels; on a CPU runs repeat bit for bit anyway."""
    sinks: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ("tensorboard",)
    """Sinks besides the JSON lines: tensorboard, wandb, package.module:Name or file.py:Name."""
    matmul_precision: Literal["auto", "highest", "high", "medium"] = "auto"
    """As torch.set_float32_matmul_precision; auto: `high` (TF32) on CUDA, `highest` on a CPU. Gramians and
    directions stay exact."""
    num_threads: PositiveInt | None = None
    """Threads of the learner on the CPU; None: as many as torch would use, at most one per available core."""


@settings("eval.")
class EvalConfig:
    """Evaluation: own environments, deterministic policy, fixed goals, full-length episodes."""

    interval: PositiveInt = 50_000
    """Vector steps between two evaluations; the last is made at the end."""
    episodes_per_task: PositiveInt = 10
    """Episodes per task of the evaluations during training; episode k uses goal k."""
    final_episodes_per_task: PositiveInt = 50
    """Episodes per task of the evaluation at the end: each goal once."""
    max_episode_steps: PositiveInt | None = None
    """Length of evaluation episodes in env steps; None: env.max_episode_steps."""
    envs_per_task: PositiveInt | None = None
    """Parallel copies of each task in evaluations; None: env.envs_per_task. They change results by
    rounding alone, except in suites whose environments draw from `seed`."""


@settings()
class Config:
    """Everything that defines a run.

    Fields are checked when they are given; names of plug-ins and their options when a run starts.

    Raises:
        UserError: an unknown field (the nearest is named), a value of the wrong type or out of range, or
            options of a method that is not named.
    """

    tasks: Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)] = ("MT10",)
    """One benchmark (MT10, MT25, MT50) or task names such as reach-v3 push-v3; a preset may name them."""
    suite: str = "metaworld"
    """Suite of tasks: metaworld, gymnasium, package.module:Name or file.py:Name."""
    suite_options: Options = field(default_factory=dict)
    """Arguments of the suite; others have its defaults."""
    agent: str = "sac"
    """Agent: sac, ppo, package.module:Name or file.py:Name."""
    method: str = "mean"
    """Gradient combiner: a name in mtrl.combiners.COMBINERS, package.module:Name or file.py:Name."""
    method_options: Options = field(default_factory=dict)
    """Hyper-parameters of the combiner; others have its defaults."""
    critic_method: str | None = None
    """Gradient combiner of the critics alone; None: as `method`."""
    critic_method_options: Options = field(default_factory=dict)
    """Hyper-parameters of `critic_method`."""
    actor_method: str | None = None
    """Gradient combiner of the actor alone; None: as `method`."""
    actor_method_options: Options = field(default_factory=dict)
    """Hyper-parameters of `actor_method`."""
    method_defaults: Mapping[str, Options] = field(default_factory=dict)
    """Method's name -> options it has by default, also as the base of another method."""
    steps: PositiveInt = 2_000_000
    """Length of the run in vector steps, which is env steps per task and copy (MW+: 2M)."""
    seed: NonNegativeInt = 0
    """Seed of goals, networks, sampling and exploration."""
    device: Device = "auto"
    """Training device; auto: CUDA if there is one."""
    env: EnvConfig = EnvConfig()
    replay: ReplayConfig = ReplayConfig()
    network: NetworkConfig = NetworkConfig()
    sac: SacConfig = SacConfig()
    ppo: PpoConfig = PpoConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    def __post_init__(self) -> None:
        for key in ("critic_method", "actor_method"):
            if getattr(self, f"{key}_options") and getattr(self, key) is None:
                raise UserError(
                    f"{key}_options are options of {key}; found no {key}. Name it too, or use method_options."
                )

    @classmethod
    def from_preset(cls, name: str, settings: Mapping[str, Any] | None = None, /, **more: Any) -> Config:
        """Return the Config of a preset, or of a user's .yaml file, with other settings over it.

        Settings are nested or have dotted names: `Config.from_preset("laptop", **{"eval.interval": 60})`.
        Those given as keywords are the strongest.

        Raises:
            UserError: as `mtrl.config.presets.load_preset` and `build_config`.
        """
        from mtrl.config.presets import build_config, load_preset, nested

        return build_config(load_preset(name), nested(settings or {}, more))

    def methods(self) -> dict[str, tuple[str, Options]]:
        """Return the name and options of the method that combines the gradients of "critic" and "actor"."""
        return methods_of(vars(self))
