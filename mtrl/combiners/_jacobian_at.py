"""What a combiner may ask of its caller: losses and per-task gradients at any parameters."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class JacobianAt(Protocol):
    """Evaluates one network's losses and per-task gradients, at the current parameters and elsewhere."""

    @property
    def losses(self) -> Tensor:
        """Losses [T] of the first evaluation at the current parameters, detached."""

    @property
    def parameters(self) -> Tensor:
        """Current shared parameters [P], detached."""

    @property
    def heads(self) -> tuple[Tensor, Tensor]:
        """Parameters of the task heads and their gradients so far, [T, h] each; h = 0 without heads."""

    def __call__(self, offset: Tensor | None = None, batch: int = 0, tasks: Tensor | None = None) -> Tensor:
        """Return the Jacobian [T, P], by default at the current parameters.

        Args:
            offset: [T, P] or [T, P + h]; task t is evaluated at `parameters + offset[t]`. The last h columns
                of row t move task t's head; the head's step then uses its gradient at that point.
            batch: number of the independent batch.
            tasks: int64 [N] without repetition; only these are evaluated, and the result is [N, P].
        """

    def weighted(self, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient [P] of `w @ losses` for constant w = `weights_of(losses)` [T]: one backward."""

    def pooled(self, order: Tensor, singles: int) -> Tensor:
        """Return gradients [N + 1, P] of the first N tasks of an order [T] and of the others' mean loss."""
