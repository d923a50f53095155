"""Cases in which a network of the field is a simpler one, laws that it keeps, and how it starts."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl.combiners import make_combiner
from mtrl.gradients.descent import Descent
from mtrl.gradients.per_task import FlatParameters
from mtrl.networks.base import Parameters
from mtrl.networks.identity import TABLE
from mtrl.networks.make import make_network
from mtrl.networks.moore import orthonormal

TASKS, ROWS, INPUTS, OUTPUTS = 4, 5, 6, 2


def _made(name: str, **options: Any) -> tuple[Any, dict[str, Tensor], dict[str, Tensor], Tensor]:
    sizes = {"stack": 1, "num_tasks": TASKS, "inputs": INPUTS, "outputs": OUTPUTS}
    network: Any = make_network(name, {"task_identity": "one_hot", **sizes, **options})
    shared, heads, _ = network.initial_parameters(torch.Generator().manual_seed(3))
    shared, heads = ({name: value.double() for name, value in kind.items()} for kind in (shared, heads))
    inputs = torch.randn(TASKS, ROWS, INPUTS, generator=torch.Generator().manual_seed(4)).double()
    return network, shared, heads, inputs


def _mlp(layers: list[tuple[Tensor, Tensor]]) -> nn.Sequential:
    """A plain perceptron with ReLU between its layers of these weights and biases."""
    modules: list[nn.Module] = []
    for weight, bias in layers:
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        layer.load_state_dict({"weight": weight, "bias": bias})
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def _layers(p: dict[str, Tensor], *names: str) -> list[tuple[Tensor, Tensor]]:
    return [(p[f"{name}.weight"][0], p[f"{name}.bias"][0]) for name in names]


def test_one_soft_module_per_layer_is_the_perceptron_of_its_layers() -> None:
    network, shared, _, inputs = _made("soft_modules", modules=1, layers=3, width=8, module_width=7)
    names = ("features.0", "features.1", "modules.0", "modules.1", "modules.2", "head")
    torch.testing.assert_close(network.apply(shared, inputs)[0], _mlp(_layers(shared, *names))(inputs))


def test_a_module_is_fed_by_shares_that_sum_to_one() -> None:
    """With all modules alike nothing depends on the routing; with shares along the other axis it would."""
    network, shared, _, inputs = _made("soft_modules", modules=3, layers=3, width=8, module_width=7)
    for name, value in shared.items():
        if name.startswith("modules."):
            value.copy_(value[:1].expand_as(value))
        if name.startswith("route."):
            value.mul_(300.0)  # shares far from even
    first = network.apply(shared, inputs)
    for name in [name for name in shared if name.startswith(("route.", "seen.", "gate."))]:
        shared[name] = torch.randn_like(shared[name])
    torch.testing.assert_close(network.apply(shared, inputs), first)


def test_one_encoder_of_care_is_a_perceptron_with_the_context_beside_it() -> None:
    network, shared, _, inputs = _made("care", experts=1, encoder_width=5, embedding=3, width=8, depth=2)
    encoded = _mlp(_layers(shared, "encoders.0", "encoders.1", "encoders.2"))(inputs)
    vectors = shared["task.table"][0].relu()
    context = _mlp(_layers(shared, "context.0", "context.1", "context.2"))(vectors)
    beside = context.unsqueeze(1).expand(-1, ROWS, -1)
    expected = _mlp(_layers(shared, "torso.0", "torso.1", "torso.2"))(torch.cat((encoded, beside), dim=-1))
    torch.testing.assert_close(network.apply(shared, inputs)[0], expected)


def test_even_attention_of_care_is_the_mean_of_the_encoders() -> None:
    """Hot attention is even: the same outputs as with all attention logits 0."""
    hot, shared, _, inputs = _made("care", experts=3, encoder_width=5, embedding=3, width=8, temperature=1e12)
    even = {
        name: torch.zeros_like(value) if name.startswith("attention.2") else value
        for name, value in shared.items()
    }
    torch.testing.assert_close(hot.apply(shared, inputs), hot.apply(even, inputs))
    assert not torch.allclose(_made("care", experts=3, encoder_width=5, embedding=3, width=8)[0].apply(
        shared, inputs), hot.apply(shared, inputs), rtol=1e-6)  # fmt: skip


@pytest.mark.parametrize("per_channel", [False, True])
def test_film_with_factors_one_and_shifts_zero_is_a_perceptron(per_channel: bool) -> None:
    network, shared, _, inputs = _made(
        "film", encoder_width=5, embedding=3, width=8, depth=2, per_channel=per_channel
    )
    shared["film.2.weight"].zero_()
    channels = [5, 5, 3] if per_channel else [1, 1, 1]
    numbers = [torch.cat((torch.ones(count), torch.zeros(count))) for count in channels]
    shared["film.2.bias"] = torch.cat(numbers).double().unsqueeze(0)
    encoded = _mlp(_layers(shared, "encoder.0", "encoder.1", "encoder.2"))(inputs)
    beside = shared["task.table"][0].relu().unsqueeze(1).expand(-1, ROWS, -1)
    expected = _mlp(_layers(shared, "torso.0", "torso.1", "torso.2"))(torch.cat((encoded, beside), dim=-1))
    torch.testing.assert_close(network.apply(shared, inputs)[0], expected)


def _random_sets(shared: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(5)
    for value in shared.values():
        value.normal_(generator=generator)


def test_paco_with_a_set_for_each_task_is_separate_perceptrons() -> None:
    network, shared, _, inputs = _made("paco", sets=TASKS, width=8, depth=2)
    _random_sets(shared)
    shared["mixture.table"] = torch.eye(TASKS).double().unsqueeze(0)
    outputs = network.apply(shared, inputs)[0]
    for task in range(TASKS):
        own = [(shared[f"{n}.weight"][0, task], shared[f"{n}.bias"][0, task]) for n in range(3)]
        torch.testing.assert_close(outputs[task], _mlp(own)(inputs[task]))


def test_paco_with_equal_rows_is_one_perceptron() -> None:
    network, shared, _, inputs = _made("paco", sets=3, width=8, depth=2)
    _random_sets(shared)
    shares = torch.tensor([0.2, -1.0, 3.0]).double()
    shared["mixture.table"] = shares.expand(1, TASKS, 3).clone()
    combined = [
        tuple(torch.einsum("k,k...->...", shares, shared[f"{n}.{kind}"][0]) for kind in ("weight", "bias"))
        for n in range(3)
    ]
    torch.testing.assert_close(network.apply(shared, inputs)[0], _mlp(combined)(inputs))  # type: ignore[arg-type]


def test_a_gradient_of_paco_s_sets_is_the_tasks_shares_times_one_gradient() -> None:
    network, shared, _, inputs = _made("paco", sets=3, width=8, depth=2)
    _random_sets(shared)
    leaves = {name: value.requires_grad_() for name, value in shared.items()}
    loss = network.apply(leaves, inputs)[0, 1].square().mean()  # of task 1
    gradient = torch.autograd.grad(loss, leaves["1.weight"])[0][0].flatten(1)  # [K, O * I]
    shares = shared["mixture.table"][0, 1]
    torch.testing.assert_close(gradient, torch.outer(shares, gradient[0] / shares[0]))


def test_moore_s_basis_is_orthonormal_and_that_of_a_qr_decomposition() -> None:
    vectors = torch.randn(2, TASKS, ROWS, 3, 7, generator=torch.Generator().manual_seed(6)).double()
    basis = torch.stack(orthonormal(vectors.unbind(-2)), dim=-2)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(3).double().expand(2, TASKS, ROWS, 3, 3),
                               atol=1e-7, rtol=0)  # fmt: skip
    q, r = torch.linalg.qr(vectors.mT)
    signs = r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    torch.testing.assert_close(basis, (q * signs).mT, atol=1e-7, rtol=0)  # 1e-8 is added to lengths


def test_one_expert_of_moore_is_a_perceptron_at_length_one() -> None:
    network, shared, heads, inputs = _made("moore", experts=1, width=8, depth=3)
    vectors = _mlp(_layers(shared, "experts.0", "experts.1", "experts.2"))(inputs)
    units = vectors / vectors.norm(dim=-1, keepdim=True)
    torso = torch.tanh(shared["mixture.table"][0].unsqueeze(1) * units)
    expected = torch.einsum("tbw,tow->tbo", torso, heads["head.weight"][:, 0]) + heads["head.bias"]
    found = network.apply(shared | heads, inputs)[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_equal_experts_of_moore_give_finite_numbers() -> None:
    network, shared, heads, inputs = _made("moore", experts=3, width=8, depth=2)
    leaves = {name: value.requires_grad_() for name, value in (shared | heads).items()}
    with torch.no_grad():
        for name in shared:
            if name.startswith("experts."):
                leaves[name].copy_(leaves[name][:1].expand_as(leaves[name]))
    outputs = network.apply(leaves, inputs)
    gradients = torch.autograd.grad(outputs.square().sum(), list(leaves.values()))
    assert outputs.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ["brc", "simba", "simba_v2"])
def test_the_length_of_an_embedding_means_nothing(name: str) -> None:
    network, shared, _, inputs = _made(name, task_identity="embedding", width=8, depth=2)
    outputs = network.apply(shared, inputs)
    longer = shared | {TABLE: shared[TABLE] * torch.tensor([0.1, 1.0, 7.0, 30.0]).view(1, TASKS, 1).double()}
    torch.testing.assert_close(network.apply(longer, inputs), outputs)
    table = shared[TABLE].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network.apply(shared | {TABLE: table}, inputs).square().sum(), table)
    assert float(gradient.norm(dim=-1).min()) > 1e-6
    products = (gradient * table).sum(-1)
    torch.testing.assert_close(products, torch.zeros_like(products), atol=1e-13, rtol=0)


@pytest.mark.parametrize("name", ["brc", "simba", "simba_v2"])
def test_log_deviations_of_an_actor_run_from_minus_ten_to_two(name: str) -> None:
    network, shared, _, inputs = _made(name, role="actor", width=8, depth=2)
    last = "log_std.second.bias" if name == "simba_v2" else "log_std.bias"
    for raw, expected in ((-50.0, -10.0), (50.0, 2.0)):
        outputs = network.apply(shared | {last: torch.full_like(shared[last], raw)}, inputs)
        torch.testing.assert_close(outputs[..., 1:], torch.full_like(outputs[..., 1:], expected))


def test_simba_v2_keeps_unit_weights_through_steps_and_only_its_weights() -> None:
    network, shared, _, inputs = _made("simba_v2", width=8, depth=3, task_identity="embedding")
    flat = FlatParameters(shared, {}, network.layout().own_rows)
    combiner = make_combiner("cagrad", num_tasks=TASKS).double()
    descent = Descent(flat, combiner, lr=0.1, eps=1e-8, max_norm=None, project=network.project).double()
    before = {name: value.clone() for name, value in flat.named().items()}

    def losses(parameters: Parameters, batch: int, tasks: Tensor | None) -> tuple[Tensor, None]:
        return (network.apply(parameters, inputs) - 1.0).square().mean(dim=(0, 2, 3)), None

    for moved in (False, True):
        for name, value in flat.named().items():
            if name.endswith(".weight"):
                lengths = value.norm(dim=-1)
                torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-6, rtol=0)
            assert torch.equal(value, before[name]) != moved, name
        for _ in range(3):
            descent.step(losses)
    assert not torch.allclose(flat.named()[TABLE].norm(dim=-1), before[TABLE].norm(dim=-1), rtol=1e-3)


def _within(value: Tensor, bound: float) -> bool:
    """Whether a uniform distribution in +-bound explains the largest entry of many."""
    return 0.9 * bound < float(value.abs().max()) <= bound * (1 + 1e-6)


def _is_orthogonal(value: Tensor, gain: float) -> bool:
    wide = value if value.shape[-2] <= value.shape[-1] else value.mT
    square = wide @ wide.mT
    return torch.allclose(square, gain**2 * torch.eye(square.shape[-1]).double(), atol=1e-5)


def test_starts_are_those_of_the_sources() -> None:
    sizes = {"inputs": 39, "width": 64}
    shared = _made("brc", **sizes, task_identity="embedding", role="actor")[1]
    assert all(
        _is_orthogonal(shared[f"{name}.weight"], 2**0.5) for name in ("in", "0.first", "0.second", "mean")
    )
    assert _is_orthogonal(shared["log_std.weight"], 1.0)
    assert 0.7 < float(shared[TABLE].norm(dim=-1).mean()) < 1.3
    _, shared, heads, _ = _made("moore", **sizes)
    for layer, inputs in enumerate((39, 64, 64)):
        assert _within(shared[f"experts.{layer}.weight"], inputs**-0.5)
        assert _within(shared[f"experts.{layer}.bias"], inputs**-0.5)
    assert float(shared["mixture.table"].abs().max()) <= (6 / (TASKS + 4)) ** 0.5
    assert _within(heads["head.weight"], (6 / (64 + OUTPUTS)) ** 0.5)
    shared = _made("soft_modules", **sizes, module_width=50, routing_width=30)[1]
    for name, outputs in (("features.0", 64), ("gate.0", 30), ("modules.1", 50)):
        assert _within(shared[f"{name}.weight"], outputs**-0.5)
        assert (shared[f"{name}.bias"] == torch.tensor(0.1).double()).all()
    for name in ("route.0.weight", "route.1.weight", "head.weight"):
        assert _within(shared[name], 3e-3)
    shared = _made("simba", **sizes)[1]
    assert _is_orthogonal(shared["in.weight"], 1.0) and _is_orthogonal(shared["head.weight"], 1.0)
    first = shared["0.first.weight"]
    assert float(first.std()) == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    assert float(first.abs().max()) < 2 * math.sqrt(2 / 64) / 0.879  # cut off
    shared = _made("simba_v2", **sizes)[1]
    for name, start in (("in.scale", 32**-0.5), ("0.first.scale", 32**-0.5 / 2), ("value.first.scale", 1.0)):
        torch.testing.assert_close(shared[name], torch.full_like(shared[name], start))
    torch.testing.assert_close(shared["1.second.alpha"], torch.full((1, 64), 1 / 8).double())
    shared = _made("paco", **sizes, head_range=3e-3)[1]
    for layer, inputs in enumerate((39, 64, 64)):
        assert _within(shared[f"{layer}.weight"], (6 / inputs) ** 0.5)
    assert _within(shared["3.weight"], 3e-3)
    assert all(torch.equal(a, b) for a, b in pairwise(shared["1.weight"][0]))  # all sets start equal
    for name in ("care", "film"):
        shared = _made(name, **sizes)[1]
        assert float(shared["task.table"].std()) == pytest.approx(50**-0.5, rel=0.2)
        assert _within(shared["torso.1.weight"], (6 / 64) ** 0.5)
        assert _within(shared["torso.3.weight"], 1e-3)
