from __future__ import annotations

import scipy.stats
import torch
from torch import Tensor

from mtrl.combiners import make_combiner
from mtrl.combiners.rlw import RLW
from tests.helpers.matrices import jacobian


def drawn(tasks: int, updates: int) -> Tensor:
    combiner = RLW(num_tasks=tasks)
    losses = torch.zeros(tasks, dtype=torch.float64)
    return torch.stack([combiner.weights(losses) for _ in range(updates)])


def test_weights_are_the_softmax_of_independent_standard_normal_numbers() -> None:
    weights = drawn(tasks=4, updates=1500)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(1500, dtype=torch.float64))
    logs = weights.log()
    # Differences of logits of disjoint pairs are independent and normal with variance 2.
    for first, second in ((0, 1), (2, 3)):
        difference = (logs[:, first] - logs[:, second]) / 2.0**0.5
        assert scipy.stats.kstest(difference.numpy(), "norm").pvalue > 1e-3
        assert abs(scipy.stats.pearsonr(difference[1:].numpy(), difference[:-1].numpy()).statistic) < 0.1
    pairs = (logs[:, 0] - logs[:, 1]).numpy(), (logs[:, 2] - logs[:, 3]).numpy()
    assert abs(scipy.stats.pearsonr(*pairs).statistic) < 0.1


def test_weights_do_not_depend_on_losses_gradients_or_the_global_random_stream() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make_combiner("rlw", num_tasks=5)
    first.combine(jacobian("iid", 5, seed=1))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second = make_combiner("rlw", num_tasks=5)
    second.combine(jacobian("spread_3", 5, seed=2), torch.arange(5.0, dtype=torch.float64))
    assert torch.equal(first.last_weights, second.last_weights)


def test_instances_count_on_their_own() -> None:
    first, second = RLW(num_tasks=5), RLW(num_tasks=5)
    losses = torch.zeros(5)
    first.weights(losses)
    assert second.step == 0
    assert not torch.equal(first.weights(losses), second.weights(losses))
