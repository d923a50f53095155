"""The choice of methods: each network's combiner, from the configuration."""

from typing import Literal

from mtrl import seeds
from mtrl.combiners import Combiner, make_combiner
from mtrl.combiners.inverse_alpha import InverseAlpha
from mtrl.config.schema import Config
from mtrl.errors import UserError


def network_combiner(config: Config, network: Literal["critic", "actor"], num_tasks: int) -> Combiner:
    """Return a fresh combiner for the losses of one network, with a random stream of its own.

    The critic's losses are errors or cross-entropies and never negative. The actor's may have either sign,
    so a method whose formulas need positive losses must shift them there.

    Raises:
        ValueError: unknown method or option, or a value outside its rule.
        UserError: the actor's method needs positive losses and was not told how to shift them.
    """
    method, options = config.methods()[network]
    combiner = make_combiner(method, num_tasks=num_tasks, **options)
    if network == "actor" and combiner.refuses_signed_losses:
        raise UserError(
            f"{method} needs positive losses and the actor's loss may be negative. Give the actor a method "
            "of its own (--method.actor mean leaves the critic's raw losses to this one), or --method.shift "
            "minimum (method_options={'shift': 'minimum'}), which measures losses from their lowest value, "
            "plus one."
        )
    combiner.seed(seeds.integer(config.seed, f"{network}_combiner"))
    return combiner


def reads_temperatures(combiner: Combiner) -> bool:
    """Return whether the method, or one within it, weighs tasks by SAC's temperatures."""
    return any(isinstance(part, InverseAlpha) for part in combiner.modules())
