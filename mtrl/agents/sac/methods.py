"""The combiners of SAC's two networks, and the settings that SAC refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from mtrl import seeds
from mtrl.combiners import Combiner, make_combiner
from mtrl.config.schema import Config
from mtrl.errors import UserError


class Combiners(NamedTuple):
    """One combiner per network."""

    critic: Combiner
    actor: Combiner


def make_combiners(config: Config, num_tasks: int) -> Combiners:
    """Return fresh combiners, each with a random stream of its own; raises as `sac_combiner`."""
    critic = sac_combiner(*config.method_of("critic"), num_tasks, "critic")
    actor = sac_combiner(*config.method_of("actor"), num_tasks, "actor")
    critic.seed(seeds.integer(config.seed, "critic_combiner"))
    actor.seed(seeds.integer(config.seed, "actor_combiner"))
    return Combiners(critic, actor)


def check(config: Config, num_tasks: int) -> None:
    """Refuse settings that SAC cannot train with, before anything starts.

    Raises:
        UserError: two settings that exclude each other, or a method that cannot combine SAC's losses.
    """
    batch, copies = config.sac.batch_per_task, config.env.envs_per_task
    warmup = config.train.warmup_steps * copies
    if warmup < batch:
        raise UserError(
            "sac.batch_per_task must be at most the transitions per task collected in warm-up, "
            f"train.warmup_steps x env.envs_per_task = {warmup}; "
            f"found {batch}. Raise train.warmup_steps or lower sac.batch_per_task."
        )
    if config.sac.noise_spread > 1 and copies == 1:
        raise UserError(
            f"sac.noise_spread = {config.sac.noise_spread:g} gives the copies of a task different noise; "
            "found env.envs_per_task = 1. Raise it to 2 or more, or leave sac.noise_spread at 1."
        )
    low, high = config.network.value_low, config.network.value_high
    if not low < high:
        raise UserError(f"network.value_low must be below network.value_high; found {low} and {high}.")
    if config.replay.capacity_per_task < batch:
        raise UserError(
            f"replay.capacity_per_task must be at least sac.batch_per_task = {batch}; "
            f"found {config.replay.capacity_per_task}."
        )
    make_combiners(config, num_tasks)


def sac_combiner(
    method: str, options: Mapping[str, Any], num_tasks: int, network: Literal["critic", "actor"]
) -> Combiner:
    """Return a fresh combiner for the losses of one network.

    The critics' are errors or cross-entropies and never negative; the actor's have no certain sign, so that
    a method whose formulas need positive losses must shift them there.

    Raises:
        ValueError: unknown method or option, or a value outside its rule.
        UserError: the actor's method needs positive losses and was not told how to shift them.
    """
    combiner = make_combiner(method, num_tasks=num_tasks, **options)
    if network == "actor" and combiner.refuses_signed_losses:
        raise UserError(
            f"{method} needs positive losses and SAC's actor loss may be negative. Give the actor a method "
            "of its own (--method.actor mean leaves the critics' raw losses to this one), or --method.shift "
            "minimum (method_options={'shift': 'minimum'}), which measures losses from their lowest value, "
            "plus one."
        )
    return combiner
