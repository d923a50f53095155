"""Periodic solves: another method's weights, renewed once in several updates."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mtrl.combiners._families import Refreshed, make_gram_base


class Every(Refreshed):
    """Periodic weights: the base method solves once in `refresh_every` updates; its weights are then kept.

    Xu et al., AAAI 2025 (arXiv:2412.10961), "PSMGD: periodic stochastic multi-gradient descent" (its text
    could not be read), for any method whose weights depend on the Gramian alone. An update in between costs
    one weighted backward pass instead of a Jacobian. The authors' code has base `mgda` and `refresh_every` 8,
    multiplies weights by T, and also weighs the losses of task heads.

    Args:
        base: Name of the method that solves for the weights.
        base_options: Arguments of the base method.
        refresh_every: Updates per solve; 1 is the base method.

    Weights are used as they were solved. In contrast, `nash_mtl` with its own `refresh_every` applies
    `max_norm` to the current gradients.
    """

    name = "every"
    papers = ("xu2025psmgd",)
    credit = "The authors' code has base `mgda`; here the base can be any."

    def __init__(
        self,
        *,
        num_tasks: int,
        base: str = "cagrad",
        base_options: Mapping[str, Any] | None = None,
        refresh_every: int = 10,
    ) -> None:
        super().__init__(num_tasks=num_tasks, refresh_every=refresh_every)
        self.base = make_gram_base(self.name, base, base_options, num_tasks)

    def _solve(self, gram: Tensor) -> Tensor:
        return self.base.weights(gram)
