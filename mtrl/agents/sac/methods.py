"""The combiners of SAC's two networks, or the reason why a method cannot be one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mtrl import seeds
from mtrl.combiners import Combiner, make_combiner
from mtrl.config.schema import Config
from mtrl.errors import UserError


class Method(NamedTuple):
    """A combiner's name and hyper-parameters."""

    name: str
    options: Mapping[str, Any]


class Combiners(NamedTuple):
    """One combiner per network."""

    critic: Combiner
    actor: Combiner


def make_combiners(config: Config, num_tasks: int) -> Combiners:
    """Return fresh combiners, each with a random stream of its own.

    Raises:
        ValueError: unknown method or option, or a value outside its rule.
        UserError: the actor's method needs positive losses, which SAC's actor cannot promise.
    """
    method = Method(config.method, config.method_options)
    critic = make_combiner(method.name, num_tasks=num_tasks, **method.options)
    actor = make_combiner(method.name, num_tasks=num_tasks, **method.options)
    if actor.refuses_signed_losses:
        raise UserError(
            f"{method.name} needs positive losses and SAC's actor loss may be negative. "
            "--method.shift minimum (method_options={'shift': 'minimum'}) measures losses from their lowest "
            "value, plus one."
        )
    critic.seed(seeds.integer(config.seed, "critic_combiner"))
    actor.seed(seeds.integer(config.seed, "actor_combiner"))
    return Combiners(critic, actor)
