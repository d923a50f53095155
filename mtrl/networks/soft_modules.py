"""Soft modularisation: layers of modules, and a routing network that mixes them for each task and state."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mtrl.networks.base import Parameters
from mtrl.networks.families import Sized
from mtrl.networks.initial import Draw, Fresh, Layout, at_least, constant, dense_layer, uniform
from mtrl.networks.layers import Weights

_BIAS = 0.1
_LAST_RANGE = 3e-3


@dataclass(kw_only=True, eq=False)
class SoftModules(Sized):
    """Soft modularisation: layers of modules, mixed by a routing network that sees task and state.

    With f = W1 relu(W0 x) and a row z_t per task, e = E1 relu(E0 relu(z_t * f)) gives the routing: p_0 = R0
    relu(e) and p_l = R_l relu(e * C_l [p_0, ..., p_{l-1}]), each followed by a softmax over the sources of a
    module. The modules of layer l put out o_j = M_j h_j, with h = relu(f) at first and then h_j = relu(sum_k
    p_l[j, k] o_k); the outputs are H relu(sum_k p_k o_k).

    Source: Yang et al., "Multi-Task Reinforcement Learning with Soft Modularization" (NeurIPS 2020, arXiv
    2003.13661), equations 3 to 9, with the authors' code (ModularGatedCascadeCondNet). The paper's text lacks
    the layers E, the routing's sight of all earlier layers, the ReLU after the sum and the last p, which the
    code has. Weights start as in that code: hidden ones uniform in +-1/sqrt(outputs), for it takes the number
    of rows for the fan-in, with biases .1; H and R uniform in +-3e-3. The published runs weigh the tasks'
    losses by their temperatures: `--method inverse_alpha`. The authors' linear layer of the one-hot identity
    is here a row z_t per task, which starts in the same range, plus one bias for all tasks.

    Args:
        task_identity: "one_hot", which stands for the rows z_t.
        width: units of f and z (400).
        layers: of modules; 2 on MT10 and 4 on MT50 in the paper's code.
        modules: per layer, likewise.
        module_width: units of a module; 256, and 128 with four layers.
        routing_width: units of the routing network.
    """

    layers: int = 2
    modules: int = 2
    module_width: int = 256
    routing_width: int = 256

    papers = ("yang2020softmodules",)
    given = ("width",)

    def __post_init__(self) -> None:
        at_least(1, width=self.width, modules=self.modules)
        at_least(1, module_width=self.module_width, routing_width=self.routing_width)
        at_least(2, layers=self.layers)

    def layout(self) -> Layout:
        """Return parameters [S, ...], modules [S*n, ...] and the tasks' rows z [S, T, width]."""
        shared: dict[str, Fresh] = {}

        def layer(name: str, before: int, after: int, stack: int = self.stack) -> None:
            shared.update(dense_layer(name, stack, before, after, _fan_out(after), constant(_BIAS)))

        def last(name: str, before: int, after: int) -> None:
            draw = uniform(_LAST_RANGE)
            shared.update(dense_layer(name, self.stack, before, after, draw, draw))

        layer("features.0", self.inputs, self.width)
        layer("features.1", self.width, self.width)
        shared["task.table"] = Fresh((self.stack, self.num_tasks, self.width), _fan_out(self.width))
        shared["task.bias"] = Fresh((self.stack, self.width), constant(_BIAS))
        layer("gate.0", self.width, self.routing_width)
        layer("gate.1", self.routing_width, self.routing_width)
        square, before = self.modules**2, self.width
        for number in range(self.layers):
            if number:
                layer(f"seen.{number}", number * square, self.routing_width)
            last(f"route.{number}", self.routing_width, square if number < self.layers - 1 else self.modules)
        for number in range(self.layers):
            layer(f"modules.{number}", before, self.module_width, self.stack * self.modules)
            before = self.module_width
        last("head", self.module_width, self.outputs)
        return Layout(shared, {}, frozenset({"task.table"}))

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        weights = Weights(parameters, tasks, parameters["features.0.weight"].dim() == 3)
        features = weights.layers("features", 2, inputs.expand(self.stack, -1, -1, -1))
        routes = self._routes(weights, features)
        # The modules' axis is part of the stack: [S*n, T, B, width].
        x = torch.relu(features).unsqueeze(1).expand(-1, self.modules, -1, -1, -1).flatten(0, 1)
        for number, route in enumerate(routes[:-1]):
            outputs = weights.dense(f"modules.{number}", x).unflatten(0, (self.stack, self.modules))
            x = torch.relu(torch.einsum("stbjk,sktbw->sjtbw", route, outputs)).flatten(0, 1)
        outputs = weights.dense(f"modules.{self.layers - 1}", x).unflatten(0, (self.stack, self.modules))
        return weights.dense("head", torch.relu(torch.einsum("stbk,sktbw->stbw", routes[-1], outputs)))

    def _routes(self, weights: Weights, features: Tensor) -> list[Tensor]:
        """Return p_0, ..., [S, T, B, n, n], and the last one, [S, T, B, n]; their last axis sums to 1."""
        row = weights.table("task.table").unsqueeze(2) + weights.vector("task.bias")
        seen = weights.layers("gate", 2, torch.relu(row * features))
        routes: list[Tensor] = []
        for number in range(self.layers):
            gate = seen
            if number:
                before = torch.cat([route.flatten(3) for route in routes], dim=-1)
                gate = seen * weights.dense(f"seen.{number}", before)
            logits = weights.dense(f"route.{number}", torch.relu(gate))
            if number < self.layers - 1:
                logits = logits.unflatten(-1, (self.modules, self.modules))
            routes.append(torch.softmax(logits, dim=-1))
        return routes


def _fan_out(outputs: int) -> Draw:
    return uniform(1.0 / math.sqrt(outputs))
