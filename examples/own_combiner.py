"""A combiner of one's own in supervised training: one convolutional trunk, two tasks on the same pictures.

Run it with `python examples/own_combiner.py`; it needs torch and NumPy only.
"""

import torch
from torch import nn

from mtrl import mtl_step
from mtrl.combiners.base import GramCombiner


class Inverse(GramCombiner):
    """Weights each task by the inverse of its gradient's norm, so that all tasks move the trunk equally."""

    name = "inverse"

    def _weights(self, gram: torch.Tensor) -> torch.Tensor:  # [T, T] -> [T]
        norms = gram.diagonal().clamp(min=0.0).sqrt() + 1e-12
        return (1.0 / norms) / (1.0 / norms).sum()


def main(steps: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Train and return the losses [T] of the first and of the last step."""
    torch.manual_seed(0)
    pictures = torch.rand(128, 1, 8, 8)
    brightness = pictures.mean(dim=(1, 2, 3))
    is_top_brighter = (pictures[:, 0, :4].mean(dim=(1, 2)) > pictures[:, 0, 4:].mean(dim=(1, 2))).float()
    trunk = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 32),
        nn.ReLU(),
    )
    heads = [nn.Linear(32, 1), nn.Linear(32, 1)]
    parameters = [parameter for module in (trunk, *heads) for parameter in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    combiner = Inverse(num_tasks=2)

    def losses(batch: int) -> list[torch.Tensor]:
        features = trunk(pictures)
        value, logit = (head(features).squeeze(-1) for head in heads)
        return [
            100.0 * nn.functional.mse_loss(value, brightness),
            nn.functional.binary_cross_entropy_with_logits(logit, is_top_brighter),
        ]

    history = [mtl_step(combiner, losses, trunk, optimizer, heads=heads) for _ in range(steps)]
    return history[0], history[-1]


if __name__ == "__main__":
    first, last = main()
    print(f"losses before {first.tolist()} and after {last.tolist()}")
