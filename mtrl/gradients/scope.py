"""What one step may touch and what it refuses: decided here and nowhere else.

A step moves the trainable parameters of the model and of the heads. It leaves alone frozen parameters and,
unless it accumulates, all others that the optimiser holds, whatever their `.grad` holds from before.
"""

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from mtrl.combiners import Combiner
from mtrl.gradients.task_jacobian import (
    Graph,
    Model,
    dense,
    explain_donation,
    name_tensors,
    trainable,
    write_gradients,
)

# Optimisers whose weight decay is theta -= lr * decay * theta, apart from the gradient's step.
_NAMES = ("AdamW", "SGD", "Adafactor", "Muon")  # older versions of torch lack some
_DECOUPLED = tuple(getattr(torch.optim, name) for name in _NAMES if hasattr(torch.optim, name))

# Wrappers, and kinds of parameters, that spread a model over processes.
_SHARDED = {"FullyShardedDataParallel", "FSDPModule", "FlatParameter", "DTensor"}

# Parameters of heads that their own task uses, and the losses of other tasks do not.
_ALONE = WeakIdKeyDictionary()

# Parameters of which a warning has said that no step trains them.
_ELSEWHERE = WeakIdKeyDictionary()


class Scope(NamedTuple):
    """The parameters of one step, by what happens to them."""

    shared: Sequence[Tensor]  # the combined direction moves them
    heads: Sequence[Sequence[Tensor]] = ()  # for each task its own; moved by the task's own gradient
    frozen: Sequence[Tensor] = ()  # of model and heads; they stay, and lose a gradient from before
    others: Sequence[Tensor] = ()  # of the optimiser alone; they stay unless the step accumulates
    modules: Sequence[nn.Module] = ()  # their buffers move once per step
    names: dict[int, str] = {}  # noqa: RUF012 - id of a tensor -> its name in messages

    @property
    def leaves(self) -> list[Tensor]:
        """All parameters that the step moves."""
        return [*self.shared, *(leaf for head in self.heads for leaf in head)]

    @property
    def module_sizes(self) -> list[int]:
        """Number of shared parameters, in their order, of each submodule; bare tensors stand alone.

        A submodule whose parameters are empty, as a layer's without inputs, does not count.
        """

        def owner(leaf: Tensor) -> object:
            name = self.names.get(id(leaf), "")
            return name.rpartition(".")[0] if name and not name.startswith("parameter ") else id(leaf)

        sizes = [sum(leaf.numel() for leaf in own) for _, own in groupby(self.shared, key=owner)]
        return [size for size in sizes if size > 0]

    def name(self, leaf: Tensor) -> str:
        """Return the name of a parameter for messages."""
        return self.names.get(id(leaf), f"a tensor of shape {list(leaf.shape)}")

    def check_graph(self, graph: Graph) -> None:
        """Refuse losses that depend on parameters which the optimiser holds and the step would not move.

        Raises:
            ValueError: with the shapes of such parameters.
        """
        forgotten = [leaf for leaf in self.others if leaf.requires_grad and id(leaf) in graph.leaves]
        if forgotten:
            raise ValueError(
                f"the losses depend on {_described(forgotten)} that the optimizer "
                "holds and that are neither in model nor in heads: they would never be trained. Pass "
                "heads=[...], one per task, add shared ones to model, or take them out of the optimizer."
            )

    def warn_of_others(self, leaves: Mapping[int, Tensor]) -> None:
        """Warn, once, of leaves of the losses which neither the step nor its optimiser holds.

        This is no mistake where other losses train them, so it is not refused.
        """
        found = [leaf for key, leaf in leaves.items() if key not in self.names]
        found = [leaf for leaf in found if isinstance(leaf, nn.Parameter) and leaf not in _ELSEWHERE]
        if found:
            warnings.warn(
                f"the losses depend on {_described(found)} that are neither in model nor in heads nor in the "
                "optimizer: this step does not train them and writes no .grad for them. If they are heads, "
                "pass heads=[...] and add them to this optimizer. If another loss trains them (a critic in "
                "an actor's loss), ignore this.",
                RuntimeWarning,
                stacklevel=3,  # the caller of mtl_step
            )
            for leaf in found:
                _ELSEWHERE[leaf] = True

    @explain_donation()
    def check_heads(self, losses: Tensor, graph: Graph) -> None:
        """Refuse heads that the losses [T] of other tasks depend on, too, until `note_alone`.

        Raises:
            ValueError: with the task of such a head.
        """
        for task, head in enumerate(self.heads):
            new = [leaf for leaf in head if leaf not in _ALONE and id(leaf) in graph.leaves]
            if not new or len(losses) == 1:
                continue
            others = losses.sum() - losses[task]
            found = torch.autograd.grad(others, new, retain_graph=True, allow_unused=True)
            for leaf, gradient in zip(new, found, strict=True):
                if gradient is not None and _not_zero(gradient):
                    raise ValueError(
                        f"{self.name(leaf)} is used by the losses of other tasks, too: its gradient would be "
                        "a plain sum, combined by no method. Put what several tasks use into model."
                    )

    def note_alone(self, gradients: Sequence[Sequence[Tensor]]) -> None:
        """Exclude from `check_heads` the head parameters that get a non-zero gradient from their own task.

        While that gradient is 0, the gradients of other tasks may be 0 for the same reason, as behind a gate
        that starts at 0. With several processes pass the mean gradients, so that all processes check the same
        parameters: backward passes may communicate.
        """
        for head, own in zip(self.heads, gradients, strict=True):
            for leaf, gradient in zip(head, own, strict=True):
                if leaf not in _ALONE and _not_zero(gradient):
                    _ALONE[leaf] = True

    def check_finite(self, rows: Tensor, heads: Sequence[Sequence[Tensor]]) -> None:
        """Refuse gradients of shared parameters [N, P] or of heads that are not finite.

        Raises:
            ValueError: with the names of the parameters.
        """
        of_heads = [gradient for own in heads for gradient in own]
        # One number of all sums: one copy from the device decides the usual case.
        total = torch.stack([part.sum().to(rows.dtype) for part in (rows, *of_heads)]).sum()
        if bool(total.isfinite()):
            return
        parts = [*rows.split([leaf.numel() for leaf in self.shared], dim=1), *of_heads]
        pairs = zip(self.leaves, parts, strict=True)
        bad = [leaf for leaf, part in pairs if not bool(part.isfinite().all())]
        if bad:
            raise ValueError(
                f"finite losses have a non-finite gradient at {', '.join(map(self.name, bad[:5]))}: no step "
                "was taken. Look for square roots and norms at 0, logarithms and divisions there."
            )

    def check_accumulated(self, leaves: Sequence[Tensor]) -> None:
        """Refuse to add to gradients of these tensors that are not finite; frozen ones lose theirs.

        Raises:
            ValueError: with the names of such tensors.
        """
        frozen, device = set(map(id, self.frozen)), self.shared[0].device
        pairs = [(leaf, leaf.grad) for leaf in leaves if leaf.grad is not None and id(leaf) not in frozen]
        # Finite sums decide the usual case, with one copy from the device.
        finite = [dense(gradient).sum().isfinite().to(device) for _, gradient in pairs]
        if not finite or bool(torch.stack(finite).all()):
            return
        bad = [leaf for leaf, gradient in pairs if not bool(dense(gradient).isfinite().all())]
        if bad:
            raise ValueError(
                f"accumulate=True would add to non-finite gradients of {', '.join(map(self.name, bad[:5]))}: "
                "no step was taken. Zero them, and fix the loss that made them."
            )

    @contextmanager
    def only(self, *, hide_others: bool = True, keep: bool = True) -> Iterator[None]:
        """Hide from the optimiser the gradients of parameters that the step must leave alone.

        With `keep`, an error restores all former gradients, whose memory stays in use meanwhile.
        """
        before = [(leaf, leaf.grad) for leaf in (*self.leaves, *self.frozen) if keep]
        hidden = [(leaf, leaf.grad) for leaf in self.others if hide_others]
        for leaf in (*self.frozen, *(leaf for leaf, _ in hidden)):
            leaf.grad = None
        try:
            yield
        except BaseException:
            for leaf, gradient in before:
                leaf.grad = gradient
            raise
        finally:
            for leaf, gradient in hidden:
                leaf.grad = gradient

    def put(
        self, direction: Tensor | None, heads: Sequence[Sequence[Tensor]], *, add: bool, scale: float
    ) -> None:
        """Write the gradients of a step, times `scale`; `add` them to those that are there.

        Without a direction shared parameters lose theirs.
        """
        if direction is None:
            for leaf in self.shared:
                leaf.grad = None
        else:
            write_gradients(self.shared, direction * scale if scale != 1.0 else direction, accumulate=add)
        for own, gradients in zip(self.heads, heads, strict=True):
            for leaf, gradient in zip(own, gradients, strict=True):
                write_gradients([leaf], gradient.flatten() * scale, accumulate=add)


def _not_zero(gradient: Tensor) -> bool:
    # A NaN may be 0 times an infinite derivative of the task's own loss.
    return bool(dense(gradient).nan_to_num(nan=0.0).any())


def _described(leaves: Sequence[Tensor]) -> str:
    shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves[:3])
    return f"{len(leaves)} parameters (of shapes {shapes})"


def scope_of(
    combiner: Combiner, model: Model, heads: Sequence[Model], optimizer: torch.optim.Optimizer
) -> Scope:
    """Return what a step of `mtl_step` may touch.

    Raises:
        ValueError: parameters, heads or an optimiser with which no step is right.
    """
    if not isinstance(heads, Iterable):
        found = type(heads).__name__
        raise ValueError(f"heads must be a list of modules or parameters, one per task; found a {found}.")
    heads = list(heads)  # a generator would be empty the second time
    modules = [part for part in (model, *heads) if isinstance(part, nn.Module)]
    named = name_tensors(model)
    own = [name_tensors(head) for head in heads]
    _refuse_wrappers(modules, [leaf for part in (named, *own) for _, leaf in part])
    shared = trainable(named)
    if own and len(own) != combiner.num_tasks:
        raise ValueError(f"heads must be one per task, {combiner.num_tasks}; found {len(own)}.")
    names = {id(leaf): name for name, leaf in named}
    for task, head in enumerate(own):
        for name, leaf in head:
            if leaf.requires_grad and id(leaf) in names:
                raise ValueError(
                    f"{names[id(leaf)]} is also {name} of heads[{task}]: its gradient would be a plain sum, "
                    "combined by no method. Pass in model only what all tasks share, and in each head only "
                    "its own parameters."
                )
            names[id(leaf)] = f"{name} of heads[{task}]"
    everything = [leaf for part in (named, *own) for _, leaf in part]
    scope = Scope(
        shared,
        [[leaf for _, leaf in head if leaf.requires_grad] for head in own],
        [leaf for leaf in everything if not leaf.requires_grad],
        [leaf for leaf in held_by(optimizer) if id(leaf) not in names],
        modules,
        names,
    )
    devices = sorted({str(leaf.device) for leaf in scope.leaves})
    if len(devices) > 1:
        raise ValueError(f"all parameters of a step must be on one device; found {', '.join(devices)}.")
    combiner.check_device("model", shared[0].device)
    _check_optimizer(combiner, scope, optimizer)
    return scope


def held_by(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters of all groups of an optimiser."""
    return [leaf for group in optimizer.param_groups for leaf in group["params"]]


def _refuse_wrappers(modules: Sequence[nn.Module], leaves: Sequence[Tensor]) -> None:
    kinds = {type(part) for module in modules for part in module.modules()} | set(map(type, leaves))
    names = {base.__name__ for kind in kinds for base in kind.__mro__}
    if names & _SHARDED:
        raise ValueError(
            f"model and heads must be plain modules; found {', '.join(sorted(names & _SHARDED))}: sharded "
            "parameters have no gradients of single tasks here. Use plain modules and distributed=True."
        )
    if "DistributedDataParallel" in names:
        raise ValueError(
            "model and heads must be plain modules; found a DistributedDataParallel, whose averaging sees no "
            "gradients of single tasks: the processes would drift apart. Pass its `.module`, compute the "
            "losses with that, and set distributed=True."
        )


def _check_optimizer(combiner: Combiner, scope: Scope, optimizer: torch.optim.Optimizer) -> None:
    held = {id(leaf) for leaf in held_by(optimizer)}
    missing = [scope.name(leaf) for leaf in scope.leaves if id(leaf) not in held]
    if missing:
        raise ValueError(
            "the optimizer must hold all trainable parameters of model and heads; "
            f"{len(missing)} are missing: {', '.join(missing[:5])}. Add them, or freeze them by "
            "requires_grad_(False)."
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ValueError(
            "SparseAdam takes sparse gradients alone, and combined gradients are dense: use another "
            "optimizer, such as Adam."
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{type(optimizer).__name__} evaluates losses by itself during a step, which leaves no room for "
            "combined gradients: use an optimizer whose step needs no closure."
        )
    if not combiner.preconditioned:
        return
    shared = {id(leaf) for leaf in scope.shared}
    decoupled = isinstance(optimizer, _DECOUPLED)
    for group in optimizer.param_groups:
        if not any(id(leaf) in shared for leaf in group["params"]):
            continue
        if not isinstance(group.get("lr"), (Real, Tensor)):
            raise ValueError(
                f"{combiner.name} is an optimiser of its own that takes its learning rate from "
                f"{type(optimizer).__name__}, where it must be a number; found {group.get('lr')!r}. Pass lr=."
            )
        if group.get("weight_decay") and not (decoupled or group.get("decoupled_weight_decay")):
            raise ValueError(
                f"{combiner.name} is an optimiser of its own, and {type(optimizer).__name__} adds its "
                "weight_decay to gradients, which this method never sees: use AdamW or weight_decay=0."
            )


@torch.no_grad()
def plain_step(scope: Scope, direction: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Move shared parameters along a direction that is an optimiser's step already.

    Of the optimiser only `lr`, decoupled `weight_decay` and `maximize` are used.
    """
    groups = {id(leaf): group for group in optimizer.param_groups for leaf in group["params"]}
    parts = direction.split([leaf.numel() for leaf in scope.shared])
    for leaf, part in zip(scope.shared, parts, strict=True):
        group = groups[id(leaf)]
        if group.get("weight_decay"):
            leaf.mul_(1 - group["lr"] * group["weight_decay"])
        step = group["lr"] * part.view(leaf.shape)
        leaf.add_(step if group.get("maximize", False) else -step)


def all_finite(values: Tensor) -> bool:
    """Whether all entries are finite; a finite sum, which costs a tenth, decides the usual case."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())
