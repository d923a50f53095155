"""Networks against plain torch modules and torch.distributions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform
from torch.profiler import ProfilerActivity, profile

from mtrl.networks.gaussian import LOG_STD_RANGE, mode_action, noisy_action, sample_action
from mtrl.networks.layers import linear
from mtrl.networks.mlp import MLP, TASK_EMBEDDING
from tests.helpers.plain_sac import load_plain, one_hot_inputs, plain_mlp


def _network(**changes: Any) -> MLP:
    sizes = {"stack": 2, "num_tasks": 3, "inputs": 5, "outputs": 4, "width": 8, "depth": 2, "head_range": 0.5}
    return MLP(**{**sizes, **changes})


def _parameters(network: MLP) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    shared, heads, _ = network.initial_parameters(torch.Generator().manual_seed(0))
    return shared, heads


def test_shared_mlp_equals_plain_linear_layers_on_one_hot_inputs() -> None:
    network = _network()
    shared, _ = _parameters(network)
    inputs = torch.randn(3, 6, 5)
    outputs = network.apply(shared, inputs)
    for stack in range(2):
        model = plain_mlp(5 + 3, 4, 8, 2)
        load_plain(model, shared, stack)
        torch.testing.assert_close(outputs[stack].flatten(0, 1), model(one_hot_inputs(inputs)))


def test_layer_norm_equals_torch_module() -> None:
    network = _network(layer_norm=True, task_identity="none", depth=1)
    shared, _ = _parameters(network)
    inputs = torch.randn(3, 6, 5)
    norm = nn.LayerNorm(8, elementwise_affine=False)
    hidden = torch.relu(norm(inputs @ shared["0.weight"][1].T + shared["0.bias"][1]))
    expected = hidden @ shared["head.weight"][1].T + shared["head.bias"][1]
    torch.testing.assert_close(network.apply(shared, inputs)[1], expected)


def test_residual_blocks_equal_torch_modules() -> None:
    """An input layer and one block, written from BroNet's figure with torch's own modules."""
    network = _network(residual=True, task_identity="none")
    shared, _ = _parameters(network)
    generator = torch.Generator().manual_seed(1)
    for name, value in shared.items():
        if name.endswith(("gain", "shift")):
            value.normal_(generator=generator)
    inputs = torch.randn(3, 6, 5)

    def layer(x: Tensor, number: int) -> Tensor:
        norm = nn.LayerNorm(8)
        linear_layer = nn.Linear(x.shape[-1], 8)
        with torch.no_grad():
            linear_layer.weight.copy_(shared[f"{number}.weight"][1])
            linear_layer.bias.copy_(shared[f"{number}.bias"][1])
            norm.weight.copy_(shared[f"{number}.gain"][1])
            norm.bias.copy_(shared[f"{number}.shift"][1])
        result: Tensor = norm(linear_layer(x))
        return result

    hidden = torch.relu(layer(inputs, 0))
    hidden = hidden + layer(torch.relu(layer(hidden, 1)), 2)
    expected = hidden @ shared["head.weight"][1].T + shared["head.bias"][1]
    torch.testing.assert_close(network.apply(shared, inputs)[1], expected)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_per_task_parameters_that_agree_give_the_joint_outputs(layer_norm: bool, residual: bool) -> None:
    network = _network(layer_norm=layer_norm, residual=residual)
    shared, _ = _parameters(network)
    inputs = torch.randn(3, 6, 5)
    expanded = {name: value.expand(3, *value.shape) for name, value in shared.items()}
    expanded[TASK_EMBEDDING] = shared[TASK_EMBEDDING].transpose(0, 1)  # each task's own row
    copied = {name: value.clone() for name, value in expanded.items()}
    joint = network.apply(shared, inputs)
    torch.testing.assert_close(network.apply(expanded, inputs), joint)
    torch.testing.assert_close(network.apply(copied, inputs), joint)


def test_heads_see_only_their_own_task() -> None:
    network = _network(per_task_heads=True)
    shared, heads = _parameters(network)
    inputs = torch.randn(3, 6, 5)
    before = network.apply(shared | heads, inputs)
    changed = {name: value.clone() for name, value in heads.items()}
    changed["head.weight"][1] += 1.0
    after = network.apply(shared | changed, inputs)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_without_one_hot_equal_inputs_give_equal_outputs_for_all_tasks() -> None:
    network = _network(task_identity="none")
    shared, _ = _parameters(network)
    outputs = network.apply(shared, torch.randn(1, 6, 5).expand(3, 6, 5))
    torch.testing.assert_close(outputs[:, 0], outputs[:, 2])


@pytest.mark.parametrize("expanded", [True, False])
def test_linear_gradients_pass_gradcheck(expanded: bool) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    if not expanded:
        assert torch.autograd.gradcheck(linear, (x, weight, bias))
        return
    # Compared with the same numbers laid out in full: gradcheck would perturb all copies of one weight.
    shared_weight = weight[:1].detach().expand(3, 2, 6, 5).requires_grad_()
    shared_bias = bias.detach().requires_grad_()
    full_weight = shared_weight.detach().clone().requires_grad_()
    full_bias = shared_bias.detach().clone().requires_grad_()
    upstream = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    fast = torch.autograd.grad(
        linear(x, shared_weight, shared_bias), (x, shared_weight, shared_bias), upstream
    )
    full = torch.autograd.grad(linear(x, full_weight, full_bias), (x, full_weight, full_bias), upstream)
    for left, right in zip(fast, full, strict=True):
        torch.testing.assert_close(left, right)


def test_a_layer_that_stays_forms_no_gradient_of_its_weights() -> None:
    """As critics with weights per task do under the actor's loss."""
    x, weight = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(3, 2, 6, 5)
    total = linear(x, weight, torch.randn(2, 3, 6)).sum()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        total.backward()
    names = [event.name for event in seen.events()]
    assert (names.count("aten::bmm"), names.count("aten::sum")) == (1, 0)
    torch.testing.assert_close(x.grad, weight.sum(2).transpose(0, 1).unsqueeze(2).expand_as(x))


def test_log_probability_is_that_of_torch_distributions() -> None:
    network = _network(stack=1, outputs=8)
    shared, _ = _parameters(network)
    obs, noise = torch.randn(3, 6, 5).double(), torch.randn(3, 6, 4).double()
    parameters = {name: value.double() for name, value in shared.items()}
    sampled = sample_action(network.apply(parameters, obs)[0], noise)
    mean, log_std = network.apply(parameters, obs)[0].chunk(2, dim=-1)
    policy = torch.distributions.TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()])
    torch.testing.assert_close(sampled.log_prob, policy.log_prob(sampled.action).sum(-1))


def test_gradients_of_samples_are_those_of_torch_distributions_and_stop_where_deviations_are_clamped() -> (
    None
):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 6, 8, generator=generator).double()
    outputs[0, :, 4:] = 3.0  # log std above its range
    outputs[1, :, 5] = -21.0
    noise = torch.randn(3, 6, 4, generator=generator).double()
    upstream = (
        torch.randn(3, 6, 4, generator=generator).double(),
        torch.randn(3, 6, generator=generator).double(),
    )
    leaf = outputs.clone().requires_grad_()
    mean, log_std = leaf.chunk(2, dim=-1)
    policy = Normal(mean, log_std.clamp(*LOG_STD_RANGE).exp())
    before = policy.mean + policy.stddev * noise
    squashed = TanhTransform().log_abs_det_jacobian(before, before.tanh())
    log_prob = (policy.log_prob(before) - squashed).sum(-1)
    (expected,) = torch.autograd.grad((before.tanh(), log_prob), leaf, upstream, retain_graph=True)
    ours = outputs.clone().requires_grad_()
    found = sample_action(ours, noise)
    torch.testing.assert_close(found.log_prob, log_prob)
    torch.testing.assert_close(noisy_action(outputs, noise), found.action)
    torch.testing.assert_close(torch.autograd.grad(tuple(found), ours, upstream)[0], expected)
    for part in (0, 1):  # either may be all that a loss looks at
        (alone,) = torch.autograd.grad(sample_action(ours, noise)[part], ours, upstream[part])
        (wanted,) = torch.autograd.grad(
            (before.tanh(), log_prob)[part], leaf, upstream[part], retain_graph=True
        )
        torch.testing.assert_close(alone, wanted)


def test_log_probability_stays_finite_at_saturated_actions() -> None:
    network = _network(stack=1, outputs=8)
    shared, _ = _parameters(network)
    shared["head.bias"] += 50.0
    sampled = sample_action(network.apply(shared, torch.randn(3, 6, 5))[0], torch.randn(3, 6, 4))
    assert torch.isfinite(sampled.log_prob).all()


def test_mode_is_the_sample_without_noise() -> None:
    network = _network(stack=1, outputs=8)
    shared, _ = _parameters(network)
    obs = torch.randn(3, 6, 5)
    silent = sample_action(network.apply(shared, obs)[0], torch.zeros(3, 6, 4)).action
    torch.testing.assert_close(mode_action(network.apply(shared, obs)[0]), silent)


def test_initial_scale_follows_fan_in_with_the_identity_counted() -> None:
    network = _network(width=400, inputs=39, num_tasks=10)
    shared, _ = _parameters(network)
    bound = (6.0 / 49) ** 0.5
    for name in ("0.weight", "0.task"):
        assert 0.95 * bound < float(shared[name].abs().max()) <= bound
    assert float(shared["head.weight"].abs().max()) <= 0.5
    assert not shared["1.bias"].any()
