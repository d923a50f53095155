"""Blocks: a method applied to each module's parameters by itself."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_finite, integers
from mtrl.combiners._families import forward_requirements, make_base
from mtrl.combiners._random import scrambled
from mtrl.combiners.base import Combiner, GramCombiner, JacobianCombiner
from mtrl.combiners.solvers.gramian import weighted_sums
from mtrl.errors import UserError


class Blocks(JacobianCombiner):
    """Blocks: the base method combines each block of columns of the Jacobian by itself, such as a layer's.

    Modular Gradient Surgery, Cai et al., 2026 (arXiv:2602.02301), is this method with base `pcgrad` and a
    block per module: tasks may conflict in one module and agree in another. In the authors' code a block is
    one parameter tensor (a weight or a bias; `sizes` can say so), and the tasks are summed.

    Args:
        base: Name of the method; each block has an instance.
        base_options: Arguments of the base method.
        sizes: Numbers of columns of the blocks, in their order; -1, once, stands for the rest. Empty: one
            block per module; training and `mtl_step` pass the sizes of the modules to `partition`.

    The metric `weights` is the mean over all parameters. Every instance gets the losses unchanged.
    """

    name = "blocks"
    papers = ("cai2026mgs",)
    credit = "The paper's method is the one with base `pcgrad`."
    needs = (
        "the sizes of the modules (pass `sizes=`, in `base_options` if blocks is a base, or call `partition`)"
    )

    def __init__(
        self,
        *,
        num_tasks: int,
        base: str = "pcgrad",
        base_options: Mapping[str, Any] | None = None,
        sizes: tuple[int, ...] = (),
    ) -> None:
        super().__init__(num_tasks=num_tasks)
        self._base, self._options = base, base_options
        template = make_base(self.name, base, base_options, num_tasks)  # refuses what does not fit
        forward_requirements(self, template)
        self.bases = nn.ModuleList()
        self._sizes: list[int] = []
        self._rates: Tensor | None = None  # success rates for bases that are still to be made
        self._own_sizes = integers(sizes) != []
        if self._own_sizes:
            self._partition(sizes)

    def partition(self, sizes: Sequence[int]) -> None:
        """Divide the columns into blocks of these sizes, unless the option `sizes` has done so.

        Raises:
            ValueError: sizes that are no positive integers, or of another number of blocks than before.
        """
        if not self._own_sizes:
            self._partition(sizes)
        if -1 not in sizes:
            for base, columns in zip(self.bases, self._columns(sum(sizes)), strict=True):
                cast(Combiner, base).partition([columns])  # to its base a block is one module

    def _note_success(self, rates: Tensor) -> None:
        self._rates = None if len(self.bases) else rates.clone()
        super()._note_success(rates)

    def reset(self) -> None:
        """Forget success rates that no base has got yet, too."""
        super().reset()
        self._rates = None

    def _partition(self, sizes: Sequence[int]) -> None:
        numbers = integers(sizes)
        if not numbers or min(numbers) < -1 or 0 in numbers or numbers.count(-1) > 1:
            raise ValueError(
                f"sizes must be positive numbers of columns, one of which may be -1; found {sizes!r}."
            )
        self._make(len(numbers))
        self._sizes = numbers
        self.needs = ""

    def _make(self, count: int) -> None:
        """Make the bases, each with a random stream of its own."""
        if len(self.bases) == 0:
            made = [make_base(self.name, self._base, self._options, self.num_tasks) for _ in range(count)]
            self.bases.extend(base.to(self.last_weights.device) for base in made)
            self._seeded()
            if not self._checked:
                self.skip_checks()
            if self._rates is not None:
                self.note_success(self._rates)
        if len(self.bases) != count:
            raise ValueError(
                f"this instance has {len(self.bases)} blocks; found {count}. Make one combiner per network."
            )

    def _seeded(self) -> None:
        # From the own stream: it may be chosen before the bases are made, or be that of a loaded state.
        members = [module for module in self.bases.modules() if isinstance(module, Combiner)]
        keys = torch.arange(1, len(members) + 1, device=self.stream.device)
        streams = scrambled(keys, torch.zeros_like(self.stream), self.stream)
        for member, stream in zip(members, streams, strict=True):
            member.stream.fill_(stream)

    def _columns(self, parameters: int) -> list[int]:
        """Return the numbers of columns of the blocks; raises unless they add up to `parameters`."""
        known = sum(size for size in self._sizes if size > 0)
        sizes = [parameters - known if size == -1 else size for size in self._sizes]
        if sum(sizes) != parameters or min(sizes, default=0) < 1:
            raise UserError(  # an option of the command line that no one can check without the network
                f"sizes must add up to the {parameters} columns; found {self._sizes}. -1 stands for the "
                "rest; critic and actor have different numbers of columns."
            )
        return sizes

    def prepare(self, parameters: Tensor) -> None:
        """Make room for the states of the bases, each over its block of `parameters` [P]."""
        blocks = parameters.split(self._columns(parameters.numel()))
        for base, block in zip(self.bases, blocks, strict=True):
            cast(Combiner, base).prepare(block)

    def _check_gradients(self, rows: Tensor, tasks: Tensor | None = None) -> None:
        try:
            super()._check_gradients(rows, tasks)
        except ValueError:
            check_finite("jacobian", rows)
            # Products within the blocks may be finite where those of whole rows are not.
            for base, block in zip(self.bases, rows.split(self._columns(rows.shape[1]), dim=1), strict=True):
                cast(Combiner, base)._check_gradients(block, tasks)

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        sizes = self._columns(jacobian.shape[1])
        bases, blocks = [cast(Combiner, base) for base in self.bases], jacobian.split(sizes, dim=1)
        with ExitStack() as stack:
            for base in bases:  # the blocks were checked together, before any base moves
                stack.enter_context(base.unchecked())
            if isinstance(bases[0], GramCombiner) and bases[0].combines_by_weights:
                members = [cast(GramCombiner, base) for base in bases]
                pairs = zip(members, blocks, strict=True)
                # Its direction is this weighted sum, which takes fewer launches for all blocks together.
                weights = [base.weights(base._gramian(block)) for base, block in pairs]
                direction = weighted_sums(weights, jacobian, sizes)
            else:
                parts = [base.combine(block, losses) for base, block in zip(bases, blocks, strict=True)]
                direction = torch.cat(parts)
        shares = [size / sum(sizes) for size in sizes]
        weighed = torch._foreach_mul([base.last_weights for base in bases], shares)
        torch.sum(torch.stack(weighed), dim=0, out=self.last_weights)
        return direction

    def _after_step(self, losses: Tensor) -> None:
        for base in self.bases:
            cast(Combiner, base).after_step(losses)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._rates = None
        # A fresh instance does not know the modules before its state arrives.
        lead = f"{prefix}bases."
        saved = {key.removeprefix(lead).partition(".")[0] for key in state_dict if key.startswith(lead)}
        if saved and not len(self.bases):
            self._make(len(saved))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not saved and len(self.bases):  # a state from before the modules were known: that of new bases
            for base in self.bases:
                cast(Combiner, base).reset()
            self._seeded()
            state_dict.update(self.bases.state_dict(prefix=lead))
