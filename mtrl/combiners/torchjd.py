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
# What aggregators raise for arguments that do not fit.
_MISTAKES = (AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)


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
        arguments: Its arguments as Python writes them, "c=0.4, norm_eps=0.0", with lists for tensors,
            "pref_vector=[1.0, 2.0]"; n_tasks is filled in.

    Gradients of half precision are combined in float32.
    """

    name = "torchjd"
    papers = ("quinton2024jacobian",)
    credit = "Cite the paper of the chosen aggregator as well."
    multiplies_gradients = True

    def __init__(self, *, num_tasks: int, aggregator: str = "UPGrad", arguments: str = "") -> None:
        super().__init__(num_tasks=num_tasks)
        self._class = _aggregator_class(aggregator)
        self._arguments = _parsed(arguments)
        valid = inspect.signature(self._class)
        if "n_tasks" in valid.parameters:
            self._arguments.setdefault("n_tasks", num_tasks)
        self._weights: Tensor | None = None
        try:
            self._make(torch.empty(0, device="cpu"))
            # Some arguments fit or not by the number of rows, and some aggregators draw.
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self._held[0](torch.eye(num_tasks, device="cpu"))
            self._make(torch.empty(0, device="cpu"))  # anew: some have a state
            self._weights = None
        except _MISTAKES as error:
            rule = f"arguments must fit {aggregator}{valid} and num_tasks={num_tasks}; found {arguments!r}"
            if isinstance(error, ImportError):
                rule = f"{aggregator} needs more packages: {_INSTALL}"
            raise ValueError(f"{rule}. TorchJD says: {error}") from error

    def _make(self, like: Tensor) -> None:
        """Make the aggregator, with the lists in its arguments as tensors of this dtype, on this device."""
        lists = {key: like.new_tensor(one) for key, one in self._arguments.items() if isinstance(one, list)}
        built = self._class(**self._arguments | lists)
        if isinstance(built, importlib.import_module("torchjd.aggregation").WeightedAggregator):
            built.weighting.register_forward_hook(self._keep_weights)
        # A tuple hides the aggregator from nn.Module: its state is not in buffers of fixed memory.
        self._held = (built,)
        self._fits = (like.dtype, like.device) if lists else None

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        return by_host(lambda: self._aggregated(jacobian), jacobian.new_empty(jacobian.shape[1]))

    def _aggregated(self, jacobian: Tensor) -> Tensor:
        if not bool(torch.isfinite(jacobian).all()):
            return jacobian.sum(dim=0)  # not finite either; the aggregator's solver would raise
        self._weights = None
        rows = jacobian.detach().to(torch.promote_types(jacobian.dtype, torch.float32))
        if self._fits not in (None, (rows.dtype, rows.device)):
            self._make(rows)
        with torch.no_grad():
            direction: Tensor = self._held[0](rows)
        if self._weights is not None:
            self.last_weights.copy_(self._weights)
        return direction.to(jacobian.dtype)

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
