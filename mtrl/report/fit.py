"""Fits a figure into the size that is asked for: smaller text first, then fewer rows, then fewer tasks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.text import Text
from numpy.typing import NDArray

from mtrl.report.drawing import Figure, Look, Room

_FONT_SIZES = (10.0, 9.0, 8.0, 7.0, 6.0, 5.0)  # points; tried from the left if none is asked for
_SMALLEST_PANEL = (4.0, 2.5)  # width and height of a panel in multiples of the font size
_SLACK = 1.0  # pixels that boxes of texts may overlap: they are taller than their letters

Boxes = NDArray[np.float64]  # [N, 4]: left, bottom, right, top, in pixels


class Fitted(NamedTuple):
    """A figure that is laid out."""

    figure: Figure
    fits: bool  # False: even the smallest text of the fewest rows does not fit the size that was asked for


class _Try(NamedTuple):
    font_size: float
    room: Room


def fitted(build: Callable[[Room], Figure | None], look: Look, rows: int, tasks: int) -> Fitted | None:
    """Return the figure with the largest text and the most rows and tasks that fit the look.

    Without a size in the look, the figure is as large as its contents need. The context has to be `style`.

    Args:
        build: draws the figure for a room; None if there is nothing to draw.
        look: size and font that are asked for.
        rows: number of rows that there are.
        tasks: number of tasks that there are.
    """
    tries = list(_tries(look, rows, tasks))
    first = _drawn(build, tries[0])
    if first is None or first.fits:
        return first
    # What fits one try fits all later ones: half of the rest is ruled out each time.
    best, low, high = first, 1, len(tries)
    while low < high:
        middle = (low + high) // 2
        found = _drawn(build, tries[middle])
        if found is None or found.fits:
            high = middle
        else:
            low = middle + 1
        if found is not None and (found.fits or not best.fits):
            best = found
    return best


def _tries(look: Look, rows: int, tasks: int) -> Iterator[_Try]:
    """Yield what may be tried, best first."""
    sizes = _FONT_SIZES if look.font_size is None else (look.font_size,)
    room = Room(look.width, look.height)
    yield from (_Try(size, room) for size in sizes)
    fewer = [most for most in (16, 12, 8, 6, 4, 3, 2, 1) if most < rows]
    yield from (_Try(sizes[-1], room._replace(rows=most)) for most in fewer)
    fewest = min(fewer, default=rows)
    for most in (25, 16, 12, 9, 6, 4, 2, 1):
        if most < tasks:
            yield _Try(sizes[-1], room._replace(rows=fewest, tasks=most))


def _drawn(build: Callable[[Room], Figure | None], one: _Try) -> Fitted | None:
    with mpl.rc_context({"font.size": one.font_size}):
        figure = build(one.room)
        if figure is None:
            return None
        # Laying out takes longer than drawing: once is enough for all formats.
        figure.drawing.draw_without_rendering()
        figure.drawing.set_layout_engine("none")
        return Fitted(figure, one.room.width is None or _fits(figure.drawing, one.font_size))


def _fits(drawing: Any, font_size: float) -> bool:
    """Whether no text is cut off or covers another, and panels are large enough to see lines in them."""
    canvas, em = drawing.bbox, font_size / 72.0 * drawing.dpi
    axes = [one for one in drawing.axes if one.get_visible()]
    if any(
        one.bbox.width < _SMALLEST_PANEL[0] * em or one.bbox.height < _SMALLEST_PANEL[1] * em
        for one in axes
        if one.get_label() != "<colorbar>"
    ):
        return False
    texts = [text for one in axes for text in _texts(one)]
    texts += [text for text in drawing.texts if text.get_text().strip()]
    texts += [text for legend in drawing.legends for text in legend.get_texts()]
    boxes = _boxes([text.get_window_extent() for text in texts])
    frames = [legend.get_window_extent() for legend in drawing.legends]
    return (
        bool((boxes[:, :2] >= -_SLACK).all())
        and bool((boxes[:, 2:] <= (canvas.width + _SLACK, canvas.height + _SLACK)).all())
        and not _overlap(boxes[[text.get_rotation() % 90 == 0 for text in texts]])
        and not _overlap(_boxes([_along(text) for text in texts if text.get_rotation() % 90]))
        and not any(frame.overlaps(one.bbox) for frame in frames for one in axes)
    )


def _texts(axes: Any) -> Iterator[Text]:
    """Yield the texts of a panel that are seen: title, names, ticks inside the view, numbers of cells."""
    found = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    for axis, place in ((axes.xaxis, 0), (axes.yaxis, 1)):
        low, high = sorted(axis.get_view_interval())
        slack = 1e-6 * (high - low)
        labels = axis.get_ticklabels(which="both")
        found += [label for label in labels if low - slack <= label.get_position()[place] <= high + slack]
    yield from (text for text in found if text.get_visible() and text.get_text().strip())


def _along(text: Text) -> Any:
    """Return the box of a tilted text in a frame of the same tilt: there boxes overlap only if texts do."""
    tilt = text.get_rotation()
    angle = np.deg2rad(tilt)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    anchor = text.get_transform().transform(text.get_position())
    text.set_rotation(0)
    box = text.get_window_extent()
    text.set_rotation(tilt)
    return box.translated(*(turn @ anchor - anchor))


def _boxes(extents: Sequence[Any]) -> Boxes:
    return np.array([box.extents for box in extents], float).reshape(-1, 4)


def _overlap(boxes: Boxes) -> bool:
    """Whether any two boxes overlap by more than the slack in both directions."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    both = (high - low > _SLACK).all(axis=-1)
    return bool(np.triu(both, 1).any())
