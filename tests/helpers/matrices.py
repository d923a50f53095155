"""Families of Jacobians [T, P] on which solvers differ; the accuracy benchmark uses the same."""

from __future__ import annotations

from mtrl_benchmarks._families import EXTREME, FAMILIES, jacobian

__all__ = ["EXTREME", "FAMILIES", "jacobian"]
