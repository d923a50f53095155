"""Kernels run on NumPy: their sources, with a stand-in for `triton.language`.

Triton's own interpreter patches the language anew at every call of a function, so that a kernel of 64 tasks
takes minutes. Here the same functions take milliseconds. Dtypes follow Triton's rules: a Python number takes
a tensor's dtype, and two of them make a tensor of single precision. Reads and writes beyond a tensor's end
are errors. `tests/combiners/solvers/test_kernels.py` compares both on every kernel, bit for bit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dis import get_instructions
from functools import cache, partial
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
I32, I64, BOOL = np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.bool_)
_KINDS: dict[Any, int] = {bool: 0, BOOL: 0, int: 1, I32: 1, I64: 1, float: 2, F32: 2, F64: 2}
_SINGLE = 2.0**-126, float(np.finfo(np.float32).max)  # numbers beyond are of double precision


def run(kernel: Any, programs: range, *given: Any, **constants: Any) -> None:
    """Run programs of a function decorated by `triton.jit` on CPU tensors, its pointers, and integers."""
    function = _translated(kernel.fn)
    constants.pop("num_warps", None)
    arguments = [_Pointer(one) if isinstance(one, torch.Tensor) else _Value(np.int32(one)) for one in given]
    with np.errstate(all="ignore"):  # numbers that are not finite pass, and integers wrap, as on a device
        for program in programs:
            _LANGUAGE.program_id = lambda axis, program=program: _Value(np.int32(program))
            function(*arguments, **constants)


class Kernel:
    """A kernel that is launched as one of Triton's, `kernel[(programs,)](...)`, and runs on NumPy."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return partial(run, self.kernel, range(*grid))


@cache
def _translated(function: Any) -> Callable[..., None]:
    """The same code, which sees the stand-in, plain numbers and translated functions as its globals."""
    names: dict[str, Any] = dict(function.__globals__)
    asked = {step.argval for step in get_instructions(function) if step.opname == "LOAD_GLOBAL"}
    names |= {name: _stand_in(names[name]) for name in asked if name in names}
    return FunctionType(function.__code__, names)


def _stand_in(value: Any) -> Any:
    if value is tl:
        return _LANGUAGE
    if isinstance(value, ModuleType):
        return _Functions(value)
    if isinstance(value, tl.constexpr):
        return value.value
    return _translated(value.fn) if hasattr(value, "fn") else value


class _Functions:
    """A module whose functions are translated as they are asked for."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = _stand_in(getattr(self._module, name))
        setattr(self, name, found)
        return found


class _Value:
    """A tensor of a kernel."""

    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.data.shape
        return shape

    def __bool__(self) -> bool:
        return bool(self.data)  # refused for more than one element, as by the compiler

    def __index__(self) -> int:
        return int(self.data)

    def __getitem__(self, places: Any) -> _Value:
        return _Value(self.data[places])

    def __neg__(self) -> _Value:
        return _Value(-self.data)

    def __invert__(self) -> _Value:
        return _Value(~self.data)

    def __truediv__(self, other: Any) -> _Value:
        return _divided(self, other)

    def __rtruediv__(self, other: Any) -> _Value:
        return _divided(other, self)

    def to(self, dtype: Any) -> _Value:
        return _Value(self.data.astype(dtype))


def _dtype_of(value: Any) -> np.dtype[Any]:
    if type(value) is _Value:
        dtype: np.dtype[Any] = value.data.dtype
        return dtype
    if isinstance(value, int):
        return BOOL if isinstance(value, bool) else I32 if -(2**31) <= value < 2**31 else I64
    size = abs(value)
    return F32 if not 0.0 < size < np.inf or _SINGLE[0] <= size <= _SINGLE[1] else F64


def _operands(left: Any, right: Any) -> tuple[Any, Any]:
    """Two operands in their common dtype, or a Python number beside one, which NumPy then takes in it."""
    tensors = type(left) is _Value, type(right) is _Value
    if all(tensors) and left.data.dtype is right.data.dtype:
        return left.data, right.data
    if tensors[0] and not tensors[1] and _KINDS[type(right)] <= _KINDS[left.data.dtype]:
        return left.data, right
    if tensors[1] and not tensors[0] and _KINDS[type(left)] <= _KINDS[right.data.dtype]:
        return left, right.data
    present = _dtype_of(left), _dtype_of(right)
    common = next(dtype for dtype in (F64, F32, I64, I32, BOOL) if dtype in present)
    first, second = (one.data if type(one) is _Value else np.array(one) for one in (left, right))
    return first.astype(common, copy=False), second.astype(common, copy=False)


def _divided(left: Any, right: Any) -> _Value:
    left, right = _operands(left, right)
    if (right if type(left) in (int, float) else left).dtype.kind != "f":
        left, right = F32.type(left), F32.type(right)  # two integers
    return _Value(left / right)


def _binary(function: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    def forward(left: Any, right: Any) -> _Value:
        return _Value(function(*_operands(left, right)))

    return forward, lambda right, left: forward(left, right)


for _name in ("add", "sub", "mul", "and_", "or_", "xor", "rshift", "lt", "le", "gt", "ge", "eq", "ne"):
    _forward, _reflected = _binary(getattr(operator, _name))
    setattr(_Value, f"__{_name.strip('_')}__", _forward)
    if _name not in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(_Value, f"__r{_name.strip('_')}__", _reflected)


@contextmanager
def rounded_otherwise(seed: int) -> Iterator[None]:
    """Round half of all products to a neighbour of what they are, at random.

    A device fuses products with sums, and adds in another order.
    """
    generator = np.random.default_rng(seed)
    exact, _ = _binary(operator.mul)

    def times(left: Any, right: Any) -> _Value:
        found: _Value = exact(left, right)
        if found.data.dtype == F64:
            draws, sizes = generator.random(found.shape), np.abs(found.data)
            side = np.where(draws < 0.25, np.inf, -np.inf)
            # The neighbours of the smallest numbers are far away, and a square of 1 is not above 1.
            kept = (draws > 0.5) | (sizes < 1e-290) | (sizes == 1.0)
            found.data = np.where(kept, found.data, np.nextafter(found.data, side))[()]
        return found

    with (
        mock.patch.object(_Value, "__mul__", times),
        mock.patch.object(_Value, "__rmul__", lambda right, left: times(left, right)),
    ):
        yield


class _Pointer:
    """Addresses within a contiguous tensor."""

    def __init__(self, tensor: torch.Tensor, places: Any = 0) -> None:
        assert tensor.is_contiguous()
        self.tensor, self.places = tensor, places
        self.memory = tensor.detach().view(-1).numpy()

    def __add__(self, offset: Any) -> _Pointer:
        return _Pointer(self.tensor, self.places + (offset.data if isinstance(offset, _Value) else offset))


def _load(pointer: _Pointer, mask: _Value | None = None, other: Any = 0) -> _Value:
    if mask is None:
        return _Value(pointer.memory[pointer.places])
    within, places = np.broadcast_arrays(mask.data, pointer.places)
    found = np.full(places.shape, other, pointer.memory.dtype)
    found[within] = pointer.memory[places[within]]
    assert (places[within] >= 0).all()
    return _Value(found)


def _store(pointer: _Pointer, value: _Value, mask: _Value | None = None) -> None:
    within, places, data = np.broadcast_arrays(
        True if mask is None else mask.data, pointer.places, value.data
    )
    assert (places[within] >= 0).all()
    pointer.memory[places[within]] = data[within]


def _where(condition: _Value | bool, left: Any, right: Any) -> _Value:
    assert _dtype_of(condition) == BOOL
    flags = condition.data if isinstance(condition, _Value) else condition
    return _Value(np.where(flags, *_operands(left, right)))


def _one(function: Callable[[Any], Any]) -> Callable[[_Value], _Value]:
    return lambda value: _Value(function(value.data))


def _sum(value: _Value, axis: int) -> _Value:
    return _Value(value.data.sum(axis, dtype=value.data.dtype))


def _place(value: _Value, axis: int, sign: float) -> _Value:
    """The first place of the least number, or greatest; NaN is none."""
    numbers = np.where(np.isnan(value.data), np.inf, value.data * sign)
    return _Value(np.int32(numbers.argmin(axis)))


_LANGUAGE = SimpleNamespace(
    float32=F32,
    float64=F64,
    int32=I32,
    int64=I64,
    arange=lambda start, end: _Value(np.arange(start, end, dtype=I32)),
    full=lambda shape, value, dtype: _Value(
        np.full(shape, value.data if isinstance(value, _Value) else value, dtype)[()]
    ),
    load=_load,
    store=_store,
    where=_where,
    sqrt=_one(np.sqrt),
    exp=_one(np.exp),
    log=_one(np.log),
    abs=_one(np.abs),
    minimum=_binary(np.fmin)[0],
    maximum=_binary(np.fmax)[0],
    sum=_sum,
    min=lambda value, axis: _Value(np.fmin.reduce(value.data, axis)),
    max=lambda value, axis: _Value(np.fmax.reduce(value.data, axis)),
    argmin=lambda value, axis: _place(value, axis, 1.0),
    argmax=lambda value, axis: _place(value, axis, -1.0),
)
