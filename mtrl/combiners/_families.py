"""Base classes: wrappers of another method, losses made positive, periodic solves, sampled tasks."""

import inspect
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_count, check_order
from mtrl.combiners._jacobian_at import JacobianAt
from mtrl.combiners._random import next_tasks, shuffled
from mtrl.combiners._state import HostCounter, LossOrigin
from mtrl.combiners.base import Combiner, GramCombiner, JacobianCombiner
from mtrl.combiners.registry import from_options

# What a base may require of its caller, and how a message says it.
_REQUIREMENTS = {
    "reads_losses": "reads the losses",
    "positive_losses": "needs losses of at least 0",
    "looks_again": "looks at the losses after the step",
    "preconditioned": "is an optimiser of its own",
}


def make_base(
    wrapper: str,
    base: str,
    base_options: Mapping[str, Any] | None,
    num_tasks: int,
    meets: Collection[str] = tuple(_REQUIREMENTS),
) -> Combiner:
    """Return an instance of the method `base`, a name or "package.module:Name", for the method `wrapper`.

    `meets` holds the requirements of a base that the wrapper meets. No wrapper gives its base more than one
    Jacobian of all tasks.

    Raises:
        ValueError: an unknown base or option, a value outside its rule, or a base that does not fit.
    """
    if base_options is not None and not isinstance(base_options, Mapping):
        raise ValueError(f"base_options must map arguments of {base} to values; found {base_options!r}.")
    if base == wrapper:
        raise ValueError(f"base must be another method than {wrapper!r}; found {base!r}.")
    made = from_options(base, num_tasks, base_options or {})
    if made.needs_also:
        raise ValueError(
            f"base must be a method that takes one Jacobian; found {base!r}, which needs {made.needs_also}."
        )
    if not _combines_as_it_directs(type(made)):
        raise ValueError(
            f"base must be a method without a `direction` of its own, which {wrapper} would not call; found "
            f"{base!r}. Put its rule into `_combine`."
        )
    for requirement, words in _REQUIREMENTS.items():
        if getattr(made, requirement) and requirement not in meets:
            raise ValueError(
                f"base must be a method that works within {wrapper}; found {base!r}, which {words}."
            )
    return made


def _combines_as_it_directs(kind: type[Combiner]) -> bool:
    """Whether `_combine` is defined where `direction` is, or in a subclass; the library's methods pass."""
    combine, direction = (
        next(base for base in kind.__mro__ if hook in vars(base)) for hook in ("_combine", "direction")
    )
    return issubclass(combine, direction) or direction.__module__.startswith("mtrl.combiners.")


def make_gram_base(
    wrapper: str, base: str, base_options: Mapping[str, Any] | None, num_tasks: int
) -> GramCombiner:
    """Return `make_base` for a wrapper that needs weights of the Gramian alone; raises for other bases."""
    made = make_base(wrapper, base, base_options, num_tasks, meets=())  # the wrapper calls `weights` alone
    if not (isinstance(made, GramCombiner) and made.combines_by_weights):
        raise ValueError(f"base must be a method whose weights depend on the Gramian alone; found {base!r}.")
    return made


def forward_requirements(wrapper: Combiner, base: Combiner) -> None:
    """Give a wrapper what its base requires."""
    for requirement in (*_REQUIREMENTS, "shift", "multiplies_gradients", "multiplies_losses", "jacobians"):
        setattr(wrapper, requirement, getattr(base, requirement))
    wrapper.shift_options = {"base_options": base.shift_options} if base.shift_options else {}


class Wrapper(JacobianCombiner):
    """Wraps another method, the base: transforms its inputs and forwards its requirements.

    Args:
        base: Name of the base method.
        base_options: Arguments of the base method.
    """

    def __init__(self, *, num_tasks: int, base: str, base_options: Mapping[str, Any] | None) -> None:
        super().__init__(num_tasks=num_tasks)
        self.base = make_base(self.name, base, base_options, num_tasks)
        forward_requirements(self, self.base)

    def _after_step(self, losses: Tensor) -> None:
        self.base.after_step(losses)

    def metrics(self) -> dict[str, Tensor]:
        """Return the base's metrics."""
        return self.base.metrics()


class PositiveLosses(Combiner):
    """A method whose formulas need losses of at least 0, as measured by `self.origin`.

    Args:
        shift: `none` needs losses of at least 0, such as a critic's, and counts those below 1e-8 as 1e-8;
            `minimum` measures each task's loss from its lowest value so far, plus one (ours): a loss that
            only falls always measures 1.
    """

    reads_losses = True
    positive_losses = True

    def __init__(self, *, num_tasks: int, shift: Literal["none", "minimum"] = "none") -> None:
        super().__init__(num_tasks=num_tasks)
        self.origin = LossOrigin(num_tasks, shift)
        self.shift = shift
        # A method of one's own that derives from this one need not have the option.
        has_shift = "shift" in inspect.signature(type(self)).parameters
        self.shift_options = {"shift": "minimum"} if has_shift else {}


class Refreshed(HostCounter, GramCombiner):
    """Solves for the weights in every `refresh_every`-th update and keeps them in between.

    In between, an update computes no Jacobian, only the gradient of the weighted loss. On a GPU each of the
    two kinds of update has a CUDA graph. `counter` is the number of updates until the next solve.
    """

    def __init__(self, *, num_tasks: int, refresh_every: int) -> None:
        super().__init__(num_tasks=num_tasks)
        self.refresh_every = check_count("refresh_every", refresh_every)
        self.kept = nn.Buffer(torch.full((num_tasks,), 1.0 / num_tasks, dtype=torch.float64))

    @property
    def weights_suffice(self) -> bool:
        """Whether every update solves, so that `direction` is the sum by `weights`."""
        plain = self.combines_by_weights and type(self).direction is Refreshed.direction
        return plain and self.refresh_every == 1

    def phases(self) -> tuple[int, ...]:
        """Whether the next update solves, and what the base decides."""
        return (int(self.counter == 0), *super().phases())

    def advance(self) -> None:
        """Count down to the next solve."""
        self.counter = (self.counter or self.refresh_every) - 1

    @abstractmethod
    def _solve(self, gram: Tensor) -> Tensor:
        """Return the weights [T] for the Gramian [T, T]."""

    def direction(self, jacobian_at: JacobianAt) -> Tensor:
        """Return the direction [P]; computes a Jacobian only if a solve is due."""
        if self.counter == 0:
            return super().direction(jacobian_at)
        self.advance()
        self.last_weights.copy_(self.kept)
        return jacobian_at.weighted(lambda losses: self.kept)

    def _weights(self, gram: Tensor) -> Tensor:
        if self.counter == 0:
            self.kept.copy_(self._solve(gram))
        self.advance()
        return self.kept.clone()


class Sampled(JacobianCombiner):
    """Takes n single tasks of the T per update: drawn anew for each update, or the next n of a given order.

    An order, after Data-CUBE, Min et al., ACL Findings 2024 (arXiv:2401.03563; only the abstract could be
    read), lets similar tasks follow each other. Either way each task is among an update's n single tasks with
    probability n / T. With an order updates depend on each other, and T updates in a row take every task n
    times.

    Args:
        sampled: Gradients per update, at most T.
        pooled: 1 if one of these gradients is that of all other tasks together, else 0.
        order: All task numbers: updates take the next ones in turn, from a random start. Empty: random tasks.
            `scripts/group.py` prints an order in which similar tasks are neighbours.
    """

    def __init__(self, *, num_tasks: int, sampled: int, order: Sequence[int], pooled: int = 0) -> None:
        super().__init__(num_tasks=num_tasks)
        self._singles = min(check_count("sampled", sampled), num_tasks) - pooled
        given = torch.tensor(check_order("order", order, num_tasks), dtype=torch.int64)
        self.order = nn.Buffer(given, persistent=False)  # an option of the run, not its state
        self._tasks = nn.Buffer(torch.arange(num_tasks).unsqueeze(0), persistent=False)
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.int64))

    def _draw(self) -> Tensor:
        """Return all tasks, int64 [T], first those of this update; the update ends with `step.add_(1)`."""
        if len(self.order):
            return next_tasks(self.order, self._singles, self.step, self.stream)
        return shuffled(self._tasks, self.step, self.stream)[0]
