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

from mtrl.combiners.solvers.gramian import gramian

# What the first argument of a method is, for its check; of `weights` the kind of combiner decides.
_CHECKED = {"combine": "jacobian", "weights": None, "after_step": "losses"}


class JacobianAt(Protocol):
    """Evaluates gradients at the current parameters and elsewhere."""

    def __call__(self, offset: Tensor | None = None, batch: int = 0, tasks: Tensor | None = None) -> Tensor:
        """Return the Jacobian [T, P], task t at `params + offset[t]`, on independent batch `batch`.

        tasks: int64 [N]; only these are evaluated, which gives [N, P] at the cost of N tasks.
        """
        ...

    def weighted(self, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient [P] of `weights_of(losses) @ losses`, losses and weights [T]: one backward."""
        ...


def _validated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check what a user hands to the methods of _CHECKED; keep the weights that `weights` returns."""
    is_weights = function.__name__ == "weights"

    @functools.wraps(function)
    def wrapper(self: Combiner, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._checked:
            kind = _CHECKED[function.__name__] or ("losses" if self.needs == "losses" else "gram")
            _check_input(self, kind, value)
            losses = kwargs.get("losses", args[0] if args else None)
            if self.positive_losses and losses is not None:
                _check_input(self, "losses", losses)
            if is_weights:
                self.next_phase()
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
    if kind == "losses" and combiner.refuses_signed_losses and not bool((value > 0.0).all()):
        raise ValueError(
            f"{combiner.name} needs positive losses; found others in tasks {_tasks(value <= 0.0)}. "
            "Pass shift='minimum' to measure losses from the lowest value of each task, plus one."
        )


def _non_finite_tasks(kind: str, finite: Tensor) -> list[int]:
    if kind == "gram":  # a bad gradient spoils its row and column; its own diagonal entry names it
        diagonal = _tasks(~finite.diagonal())
        if diagonal:
            return diagonal
    return _tasks(~(finite if finite.dim() == 1 else finite.all(dim=1)))


def _tasks(chosen: Tensor) -> list[int]:
    return list(map(int, chosen.nonzero().flatten()))


class Combiner(nn.Module, ABC):
    """Base of all methods: keeps the number of tasks, the last weights and the validation of inputs.

    A method derives from LossCombiner, GramCombiner or JacobianCombiner and writes exactly one function.
    State that must survive a resume lives in registered buffers that are written in place. Called by a user,
    that function checks its input and raises ValueError; inside an update (`unchecked`) nothing talks to the
    host and the update masks a non-finite step itself.
    """

    name: ClassVar[str]
    needs: ClassVar[Literal["losses", "gram", "jacobian"]]
    num_batches: int = 1  # independent batches the method asks jacobian_at for
    positive_losses: ClassVar[bool] = False  # its formulas need losses > 0, or else `shift`
    jacobians: int = 1  # how many Jacobians, or tensors of that size, exist at once while it combines
    capturable: bool = True  # nothing in it reads back to the host, so that a CUDA graph can hold it
    shift: str = "none"  # "minimum": losses are made positive, see `_losses.LossOrigin`
    looks_again: ClassVar[bool] = False  # `after_step` wants the losses after the step on the same batch
    preconditioned: ClassVar[bool] = False  # the direction is an optimiser's step: theta -= lr * direction
    row_state: ClassVar[tuple[str, ...]] = ()  # names of buffers [T, P], zero at first, see `prepare`

    def __init__(self, *, num_tasks: int) -> None:
        super().__init__()
        if isinstance(num_tasks, bool) or not isinstance(num_tasks, int) or num_tasks < 1:
            raise ValueError(f"num_tasks must be a positive integer; found {num_tasks!r}.")
        self.num_tasks = num_tasks
        self._checked = True
        self.last_weights: Tensor
        self.register_buffer("last_weights", torch.full((num_tasks,), 1.0 / num_tasks))
        for buffer in self.row_state:
            self.register_buffer(buffer, torch.zeros(num_tasks, 0))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for attribute in _CHECKED:
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

    def next_phase(self) -> int:
        """Move on to the next update; return which of its sequences of operations the method takes there.

        Decided on the host, since a CUDA graph holds one sequence: each phase has its own. Inside an update
        (`unchecked`) the caller moves on beforehand; `weights` called by a user does it itself.
        """
        return 0

    def after_step(self, losses: Tensor) -> None:
        """Take note of the losses [T] after the step, on the same batch; called where `looks_again`."""

    def prepare(self, parameters: Tensor) -> None:
        """Make room for the buffers of `row_state`: [T, P], with P, dtype and device of `parameters` [P].

        A `combine` that finds none makes it itself; from then on they keep their place.
        """
        for name in self.row_state:
            size = self.get_buffer(name).shape[1]
            if size == 0:
                self.register_buffer(name, parameters.new_zeros(self.num_tasks, parameters.numel()))
            elif size != parameters.numel():
                raise ValueError(
                    f"{self.name} keeps a state of {size} parameters; found {parameters.numel()}. "
                    "Make one combiner per network."
                )

    @property
    def gramian_suffices(self) -> bool:
        """Whether the direction is `weights(gram) @ jacobian`: nobody has to hold the Jacobian for that."""
        return self.needs == "gram" and self.num_batches == 1

    @property
    def refuses_signed_losses(self) -> bool:
        """Whether losses must be positive: the formulas need it and no `shift` makes them so."""
        return self.positive_losses and self.shift == "none"

    def reset(self) -> None:
        """Put the state back to that of a fresh instance; stateful methods extend it."""
        self.last_weights.fill_(1.0 / self.num_tasks)
        for name in self.row_state:
            self.get_buffer(name).zero_()

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

    def _required(self, losses: Tensor | None) -> Tensor:
        if losses is None:
            raise ValueError(f"{self.name} looks at the tasks' losses: pass losses of shape [T].")
        return losses

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A fresh instance does not know P before its state arrives.
        for name in self.row_state:
            saved = state_dict.get(prefix + name)
            if saved is not None and self.get_buffer(name).shape[1] == 0:
                self.register_buffer(name, torch.zeros_like(saved, device=self.last_weights.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


class LossCombiner(Combiner):
    """A method whose weights depend on the losses alone: one weighted backward pass is enough."""

    needs = "losses"

    @abstractmethod
    def weights(self, losses: Tensor) -> Tensor:
        """Return the task weights [T] for losses [T]; the direction is the weighted sum of gradients."""

    def combine(self, jacobian: Tensor, losses: Tensor | None = None) -> Tensor:
        """Return `weights(losses) @ jacobian` [P]."""
        return self.weights(self._required(losses)).to(jacobian.dtype) @ jacobian


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
