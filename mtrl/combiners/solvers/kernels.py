"""Launches of the kernels that solve problems on a CUDA device."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mtrl.combiners.solvers.kernels_newton import bargain, capped
from mtrl.combiners.solvers.kernels_path import ball, cone, hull, next_power_of_2, projected
from mtrl.combiners.solvers.kernels_surgery import surgery
from mtrl.combiners.solvers.kernels_weights import emtl, equal
from mtrl.combiners.solvers.path import tolerance_of
from mtrl.combiners.solvers.worst_case import LEAST_COSINE


def launch(name: str, gram: Tensor, vectors: Sequence[Tensor], numbers: Sequence[float], out: Tensor) -> None:
    """Solve a problem of `backends.PROBLEMS` for a contiguous Gramian [T, T] into `out`, by one launch."""
    kernel, programs, tensors, constants = planned(name, gram, vectors, numbers)
    kernel[(programs,)](*tensors, out, len(gram), **constants)


def planned(
    name: str, gram: Tensor, vectors: Sequence[Tensor], numbers: Sequence[float]
) -> tuple[Any, int, tuple[Tensor, ...], dict[str, Any]]:
    """Return the kernel of a problem, its number of programs, its inputs, and its constants and options."""
    tasks = len(gram)
    size = next_power_of_2(max(tasks + (name == "cone"), 2))
    # So many warps that a matrix [N, N] and its tableau stay in registers: 32 of a thread's 255 each at most.
    options: dict[str, Any] = {"N": size, "num_warps": max(1, min(size, 64) ** 2 // 512)}
    match name:
        case "hull":
            return hull, 1, (gram,), {"TOLERANCE": tolerance_of(*numbers), **options}
        case "ball" | "around":
            c, eps, referred, scaled = numbers if name == "around" else (1.0, *numbers, False, False)
            kind = 0 if name == "ball" else 1 if referred else 2
            constants = {"C": c, "KIND": kind, "SCALED": bool(scaled), "TOLERANCE": tolerance_of(eps)}
            first, last = (vectors[0], vectors[-1]) if vectors else (gram, gram)
            return ball, 1, (gram, first, last), constants | options
        case "cone":
            c, eps = numbers
            return cone, 1, (gram,), {"C": max(c, LEAST_COSINE), "TOLERANCE": tolerance_of(eps), **options}
        case "capped":
            cap, eps = numbers
            return capped, 1, (gram,), {"CAP": cap, "TOLERANCE": tolerance_of(eps), **options}
        case "bargain":
            names = ("ALPHA", "RIDGE", "ADDED", "BOUND", "STEPS")
            alpha, ridge, added, bound, steps = numbers
            constants = dict(zip(names, (alpha, ridge, added, bound, int(steps)), strict=True))
            return bargain, 1, (gram,), constants | options
        case "emtl":
            return emtl, 1, (gram, *vectors), {"LAM": numbers[0], **options}
        case "equal":
            projected_too, ridge = numbers
            return equal, 1, (gram,), {"PROJECTED": bool(projected_too), "RIDGE": ridge, **options}
        case "cone_weights" | "cone_projection":
            units = name == "cone_weights"
            constants = {"UNITS": units, "RIDGE": numbers[0], "TOLERANCE": tolerance_of(0.0)}
            return (
                projected,
                tasks if units else 1,
                (gram, gram if units else vectors[0]),
                constants | options,
            )
        case "surgery" | "vaccine":
            constants = {"BETA": numbers[0] if numbers else 0.0, "VACCINE": name == "vaccine"}
            return surgery, tasks, (gram, vectors[0], vectors[-1]), constants | options
    raise ValueError(f"no kernel for the problem {name!r}.")
