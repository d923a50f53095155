"""Ticks of axes: as many as have room, with the fewest digits that tell them apart."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import Formatter, MaxNLocator, NullFormatter

_PREFIXES = ((0, ""), (3, "k"), (6, "M"), (9, "G"))
_MOST_DECIMALS = 9
_LONGEST = 6  # characters; longer numbers are written with a power of ten
_MOST_STEPS = 8  # between the ticks of an axis
_LABEL_SHARE = 0.85  # of matplotlib's estimate of how many labels have room beside each other, not above


def number_axis(axis: Any) -> None:
    """Give an axis (`axes.xaxis`, `axes.yaxis`), linear or logarithmic, round ticks that have room."""
    axis.set_major_locator(LogTicks() if axis.get_scale() == "log" else RoundTicks())
    axis.set_major_formatter(ShortTexts())
    axis.set_minor_formatter(NullFormatter())


class RoundTicks(MaxNLocator):
    """Ticks at multiples of 1, 2 or 5 times a power of ten: never more than have room."""

    def __init__(self) -> None:
        super().__init__(nbins=_MOST_STEPS, steps=[1, 2, 5, 10])

    def __call__(self) -> Any:
        """Return the places of the ticks for the axis as long as it is now."""
        self.set_params(nbins=_room(self.axis))
        return super().__call__()


class LogTicks(RoundTicks):
    """Ticks of a logarithmic axis at 1, 2 and 5 times powers of ten, at fewer where these have no room."""

    def __call__(self) -> Any:
        """Return the places of the ticks for the axis as long as it is now."""
        axis: Any = self.axis
        low, high = sorted(axis.get_view_interval())
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits, stride in (((1, 2, 5), 1), ((1, 3), 1), *(((1,), stride) for stride in (1, 2, 3, 5, 10))):
            powers = (power for power in decades if power % stride == 0)
            places = [digit * 10.0**power for power in powers for digit in digits]
            seen = [place for place in places if low <= place <= high]
            if 2 <= len(seen) <= _room(axis) + 1:
                return np.array(seen)
        return super().__call__()  # less than a decade


class ShortTexts(Formatter):
    """Texts of ticks, see `tick_texts`; many powers of ten are written as such."""

    def __call__(self, value: float, position: int | None = None) -> str:
        """Return the text of a tick that stands alone."""
        return self.format_ticks([value])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Return the texts of all ticks of an axis."""
        if len(values) > 1 and min(values) > 0.0 and max(values) / min(values) > 100.0:
            powers = [math.log10(value) for value in values]
            if all(abs(power - round(power)) < 1e-9 for power in powers):
                return [rf"$10^{{{round(power)}}}$" for power in powers]
        return [self.fix_minus(text) for text in tick_texts(values)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """Return the shortest exact texts of the ticks of one axis, all with equally many decimals.

    Thousands, millions and billions become k, M and G where that is shorter: 0, 20k, 40k; 0.0, 0.5, 1.0.
    """
    apart = [abs(a - b) for a, b in itertools.pairwise(values) if a != b]
    tolerance = 1e-6 * min(apart, default=max(map(abs, values), default=0.0))
    forms = []
    for power, prefix in _PREFIXES:
        decimals = _decimals([value / 10**power for value in values], tolerance / 10**power)
        forms.append([_text(value / 10**power, decimals, prefix) for value in values])
    shortest = min(forms, key=_width)  # the first of these: without a prefix, if that is as short
    if _width(shortest) <= _LONGEST or not apart:
        return shortest
    power = math.floor(math.log10(min(apart)) + 1e-9)
    scaled = [value / 10.0**power for value in values]
    written = [_text(value, _decimals(scaled, tolerance / 10.0**power), f"e{power}") for value in scaled]
    return min(shortest, written, key=_width)


def _decimals(values: Sequence[float], tolerance: float) -> int:
    """Return how many decimals it takes to write the values exactly."""
    for decimals in range(_MOST_DECIMALS):
        if all(abs(round(value, decimals) - value) <= tolerance for value in values):
            return decimals
    return _MOST_DECIMALS


def _text(value: float, decimals: int, suffix: str) -> str:
    text = f"{value:.{decimals}f}"
    if float(text) == 0.0:  # also -0; a bare 0 needs no unit
        return text.removeprefix("-") + (suffix if decimals else "")
    return text + suffix


def _width(texts: Sequence[str]) -> int:
    return max(map(len, texts), default=0)


def _room(axis: Any) -> int:
    """Return how many steps between ticks an axis has room for."""
    share = _LABEL_SHARE if axis.axis_name == "x" else 1.0
    return max(1, min(_MOST_STEPS, int(axis.get_tick_space() * share)))
