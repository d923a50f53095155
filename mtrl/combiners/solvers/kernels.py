"""Launches of the kernels that solve problems on a CUDA device."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mtrl.combiners.solvers.kernels_newton import bargain, capped
from mtrl.combiners.solvers.kernels_path import ball, cone, hull, next_power_of_2, projected
from mtrl.combiners.solvers.kernels_surgery import surgery
from mtrl.combiners.solvers.path import tolerance_of
from mtrl.combiners.solvers.worst_case import LEAST_COSINE


def launch(name: str, gram: Tensor, vectors: Sequence[Tensor], numbers: Sequence[float], out: Tensor) -> None:
    """Solve a problem of `backends.PROBLEMS` for a contiguous Gramian [T, T] into `out`, by one launch."""
    tasks = len(gram)
    size = next_power_of_2(max(tasks + (name == "cone"), 2))
    options: dict[str, Any] = {"N": size, "num_warps": max(1, size // 16)}
    match name:
        case "hull":
            hull[(1,)](gram, out, tasks, TOLERANCE=tolerance_of(*numbers), **options)
        case "ball":
            kind: dict[str, Any] = {"C": 1.0, "KIND": 0, "SCALED": False, "TOLERANCE": tolerance_of(*numbers)}
            ball[(1,)](gram, vectors[0], gram, out, tasks, **kind, **options)
        case "around":
            c, eps, referred, scaled = numbers
            kind = {
                "C": c,
                "KIND": 1 if referred else 2,
                "SCALED": bool(scaled),
                "TOLERANCE": tolerance_of(eps),
            }
            first, last = (vectors[0], vectors[-1]) if vectors else (gram, gram)
            ball[(1,)](gram, first, last, out, tasks, **kind, **options)
        case "cone":
            c, eps = numbers
            cone[(1,)](gram, out, tasks, C=max(c, LEAST_COSINE), TOLERANCE=tolerance_of(eps), **options)
        case "capped":
            cap, eps = numbers
            capped[(1,)](gram, out, tasks, CAP=cap, TOLERANCE=tolerance_of(eps), **options)
        case "bargain":
            names = ("ALPHA", "RIDGE", "ADDED", "BOUND", "STEPS")
            alpha, ridge, added, bound, steps = numbers
            constants: dict[str, Any] = dict(
                zip(names, (alpha, ridge, added, bound, int(steps)), strict=True)
            )
            bargain[(1,)](gram, out, tasks, **constants, **options)
        case "cone_weights" | "cone_projection":
            units = name == "cone_weights"
            constants = {"UNITS": units, "RIDGE": numbers[0], "TOLERANCE": tolerance_of(0.0)}
            first = gram if units else vectors[0]
            projected[(tasks if units else 1,)](gram, first, out, tasks, **constants, **options)
        case "surgery" | "vaccine":
            vaccine = name == "vaccine"
            targets, constants = vectors[-1], {"BETA": numbers[0] if vaccine else 0.0, "VACCINE": vaccine}
            surgery[(tasks,)](gram, vectors[0], targets, out, tasks, **constants, **options)
        case _:
            raise ValueError(f"no kernel for the problem {name!r}.")
