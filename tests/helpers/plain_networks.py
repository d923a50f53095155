"""The networks of the field written a second time, from their papers: one task, one network, ordinary torch.

Each function maps rows x [B, I] of task t to outputs [B, O], with the parameters of network s. It takes one
row of work at a time, in loops over experts, modules and sets; only names and shapes are those of mtrl.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtrl.gradients.per_task import FlatParameters
from tests.helpers.evaluators import Evaluator

Named = dict[str, Tensor]
Plain = Callable[[Any, Named, int, int, Tensor], Tensor]


def _layer(p: Named, name: str, row: int, x: Tensor) -> Tensor:
    bias = p.get(f"{name}.bias")
    return F.linear(x, p[f"{name}.weight"][row], None if bias is None else bias[row])


def _norm(p: Named, name: str, row: int, x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), p[f"{name}.gain"][row], p[f"{name}.shift"][row], 1e-6)


def _perceptron(p: Named, name: str, count: int, row: int, x: Tensor) -> Tensor:
    for number in range(count - 1):
        x = _layer(p, f"{name}.{number}", row, x).clamp(min=0)
    return _layer(p, f"{name}.{count - 1}", row, x)


def _with_identity(network: Any, p: Named, task: int, x: Tensor) -> Tensor:
    if network.task_identity == "none":
        return x
    if network.task_identity == "embedding":
        row = p["identity.table"][0, task]
    elif network.task_identity == "file":
        given = torch.tensor(network.identity_rows[task], dtype=x.dtype)
        row = p["identity.weight"][0] @ given + p["identity.bias"][0]
    else:
        row = torch.eye(network.num_tasks, dtype=x.dtype)[task]
    return torch.cat((x, (row / row.pow(2).sum().sqrt()).repeat(len(x), 1)), dim=1)


def _actor(mean: Tensor, raw: Tensor) -> Tensor:
    low, high = -10.0, 2.0
    return torch.cat((mean, low + 0.5 * (high - low) * (1 + raw.tanh())), dim=1)


def brc(network: Any, p: Named, s: int, t: int, x: Tensor) -> Tensor:
    x = F.relu(_norm(p, "in", s, _layer(p, "in", s, _with_identity(network, p, t, x))))
    for block in range(network.depth - 1):
        inner = F.relu(_norm(p, f"{block}.first", s, _layer(p, f"{block}.first", s, x)))
        x = _norm(p, f"{block}.second", s, _layer(p, f"{block}.second", s, inner)) + x
    if network.role == "actor":
        return _actor(_layer(p, "mean", s, x), _layer(p, "log_std", s, x))
    return _layer(p, "head", s, x)


def moore(network: Any, p: Named, s: int, t: int, x: Tensor) -> Tensor:
    rows = []
    for row in x:
        basis: list[Tensor] = []
        for expert in range(network.experts):
            place = s * network.experts + expert
            v = _perceptron(p, "experts", network.depth, place, row)
            w = v
            for u in basis:
                w = w - torch.dot(v, u) * u
            basis.append(w / (w.pow(2).sum().sqrt() + 1e-8))
        mixed = sum((p["mixture.table"][s, t, i] * u for i, u in enumerate(basis)), torch.zeros(1).double())
        rows.append(F.linear(mixed.tanh(), p["head.weight"][t, s], p["head.bias"][t, s]))
    return torch.stack(rows)


def soft_modules(network: Any, p: Named, s: int, t: int, x: Tensor) -> Tensor:
    n, deep = network.modules, network.layers
    f = _perceptron(p, "features", 2, s, x)
    z = p["task.table"][s, t] + p["task.bias"][s]
    e = _perceptron(p, "gate", 2, s, F.relu(z * f))
    probabilities: list[Tensor] = []
    for number in range(deep):
        seen = e
        if number:
            seen = e * _layer(
                p, f"seen.{number}", s, torch.cat([q.reshape(len(x), -1) for q in probabilities], 1)
            )
        logits = _layer(p, f"route.{number}", s, F.relu(seen))
        shape = (len(x), n, n) if number < deep - 1 else (len(x), n)
        probabilities.append(F.softmax(logits.reshape(shape), dim=-1))
    inputs = [F.relu(f) for _ in range(n)]
    for number in range(deep - 1):
        out = [_layer(p, f"modules.{number}", s * n + j, inputs[j]) for j in range(n)]
        q = probabilities[number]
        inputs = [F.relu(torch.stack([q[:, j, k, None] * out[k] for k in range(n)]).sum(0)) for j in range(n)]
    out = [_layer(p, f"modules.{deep - 1}", s * n + j, inputs[j]) for j in range(n)]
    last = torch.stack([probabilities[-1][:, k, None] * out[k] for k in range(n)]).sum(0)
    return _layer(p, "head", s, F.relu(last))


def simba(network: Any, p: Named, s: int, t: int, x: Tensor) -> Tensor:
    x = _layer(p, "in", s, _with_identity(network, p, t, x))
    for block in range(network.depth - 1):
        inner = F.relu(_layer(p, f"{block}.first", s, _norm(p, f"{block}.norm", s, x)))
        x = x + _layer(p, f"{block}.second", s, inner)
    x = _norm(p, "norm", s, x)
    if network.role == "actor":
        return _actor(_layer(p, "mean", s, x), _layer(p, "log_std", s, x))
    return _layer(p, "head", s, x)


def _unit(x: Tensor) -> Tensor:
    return x / x.pow(2).sum(-1, keepdim=True).sqrt()


def simba_v2(network: Any, p: Named, s: int, t: int, x: Tensor) -> Tensor:
    """The authors' scaler is parameter * (init / scale) with the parameter starting at scale."""
    h, blocks = network.width, network.depth - 1
    seen = _with_identity(network, p, t, x)
    x = _unit(torch.cat((seen, torch.full((len(x), 1), 3.0, dtype=x.dtype)), dim=1))
    x = _unit(p["in.scale"][s] * (x @ p["in.weight"][s].T))
    for block in range(blocks):
        inner = F.relu(p[f"{block}.first.scale"][s] * (x @ p[f"{block}.first.weight"][s].T)) + 1e-8
        target = _unit(inner @ p[f"{block}.second.weight"][s].T)
        forward = (1 / (blocks + 1)) / (1 / math.sqrt(h))
        x = _unit(x + p[f"{block}.second.alpha"][s] * forward * (target - x))

    def end(name: str) -> Tensor:
        inner = p[f"{name}.first.scale"][s] * (x @ p[f"{name}.first.weight"][s].T)
        return inner @ p[f"{name}.second.weight"][s].T + p[f"{name}.second.bias"][s]

    return _actor(end("mean"), end("log_std")) if network.role == "actor" else end("value")


def paco(network: Any, p: Named, s: int, t: int, x: Tensor) -> Tensor:
    """As in the paper's figure: the outputs of the K sets are combined, layer by layer."""
    for layer in range(network.depth + 1):
        outputs = []
        for k in range(network.sets):
            out = F.linear(x, p[f"{layer}.weight"][s, k], p[f"{layer}.bias"][s, k])
            outputs.append(p["mixture.table"][s, t, k] * out)
        x = torch.stack(outputs).sum(0)
        x = F.relu(x) if layer < network.depth else x
    return x


def care(network: Any, p: Named, s: int, t: int, x: Tensor) -> Tensor:
    layers = network.encoder_depth + 1
    context = _perceptron(p, "context", layers, s, F.relu(p["task.table"][s, t]))
    logits = _perceptron(p, "attention", layers, s, context) / network.temperature
    weights = logits.exp() / logits.exp().sum()
    mixed = torch.zeros(1, dtype=x.dtype)
    for k in range(network.experts):
        mixed = mixed + weights[k] * _perceptron(p, "encoders", layers, s * network.experts + k, x)
    torso = torch.cat((mixed, context.repeat(len(x), 1)), dim=1)
    return _perceptron(p, "torso", network.depth + 1, s, torso)


def film(network: Any, p: Named, s: int, t: int, x: Tensor) -> Tensor:
    layers, vector = network.encoder_depth + 1, F.relu(p["task.table"][s, t])
    numbers, place = _perceptron(p, "film", layers, s, vector), 0
    for layer in range(layers):
        x = _layer(p, f"encoder.{layer}", s, x)
        x = F.relu(x) if layer < layers - 1 else x
        count = x.shape[1] if network.per_channel else 1
        gamma, beta = numbers[place : place + count], numbers[place + count : place + 2 * count]
        x, place = gamma * x + beta, place + 2 * count
    torso = torch.cat((x, vector.repeat(len(x), 1)), dim=1)
    return _perceptron(p, "torso", network.depth + 1, s, torso)


PLAIN: dict[str, Plain] = {
    "brc": brc, "moore": moore, "soft_modules": soft_modules, "simba": simba, "simba_v2": simba_v2,
    "paco": paco, "care": care, "film": film,
}  # fmt: skip


class PlainEvaluator(Evaluator):
    """Losses and gradients of a network by one ordinary backward per task through its plain form."""

    def __init__(
        self, plain: Plain, network: Any, flat: FlatParameters, inputs: Tensor, targets: Tensor
    ) -> None:
        super().__init__()
        self._plain, self._network, self._flat = plain, network, flat
        self._inputs, self._targets = inputs, targets
        self.parameters = flat.shared.clone()
        self.losses = torch.stack([self.loss(t, flat.vector.detach()) for t in range(len(inputs))])

    def loss(self, task: int, vector: Tensor) -> Tensor:
        """Mean square error of the stacked networks on one task's rows, at parameters [P + H]."""
        named, rows = self._flat.named(vector), self._inputs[task]
        outputs = [self._plain(self._network, named, s, task, rows) for s in range(self._network.stack)]
        return (torch.stack(outputs) - self._targets[task]).square().mean()

    def rows(self, offset: Tensor | float) -> Tensor:
        """Gradients [T, P + H]; `offset` is [T, P] or [T, P + h]."""
        shared, rows = self._flat.num_shared, []
        for task in range(len(self._inputs)):
            vector = self._flat.vector.detach().clone()
            if isinstance(offset, Tensor):
                vector[:shared] += offset[task, :shared]
                place = shared
                for part in self._flat.head_slices:  # [T, S, ...], of which the task moves its own row
                    length = (part.stop - part.start) // len(self._inputs)
                    own = part.start + task * length
                    moved = offset[task, place : place + length]
                    vector[own : own + len(moved)] += moved
                    place += length
            vector.requires_grad_()
            rows.append(torch.autograd.grad(self.loss(task, vector), vector)[0])
        return torch.stack(rows)

    def gradients_at(self, offset: Tensor | float, batch: int = 0) -> Tensor:
        rows = self.rows(0.0 if isinstance(offset, float) else offset)
        self._heads = rows[:, self._flat.num_shared :].sum(0)
        return rows[:, : self._flat.num_shared]

    @property
    def heads(self) -> tuple[Tensor, Tensor]:
        sizes = [part.stop - part.start for part in self._flat.head_slices]
        values = self._flat.vector.detach()[self._flat.num_shared :]
        none = values.new_empty(len(self._inputs), 0)
        pair = [
            torch.cat([none, *(part.view(len(none), -1) for part in vector.split(sizes))], dim=1)
            for vector in (values, self._heads)
        ]
        return pair[0], pair[1]
