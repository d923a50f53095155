"""Converts trees of state to tensors and plain values, which `torch.load(weights_only=True)` reads.

A numpy array or scalar becomes a tensor of its bytes with dtype and shape, so every numeric dtype is restored
exactly.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ARRAY = "__numpy__"
_INTEGER = "__integer__"  # in place of a dtype
_PICKLED_BITS = 2040  # from here on pickle writes integers in a form that `weights_only` does not read
_NUMERIC_KINDS = "biufc"


def to_plain(value: Any, where: str) -> Any:
    """Return a tree without numpy, tensors on the CPU; `where` names its root in messages.

    Takes dict (keys str or int), list, tuple, dense tensor, numeric numpy array or scalar, int of any size,
    float, str, bool, None. Subclasses of dict and tuple become dict and tuple; views are copied.

    Raises:
        TypeError: any other type; names its place in the tree.
    """
    if isinstance(value, Tensor):
        return _plain_tensor(value, where)
    if isinstance(value, np.generic) or type(value) is np.ndarray:
        return _plain_array(value, where)
    if type(value) is int and value.bit_length() >= _PICKLED_BITS:
        content = bytearray(value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
        return {_ARRAY: _INTEGER, "shape": None, "data": torch.frombuffer(content, dtype=torch.uint8)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        for key in value:
            large = type(key) is int and key.bit_length() >= _PICKLED_BITS
            if type(key) not in (str, int) or key == _ARRAY or large:
                raise TypeError(
                    f"{where}: keys must be str or int below 2^{_PICKLED_BITS} and not {_ARRAY!r}; found "
                    f"{type(key).__name__ if large else repr(key)}."
                )
        return {key: to_plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [to_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(
        f"{where}: only dict, list, tuple, tensors, numeric arrays, numbers, str, bool and None "
        f"can be saved; found {type(value).__name__}."
    )


def copied(value: Any) -> Any:
    """Return a copy of a tree that shares no memory with it, tensors on the CPU."""

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.detach().to("cpu", copy=True)
        return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

    return _mapped(value, copy)


def from_plain(value: Any) -> Any:
    """Invert `to_plain`. Raises ValueError, TypeError or KeyError for a damaged description of an array."""
    return _mapped(value, lambda leaf: _array(leaf) if isinstance(leaf, dict) else leaf)


def _mapped(value: Any, of_leaf: Callable[[Any], Any]) -> Any:
    """Apply `of_leaf` to everything that is no container; the description of an array is a leaf."""
    if isinstance(value, dict) and _ARRAY not in value:
        return {key: _mapped(item, of_leaf) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_mapped(item, of_leaf) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return of_leaf(value)


def _plain_tensor(tensor: Tensor, where: str) -> Tensor:
    if tensor.layout is not torch.strided:
        raise TypeError(f"{where}: only dense tensors can be saved; found {tensor.layout}.")
    plain = tensor.detach().as_subclass(Tensor).cpu()
    # torch.save writes the whole storage behind a view.
    whole = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
    return plain if whole else plain.clone(memory_format=torch.contiguous_format)


def _plain_array(value: Any, where: str) -> dict[str, Any]:
    array = np.asarray(value)
    if array.dtype.kind not in _NUMERIC_KINDS:
        raise TypeError(f"{where}: only arrays of numbers can be saved; found dtype {array.dtype}.")
    flat = np.ascontiguousarray(array).reshape(-1)
    if not flat.flags.writeable:  # torch has no read-only tensors and warns
        flat = flat.copy()
    return {
        _ARRAY: array.dtype.str,
        "shape": None if isinstance(value, np.generic) else tuple(array.shape),
        "data": torch.from_numpy(flat.view(np.uint8)),
    }


def _array(value: dict[Any, Any]) -> Any:
    if value[_ARRAY] == _INTEGER:
        return int.from_bytes(value["data"].numpy().tobytes(), "little", signed=True)
    dtype = np.dtype(value[_ARRAY])
    if dtype.kind not in _NUMERIC_KINDS:  # a crafted file may name the dtype of objects
        raise ValueError(f"array of dtype {dtype}")
    flat = value["data"].numpy().view(dtype)
    return flat[0] if value["shape"] is None else flat.reshape(value["shape"])
