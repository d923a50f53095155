"""What `mtl_step` and combiners refuse: other devices, shared heads. Sparse gradients are taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mtrl
from mtrl.combiners import COMBINERS, make_combiner
from mtrl.combiners.base import LossCombiner

NEEDS_NO_MORE = [
    name for name in COMBINERS if name != "torchjd" and not make_combiner(name, num_tasks=3).needs_also
]


@pytest.mark.parametrize("method", NEEDS_NO_MORE)
def test_a_combiner_on_another_device_than_its_input_says_so(method: str) -> None:
    """The device `meta` stands for a GPU: torch's own message would be about `.item()` or an operation."""
    combiner = make_combiner(method, num_tasks=3)
    inputs = torch.rand(3, 5, device="meta"), torch.rand(3, device="meta")
    with pytest.raises(ValueError, match=r"is on cpu and the \w+ on meta.*combiner\.to\('meta'\)"):
        combiner.combine(*inputs)
    with pytest.raises(ValueError, match=r"is on meta and the \w+ on cpu.*combiner\.to\('cpu'\)"):
        combiner.to("meta").combine(torch.rand(3, 5), torch.rand(3))


@pytest.mark.parametrize("method", ["mean", "cagrad", "famo", "fs_mtl", "blocks"])
def test_a_step_says_that_the_combiner_is_elsewhere_and_moves_nothing(method: str) -> None:
    model = nn.Linear(2, 2)
    before, optimizer = model.weight.detach().clone(), torch.optim.SGD(model.parameters())
    combiner = make_combiner(method, num_tasks=2).to("meta")
    with pytest.raises(ValueError, match="is on meta and the model on cpu"):
        mtrl.mtl_step(combiner, lambda _: model(torch.ones(1, 2))[0], model, optimizer)
    assert torch.equal(model.weight, before)


def test_parameters_on_several_devices_are_refused() -> None:
    parts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")])
    optimizer = torch.optim.SGD(parts.parameters())
    with pytest.raises(ValueError, match="must be on one device; found cpu, meta"):
        mtrl.mtl_step(make_combiner("mean", num_tasks=2), torch.ones(2), parts, optimizer)


class Words(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, 4, sparse=sparse)
        self.bag = nn.EmbeddingBag(6, 4, sparse=sparse)
        self.heads = nn.ModuleList([nn.Linear(4, 1), nn.Embedding(3, 4, sparse=sparse)])

    def losses(self, batch: int) -> list[Tensor]:
        x = self.embedding(torch.arange(5)).tanh() + self.bag(torch.arange(5), torch.arange(5))
        rows = self.heads[1](torch.tensor([0, 2, 0, 0, 2]))
        return [self.heads[0](x).square().mean(), (x * rows).sum(1).cosh().mean()]


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("method", ["mean", "famo", "pcgrad", "cagrad", "fs_mtl"])
def test_sparse_embeddings_step_as_dense_ones(method: str, chunk_size: int | None) -> None:
    after = []
    for sparse in (True, False):
        model = Words(sparse)
        shared = [*model.embedding.parameters(), *model.bag.parameters()]
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
        combiner = make_combiner(method, num_tasks=2)
        for _ in range(3):
            heads = list(model.heads)
            mtrl.mtl_step(combiner, model.losses, shared, optimizer, heads=heads, chunk_size=chunk_size)
        after.append([parameter.detach() for parameter in model.parameters()])
    for sparse_one, dense_one in zip(*after, strict=True):
        torch.testing.assert_close(sparse_one, dense_one)


def test_the_jacobian_of_sparse_embeddings_is_dense() -> None:
    rows = [mtrl.task_jacobian(model.losses(0), model.embedding) for model in (Words(True), Words(False))]
    torch.testing.assert_close(rows[0], rows[1])


def test_an_optimiser_for_sparse_gradients_alone_is_refused() -> None:
    model = Words(True)
    optimizer = torch.optim.SparseAdam(model.parameters())
    with pytest.raises(ValueError, match="SparseAdam takes sparse gradients alone"):
        mtrl.mtl_step(make_combiner("mean", num_tasks=2), model.losses, model, optimizer)


def heads_and_trunk() -> tuple[list[nn.Module], nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    heads: list[nn.Module] = [nn.Linear(4, 1) for _ in range(3)]
    trunk = nn.Linear(3, 4)
    parameters = [parameter for part in (trunk, *heads) for parameter in part.parameters()]
    return heads, trunk, torch.optim.SGD(parameters, lr=0.1)


@pytest.mark.parametrize("used", [(0, 0, 2), (1, 0, 2), (0, 1, 1)])
@pytest.mark.parametrize("method", ["mean", "cagrad", "famo"])
def test_a_head_that_another_task_uses_is_refused_and_nothing_moves(
    method: str, used: tuple[int, ...]
) -> None:
    """`heads` names another module for each task; the loss function decides which each one uses."""
    heads, trunk, optimizer = heads_and_trunk()
    before = [p.detach().clone() for part in (trunk, *heads) for p in part.parameters()]

    def losses(batch: int) -> list[Tensor]:
        features = trunk(torch.ones(5, 3)).tanh()
        return [(heads[index](features) - task).square().mean() for task, index in enumerate(used)]

    combiner = make_combiner(method, num_tasks=3)
    with pytest.raises(ValueError, match=r"of heads\[\d\] is used by the losses of other tasks"):
        mtrl.mtl_step(combiner, losses, trunk, optimizer, heads=heads)
    after = [p for part in (trunk, *heads) for p in part.parameters()]
    assert all(torch.equal(now, then) for now, then in zip(after, before, strict=True))


def test_a_shared_part_behind_a_gate_that_starts_at_zero_is_refused_once_it_opens() -> None:
    heads, trunk, optimizer = heads_and_trunk()
    gate, part = nn.Parameter(torch.zeros(4)), nn.Linear(4, 4)
    optimizer.add_param_group({"params": [gate, *part.parameters()]})

    def losses(batch: int) -> list[Tensor]:
        features = trunk(torch.ones(5, 3)).tanh()
        features = features + gate * part(features)
        return [(head(features) - 1.0).square().mean() for head in heads]

    combiner, shared = make_combiner("mean", num_tasks=3), [*trunk.parameters(), gate]
    own = [nn.ModuleList([heads[0], part]), *heads[1:]]
    mtrl.mtl_step(combiner, losses, shared, optimizer, heads=own)
    with pytest.raises(ValueError, match=r"of heads\[0\] is used by the losses of other tasks"):
        mtrl.mtl_step(combiner, losses, shared, optimizer, heads=own)


def test_a_head_whose_gradient_is_not_finite_is_not_called_shared() -> None:
    """Zero times infinity is NaN on the way to a head from the other tasks' losses."""
    heads, trunk, optimizer = heads_and_trunk()

    def losses(batch: int) -> list[Tensor]:
        features = trunk(torch.ones(5, 3)).tanh()
        return [head(features).square().mean().sqrt() for head in heads]

    with torch.no_grad():
        for parameter in heads[1].parameters():
            parameter.zero_()
    with pytest.raises(ValueError, match="finite losses have a non-finite gradient"):
        mtrl.mtl_step(make_combiner("mean", num_tasks=3), losses, trunk, optimizer, heads=heads)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": None}, "heads must be a list .* found a NoneType"),
        ({"heads": nn.Linear(1, 1)}, "heads must be a list .* found a Linear"),
        ({"model": None}, "parameters must be a module, a tensor or several tensors; found a NoneType"),
        (
            {"optimizer": torch.optim.SGD([{"params": []}])},
            "the optimizer must hold all trainable parameters",
        ),
    ],
)
def test_arguments_of_other_types_are_named(changes: dict[str, Any], message: str) -> None:
    model = nn.Linear(2, 2)
    given = {"model": model, "optimizer": torch.optim.SGD(model.parameters()), **changes}
    with pytest.raises(ValueError, match=message):
        mtrl.mtl_step(make_combiner("mean", num_tasks=2), model(torch.ones(2)), **given)
    with pytest.raises(ValueError, match="parameters must be a module, a tensor or several tensors; found a"):
        mtrl.task_jacobian(model(torch.ones(2)), None)  # type: ignore[arg-type]


class Noting(LossCombiner):
    """The mean; its extra state is a plain object."""

    def _weights(self, losses: Tensor) -> Tensor:
        return torch.full_like(losses, 1.0 / len(losses))

    def get_extra_state(self) -> dict[str, list[int]]:
        return {"seen": [1, 2]}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"seen": [1, 2]}


def test_numbers_of_numpy_and_an_extra_state_of_any_type_are_taken() -> None:
    model, bound = nn.Linear(2, 2), np.float32(0.5)
    before, optimizer = model.bias.detach().clone(), torch.optim.SGD(model.parameters(), lr=1.0)
    mtrl.mtl_step(
        Noting(num_tasks=2),
        lambda _: 9.0 * model(torch.zeros(2)),
        model,
        optimizer,
        micro_batches=np.int64(2),  # type: ignore[arg-type]
        max_norm=bound,  # type: ignore[arg-type]
        chunk_size=np.int64(2),  # type: ignore[arg-type]
    )
    torch.testing.assert_close((model.bias - before).norm(), torch.tensor(0.5))
