"""The combiners of SAC's two networks, or the reason why a method cannot be one."""

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
