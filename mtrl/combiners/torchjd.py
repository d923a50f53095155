"""TorchJD: any aggregator of that library, where it is installed, as a method of this one."""

import ast
import importlib
import inspect
from typing import Any

import torch
from torch import Tensor

from mtrl.combiners.base import JacobianCombiner
from mtrl.combiners.solvers.backends import by_host
from mtrl.errors import UserError, unknown_name

_INSTALL = "pip install 'mtrl-torch[torchjd]'"


class TorchJD(JacobianCombiner):
    """TorchJD (another library): its aggregator of the given name combines the gradients.

    Quinton and Rey, 2024 (arXiv:2406.16232), for the library and its own method UPGrad; the package `torchjd`
    must be installed. Meant for comparisons: most aggregators solve on the host, so on a GPU each runs by
    itself between two CUDA graphs. Random numbers come from torch's global stream, and the state of
    aggregators such as NashMTL and GradVac is not part of a checkpoint. `last_weights` are those of the
    aggregator if it has weights, else they stay 1 / T. Its defaults apply: several aggregators treat a
    Jacobian whose squared norm is below `norm_eps` = 1e-4 as zero.

    Args:
        aggregator: Name of a class of torchjd.aggregation: UPGrad, MGDA, ConFIG, AlignedMTL, ...
        arguments: Its arguments as Python writes them, "c=0.4, norm_eps=0.0"; n_tasks is filled in.
    """

    name = "torchjd"
    papers = ("quinton2024jacobian",)
    credit = "Cite the paper of the chosen aggregator as well."
    multiplies_gradients = True

    def __init__(self, *, num_tasks: int, aggregator: str = "UPGrad", arguments: str = "") -> None:
        super().__init__(num_tasks=num_tasks)
        cls = _aggregator_class(aggregator)
        values = _parsed(arguments)
        if "n_tasks" in inspect.signature(cls).parameters:
            values.setdefault("n_tasks", num_tasks)
        try:
            built = cls(**values)
        except (ImportError, TypeError, ValueError) as error:
            rule = f"arguments must fit {aggregator}{inspect.signature(cls)}; found {arguments!r}"
            if isinstance(error, ImportError):
                rule = f"{aggregator} needs more packages: {_INSTALL}"
            raise ValueError(f"{rule}. TorchJD says: {error}") from error
        self._weights: Tensor | None = None
        if isinstance(built, importlib.import_module("torchjd.aggregation").WeightedAggregator):
            built.weighting.register_forward_hook(self._keep_weights)
        # A tuple hides the aggregator from nn.Module: its state is not in buffers of fixed memory.
        self._held = (built,)

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        return by_host(lambda: self._aggregated(jacobian), jacobian.new_empty(jacobian.shape[1]))

    def _aggregated(self, jacobian: Tensor) -> Tensor:
        if not bool(torch.isfinite(jacobian).all()):
            return jacobian.sum(dim=0)  # not finite either; the aggregator's solver would raise
        self._weights = None
        with torch.no_grad():
            direction: Tensor = self._held[0](jacobian.detach())
        if self._weights is not None:
            self.last_weights.copy_(self._weights)
        return direction

    def reset(self) -> None:
        """Reset the aggregator too, if it has state."""
        super().reset()
        if hasattr(self._held[0], "reset"):
            self._held[0].reset()

    def _keep_weights(self, module: Any, inputs: Any, output: Tensor) -> None:
        self._weights = output


def _aggregator_class(name: str) -> Any:
    try:
        library = importlib.import_module("torchjd.aggregation")
    except ImportError as error:
        raise ValueError(f"the method torchjd needs the package torchjd: {_INSTALL}.") from error
    found = {
        key: value
        for key, value in vars(library).items()
        if inspect.isclass(value) and issubclass(value, library.Aggregator) and "Aggregator" not in key
    }
    if name not in found:
        raise UserError(unknown_name("aggregator", str(name), found))
    return found[name]


def _parsed(arguments: str) -> dict[str, Any]:
    """Return the keyword arguments in `arguments`, which must be literals."""
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        if isinstance(call, ast.Call) and not call.args and all(word.arg for word in call.keywords):
            return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, TypeError):
        pass
    raise ValueError(f"arguments must read like 'c=0.4, norm_eps=0.0'; found {arguments!r}.")
