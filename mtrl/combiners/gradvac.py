"""GradVac: turns each gradient until its cosine with the others reaches a running mean."""

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners.pcgrad import PCGrad, products_among, sequences

_SMALLEST_SINE = 1e-3  # of a target angle: turning towards it multiplies a gradient's length by up to 1000


class GradVac(PCGrad):
    """GradVac (gradient vaccine): PCGrad whose target cosine per pair is a running mean instead of 0.

    Wang et al., ICLR 2021 (arXiv:2010.05874), algorithm 1. For each task, in a random order of the others,
    whenever the cosine phi of its running gradient with an original gradient is below the target, enough of
    the latter is added to reach the target. Then target <- (1 - beta) target + beta phi. The first update,
    with targets of 0, is PCGrad's.

    Args:
        beta: Share of the new cosine in the running means (paper: 0.01), in [0, 1].

    Deviations from the paper: the mean instead of the sum of the gradients; one target per pair for all
    parameters (the paper also has one per layer); a target angle has a sine of at least 1e-3. The orders come
    from a counter in the state. Pairs with a zero gradient keep their target.
    """

    name = "gradvac"
    papers = ("wang2021gradvac",)

    def __init__(self, *, num_tasks: int, beta: float = 0.01) -> None:
        super().__init__(num_tasks=num_tasks)
        self.beta = check_number("beta", beta, low=0.0, high=1.0)
        self.targets = nn.Buffer(torch.zeros(num_tasks, num_tasks, dtype=torch.float64))

    def _weights(self, gram: Tensor) -> Tensor:
        if self.num_tasks == 1:
            return torch.ones_like(gram[0])
        order = self.draw_orders()
        targets = self.targets.gather(1, order)
        added, seen = turn(gram.to(torch.float64), order, targets)
        moved = torch.lerp(targets, seen, self.beta)
        # A pair without a cosine, and an update that is not finite and will be masked, leave no trace.
        kept = self.targets.scatter(1, order, torch.where(moved.isfinite(), moved, targets))
        self.targets.copy_(kept)
        total = torch.ones_like(kept[0]).scatter_add(0, order.flatten(), added.flatten())
        return total / self.num_tasks

    def metrics(self) -> dict[str, Tensor]:
        """Add `target_mean`, the mean target over the pairs."""
        pairs = max(self.num_tasks * (self.num_tasks - 1), 1)
        return {**super().metrics(), "target_mean": self.targets.sum() / pairs}


def turn(gram: Tensor, order: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much of gradient order[t, k] gradient t gets, and the cosines met, [T, T-1] each.

    `targets` [T, T-1] belong to `order`; a cosine is NaN where one of the two gradients is zero.
    """
    norms = gram.diagonal().clamp(min=0.0).sqrt()
    orders, products = sequences(gram, order)
    at_once = len(orders[0])
    parts = zip(orders, products, targets.split(at_once), norms.split(at_once), strict=True)
    added, seen = zip(*(_turned(gram, norms, *part) for part in parts), strict=True)
    return torch.cat(added), torch.cat(seen)


def _turned(
    gram: Tensor, norms: Tensor, order: Tensor, products: Tensor, targets: Tensor, running: Tensor
) -> tuple[Tensor, Tensor]:
    """Do what `turn` does for the tasks of one part, whose running gradients have the norms `running` [n]."""
    among, lengths = products_among(gram, order), norms[order]
    sines = (1.0 - targets.square()).clamp(min=_SMALLEST_SINE**2).sqrt()
    added: list[Tensor] = []
    seen: list[Tensor] = []
    for position in range(order.shape[1]):
        length, target, sine = lengths[:, position], targets[:, position], sines[:, position]
        cosine = (products[:, position] / (running * length)).clamp(-1.0, 1.0)
        below = cosine < target
        # Only the part along the other gradient changes, so the part across it fixes the new length.
        across = (1.0 - cosine.square()).sqrt() / sine
        share = torch.where(below, running / length * (target * across - cosine), 0.0)
        running = torch.where(below, running * across, running)
        products = torch.addcmul(products, share.unsqueeze(-1), among[:, position])
        added.append(share)
        seen.append(cosine)
    return torch.stack(added, dim=1), torch.stack(seen, dim=1)
