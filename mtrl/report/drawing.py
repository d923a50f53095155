"""What all figures are drawn with: style, panels, legends, heat maps. Only figures import matplotlib."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ticker import EngFormatter

from mtrl.errors import UserError
from mtrl.runs.log import STEP_LABEL

# Okabe and Ito's colours, which colour-blind readers can tell apart, and three more; not black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C564B", "#B8A800")
_DASHES = ("-", "--", ":", "-.")
_DOTS_PER_INCH = 160
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small files, searchable
    "pdf.fonttype": 42,  # TrueType: journals refuse matplotlib's default, Type 3
}


class Look(NamedTuple):
    """How figures look; the default fits a page of a browser."""

    width: float | None = None  # inches of every figure; None: what its contents need
    height: float | None = None  # None: in proportion to the width
    font: str | None = None  # a family such as serif, or an installed font
    font_size: float | None = None  # points


class Figure(NamedTuple):
    """A drawing with the name of its files and the words below it."""

    name: str
    title: str
    caption: str
    drawing: MatplotlibFigure


@contextmanager
def style(look: Look) -> Iterator[None]:
    """Draw in one style inside the context.

    Raises:
        UserError: a font that is not installed.
    """
    changes: dict[str, Any] = {}
    if look.font is not None:
        try:
            findfont(FontProperties(family=look.font), fallback_to_default=False)
        except ValueError:
            raise UserError(f"--font: '{look.font}' is not installed. Try serif or sans-serif.") from None
        changes["font.family"] = look.font
    if look.font_size is not None:
        changes["font.size"] = look.font_size
    with mpl.rc_context(_STYLE | changes), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a task's name in another script
        warnings.filterwarnings("ignore", message="constrained_layout not applied")  # a very small --size
        yield


def save(figure: Figure, folder: Path, look: Look) -> list[Path]:
    """Write a drawing in all formats; return the files."""
    drawing = figure.drawing
    if look.width is not None:
        width, height = drawing.get_size_inches()
        drawing.set_size_inches(look.width, look.height or height * look.width / width)
    # Laying out takes longer than drawing: once is enough for all formats. `savefig` would draw each twice.
    drawing.draw_without_rendering()
    drawing.set_layout_engine("none")
    png, svg, pdf = (folder / f"{figure.name}.{suffix}" for suffix in ("png", "svg", "pdf"))
    FigureCanvasAgg(drawing).print_png(png)
    FigureCanvasSVG(drawing).print_svg(svg)
    FigureCanvasPdf(drawing).print_pdf(pdf)
    return [png, svg, pdf]


def panels(
    count: int, width: float, height: float, widest: int = 5, titles: Sequence[str] = (), **options: Any
) -> tuple[MatplotlibFigure, list[Any]]:
    """Return a drawing of `count` panels, at most `widest` in a row, and their axes.

    Args:
        count: number of panels.
        width: of a panel, in inches.
        height: of a panel, in inches, without its title.
        widest: number of panels in a row at most.
        titles: of the panels; long ones are broken into lines, for which the drawing grows.
        options: of `Figure.subplots`.
    """
    columns = min(count, widest)
    rows = -(-count // columns)
    broken = [wrapped(title, width, "small") for title in titles]
    height += 0.18 * max((text.count("\n") + 1 for text in broken), default=0)
    drawing = MatplotlibFigure(
        figsize=(columns * width + 0.4, rows * height + 0.6), layout="constrained", dpi=_DOTS_PER_INCH
    )
    axes = list(drawing.subplots(rows, columns, squeeze=False, **options).flat)
    for index, unused in enumerate(axes[count:], start=count):
        unused.set_visible(False)
        if options.get("sharex"):  # the panel above is then the lowest of its column
            axes[index - columns].tick_params(labelbottom=True)
    for panel, title in zip(axes, broken, strict=False):
        panel.set_title(title, fontsize="small")
    return drawing, axes[:count]


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the index-th line of a figure; none is used twice among 36."""
    dashes = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": dashes}


def label_steps(axes: Any, text: str = STEP_LABEL, ticks: int = 5) -> None:
    """Name the axis of vector steps; 50 k instead of 50000."""
    axes.set_xlabel(text)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.get_major_locator().set_params(nbins=ticks)


def legend(drawing: Any, handles: Sequence[Any], labels: Sequence[str], place: str = "lower") -> None:
    """Put one legend for all panels under them, or above ("upper"); the drawing grows by its height."""
    width, height = drawing.get_size_inches()
    texts = [wrapped(label, width - 0.6, "small") for label in labels]
    lines = [line for text in texts for line in text.split("\n")]
    columns = max(1, min(len(labels), 5, int(width / (max(map(text_inches, lines), default=0.0) + 0.6))))
    tallest = max((text.count("\n") + 1 for text in texts), default=1)
    drawing.set_figheight(height + 0.2 * tallest * -(-len(labels) // columns))
    drawing.legend(handles, texts, loc=f"outside {place} center", ncols=columns, fontsize="small")


def heat_map(axes: Any, values: Any, rows: Sequence[str], columns: Sequence[str], **options: Any) -> Any:
    """Draw a matrix with named rows and columns; return the image."""
    image = axes.imshow(values, **options)
    axes.grid(visible=False)
    is_long = max(map(len, columns)) > 3
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
    axes.set_xticks(range(len(columns)), [_literal(name) for name in columns], **turned)
    axes.set_yticks(range(len(rows)), [wrapped(name, 4.0, "medium") for name in rows])
    return image


def name_rows(axes: Any, labels: Sequence[str]) -> None:
    """Name the rows of a chart from top to bottom."""
    axes.set_yticks(range(len(labels)), [wrapped(label, 4.0, "medium") for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)


def label_width(labels: Sequence[str]) -> float:
    """Return the inches that `name_rows` needs beside the chart."""
    return min(4.0, max(map(text_inches, labels)))


def text_inches(text: str) -> float:
    """Return about the width of a small text in the current font size."""
    return len(text) * float(mpl.rcParams["font.size"]) * 0.56 / 72.0


def wrapped(text: str, inches: float, size: str) -> str:
    """Break a text into lines of about a width, and protect what matplotlib would read as a formula."""
    scale = 0.833 if size == "small" else 1.0
    letters = max(8, int(inches * 72.0 / (mpl.rcParams["font.size"] * scale * 0.58)))
    return "\n".join(map(_literal, textwrap.wrap(text, letters))) or " "


def _literal(text: str) -> str:
    # $ begins a formula; a legend leaves out what begins with an underscore.
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")
