"""What networks are told about the task: columns of the inputs, learnt, given or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mtrl.config.schema import Config, NetworkConfig
from mtrl.errors import UserError
from mtrl.networks.identity import PROJECTION, TABLE, read_rows
from mtrl.networks.make import ModuleNetwork, network_arguments
from mtrl.networks.mlp import MLP
from mtrl.training.resolve import bound_to_policy
from tests.helpers.plain_sac import plain_mlp

TASKS, INPUTS, OUTPUTS = 3, 5, 2
ROWS = [[1.0, 0.0, 2.0, -1.0], [0.5, 1.0, 0.0, 3.0], [2.0, -2.0, 1.0, 0.0]]


def _initial(network: MLP | ModuleNetwork) -> dict[str, Tensor]:
    return network.initial_parameters(torch.Generator().manual_seed(0)).shared


def _plain_outputs(shared: dict[str, Tensor], inputs: Tensor, vectors: Tensor) -> Tensor:
    """The second of two stacked perceptrons, on inputs with the tasks' vectors beside them."""
    model = plain_mlp(INPUTS + vectors.shape[1], OUTPUTS, 8, 2)
    for layer, name in zip((model[0], model[2], model[4]), ("0", "1", "head"), strict=True):
        assert isinstance(layer, nn.Linear)
        layer.load_state_dict({kind: shared[f"{name}.{kind}"][1] for kind in ("weight", "bias")})
    columns = vectors.unsqueeze(1).expand(-1, inputs.shape[1], -1)
    outputs: Tensor = model(torch.cat((inputs, columns), dim=-1))
    return outputs


def test_an_embedding_is_a_vector_of_length_one_beside_the_inputs() -> None:
    network = MLP(
        stack=2, num_tasks=TASKS, inputs=INPUTS, outputs=OUTPUTS, task_identity="embedding",
        width=8, depth=2, identity_width=6,
    )  # fmt: skip
    shared, inputs = _initial(network), torch.randn(TASKS, 4, INPUTS)
    vectors = shared[TABLE][0] / shared[TABLE][0].norm(dim=1, keepdim=True)
    torch.testing.assert_close(network.apply(shared, inputs)[1], _plain_outputs(shared, inputs, vectors))
    longer = shared | {TABLE: shared[TABLE] * torch.tensor([[[0.1]], [[1.0]], [[7.0]]]).view(1, TASKS, 1)}
    torch.testing.assert_close(network.apply(longer, inputs), network.apply(shared, inputs))


def test_the_gradient_of_an_embedding_is_orthogonal_to_it() -> None:
    network = MLP(stack=2, num_tasks=TASKS, inputs=INPUTS, outputs=OUTPUTS, task_identity="embedding")
    shared = {name: value.double().requires_grad_() for name, value in _initial(network).items()}
    outputs = network.apply(shared, torch.randn(TASKS, 4, INPUTS).double())
    (gradient,) = torch.autograd.grad(outputs.square().sum(), shared[TABLE])
    assert gradient.norm(dim=-1).min() > 0
    products = (gradient * shared[TABLE]).sum(-1)
    torch.testing.assert_close(products, torch.zeros_like(products), atol=1e-15, rtol=0)


def test_given_rows_are_projected_and_stay_as_they_are() -> None:
    network = MLP(
        stack=2, num_tasks=TASKS, inputs=INPUTS, outputs=OUTPUTS, task_identity="file",
        width=8, depth=2, identity_width=6, identity_rows=ROWS,
    )  # fmt: skip
    shared, inputs = _initial(network), torch.randn(TASKS, 4, INPUTS)
    assert shared[f"{PROJECTION}.weight"].shape == (1, 6, 4)
    vectors = torch.tensor(ROWS) @ shared[f"{PROJECTION}.weight"][0].T + shared[f"{PROJECTION}.bias"][0]
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(network.apply(shared, inputs)[1], _plain_outputs(shared, inputs, vectors))
    some = torch.tensor([2, 0])
    torch.testing.assert_close(
        network.apply(shared, inputs[some], some), network.apply(shared, inputs)[:, some]
    )


@pytest.mark.parametrize("kind", ["embedding", "file"])
def test_a_module_of_the_users_own_gets_the_columns(kind: str) -> None:
    class Seen(nn.Module):
        def __init__(self, inputs: int, outputs: int, num_tasks: int) -> None:
            super().__init__()
            self.layer = nn.Linear(inputs, outputs)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)  # type: ignore[no-any-return]

    network = ModuleNetwork(
        Seen, stack=1, num_tasks=TASKS, inputs=INPUTS, outputs=OUTPUTS, task_identity=kind,  # type: ignore[arg-type]
        identity_width=6, identity_rows=ROWS if kind == "file" else None,
    )  # fmt: skip
    shared, inputs = _initial(network), torch.randn(TASKS, 4, INPUTS)
    weight, bias = shared["layer.weight"][0], shared["layer.bias"][0]
    assert weight.shape == (OUTPUTS, INPUTS + 6)
    rest = network.apply(shared, inputs)[0] - inputs @ weight[:, :INPUTS].T - bias
    torch.testing.assert_close(rest, rest[:, :1].expand_as(rest))  # one vector for all rows of a task
    assert not torch.allclose(rest[0], rest[1])


def test_rows_are_found_by_the_tasks_names_whatever_their_version(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"push-v1": [1, 2], "reach-v1": [3, 4.5]}))
    assert read_rows(str(path), ("reach-v3", "push-v3")) == [[3.0, 4.5], [1.0, 2.0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must hold a mapping from names of tasks"),
        ('{"a": [1], "b": [NaN]}', "lists of float32 numbers"),
        ('{"a": [1], "b": [1e39]}', "lists of float32 numbers"),
        ('{"a": [1], "b": [1' + 400 * "0" + "]}", "lists of float32 numbers"),
        ('{"a": [1], "b": [true]}', "lists of float32 numbers"),
        ('{"a": [1], "b-v1": [1], "b-v2": [2]}', "several versions of b, none of exactly that name"),
        ('{"a": [1]}', "no numbers for b; it has a"),
        ('{"a": [1], "b": [1, 2]}', r"as many numbers for each task, at least one; found \[1, 2\]"),
        ('{"a": [], "b": []}', r"found \[0\]"),
        ("{", "is not JSON"),
        (None, r"^network.identity_file: cannot read .*rows.json: No such file or directory\.$"),
    ],
)
def test_a_file_of_another_form_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_rows(str(path), ("a", "b"))


def test_a_stored_policy_belongs_to_what_the_file_held(tmp_path: Path) -> None:
    first, moved, other = tmp_path / "first.json", tmp_path / "moved.json", tmp_path / "other.json"
    for path, number in ((first, 1), (moved, 1), (other, 2)):
        path.write_text(json.dumps({"a": [number]}))
    bound = [
        bound_to_policy(Config(network=NetworkConfig(task_identity="file", identity_file=str(path))))
        for path in (first, moved, other)
    ]
    assert bound[0] == bound[1]
    assert bound[0] != bound[2]


@pytest.mark.parametrize(
    "settings", [{"task_identity": "file"}, {"identity_file": "rows.json"}], ids=["no file", "not asked for"]
)
def test_the_kind_and_the_file_go_together(settings: dict[str, str]) -> None:
    with pytest.raises(UserError, match="go together"):
        network_arguments(
            NetworkConfig(**settings),  # type: ignore[arg-type]
            "actor",
            stack=1,
            inputs=5,
            outputs=2,
            task_names=("a", "b"),
        )


def test_orthogonal_layers_have_orthogonal_columns_of_the_stated_length() -> None:
    network = MLP(
        stack=2, num_tasks=TASKS, inputs=INPUTS, outputs=OUTPUTS, task_identity="none",
        width=8, depth=2, initialisation="orthogonal", head_gain=0.01,
    )  # fmt: skip
    shared = _initial(network)
    for name, gain in (("0", 2.0), ("1", 2.0), ("head", 1e-4)):
        weight = shared[f"{name}.weight"].double()
        square = weight.mT @ weight if weight.shape[1] >= weight.shape[2] else weight @ weight.mT
        expected = gain * torch.eye(square.shape[1]).double().expand_as(square)
        torch.testing.assert_close(square, expected, atol=1e-6 * gain, rtol=1e-6)
