"""A combiner for SAC's losses, or the reason why a method cannot be one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtrl.combiners import Combiner, make_combiner
from mtrl.errors import UserError


def sac_combiner(
    method: str, options: Mapping[str, Any], num_tasks: int, jacobian_chunk: int | None = None
) -> Combiner:
    """Return a fresh combiner for SAC's losses, of which the actor's has no certain sign.

    Raises:
        ValueError: unknown method or option, or a value outside its rule.
        UserError: the method needs positive losses and was not told how to shift them, or the whole Jacobian,
            which `jacobian_chunk` rules out.
    """
    combiner = make_combiner(method, num_tasks=num_tasks, **options)
    if combiner.refuses_signed_losses:
        raise UserError(
            f"{method} needs positive losses and SAC's actor loss may be negative. --method.shift minimum "
            "(method_options={'shift': 'minimum'}) measures losses from their lowest value, plus one."
        )
    if jacobian_chunk is not None and combiner.needs != "losses" and not combiner.gramian_suffices:
        raise UserError(
            f"sac.jacobian_chunk needs a method whose weights depend on the Gramian or the losses; {method} "
            "takes the whole Jacobian. Leave it out, or choose another method."
        )
    return combiner
