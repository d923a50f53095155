"""The Gramian of a Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor

# Columns per product: on a CPU a batch of narrow products runs three times as fast as a short and wide one.
_CHUNK = 2048


def gramian(jacobian: Tensor) -> Tensor:
    """Inner products [T, T] of the rows of a Jacobian [T, P], in full precision whatever the process has set.

    Solvers count on entries that are exact to rounding, and the product is a small part of an update.
    """
    setting = torch.get_float32_matmul_precision()
    if setting == "highest":
        return _products(jacobian)
    torch.set_float32_matmul_precision("highest")
    try:
        return _products(jacobian)
    finally:
        torch.set_float32_matmul_precision(setting)


def _products(jacobian: Tensor) -> Tensor:
    tasks, parameters = jacobian.shape
    chunks = parameters // _CHUNK
    if jacobian.device.type != "cpu" or chunks < 2:
        return jacobian @ jacobian.T
    blocks = jacobian[:, : chunks * _CHUNK].view(tasks, chunks, _CHUNK).transpose(0, 1)
    rest = jacobian[:, chunks * _CHUNK :]
    return torch.addmm(torch.bmm(blocks, blocks.mT).sum(0), rest, rest.T)
