"""task_jacobian against a loop of autograd.grad; the example without RL in README runs as printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl import mtl_step, set_gradient, task_jacobian
from mtrl.combiners import make_combiner

README = Path(__file__).resolve().parents[2] / "README.md"


class _Shared(nn.Module):
    """A trunk for three tasks, a head that only the last one uses, a frozen and an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3))
        self.last = nn.Linear(3, 1)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))

    def losses(self, inputs: Tensor) -> Tensor:
        features = self.frozen(self.trunk(inputs.unsqueeze(1)))
        first, second = features[:, 0].square().mean(), features[:, 1].exp().mean()
        return torch.stack((first, second, self.last(features).square().mean()))


@pytest.fixture
def module() -> _Shared:
    torch.manual_seed(0)
    return _Shared().double()


INPUTS = torch.linspace(-1.0, 2.0, 20, dtype=torch.float64).view(5, 4)


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_rows_are_those_of_one_backward_per_task(module: _Shared, chunk_size: int | None) -> None:
    trainable = [value for value in module.parameters() if value.requires_grad]
    losses = module.losses(INPUTS)
    expected = []
    for loss in losses:
        parts = torch.autograd.grad(loss, trainable, retain_graph=True, materialize_grads=True)
        expected.append(torch.cat([part.flatten() for part in parts]))
    found = task_jacobian(losses, module, chunk_size=chunk_size)
    assert found.shape == (3, sum(value.numel() for value in trainable))
    torch.testing.assert_close(found, torch.stack(expected))
    assert not found[:, :2].any()  # the unused parameter
    assert not found[:2, -4:].any()  # the last task's head
    assert all(value.grad is None for value in module.parameters())


def test_a_written_direction_is_what_backward_would_have_left(module: _Shared) -> None:
    set_gradient(module, task_jacobian(module.losses(INPUTS), module).sum(0))
    written = {name: value.grad for name, value in module.named_parameters()}
    module.zero_grad(set_to_none=True)
    module.losses(INPUTS).sum().backward()
    for name, value in module.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(written[name], value.grad)
    assert written["frozen.weight"] is None


def test_tensors_may_stand_for_a_module_and_gradients_are_copies() -> None:
    theta = torch.tensor([1.0, 2.0], requires_grad=True)
    rows = task_jacobian(torch.stack((theta[0] ** 2, theta.prod())), [theta])
    assert rows.tolist() == [[2.0, 0.0], [2.0, 1.0]]
    set_gradient([theta], rows[0])
    rows.zero_()
    assert theta.grad is not None
    assert theta.grad.tolist() == [2.0, 0.0]


def test_mistakes_are_named(module: _Shared) -> None:
    with pytest.raises(ValueError, match=r"vector \[T\].*found shape \[\], requires_grad=True"):
        task_jacobian(module.losses(INPUTS).sum(), module)
    with pytest.raises(ValueError, match=r"found shape \[3\], requires_grad=False"):
        task_jacobian(module.losses(INPUTS).detach(), module)
    with pytest.raises(ValueError, match="at least one tensor with requires_grad=True"):
        task_jacobian(module.losses(INPUTS), module.frozen)
    with pytest.raises(ValueError, match=r"direction must have shape \[\d+\]; found \[3\]"):
        set_gradient(module, torch.zeros(3))


def test_what_would_have_been_ignored_is_refused_or_works(module: _Shared) -> None:
    expected = task_jacobian(module.losses(INPUTS), module)
    for given in (module.named_parameters(), module.parameters(), list(module.parameters())):
        torch.testing.assert_close(task_jacobian(list(module.losses(INPUTS)), given), expected)
    losses = list(module.losses(INPUTS))
    with torch.no_grad():
        torch.testing.assert_close(task_jacobian(losses, module), expected)
    theta = torch.tensor([1.0, 2.0], requires_grad=True)
    assert task_jacobian(torch.stack((theta[0] ** 2, theta.prod())), theta).tolist() == [
        [2.0, 0.0],
        [2.0, 1.0],
    ]
    set_gradient(theta, torch.ones(2))
    assert theta.grad is not None
    assert theta.grad.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="depend on none of the parameters"):
        task_jacobian(module.losses(INPUTS), _Shared().double())
    with pytest.raises(ValueError, match="named twice"):
        task_jacobian(module.losses(INPUTS), [module.unused, module.last.bias, module.unused])
    used_up = module.parameters()
    list(used_up)
    with pytest.raises(ValueError, match="empty once it has been used"):
        task_jacobian(module.losses(INPUTS), used_up)
    with pytest.raises(ValueError, match="found a str among them"):
        task_jacobian(module.losses(INPUTS), ["trunk"])
    with pytest.raises(ValueError, match="found a tuple among them"):  # no name and its tensor
        task_jacobian(module.losses(INPUTS), [(module.last.weight, module.last.bias)])
    with pytest.raises(ValueError, match="list of T 0-dim tensors"):
        task_jacobian([module.losses(INPUTS)], module)


def test_gradients_accumulate_as_those_of_backward_do(module: _Shared) -> None:
    direction = task_jacobian(module.losses(INPUTS), module).sum(0)
    for _ in range(2):
        set_gradient(module, direction, accumulate=True)
    found = torch.cat([value.grad.flatten() for value in module.parameters() if value.grad is not None])
    torch.testing.assert_close(found, 2 * direction)


def test_a_direction_is_added_to_a_sparse_gradient() -> None:
    words = nn.Embedding(4, 2, sparse=True)
    words(torch.tensor([1])).sum().backward()
    set_gradient(words, torch.arange(8.0), accumulate=True)
    assert words.weight.grad is not None
    assert words.weight.grad.tolist() == [[0.0, 1.0], [3.0, 4.0], [4.0, 5.0], [6.0, 7.0]]


@pytest.mark.dear
def test_a_compiled_model_gives_the_same_rows(module: _Shared) -> None:
    expected = task_jacobian(module.losses(INPUTS), module)
    # AOT autograd is what torch.compile's backward is made of; this backend needs no compiler.
    compiled = torch.compile(module.losses, backend="aot_eager")
    torch.testing.assert_close(task_jacobian(compiled(INPUTS), module), expected)


@pytest.mark.dear
def test_a_model_compiled_for_one_backward_pass_says_how_to_compile_it_for_more() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    expected = task_jacobian(model(INPUTS).square().mean(0), model)
    for donated in (True, False):
        torch._dynamo.reset()
        with torch._functorch.config.patch(donated_buffer=donated):
            compiled = torch.compile(model, backend="aot_eager")
            # Losses that are given allow the one backward pass that this method takes.
            mtl_step(make_combiner("mean", num_tasks=3), compiled(INPUTS).square().mean(0), model, optimizer)
            if donated:
                with pytest.raises(RuntimeError, match="donated_buffer = False before the model is compiled"):
                    task_jacobian(compiled(INPUTS).square().mean(0), model)
            else:
                torch.testing.assert_close(task_jacobian(compiled(INPUTS).square().mean(0), model), expected)


@pytest.mark.dear
def test_the_example_in_readme_learns_both_tasks() -> None:
    section = README.read_text(encoding="utf-8").partition("## Without RL")[2]
    block = re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert block is not None
    names: dict[str, Any] = {}
    exec(block[1], names)
    losses = names["losses"](0)
    assert (losses < 0.01).all(), losses
