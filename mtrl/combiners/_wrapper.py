"""What methods around another method share: the base method, its options and what it asks of its caller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mtrl.combiners.base import Combiner, GramCombiner, JacobianCombiner
from mtrl.combiners.registry import make_combiner


def make_base(
    wrapper: str, base: str, base_options: Mapping[str, Any] | None, num_tasks: int, *, gram: bool = False
) -> Combiner:
    """Return an instance of the base method of a wrapper.

    Args:
        wrapper: name of the wrapper, for messages.
        base: name of the base method, or "package.module:Name".
        base_options: arguments of the base method, checked by it.
        num_tasks: T.
        gram: whether its weights must depend on the Gramian alone.

    Raises:
        ValueError: an unknown base or option, a value outside its rule, or a base that does not fit.
    """
    if base_options is not None and not isinstance(base_options, Mapping):
        raise ValueError(f"base_options must map arguments of {base} to values; found {base_options!r}.")
    if base == wrapper:
        raise ValueError(f"base must be another method than {wrapper!r}; found {base!r}.")
    made = make_combiner(base, num_tasks=num_tasks, **dict(base_options or {}))
    if made.needs_also:
        raise ValueError(
            f"base must be a method that takes one Jacobian; found {base!r}, which needs {made.needs_also}."
        )
    if gram and not isinstance(made, GramCombiner):
        raise ValueError(f"base must be a method whose weights depend on the Gramian alone; found {base!r}.")
    return made


class Wrapper(JacobianCombiner):
    """A method that changes what another, the base, is given; asks of its caller what the base asks.

    Args:
        num_tasks: T.
        base: Name of the base method.
        base_options: Arguments of the base method, checked by it.
    """

    def __init__(self, *, num_tasks: int, base: str, base_options: Mapping[str, Any] | None) -> None:
        super().__init__(num_tasks=num_tasks)
        self.base = make_base(self.name, base, base_options, num_tasks)
        self.reads_losses = self.base.reads_losses
        self.positive_losses = self.base.positive_losses
        self.looks_again = self.base.looks_again
        self.preconditioned = self.base.preconditioned
        self.capturable = self.base.capturable
        self.shift = self.base.shift

    def prepare(self, parameters: Tensor) -> None:
        """Make room for the base's state, too."""
        super().prepare(parameters)
        self.base.prepare(parameters)

    def _after_step(self, losses: Tensor) -> None:
        self.base.after_step(losses)

    def reset(self) -> None:
        """Put the base back to a fresh instance, too."""
        super().reset()
        self.base.reset()

    def metrics(self) -> dict[str, Tensor]:
        """Return the base's metrics."""
        return self.base.metrics()
