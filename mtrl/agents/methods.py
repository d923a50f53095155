"""The choice of methods: each network's combiner, from the configuration."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

from torch import Tensor

from mtrl import seeds
from mtrl.combiners import Combiner, make_combiner
from mtrl.combiners.inverse_alpha import InverseAlpha
from mtrl.config.schema import Config
from mtrl.errors import UserError


def network_combiner(config: Config, network: Literal["critic", "actor"], num_tasks: int) -> Combiner:
    """Return a fresh combiner for the losses of one network, with a random stream of its own.

    The critic's losses are errors or cross-entropies and never negative. The actor's may have either sign,
    so a method whose formulas need losses of at least 0 must shift them there.

    Raises:
        ValueError: unknown method or option, or a value outside its rule.
        UserError: the actor's method needs losses of at least 0 and was not told how to shift them.
    """
    method, options = config.methods()[network]
    combiner = make_combiner(method, num_tasks=num_tasks, **options)
    if network == "actor" and combiner.refuses_signed_losses:
        raise UserError(
            f"{method} needs losses of at least 0, and the actor's may be negative. Give the actor "
            "another method, such as --method.actor mean (the critic's losses are never negative)"
            f"{_way_to_shift(config, combiner.shift_options)}."
        )
    combiner.seed(seeds.integer(config.seed, f"{network}_combiner"))
    return combiner


def check_numbers(combiner: Combiner, method: str, network: str, taken: Collection[str]) -> None:
    """Refuse numbers of a method that a log line cannot hold beside the agent's.

    Args:
        combiner: the combiner of one network.
        method: its name, as the user gave it.
        network: name of the network, which is put before the names of the numbers.
        taken: names of the agent's own numbers.

    Raises:
        UserError: a name that is taken, or something else than a number, one by task or by pairs of tasks.
    """
    tasks = combiner.num_tasks
    for name, value in combiner.metrics().items():
        if (logged := f"{network}_{name}".replace("/", "_")) in taken:
            raise UserError(
                f"`metrics` of method {method} has a number '{name}', which would be logged as {logged}, a "
                "number of the agent. Give it another name."
            )
        allowed = [(tasks,)] if name == "weights" else [(), (tasks,), (tasks, tasks)]
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if found not in allowed:
            shapes = " or ".join(str(list(shape)) for shape in allowed)
            raise UserError(
                f"`metrics` of method {method}: '{name}' must be a tensor of shape {shapes} for {tasks} "
                f"tasks; found {found if isinstance(found, str) else list(found)}. Return such a tensor."
            )


def reads_temperatures(combiner: Combiner) -> bool:
    """Return whether the method, or one within it, weighs tasks by SAC's temperatures."""
    return any(isinstance(part, InverseAlpha) for part in combiner.modules())


def _way_to_shift(config: Config, options: Mapping[str, Any]) -> str:
    """Return how to give the actor's method the options that shift its losses; empty if it has none."""
    if not options:
        return ""
    flag, key = ("--method", "method") if config.actor_method is None else ("--method.actor", "actor_method")
    value: Any = options
    while isinstance(value, Mapping):  # those of a method around another are its base's
        ((name, value),) = value.items()
        flag += f".{name.removesuffix('_options')}"
    return (
        f", or {flag} {value} ({key}_options={options!r}), which measures losses from their lowest value, "
        "plus one"
    )
