"""Operations on the rows of a Jacobian [T, P] in full precision: inner products, weighted sum, lengths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Columns per product: on a CPU a batch of narrow products runs three times as fast as a short and wide one.
_CHUNK = 2048
_HALF = (torch.float16, torch.bfloat16)


def gramian(jacobian: Tensor) -> Tensor:
    """Inner products [T, T] of the rows of a Jacobian [T, P]; see `inner_products`."""
    return inner_products(jacobian, jacobian)


def inner_products(left: Tensor, right: Tensor) -> Tensor:
    """Inner products [T, T] between the rows of two Jacobians [T, P], in full precision.

    TF32 and bfloat16 products are switched off for this one product: solvers rely on entries that are exact
    to rounding. Half precision is summed in float32, since squares of numbers above 256 overflow float16.
    """
    if left.dtype in _HALF:
        left, right = left.float(), right.float()
    with _full_precision(left.device.type):
        return _products(left, right)


def weighted_sum(weights: Tensor, jacobian: Tensor) -> Tensor:
    """Return `weights @ jacobian` [P] in the Jacobian's dtype, for weights of any dtype.

    Weights in float64 are not rounded to a float32 Jacobian's dtype. Rounding a weight shifts the direction
    along the whole of its gradient, which matters where gradients nearly cancel. The rounding of the products
    is harmless: it differs from entry to entry and averages out. Half precision is summed in float32.
    """
    if jacobian.dtype in _HALF:
        return (weights.float() @ jacobian.float()).to(jacobian.dtype)
    if weights.dtype != torch.float64 or jacobian.dtype != torch.float32:
        return weights.to(jacobian.dtype) @ jacobian
    # The rounded weights and their remainders share one pass over the Jacobian, which takes the time.
    rounded = weights.float()
    with _full_precision(jacobian.device.type):
        whole, rest = torch.stack((rounded, (weights - rounded).float())) @ jacobian
    combined: Tensor = whole + rest
    return combined


def cosines(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Gramian [T, T] of the gradients over their norms, and one over these norms [T].

    A zero gradient counts as a unit gradient that is orthogonal to all others, with norm 1.
    """
    squares = matrix.diagonal()
    present = squares > 0.0
    inverse = torch.where(present, squares, 1.0).rsqrt()
    unit = torch.eye(len(squares), dtype=matrix.dtype, device=matrix.device)
    scaled = matrix * inverse * inverse.unsqueeze(-1)
    return torch.where(present & present.unsqueeze(-1), scaled, unit), inverse


def rounding_ridge(gram: Tensor) -> float:
    """Return 16 eps of the dtype, the size of the rounding error of a Gramian of unit gradients.

    Solvers add it to the diagonal, because dependent gradients would otherwise leave the solution
    undetermined.
    """
    return 16.0 * torch.finfo(gram.dtype).eps


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows [T, P] scaled to length 1 and their lengths [T], float64; zero rows stay zero."""
    low, high = torch.aminmax(rows, dim=1)
    peaks = torch.maximum(high, -low)
    # Divided by the largest entry first: plain squares overflow float32 at 1e19 and vanish at 1e-23.
    scaled = rows / torch.where(peaks > 0.0, peaks, 1.0).unsqueeze(-1)
    inner = torch.linalg.vector_norm(scaled, dim=1)
    units = scaled / torch.where(inner > 0.0, inner, 1.0).unsqueeze(-1)
    return units, peaks.to(torch.float64) * inner.to(torch.float64)


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """Rule out TF32 and bfloat16 within float32 products on this kind of device."""
    backend: Any = torch.backends.cuda.matmul if device == "cuda" else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    if not hasattr(backend, "fp32_precision"):  # before torch 2.9 there is one setting for all devices
        setting = torch.get_float32_matmul_precision()
        if setting == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(setting)
        return
    # torch forbids reading the older setting once a program has used the newer one.
    reduced = backend.fp32_precision
    if reduced in ("ieee", "none"):
        yield
        return
    backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = reduced


def _products(left: Tensor, right: Tensor) -> Tensor:
    tasks, parameters = left.shape
    chunks = parameters // _CHUNK
    if left.device.type != "cpu" or chunks < 2:
        return left @ right.T
    whole = chunks * _CHUNK
    blocks = [rows[:, :whole].view(tasks, chunks, _CHUNK).transpose(0, 1) for rows in (left, right)]
    # Each block is a sum of 2048 products; adding the blocks in float64 loses nothing more.
    total = torch.bmm(blocks[0], blocks[1].mT).sum(0, dtype=torch.float64)
    return (total + left[:, whole:] @ right[:, whole:].T).to(left.dtype)
