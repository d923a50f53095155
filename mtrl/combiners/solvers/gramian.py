"""Operations on the rows of a Jacobian [T, P] in full precision: inner products, weighted sum, lengths."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Columns per product: on a CPU a batch of narrow products runs three times as fast as a short and wide one.
_CHUNK = 2048
_BLOCK = 16_384
HALF = (torch.float16, torch.bfloat16)


def gramian(jacobian: Tensor) -> Tensor:
    """Inner products [T, T] of the rows of a Jacobian [T, P]; see `inner_products`."""
    return inner_products(jacobian, jacobian)


def inner_products(left: Tensor, right: Tensor) -> Tensor:
    """Inner products [T, T] between the rows of two Jacobians [T, P], in full precision.

    TF32 and bfloat16 products are switched off for this one product: solvers rely on entries that are exact
    to rounding. Half precision is multiplied in float32, since squares of numbers above 256 overflow float16,
    and blocks of columns are added in float64: the entries are exact to the rounding of float32.
    """
    with _full_precision(left.device.type):
        if left.dtype not in HALF:
            return _products(left, right)
        # In blocks: a copy of the whole Jacobian in float32 would take as long as the products.
        parts = []
        for part in column_blocks(left):
            block = left[:, part].float()
            parts.append(block @ (block if right is left else right[:, part].float()).T)
        return torch.stack(parts).sum(0, dtype=torch.float64).float()


def weighted_sum(weights: Tensor, jacobian: Tensor) -> Tensor:
    """Return `weights @ jacobian` [P] in the Jacobian's dtype, for weights of any dtype.

    Weights in float64 are not rounded to a float32 Jacobian's dtype. Rounding a weight shifts the direction
    along the whole of its gradient, which matters where gradients nearly cancel. The rounding of the products
    is harmless: it differs from entry to entry and averages out. Half precision is summed in float32.
    """
    with _full_precision(jacobian.device.type):
        if jacobian.dtype in HALF:
            parts = [weights.float() @ jacobian[:, part].float() for part in column_blocks(jacobian)]
            return torch.cat(parts).to(jacobian.dtype)
        if weights.dtype != torch.float64 or jacobian.dtype != torch.float32:
            return weights.to(jacobian.dtype) @ jacobian
        # The rounded weights and their remainders share one pass over the Jacobian, which takes the time.
        pair = jacobian.new_empty(2, *weights.shape)
        exact = weights.detach()
        torch.sub(exact, pair[0].copy_(exact), out=pair[1])
        whole, rest = pair @ jacobian
    combined: Tensor = whole + rest
    return combined


def weighted_sums(weights: Sequence[Tensor], jacobian: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the weighted sum [P] of each block of columns, with weights [T] of its own; see `weighted_sum`.

    Args:
        weights: one vector per block.
        jacobian: [T, P].
        sizes: of the blocks, which add up to P.
    """
    blocks = jacobian.split(list(sizes), dim=1)
    if jacobian.dtype != torch.float32 or any(own.dtype != torch.float64 for own in weights):
        return torch.cat([weighted_sum(own, block) for own, block in zip(weights, blocks, strict=True)])
    # As in `weighted_sum`; but for the products each operation is for all blocks.
    exact = torch.stack(list(weights)).detach()
    pairs = jacobian.new_empty(2, *exact.shape)
    torch.sub(exact, pairs[0].copy_(exact), out=pairs[1])
    sums = jacobian.new_empty(2, jacobian.shape[1])
    with _full_precision(jacobian.device.type):
        for pair, block, place in zip(pairs.unbind(1), blocks, sums.split(list(sizes), dim=1), strict=True):
            torch.mm(pair, block, out=place)
    return sums[0] + sums[1]


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


def cosines_or_zero(gram: Tensor) -> Tensor:
    """Return the cosines [T, T] of the gradients of a Gramian [T, T], 0 where one of the two is zero."""
    lengths = gram_lengths(gram)
    scales = torch.outer(lengths, lengths)
    return torch.where(scales > 0.0, gram / scales, 0.0)


def gram_lengths(gram: Tensor) -> Tensor:
    """Return the lengths [T] of the gradients of a Gramian [T, T]."""
    return gram.diagonal().clamp(min=0.0).sqrt()


def divisor(values: Tensor) -> Tensor:
    """Return values, with 1 in place of those that are not positive."""
    return torch.where(values > 0.0, values, 1.0)


def rounding_ridge(gram: Tensor) -> float:
    """Return 16 eps of the dtype, the size of the rounding error of a Gramian of unit gradients.

    Solvers add it to the diagonal, because dependent gradients would otherwise leave the solution
    undetermined.
    """
    return 16.0 * torch.finfo(gram.dtype).eps


def lengths_of(rows: Tensor) -> Tensor:
    """Return the lengths [T] of rows [T, P], float64; finite for all finite rows."""
    peaks = _peaks(rows)
    parts = [torch.linalg.vector_norm(block, dim=1).double() for block in _scaled_blocks(rows, peaks)]
    inner = torch.linalg.vector_norm(torch.stack(parts), dim=0) if len(parts) > 1 else parts[0]
    lengths: Tensor = peaks * inner
    return lengths


def one_over(lengths: Tensor, most: float = 1e30) -> Tensor:
    """Return one over lengths [T], 0 for a length of 0, and no more than `most` over the longest.

    Single precision holds no weight above 3e38, by which a method may stretch a short gradient to a long one.
    """
    inverse = lengths.reciprocal().nan_to_num(nan=torch.nan, posinf=0.0)
    # A length that is no number concerns its task alone.
    longest = lengths.nan_to_num(nan=0.0, posinf=0.0).amax()
    return torch.minimum(inverse, most / longest)


def lengths_and_cosines(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lengths [T] of rows [T, P] and their cosines [T, T], 0 for zero rows; float64.

    They are finite for all finite rows.
    """
    peaks = _peaks(rows)
    parts = [gramian(block).double() for block in _scaled_blocks(rows, peaks)]
    gram = torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]
    lengths = gram.diagonal().sqrt()
    return peaks * lengths, gram / torch.outer(lengths, lengths).clamp(min=1e-300)


def _peaks(rows: Tensor) -> Tensor:
    """Return the largest absolute entry [T] of each row, or a number beside which a row is zero."""
    peaks: Tensor
    if rows.device.type == "cpu":  # where the norm takes ten times as long, but elsewhere one launch
        peaks = torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))
    else:
        peaks = torch.linalg.vector_norm(rows, torch.inf, dim=1)
    return peaks.clamp(min=torch.finfo(rows.dtype).tiny)


def _scaled_blocks(rows: Tensor, peaks: Tensor) -> Iterator[Tensor]:
    """Yield rows [T, P] over their peaks, block by block of the columns; float32 for half precision.

    Plain squares overflow float32 at 1e19 and vanish at 1e-23. Memory for all quotients would take longer
    than what is computed from them.
    """
    dtype = torch.promote_types(rows.dtype, torch.float32)
    for part in column_blocks(rows):
        yield rows[:, part].to(dtype) / peaks.unsqueeze(-1)


def column_blocks(rows: Tensor) -> list[slice]:
    """Return slices that cover the columns of rows [T, P].

    On a CPU intermediate results of a few thousand columns stay in its cache, which is three times as fast as
    memory that is allocated for all columns. Elsewhere one slice covers all.
    """
    columns = rows.shape[1]
    width = _BLOCK if rows.device.type == "cpu" else max(columns, 1)
    return [slice(begin, min(begin + width, columns)) for begin in range(0, max(columns, 1), width)]


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """Rule out TF32 and bfloat16 within float32 products on this kind of device, and `torch.autocast`."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False), _full_precision(device):
            yield
        return
    # Before torch 2.9 there is one setting for all devices, and mkldnn has no `matmul`.
    backend: Any = (
        torch.backends.cuda.matmul if device == "cuda" else getattr(torch.backends.mkldnn, "matmul", None)
    )
    if not hasattr(backend, "fp32_precision"):
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
        backend.fp32_precision = "none"
        # What was read may be the setting of all operations, which this one is to go on following.
        if backend.fp32_precision != reduced:
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
