"""Fresh parameters: their shapes, and how each is drawn."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtrl.networks.base import InitialParameters

Shape = tuple[int, ...]
Draw = Callable[[Shape, torch.Generator], Tensor]  # float32 on the CPU; the last two axes are outputs, inputs

_TRUNCATED_DEVIATION = 0.87962566103423978  # of a standard normal cut off at +-2


class Fresh(NamedTuple):
    """A parameter that has not been drawn yet."""

    shape: Shape
    draw: Draw


class Layout(NamedTuple):
    """Parameters of a network that have not been drawn yet, by kind; see `InitialParameters`."""

    shared: dict[str, Fresh]
    heads: dict[str, Fresh]
    own_rows: frozenset[str]

    @property
    def size(self) -> int:
        """Number of parameters, with those of all heads."""
        return sum(math.prod(fresh.shape) for fresh in (*self.shared.values(), *self.heads.values()))

    def drawn(self, generator: torch.Generator) -> InitialParameters:
        """Draw the parameters, in their order."""
        kinds = [
            {name: fresh.draw(fresh.shape, generator) for name, fresh in kind.items()}
            for kind in (self.shared, self.heads)
        ]
        return InitialParameters(kinds[0], kinds[1], self.own_rows)


def at_least(low: int, **values: float) -> None:
    """Raise ValueError for the first value below `low`; messages name it as its keyword."""
    for name, value in values.items():
        if value < low:
            rule = "positive" if low == 1 else f"at least {low}"
            raise ValueError(f"{name} must be {rule}; found {value}.")


def dense_layer(
    name: str, stack: int | Shape, inputs: int, outputs: int, draw: Draw, bias: Draw | None = None
) -> dict[str, Fresh]:
    """Return NAME.weight and NAME.bias of a linear layer of `stack` networks; the bias is 0 by default."""
    lead = (stack,) if isinstance(stack, int) else stack
    return {
        f"{name}.weight": Fresh((*lead, outputs, inputs), draw),
        f"{name}.bias": Fresh((*lead, outputs), bias or constant(0.0)),
    }


def dense_layers(
    name: str,
    stack: int,
    sizes: Sequence[int],
    draw: Callable[[int], Draw],
    last: Draw | None = None,
    biases: Callable[[int], Draw] | None = None,
) -> dict[str, Fresh]:
    """Return the linear layers NAME.0, NAME.1, ... between sizes[0], sizes[1], ...; biases are 0 by default.

    `draw` and `biases` map a layer's number of inputs to how its weights and its biases are drawn; `last`
    draws the weights of the last layer.
    """
    layers: dict[str, Fresh] = {}
    for number, (before, after) in enumerate(itertools.pairwise(sizes)):
        drawn = last if last is not None and number == len(sizes) - 2 else draw(before)
        bias = None if biases is None else biases(before)
        layers |= dense_layer(f"{name}.{number}", stack, before, after, drawn, bias)
    return layers


def norm_layer(name: str, stack: int, width: int) -> dict[str, Fresh]:
    """Return NAME.gain and NAME.shift of a layer normalisation."""
    return {
        f"{name}.gain": Fresh((stack, width), constant(1.0)),
        f"{name}.shift": Fresh((stack, width), constant(0.0)),
    }


def constant(value: float) -> Draw:
    """Every entry is `value`."""
    return lambda shape, _: torch.full(shape, value)


def uniform(bound: float) -> Draw:
    """Uniform in +-bound."""
    return lambda shape, generator: (torch.rand(shape, generator=generator) * 2 - 1) * bound


def normal(deviation: float) -> Draw:
    """Normal around 0."""
    return lambda shape, generator: torch.randn(shape, generator=generator) * deviation


def he_uniform(inputs: int) -> Draw:
    """Uniform with variance 2 / inputs (He et al., 2015)."""
    return uniform(math.sqrt(6.0 / inputs))


def he_normal(inputs: int) -> Draw:
    """Normal cut off at two deviations, with variance 2 / inputs, as in Flax."""
    deviation = math.sqrt(2.0 / inputs) / _TRUNCATED_DEVIATION

    def draw(shape: Shape, generator: torch.Generator) -> Tensor:
        result, bound = torch.empty(shape), 2 * deviation
        torch.nn.init.trunc_normal_(result, 0.0, deviation, -bound, bound, generator=generator)
        return result

    return draw


def torch_default(inputs: int) -> Draw:
    """Uniform in +-1 / sqrt(inputs): weights and biases of a fresh `torch.nn.Linear`."""
    return uniform(1.0 / math.sqrt(inputs))


def xavier_uniform(inputs: int, outputs: int) -> Draw:
    """Uniform with variance 2 / (inputs + outputs) (Glorot and Bengio, 2010)."""
    return uniform(math.sqrt(6.0 / (inputs + outputs)))


def orthogonal(gain: float) -> Draw:
    """Orthogonal rows or columns, whichever are fewer, of length `gain` (Saxe et al., 2014)."""

    def draw(shape: Shape, generator: torch.Generator) -> Tensor:
        rows, columns = shape[-2:]
        tall = torch.randn(*shape[:-2], max(rows, columns), min(rows, columns), generator=generator)
        basis, triangle = torch.linalg.qr(tall)
        # The signs make the distribution uniform over the orthogonal matrices.
        basis = basis * triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        result: Tensor = gain * (basis if rows >= columns else basis.mT)
        return result

    return draw
