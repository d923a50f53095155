"""Gradient combiners: per-task gradients in, one descent direction out.

Needs torch, NumPy, and of mtrl only `errors` and `registry`.
"""

from mtrl.combiners._jacobian_at import JacobianAt
from mtrl.combiners.base import Combiner, GramCombiner, JacobianCombiner, LossCombiner
from mtrl.combiners.registry import COMBINERS, make_combiner, scan

scan()

__all__ = [
    "COMBINERS",
    "Combiner",
    "GramCombiner",
    "JacobianAt",
    "JacobianCombiner",
    "LossCombiner",
    "make_combiner",
]
