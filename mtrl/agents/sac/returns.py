"""Returns over several steps: n-step windows, and the scale of a task's returns. Knows no SAC."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_SMALLEST = 1e-3  # scale of a task that has paid no reward yet


class Windows(NamedTuple):
    """Up to n transitions from each of B sampled transitions on, for T tasks."""

    reward: Tensor  # [T, B], discounted sum of the rewards in the window
    last: Tensor  # [T, B], flat row of the window's last transition; the target bootstraps from its successor
    discount: Tensor  # [T, B], gamma to the power of the window's length


def windows(
    index: Tensor, newest: Tensor, reward: Tensor, ended: Tensor, *, steps: int, stride: int, gamma: float
) -> Windows:
    """Sum the rewards of up to `steps` transitions of one environment, from slots [T, B] on.

    A window ends with its episode, by termination or time limit alike, or with the newest stored transition.
    A shorter window bootstraps from the true successor of its last transition and is discounted by its own
    length. No return mixes two episodes, and every shortened one ends in a bootstrap, unless the task itself
    ended the episode. Rewards of older policies are not corrected.

    Args:
        index: slots in the ring of each task.
        newest: 0-dim, place in the ring of the vector step that was written last.
        reward: [T * C], of each task's C slots.
        ended: bool [T * C], whether the episode ended with the transition.
        steps: n.
        stride: E, slots per vector step.
        gamma: discount per env step.
    """
    capacity = len(reward) // len(index)
    fixed = _constants(len(index), capacity, steps, stride, gamma, reward.dtype, index.device)
    # The environments' slots of a vector step lie side by side: the same environment's next transition is E
    # slots on, modulo C, which is a multiple of E. Rows count through the rings of all tasks.
    rows = (index.unsqueeze(-1) + fixed.distance).remainder_(capacity).add_(fixed.first_row)
    # The vector steps written after the sampled one, counted round the ring: beyond them lies its oldest
    # content, which belongs to an earlier time.
    ahead = (newest - index // stride).remainder_(capacity // stride)
    # Transition k counts if none of the k before it ended the episode.
    over = ended[rows[..., :-1]].cumsum(-1)
    alive = fixed.offset <= ahead.unsqueeze(-1)
    alive[..., 1:] &= over == 0
    length = alive.sum(-1, keepdim=True)  # at least 1: the sampled transition itself
    total = (reward[rows] * (alive * fixed.power)).sum(-1)
    last = rows.gather(-1, length - 1).squeeze(-1)
    return Windows(total, last, fixed.power_of_length[length.squeeze(-1)])


class _Constants(NamedTuple):
    offset: Tensor  # [n], 0 to n - 1
    distance: Tensor  # [n], slots from the sampled transition to the k-th
    first_row: Tensor  # [T, 1, 1], of each task's ring
    power: Tensor  # [n], gamma^k
    power_of_length: Tensor  # [n + 1]


@lru_cache
def _constants(
    tasks: int, capacity: int, steps: int, stride: int, gamma: float, dtype: torch.dtype, device: torch.device
) -> _Constants:
    offset = torch.arange(steps + 1, device=device)
    powers = gamma ** offset.to(dtype)
    first_row = torch.arange(tasks, device=device).view(-1, 1, 1) * capacity
    return _Constants(offset[:-1], offset[:-1] * stride, first_row, powers[:-1], powers)


class ReturnScale:
    """The divisor of a task's rewards that keeps its returns within +-bound.

    Every environment keeps a running return G <- r + gamma G, reset at the end of an episode. The scale of a
    task is max(std G, max |G| / bound) over all steps of all its environments so far: scaled returns deviate
    by about 1 and never leave the bound (the normalisers of FastTD3, arXiv 2505.22642, and FlashSAC, which
    reset G before the last reward of an episode and carry that reward into the next one). Unlike
    a deviation of single rewards, it does not blow up a first success after thousands of steps without one.

    A maximum never forgets: one lucky episode of a task that otherwise pays hundredths shrinks its rewards
    for the rest of the run. With a `quantile` both terms are those of returns clipped at that quantile of
    |G| (winsorised; DreamerV3, arXiv 2301.04104, takes percentiles for the same reason). Returns beyond it
    may leave the bound until they are no longer rare.

    Args:
        num_tasks: T.
        envs_per_task: E.
        gamma: discount per env step.
        bound: on scaled returns.
        device: of the state.
        quantile: of |G|, in (0, 1), at which returns are clipped; None: they are not.
    """

    def __init__(
        self,
        *,
        num_tasks: int,
        envs_per_task: int,
        gamma: float,
        bound: float,
        device: torch.device,
        quantile: float | None = None,
    ) -> None:
        self._gamma, self._bound, self._quantile = gamma, bound, quantile
        # In double precision: sums of squares over 1e9 steps.
        zeros = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self._state = {
            "running": torch.zeros(num_tasks, envs_per_task, dtype=torch.float64, device=device),
            "count": zeros.clone(),
            "sum": zeros.clone(),
            "sum_of_squares": zeros.clone(),
            "largest": zeros.clone(),
        }
        self._histogram = None if quantile is None else _Histogram(num_tasks, device)
        if self._histogram is not None:
            self._state["histogram"] = self._histogram.sums
        self.scale = torch.ones(num_tasks, device=device)  # [T]

    def add(self, reward: Tensor, ended: Tensor, lost: Tensor) -> None:
        """Count one vector step: rewards, ends of episodes, and rows that are not a transition, each [T, E].

        They are on the device of the scale.
        """
        state = self._state
        running = state["running"].mul_(self._gamma).add_(reward)
        valid = ~lost
        counted = running * valid
        state["count"] += valid.sum(1)
        state["sum"] += counted.sum(1)
        state["sum_of_squares"] += counted.square().sum(1)
        torch.maximum(state["largest"], counted.abs().amax(1), out=state["largest"])
        total, squares, largest = state["sum"], state["sum_of_squares"], state["largest"]
        if self._histogram is not None and self._quantile is not None:
            self._histogram.add(counted, valid)
            total, squares, largest = self._histogram.clipped(self._quantile, largest)
        running.masked_fill_(ended | lost, 0.0)
        count = state["count"].clamp(min=1)
        variance = squares / count - (total / count).square()
        scale = torch.maximum(variance.clamp(min=0).sqrt(), largest / self._bound)
        self.scale.copy_(scale.clamp(min=_SMALLEST))

    def state_dict(self) -> dict[str, Any]:
        """Return the running returns, their statistics and the scale."""
        return {**self._state, "scale": self.scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        for name, value in (*self._state.items(), ("scale", self.scale)):
            value.copy_(state[name])


class _Histogram:
    """How many returns of T tasks lie in each bin of magnitude, and their sums: enough to clip all of them.

    Bins are logarithmic, because returns of one task may span six orders of magnitude: bin 0 holds |G| up to
    the smallest scale, bin k the next 4.4 %, the last one all that is larger than 1e9. The returns in bins
    below the clip keep their exact sums, those above count as the clip: so a sum over clipped returns is
    exact for a clip at the edge of a bin, however many returns there were.

    Attributes:
        sums: [4, T, N]: number of returns, positive less negative ones, their sum, their sum of squares.
    """

    _PER_OCTAVE, _BINS, _BLOCK = 16, 641, 26  # no more bins than _BLOCK squared

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self.sums = torch.zeros(4, num_tasks, self._BINS, dtype=torch.float64, device=device)
        # For running sums over blocks of bins by two products: a GPU's cumsum has no fixed order.
        ones = torch.ones(self._BLOCK, self._BLOCK, dtype=torch.float64, device=device)
        self._within, self._before = ones.triu(), ones.triu(1)
        octaves = torch.arange(self._BINS, dtype=torch.float64, device=device) / self._PER_OCTAVE
        self._edges = _SMALLEST * octaves.exp2()  # [N], upper

    def add(self, values: Tensor, counted: Tensor) -> None:
        """Add returns [T, E]; `counted` [T, E] is 0 where there is none."""
        octave = (values.abs() / _SMALLEST).clamp(min=0.5).log2()
        place = (octave * self._PER_OCTAVE).ceil().clamp(0, self._BINS - 1)
        weight = counted.to(values.dtype)
        kinds = (weight, weight * values.sign(), weight * values, weight * values.square())
        terms = torch.stack(kinds, dim=1)  # [T, 4, E]
        # A product, since a GPU's scatter_add_ adds in another order each time.
        inside = place.unsqueeze(-1) == torch.arange(self._BINS, device=values.device)  # [T, E, N]
        self.sums += torch.bmm(terms, inside.to(values.dtype)).transpose(0, 1)

    def clipped(self, quantile: float, largest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum, the sum of squares and the largest magnitude [T] of clipped returns.

        The clip is the upper edge of the bin with the quantile, or `largest` [T], the largest |G|, if that
        is smaller: at most 4.4 % above the quantile itself.
        """
        blocks = F.pad(self.sums, (0, self._BLOCK**2 - self._BINS)).unflatten(2, (self._BLOCK, -1))
        sums = blocks @ self._within
        below = (sums + (sums[..., -1] @ self._before).unsqueeze(-1)).flatten(2)[..., : self._BINS]
        number = below[0, :, -1:]
        place = (below[0] < quantile * number).sum(1, keepdim=True).clamp(max=self._BINS - 1)  # [T, 1]
        clip = torch.minimum(self._edges[place.squeeze(1)], largest)
        inside = below.gather(2, place.expand(4, -1, -1)).squeeze(2)  # [4, T]
        above, signs = (below[:2, :, -1] - inside[:2]).unbind()
        return inside[2] + signs * clip, inside[3] + above * clip.square(), clip
