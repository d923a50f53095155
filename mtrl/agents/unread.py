"""Settings that a run with actor and critic does not read, and why."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mtrl.combiners import COMBINERS
from mtrl.config.schema import Config
from mtrl.networks.base import NETWORKS


class _Only(NamedTuple):
    """A setting is read only where `holds` accepts the value of the setting `other`.

    `words` names those values.
    """

    other: str
    words: str
    holds: Callable[[Any], bool]


def _where(other: str, *values: str) -> _Only:
    return _Only(other, " or ".join(values), lambda found: found in values)


_DISTRIBUTION = _where("network.critic_loss", "categorical", "histogram")
_GUARDED = _where("train.on_divergence", "warn", "stop")
_ONLY = {
    "network.value_bins": _DISTRIBUTION,
    "network.value_low": _DISTRIBUTION,
    "network.value_high": _DISTRIBUTION,
    "network.identity_width": _where("network.task_identity", "embedding", "file"),
    "network.critic_layer_norm": _where("network.critic_block", "mlp"),  # blocks have norms of their own
    "replay.return_bound": _where("replay.reward_scaling", "return"),
    "sac.lr_hold_fraction": _Only("sac.final_lr_fraction", "below 1", lambda found: found < 1),
    "sac.final_lr_fraction": _Only("sac.lr_hold_fraction", "below 1", lambda found: found < 1),
    "sac.critic_loss_bound": _GUARDED,
    "sac.q_bound": _GUARDED,
    "ppo.kl_bound": _GUARDED,
}
# Settings of `network` that an architecture may leave unread, and the argument that stands for each.
_OF_ARCHITECTURE = {
    "actor_width": "width", "actor_depth": "depth", "critic_width": "width", "critic_depth": "depth",
    "activation": "activation", "actor_layer_norm": "layer_norm", "critic_layer_norm": "layer_norm",
    "critic_block": "residual", "initialisation": "initialisation",
}  # fmt: skip
# Architectures without task heads if network.heads=shared; a user's own may have some all the same.
_WITHOUT_HEADS = ("mlp", "brc", "care", "film", "paco", "simba", "simba_v2", "soft_modules")


def unread_settings(config: Config, never_read: Sequence[str]) -> dict[str, str]:
    """Return why settings or sections have no effect: name -> the rest of a sentence that begins with it.

    Args:
        config: of the run.
        never_read: sections and settings that the agent never reads.
    """
    # First: an agent that never reads a setting does not read it either if another one changes.
    reasons = dict.fromkeys(never_read, f"is not read by the agent {config.agent}")
    for name, only in _ONLY.items():
        section, _, field = only.other.partition(".")
        value = getattr(getattr(config, section), field)
        if not only.holds(value):
            reasons.setdefault(name, f"is read only if {only.other} is {only.words}; here it is {value}")
    architecture = config.network.architecture
    taken = vars(NETWORKS[architecture]).get("given", ())
    for field, argument in _OF_ARCHITECTURE.items():
        if argument not in taken:
            reasons.setdefault(f"network.{field}", f"is not read by the network {architecture}")
    methods = config.methods()
    if all(_steps_by_itself(*method) for method in methods.values()):
        steps = f"is not read where critic and actor step by {' and '.join(dict(methods.values()))}"
        for section in ("sac", "ppo"):
            reasons.setdefault(f"{section}.max_grad_norm", steps)
            if not _may_have_heads(config, section):
                reasons.setdefault(f"{section}.adam_eps", steps)
    return reasons


def _steps_by_itself(method: str, options: Mapping[str, Any]) -> bool:
    """Return whether the method, or the one that it wraps, is an optimiser of its own."""
    bases = COMBINERS.wrapped(options).items()
    return COMBINERS[method].preconditioned or any(
        _steps_by_itself(options[base], options[own] or {}) for base, own in bases
    )


def _may_have_heads(config: Config, section: str) -> bool:
    """Return whether a network of that agent may have task heads, which step by Adam under every method."""
    network = config.network
    pop_art = section == "ppo" and config.ppo.value_norm == "pop_art"
    return pop_art or network.heads == "per_task" or network.architecture not in _WITHOUT_HEADS
