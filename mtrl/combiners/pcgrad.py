"""PCGrad: projects conflicting gradients onto each other's normal planes."""

import torch
from torch import Tensor, nn

from mtrl.combiners._state import scrambled
from mtrl.combiners.base import GramCombiner

_MOST_PRODUCTS = 2**25  # numbers in one part of the T^3 products, 256 MiB


class PCGrad(GramCombiner):
    """PCGrad (gradient surgery): each gradient loses its parts along those it conflicts with; then the mean.

    Yu et al., NeurIPS 2020 (arXiv:2001.06782), algorithm 1. For each task, in a random order of the others,
    the running gradient is projected onto the normal plane of an original gradient whenever their product is
    negative.

    Deviations from the paper: the mean instead of the sum of the projected gradients, as in the RL code of
    facebookresearch/mtrl; the orders come from a counter in the state.
    """

    name = "pcgrad"
    papers = ("yu2020pcgrad",)

    def __init__(self, *, num_tasks: int) -> None:
        super().__init__(num_tasks=num_tasks)
        others = [[other for other in range(num_tasks) if other != task] for task in range(num_tasks)]
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.int64))
        self._others = nn.Buffer(torch.tensor(others, dtype=torch.int64), persistent=False)
        keys = torch.arange(1, num_tasks * (num_tasks - 1) + 1, dtype=torch.int64)
        self._keys = nn.Buffer(keys.view(num_tasks, num_tasks - 1), persistent=False)

    def _weights(self, gram: Tensor) -> Tensor:
        return project(gram.to(torch.float64), self.draw_orders())

    def draw_orders(self) -> Tensor:
        """Return a random order of the other tasks for each task [T, T-1]; advances the counter."""
        order = self._others.gather(1, scrambled(self._keys, self.step, self.stream).argsort(dim=1))
        self.step.add_(1)
        return order


def project(gram: Tensor, order: Tensor) -> Tensor:
    """Return the weights [T] of the mean projected gradient; row t of `order` [T, T-1] is for task t."""
    tasks = gram.shape[0]
    squares = gram.diagonal()
    if tasks == 1:
        return torch.ones_like(squares)
    inverse = torch.where(squares > 0.0, squares, 1.0).reciprocal()
    removed = [_removed(gram, inverse, part, own) for part, own in zip(*sequences(gram, order), strict=True)]
    total = torch.ones_like(squares).scatter_add(0, order.flatten(), -torch.cat(removed).flatten())
    return total / tasks


def _removed(gram: Tensor, inverse: Tensor, order: Tensor, products: Tensor) -> Tensor:
    """Return how much of gradient order[t, k] gradient t loses [n, T-1], for the tasks t of n rows."""
    among, inverse = products_among(gram, order), inverse[order]
    removed = []
    for position in range(order.shape[1]):
        share = products[:, position].clamp(max=0.0) * inverse[:, position]
        removed.append(share)
        products = torch.addcmul(products, share.unsqueeze(-1), among[:, position], value=-1.0)
    return torch.stack(removed, dim=1)


def sequences(gram: Tensor, order: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return `order` [T, T-1] in parts of so many tasks that `products_among` of one stays below 256 MiB.

    With each part come the products in the coordinates of each task's own sequence: products[t, k] =
    gradient t . gradient order[t, k], of which the projections keep the running values.
    """
    at_once = max(1, _MOST_PRODUCTS // len(gram) ** 2)
    return order.split(at_once), gram.gather(1, order).split(at_once)


def products_among(gram: Tensor, order: Tensor) -> Tensor:
    """Return the products between the gradients of each row's sequence, [n, T-1, T-1]."""
    return gram[order.unsqueeze(-1), order.unsqueeze(-2)]
