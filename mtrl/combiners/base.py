"""The contract of gradient combiners: per-task gradients in, one descent direction out.

Letters: T tasks, P parameters. Row t of a Jacobian is the gradient of task t's loss; the Gramian is
`jacobian @ jacobian.T`; the direction goes where a gradient would go (theta <- theta - lr * direction).

The public calls (`combine`, `weights`, `after_step`, `note_success`) are final. They check and detach their
input, then call the hook of the same name with an underscore. A method implements the hooks only.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import (
    check_direction,
    check_finite,
    check_gradients,
    check_input,
    check_losses,
    check_products,
    check_rates,
    check_same_device,
    check_squares,
    is_integer,
)
from mtrl.combiners._jacobian_at import JacobianAt
from mtrl.combiners._random import stream_key
from mtrl.combiners._state import Stateful
from mtrl.combiners.solvers.gramian import cosines_or_zero, divisor, gramian, weighted_sum

_AWAITS_LOSSES = "awaits_losses"  # in a `state_dict`: a step was taken whose `after_step` is still to come


class Combiner(Stateful, ABC):
    """Base of all methods: input checks, the last weights, a random stream, state that survives a resume.

    A method derives from LossCombiner or GramCombiner and implements `_weights`, or from JacobianCombiner and
    implements `_combine`. State lives in buffers that are written in place (see `Stateful`), so that `reset`,
    checkpoints and CUDA graphs cover all of it. A bad input raises ValueError; training switches the checks
    off (`skip_checks`), since a check waits for the device.
    """

    name: ClassVar[str] = ""
    papers: ClassVar[tuple[str, ...]] = ()  # what to cite: keys of references.bib
    credit: ClassVar[str] = ""  # a sentence where the papers do not describe this method, or there is none
    reads_losses: bool = False  # `combine` needs losses
    positive_losses: bool = False  # its formulas need losses >= 0, or else `shift`
    looks_again: bool = False  # `after_step` wants the losses after the step on the same batch
    preconditioned: bool = False  # the direction is an optimiser's step: theta -= lr * direction
    needs: str = ""  # what `direction` needs besides Jacobians at the current parameters, and losses
    evaluates_all: bool = True  # each step evaluates all tasks, not a part of them
    num_batches: int = 1  # independent batches the method asks jacobian_at for
    jacobians: int = 1  # how many tensors of a Jacobian's size exist at once while it combines, per batch
    multiplies_gradients: bool = False  # it forms products or squares of gradients, which overflow
    multiplies_losses: bool = False  # its state holds products of losses, which overflow
    shift: str = "none"  # "minimum": losses are made positive, see `_state.LossOrigin`
    shift_options: Mapping[str, Any] = MappingProxyType({})  # options that do so; empty: it has none

    def __init__(self, *, num_tasks: int) -> None:
        if not is_integer(num_tasks) or num_tasks < 1:
            raise ValueError(f"num_tasks must be a positive integer; found {num_tasks!r}.")
        super().__init__(int(num_tasks))
        self.num_tasks = int(num_tasks)
        self._checked, self._awaits_losses = True, False
        self.last_weights = nn.Buffer(torch.full((num_tasks,), 1.0 / num_tasks, dtype=torch.float64))
        self.stream = nn.Buffer(torch.zeros(1, dtype=torch.int64))
        del self._first["stream"]  # `seed` chooses it, and a reset keeps the choice

    @final
    def combine(self, jacobian: Tensor, losses: Tensor | None = None) -> Tensor:
        """Return the direction [P] for a Jacobian [T, P] and, where the method reads them, losses [T].

        Inputs are detached. Methods that need more than one Jacobian (other batches, gradients at moved
        parameters, losses after the step) use `direction` and `after_step`; `mtrl.mtl_step` calls both.
        A call that raises leaves the state as it was. Exception: if the direction is refused, a method with
        state per parameter (`row_state`, `vector_state`) keeps what it learned; only `reset` clears it.

        Raises:
            ValueError: wrong shape, dtype or device, missing losses, or non-finite entries (names the tasks);
                the method needs more than these, `after_step` is due, or its direction exceeds its dtype.
        """
        if self.needs_also:
            raise ValueError(
                f"{self.name} needs {self.needs_also}, which a Jacobian does not contain: "
                "use mtrl.mtl_step, or `direction` with an evaluator of your own."
            )
        self._check_learned()
        if losses is None and self.reads_losses:
            raise ValueError(f"{self.name} needs the tasks' losses; found none. Pass losses of shape [T].")
        if losses is not None:  # first: one NaN loss makes the rows of all tasks NaN
            losses = self._taken("losses", losses)
        jacobian = self._taken("jacobian", jacobian)
        self._check_loss_products(losses, jacobian.dtype)
        direction = self._guarded(lambda: self._combine(jacobian, losses))
        self._awaits_losses = self.looks_again
        return direction

    @abstractmethod
    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        """Return the direction [P]; `losses` is a tensor if `reads_losses`."""

    def direction(self, jacobian_at: JacobianAt) -> Tensor:
        """Return the direction [P]; methods that need gradients elsewhere or of some tasks override this."""
        if self.num_batches == 1:
            return self.combine(jacobian_at(), jacobian_at.losses)  # `losses` exist only after the call
        batches = [self._seen(jacobian_at(batch=batch)) for batch in range(self.num_batches)]
        return self._guarded(lambda: self._combine_batches(batches))

    def _combine_batches(self, jacobians: Sequence[Tensor]) -> Tensor:
        """Return the direction [P] for the Jacobians of several independent batches, `num_batches`."""
        raise NotImplementedError(f"{self.name} has `num_batches` > 1 and no `_combine_batches(jacobians)`.")

    @property
    def needs_also(self) -> str:
        """What `direction` needs besides one Jacobian and losses, in words; `combine` then refuses."""
        several = f"the Jacobians of {self.num_batches} independent batches" if self.num_batches > 1 else ""
        return self.needs or several

    @property
    def combines_by_weights(self) -> bool:
        """Whether `combine` returns the gradients summed by `weights`; False with a `_combine` of its own."""
        return type(self)._combine in (LossCombiner._combine, GramCombiner._combine)

    @property
    def weights_suffice(self) -> bool:
        """Whether `direction` returns the sum by `weights`, too, so that an update calls `weights` alone."""
        plain = self.combines_by_weights and type(self).direction is Combiner.direction
        return plain and self.num_batches == 1

    @final
    def after_step(self, losses: Tensor) -> None:
        """Learn from the losses [T] after the step, on the same batch; for methods that `looks_again`.

        If this raises, nothing is learned from the step, and the next one may follow.

        Raises:
            ValueError: wrong losses, as in `combine`, or no step since the last call.
        """
        # A method with its own `direction` may bypass `combine`; then nothing records that losses are due.
        noted = self.looks_again and type(self).direction is Combiner.direction
        if noted and not self._awaits_losses:
            raise ValueError(
                f"{self.name} learns once per step: after_step must follow `combine` or `weights`; found no "
                "step since the last call."
            )
        try:
            self._after_step(self._taken("losses", losses))
        finally:
            self.abandon_step()

    def _after_step(self, losses: Tensor) -> None:
        return None

    @final
    def abandon_step(self) -> None:
        """Stop waiting for the losses after the last step, in this method and those within it."""
        for module in self.modules():
            if isinstance(module, Combiner):
                module._awaits_losses = False

    @final
    def seed(self, stream: int) -> None:
        """Choose the random stream of this instance and of the methods in it (0 at first).

        The stream is part of the state. Instances of equal streams draw equal numbers: give each network and
        each run its own.

        Raises:
            ValueError: `stream` is not an integer in [0, 2^63).
        """
        if not is_integer(stream) or not 0 <= stream < 2**63:
            raise ValueError(f"stream must be an integer in [0, 2^63); found {stream!r}.")
        members = [one for one in self.modules() if isinstance(one, Combiner)]
        for index, member in enumerate(members):
            member.stream.fill_(stream_key(int(stream), index))
        for member in reversed(members):  # the outer one last: its rule holds for all within it
            member._seeded()

    def _seeded(self) -> None:
        """Take note of a new stream; for methods that derive those of their members from their own."""
        return

    @property
    def refuses_signed_losses(self) -> bool:
        """Whether losses below 0 are refused: the formulas need losses >= 0 and no `shift` makes them so."""
        return self.positive_losses and self.shift == "none"

    @final
    def note_success(self, rates: Tensor) -> None:
        """Take note of the tasks' success rates [T] in [0, 1], NaN where unknown; ValueError for others."""
        check_rates(rates, self.num_tasks)
        self._note_success(rates.detach())

    def _check_learned(self) -> None:
        if self._awaits_losses:
            due = "call after_step(losses) on the same batch before the next one, or use mtrl.mtl_step."
            raise ValueError(f"{self.name} learns from the losses after each step: {due}")

    def _note_success(self, rates: Tensor) -> None:
        for module in self.nearest():
            if isinstance(module, Combiner):
                module.note_success(rates)

    def partition(self, sizes: Sequence[int]) -> None:
        """Take note of how many columns, in their order, belong to each module, and hand it on."""
        for module in self.nearest():
            if isinstance(module, Combiner):
                module.partition(sizes)

    def reset(self) -> None:
        """Return to the state of a fresh instance of this stream; extend it for state outside buffers."""
        super().reset()
        self._awaits_losses = False

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        # Present only between a step and its `after_step`: all other states keep the entries they always had.
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._awaits_losses:
            destination[prefix + _AWAITS_LOSSES] = torch.ones(1, dtype=torch.bool)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._awaits_losses = state_dict.pop(prefix + _AWAITS_LOSSES, None) is not None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def metrics(self) -> dict[str, Tensor]:
        """Device tensors about the last call: `weights` [T] and what the method adds."""
        return {"weights": self.last_weights}

    def check_device(self, kind: str, device: torch.device) -> None:
        """Raise ValueError if an input, called `kind`, is on another device."""
        check_same_device(self.name, self.last_weights.device, kind, device)

    def skip_checks(self) -> None:
        """Check no inputs from now on, in this method and those within it; a check waits for the device."""
        for module in self.modules():
            if isinstance(module, Combiner):
                module._checked = False

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        """Switch off input checks for a while; `skip_checks` does so for good."""
        before = {one: one._checked for one in self.modules() if isinstance(one, Combiner)}
        self.skip_checks()
        try:
            yield
        finally:
            for member, checked in before.items():
                member._checked = checked

    def _taken(self, kind: str, value: Tensor) -> Tensor:
        """Return an input detached, and checked unless in `unchecked`."""
        if self._checked:
            check_input(self.name, kind, value, self.num_tasks)
            self.check_device(kind, value.device)
            if kind == "losses":
                signed = not self.refuses_signed_losses
                check_losses(self.name, value, signed=signed, shift_options=self.shift_options)
            elif kind == "gram":
                check_finite(kind, value)
            elif not (isinstance(self, GramCombiner) and self.combines_by_weights):
                self._check_gradients(value)  # the others look at the Gramian instead
        return value.detach()

    def _guarded(self, combine: Callable[[], Tensor]) -> Tensor:
        """Return the direction [P], checked; put the state back if this raises. In `unchecked`: neither."""
        put_back = self._snapshot() if self._checked else lambda: None
        try:
            direction = combine()
            if self._checked:
                check_direction(self.name, direction)
        except BaseException:
            put_back()
            self.abandon_step()
            raise
        return direction

    def _check_loss_products(self, losses: Tensor | None, dtype: torch.dtype) -> None:
        if self._checked and self.multiplies_losses and losses is not None:
            check_squares(self.name, losses, torch.promote_types(dtype, torch.float32))

    def _check_gradients(self, rows: Tensor, tasks: Tensor | None = None) -> None:
        """Check the numbers of gradients [N, P], those of `tasks` [N] or of all."""
        check_gradients(self.name, rows, products=self.multiplies_gradients, tasks=tasks)

    def _seen(self, rows: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Return gradients [N, P] of `jacobian_at`, checked; for a `direction` without `combine`."""
        if self._checked:  # before the state changes
            self._check_gradients(rows, tasks)
        return rows

    def _gramian(self, jacobian: Tensor) -> Tensor:
        """Return the Gramian [T, T] of a Jacobian [T, P], which it checks unless in `unchecked`."""
        gram = gramian(jacobian)
        if self._checked:
            check_products(self.name, gram, jacobian)
        return gram


class LossCombiner(Combiner):
    """A method whose weights depend on the losses alone: it needs one weighted backward pass."""

    reads_losses = True

    @final
    def weights(self, losses: Tensor) -> Tensor:
        """Return the task weights [T] for losses [T]; the direction is the weighted sum of gradients.

        Weights have the dtype of the losses, float32 for half precision.

        Raises:
            ValueError: wrong shape or dtype, or non-finite entries (names the tasks); `after_step` is due.
        """
        self._check_learned()
        weights = self._noted(self._taken("losses", losses))
        self._awaits_losses = self.looks_again
        return weights

    @abstractmethod
    def _weights(self, losses: Tensor) -> Tensor:
        """Return the task weights [T] for losses [T]."""

    def _noted(self, losses: Tensor) -> Tensor:
        # float16 has no weights above 65504, such as those of losses below 1e-5.
        weights = self._weights(losses).to(torch.promote_types(losses.dtype, torch.float32))
        self.last_weights.copy_(weights)
        return weights

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        # A method that does not read losses takes only their dtype.
        given = losses if losses is not None else jacobian.new_ones(self.num_tasks)
        return weighted_sum(self._noted(given), jacobian)


class GramCombiner(Combiner):
    """A method whose weights depend on the Gramian alone."""

    multiplies_gradients = True

    def __init__(self, *, num_tasks: int) -> None:
        super().__init__(num_tasks=num_tasks)
        self._last_gram = nn.Buffer(torch.eye(num_tasks, dtype=torch.float64), persistent=False)

    @final
    def weights(self, gram: Tensor) -> Tensor:
        """Return the task weights [T] for the Gramian [T, T]; the direction is `jacobian.T @ weights`.

        Solvers work in float64 whatever dtype the Gramian has, and return float64. `weighted_sum` keeps these
        digits for a Jacobian of single precision.

        Raises:
            ValueError: wrong shape or dtype, or non-finite entries (names the tasks); `after_step` is due.
        """
        self._check_learned()
        weights = self._noted(self._taken("gram", gram))
        self._awaits_losses = self.looks_again
        return weights

    @abstractmethod
    def _weights(self, gram: Tensor) -> Tensor:
        """Return the task weights [T] for the Gramian [T, T]."""

    def _noted(self, gram: Tensor) -> Tensor:
        weights = self._weights(gram)
        self.last_weights.copy_(weights)
        self._last_gram.copy_(gram)
        return weights

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        return weighted_sum(self._noted(self._gramian(jacobian)), jacobian)

    def metrics(self) -> dict[str, Tensor]:
        """Device tensors about the last call: weights, conflict between tasks, length of the direction.

        `weights` [T]; `cosine` [T, T] between the tasks' gradients, 0 for zero gradients; over the pairs of
        tasks `cos_min`, `cos_mean` and `conflict_fraction` (share of negative cosines; 1, 1 and 0 for a
        single task); `direction_norm_ratio`, the direction's norm over the mean gradient's.
        """
        gram, weights = self._last_gram, self.last_weights.to(self._last_gram.dtype)
        cosines = cosines_or_zero(gram)
        itself = torch.eye(self.num_tasks, dtype=torch.bool, device=gram.device)
        pairs = max(self.num_tasks * (self.num_tasks - 1), 1)
        alone = float(self.num_tasks == 1)
        ratio = (weights @ gram @ weights).clamp(min=0.0) / divisor(gram.mean())
        return {
            **super().metrics(),
            "cosine": cosines,
            "cos_min": cosines.masked_fill(itself, 1.0).amin(),
            "cos_mean": cosines.masked_fill(itself, 0.0).sum() / pairs + alone,
            "conflict_fraction": (cosines.masked_fill(itself, 0.0) < 0.0).sum() / pairs,
            "direction_norm_ratio": ratio.sqrt(),
        }


class JacobianCombiner(Combiner):
    """A method that needs the whole Jacobian; it implements `_combine`."""
