"""The choice of methods: each network's combiner and its descent, from the configuration."""

from __future__ import annotations

from typing import Literal

import torch

from mtrl import seeds
from mtrl.agents.base import TaskSpec
from mtrl.combiners import Combiner, make_combiner
from mtrl.config.schema import Config
from mtrl.errors import UserError
from mtrl.gradients.flat import FlatParameters
from mtrl.gradients.per_task import Descent
from mtrl.networks.base import InitialParameters, Network, Projects


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


def network_descent(
    config: Config,
    role: Literal["critic", "actor"],
    network: Network,
    fresh: InitialParameters,
    spec: TaskSpec,
    device: torch.device,
    *,
    lr: float,
    eps: float,
    max_norm: float | None,
    dtype: torch.dtype | None = None,  # that the losses see (`FlatParameters`)
) -> Descent:
    """Return the descent of a network from fresh parameters, by the method and the decay of its settings.

    Raises as `network_combiner`.
    """
    return Descent(
        FlatParameters(*fresh, dtype=dtype).to(device),
        network_combiner(config, role, spec.num_tasks).to(device),
        lr=lr,
        eps=eps,
        max_norm=max_norm,
        weight_decay=config.network.weight_decay,
        project=network.project if isinstance(network, Projects) else None,
    ).to(device)
