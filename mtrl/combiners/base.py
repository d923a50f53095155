"""The contract of gradient combiners: per-task gradients in, one descent direction out.

Letters: T tasks, P parameters. Row t of a Jacobian is the gradient of task t's loss; the Gramian is
`jacobian @ jacobian.T`; the direction goes where a gradient would go (theta <- theta - lr * direction).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

# Columns per product: on a CPU a batch of narrow products runs three times as fast as a short and wide one.
_CHUNK = 2048


def gramian(jacobian: Tensor) -> Tensor:
    """Inner products [T, T] of the rows of a Jacobian [T, P]."""
    tasks, parameters = jacobian.shape
    chunks = parameters // _CHUNK
    if jacobian.device.type != "cpu" or chunks < 2:
        return jacobian @ jacobian.T
    blocks = jacobian[:, : chunks * _CHUNK].view(tasks, chunks, _CHUNK).transpose(0, 1)
    rest = jacobian[:, chunks * _CHUNK :]
    return torch.addmm(torch.bmm(blocks, blocks.mT).sum(0), rest, rest.T)


class JacobianAt(Protocol):
    """Evaluates per-task gradients [T, P]; task t at `params + offset[t]`, on independent batch `batch`."""

    def __call__(self, offset: Tensor | None = None, batch: int = 0) -> Tensor:
        """Return the Jacobian [T, P]."""
        ...


def _validated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Check what a user hands to `weights` or `combine`; keep the weights that `weights` returns."""
    is_weights = function.__name__ == "weights"

    @functools.wraps(function)
    def wrapper(self: Combiner, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._checked:
            _check_input(
                self,
                "losses" if is_weights and self.needs == "losses" else "gram" if is_weights else "jacobian",
                value,
            )
        result = function(self, value, *args, **kwargs)
        if is_weights:
            self.last_weights.copy_(result.detach())
            if isinstance(self, GramCombiner):
                self._last_gram.copy_(value.detach())
        return result

    return wrapper


def _check_input(combiner: Combiner, kind: str, value: Tensor) -> None:
    tasks = combiner.num_tasks
    expected = {"losses": (tasks,), "gram": (tasks, tasks)}.get(kind)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{kind} must be a floating-point tensor; found {found}.")
    wrong = value.shape != expected if expected else (value.dim() != 2 or value.shape[0] != tasks)
    if wrong:
        rule = list(expected) if expected else f"[{tasks}, P]"
        raise ValueError(f"{kind} of {combiner.name} must have shape {rule}; found {list(value.shape)}.")
    finite = torch.isfinite(value)
    if not bool(finite.all()):
        bad = _non_finite_tasks(kind, finite)
        raise ValueError(f"{kind} has non-finite entries in tasks {bad}: fix or drop these tasks' losses.")


def _non_finite_tasks(kind: str, finite: Tensor) -> list[int]:
    if kind == "gram":  # a bad gradient spoils its row and column; its own diagonal entry names it
        diagonal = (~finite.diagonal()).nonzero().flatten()
        if diagonal.numel():
            return list(map(int, diagonal))
    rows = finite if finite.dim() == 1 else finite.all(dim=1)
    return list(map(int, (~rows).nonzero().flatten()))


class Combiner(nn.Module, ABC):
    """Base of all methods: keeps the number of tasks, the last weights and the validation of inputs.

    A method derives from LossCombiner, GramCombiner or JacobianCombiner and writes exactly one function.
    State that must survive a resume lives in registered buffers that are written in place. Called by a user,
    that function checks its input and raises ValueError; inside an update (`unchecked`) nothing talks to the
    host and the update masks a non-finite step itself.
    """

    name: ClassVar[str]
    needs: ClassVar[Literal["losses", "gram", "jacobian"]]
    num_batches: ClassVar[int] = 1  # independent batches the method asks jacobian_at for

    def __init__(self, *, num_tasks: int) -> None:
        super().__init__()
        if isinstance(num_tasks, bool) or not isinstance(num_tasks, int) or num_tasks < 1:
            raise ValueError(f"num_tasks must be a positive integer; found {num_tasks!r}.")
        self.num_tasks = num_tasks
        self._checked = True
        self.last_weights: Tensor
        self.register_buffer("last_weights", torch.full((num_tasks,), 1.0 / num_tasks))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for attribute in ("weights", "combine"):
            if attribute in cls.__dict__ and not getattr(
                cls.__dict__[attribute], "__isabstractmethod__", False
            ):
                setattr(cls, attribute, _validated(cls.__dict__[attribute]))

    @abstractmethod
    def combine(self, jacobian: Tensor, losses: Tensor | None = None) -> Tensor:
        """Return the direction [P] for a Jacobian [T, P] and, where the method reads them, losses [T].

        Raises:
            ValueError: wrong shape or dtype, missing losses, or non-finite entries (names the tasks).
        """

    def direction(self, jacobian_at: JacobianAt) -> Tensor:
        """Return the direction [P]; methods that need gradients elsewhere or on other batches override this.

        `jacobian_at.losses`, where present, holds the losses [T] at the current parameters.
        """
        jacobian = jacobian_at()
        return self.combine(jacobian, getattr(jacobian_at, "losses", None))

    def reset(self) -> None:
        """Put the state back to that of a fresh instance; stateful methods extend it."""
        self.last_weights.fill_(1.0 / self.num_tasks)

    def metrics(self) -> dict[str, Tensor]:
        """Device tensors about the last call: `weights` [T] and what the method adds."""
        return {"weights": self.last_weights}

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        """Switch input checks, which read from the device, off: for use inside an update."""
        members = [module for module in self.modules() if isinstance(module, Combiner)]
        before = [member._checked for member in members]
        for member in members:
            member._checked = False
        try:
            yield
        finally:
            for member, checked in zip(members, before, strict=True):
                member._checked = checked


class LossCombiner(Combiner):
    """A method whose weights depend on the losses alone: one weighted backward pass is enough."""

    needs = "losses"

    @abstractmethod
    def weights(self, losses: Tensor) -> Tensor:
        """Return the task weights [T] for losses [T]; the direction is the weighted sum of gradients."""

    def combine(self, jacobian: Tensor, losses: Tensor | None = None) -> Tensor:
        """Return `weights(losses) @ jacobian` [P]."""
        if losses is None:
            raise ValueError(f"{self.name} weighs tasks by their losses: pass losses of shape [T].")
        return self.weights(losses).to(jacobian.dtype) @ jacobian


class GramCombiner(Combiner):
    """A method whose weights depend on the Gramian alone."""

    needs = "gram"

    def __init__(self, *, num_tasks: int) -> None:
        super().__init__(num_tasks=num_tasks)
        self._last_gram: Tensor
        self.register_buffer("_last_gram", torch.eye(num_tasks, dtype=torch.float64), persistent=False)

    @abstractmethod
    def weights(self, gram: Tensor) -> Tensor:
        """Return the task weights [T] for the Gramian [T, T]; the direction is `jacobian.T @ weights`."""

    def combine(self, jacobian: Tensor, losses: Tensor | None = None) -> Tensor:
        """Return `jacobian.T @ weights(jacobian @ jacobian.T)` [P]; losses are ignored."""
        return self.weights(gramian(jacobian)).to(jacobian.dtype) @ jacobian

    def reset(self) -> None:
        """Put the state back to that of a fresh instance; stateful methods extend it."""
        super().reset()
        self._last_gram.copy_(torch.eye(self.num_tasks))

    def metrics(self) -> dict[str, Tensor]:
        """Device tensors about the last call: weights, conflict between tasks, length of the direction.

        `weights` [T]; over the pairs of tasks `cos_min`, `cos_mean` and `conflict_fraction` (share of
        negative cosines; 1, 1 and 0 for a single task); `direction_norm_ratio`, the direction's norm over the
        mean gradient's.
        """
        gram, weights = self._last_gram, self.last_weights.to(self._last_gram.dtype)
        norms = gram.diagonal().clamp(min=0.0).sqrt()
        scales = torch.outer(norms, norms)
        cosines = torch.where(scales > 0.0, gram / scales, 0.0)
        itself = torch.eye(self.num_tasks, dtype=torch.bool, device=gram.device)
        pairs = max(self.num_tasks * (self.num_tasks - 1), 1)
        alone = float(self.num_tasks == 1)
        mean_square = gram.mean()
        ratio = (weights @ gram @ weights).clamp(min=0.0) / torch.where(mean_square > 0.0, mean_square, 1.0)
        return {
            **super().metrics(),
            "cos_min": cosines.masked_fill(itself, 1.0).amin(),
            "cos_mean": cosines.masked_fill(itself, 0.0).sum() / pairs + alone,
            "conflict_fraction": (cosines.masked_fill(itself, 0.0) < 0.0).sum() / pairs,
            "direction_norm_ratio": ratio.sqrt(),
        }


class JacobianCombiner(Combiner):
    """A method that needs the whole Jacobian: it writes `combine` itself."""

    needs = "jacobian"
