"""What all figures are drawn with: style, panels, legends, heat maps. Only figures import matplotlib."""

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.textpath import text_to_path

from mtrl.config.files import write_file
from mtrl.errors import UserError
from mtrl.report.tables import MOST_ROWS
from mtrl.report.ticks import RoundTicks, ShortTexts, number_axis
from mtrl.runs.log import STEP_LABEL

# Okabe and Ito's colours but black and yellow, which colour-blind readers can tell apart; three more.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C564B", "#B8A800")
_DASHES = ("-", "--", ":", "-.")
_DOTS_PER_INCH = 160
_FONT_SIZE = 10.0  # points, for which the sizes in the code are meant: all grow with the text
_TITLE_SHARE = 0.85  # of a panel's width that its title may take: tick labels take the rest
_NARROWEST = 0.55  # smallest share of a panel's natural width, when columns are chosen by width alone
_STYLE = {
    "font.size": _FONT_SIZE,
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
    height: float | None = None  # None: what the contents need at that width
    font: str | None = None  # a family such as serif, or an installed font
    font_size: float | None = None  # points


class Room(NamedTuple):
    """What a figure has to fit into; without a size it is as large as its contents need."""

    width: float | None = None  # inches
    height: float | None = None  # inches; None: what the contents need at that width
    rows: int = MOST_ROWS  # that it shows at most
    tasks: int | None = None  # that it shows at most; None: all


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


def save(figure: Figure, folder: Path) -> list[Path]:
    """Write a drawing, which is already laid out, in all formats; return the files."""
    # `savefig` would draw each twice.
    formats: dict[str, Callable[[BinaryIO], object]] = {
        "png": FigureCanvasAgg(figure.drawing).print_png,
        "svg": FigureCanvasSVG(figure.drawing).print_svg,
        "pdf": FigureCanvasPdf(figure.drawing).print_pdf,
    }
    written = []
    for suffix, draw in formats.items():
        buffer = io.BytesIO()
        draw(buffer)
        written.append(folder / f"{figure.name}.{suffix}")
        write_file(written[-1], buffer.getvalue())
    return written


def panels(
    room: Room,
    count: int,
    width: float,
    height: float,
    widest: int = 5,
    titles: Sequence[str] = (),
    *,
    beside: float = 0.4,
    below: float = 0.6,
    **options: Any,
) -> tuple[MatplotlibFigure, list[Any]]:
    """Return a drawing of `count` panels and their axes, arranged so that they fill the room.

    Args:
        room: what the drawing has to fit into.
        count: number of panels.
        width: of a panel, in inches at a font size of 10 points.
        height: of a panel, likewise, without its title.
        widest: number of panels beside each other at most, in a room without a size.
        titles: of the panels; long ones are broken into lines, for which the drawing grows.
        beside: width of what stands beside all panels, in inches at 10 points.
        below: height of what stands below all panels, likewise.
        options: of `Figure.subplots`.
    """
    width, height, beside, below = (em() * inches for inches in (width, height, beside, below))

    def title_height(panel: float) -> float:
        broken = [wrapped(title, _TITLE_SHARE * panel, "small") for title in titles]
        return 0.18 * em() * max((text.count("\n") + 1 for text in broken), default=0)

    def scale(columns: int) -> float:
        """Return how large panels become, relative to their natural size."""
        assert room.width is not None and room.height is not None
        panel = (room.width - beside) / columns
        free = (room.height - below) / -(-count // columns) - title_height(panel)
        return min(panel / width, free / height)

    columns = min(count, widest)
    if room.width is not None:
        if room.height is not None:
            columns = max(range(1, count + 1), key=scale)
        else:
            columns = max(1, min(columns, int((room.width - beside) / (_NARROWEST * width))))
        natural, width = width, (room.width - beside) / columns
        height *= min(1.0, width / natural)
    rows = -(-count // columns)
    size = (columns * width + beside, room.height or rows * (height + title_height(width)) + below)
    drawing = MatplotlibFigure(figsize=size, layout="constrained", dpi=_DOTS_PER_INCH)
    axes = list(drawing.subplots(rows, columns, squeeze=False, **options).flat)
    for index, unused in enumerate(axes[count:], start=count):
        unused.set_visible(False)
        if options.get("sharex"):  # the panel above is then the lowest of its column
            axes[index - columns].tick_params(labelbottom=True)
    for panel in axes:
        number_axis(panel.xaxis)
        number_axis(panel.yaxis)
    for panel, title in zip(axes, titles, strict=False):
        panel.set_title(wrapped(title, _TITLE_SHARE * width, "small"), fontsize="small")
    return drawing, axes[:count]


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the index-th line of a figure; none is used twice among 36."""
    dashes = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": dashes}


def name_axes(drawing: Any, grid: Sequence[Any], x: str, y: str = "") -> None:
    """Name the axes of a panel, or those that all panels share; long names are broken or shortened."""
    width, height = drawing.get_size_inches()
    if x == STEP_LABEL and "\n" in wrapped(x, 0.8 * width, "medium"):
        x = x.partition(" (")[0]
    x, y = wrapped(x, 0.8 * width, "medium"), wrapped(y, 0.7 * height, "medium")
    if len(grid) == 1:
        grid[0].set(xlabel=x, ylabel=y)
        return
    drawing.supxlabel(x, fontsize="medium")
    if y.strip():
        drawing.supylabel(y, fontsize="medium")


def legend(
    room: Room, drawing: Any, handles: Sequence[Any], labels: Sequence[str], place: str = "lower"
) -> None:
    """Put one legend for all panels under them, or above ("upper"); the drawing grows by it if it may."""
    width, height = drawing.get_size_inches()
    texts = [wrapped(label, width - 0.6 * em(), "small") for label in labels]
    lines = [line for text in texts for line in text.split("\n")]
    column = max(map(text_inches, lines), default=0.0) + 0.6 * em()
    columns = max(1, min(len(labels), 5, int(width / column)))
    if room.height is None:
        tallest = max((text.count("\n") + 1 for text in texts), default=1)
        drawing.set_figheight(height + 0.2 * em() * tallest * -(-len(labels) // columns))
    drawing.legend(handles, texts, loc=f"outside {place} center", ncols=columns, fontsize="small")


def heat_map(axes: Any, values: Any, rows: Sequence[str], columns: Sequence[str], **options: Any) -> Any:
    """Draw a matrix with named rows and columns; return the image."""
    image = axes.imshow(values, **options)
    axes.figure.set_layout_engine("compressed")  # square cells leave free room, which this layout removes
    axes.grid(visible=False)
    is_long = max(map(len, columns)) > 3
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
    axes.set_xticks(range(len(columns)), [literal(name) for name in columns], **turned)
    axes.set_yticks(range(len(rows)), rows)
    return image


def colour_bar(drawing: Any, image: Any, axes: Any, name: str, shrink: float) -> None:
    """Draw the scale of a heat map beside it."""
    label = wrapped(name, shrink * 0.8 * drawing.get_figheight(), "medium")
    bar = drawing.colorbar(image, ax=axes, shrink=shrink, label=label)
    bar.locator, bar.formatter = RoundTicks(), ShortTexts()
    bar.update_ticks()


def name_rows(axes: Any, labels: Sequence[str]) -> None:
    """Name the rows of a chart from top to bottom."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)


def row_names(room: Room, labels: Sequence[str]) -> tuple[list[str], float, int]:
    """Return the names of rows beside a chart, broken into lines; their width in inches, and most lines."""
    widest = 4.0 * em() if room.width is None else 0.4 * room.width
    broken = [wrapped(label, widest, "medium") for label in labels]
    lines = [text.split("\n") for text in broken]
    width = max(text_inches(line) for text in lines for line in text)
    return broken, min(widest, width), max(map(len, lines))


def em() -> float:
    """Return the current font size relative to the one that sizes in the code are meant for."""
    return float(mpl.rcParams["font.size"]) / _FONT_SIZE


def text_inches(text: str) -> float:
    """Return the width of a text in the current font and size."""
    return float(text_to_path.get_text_width_height_descent(literal(text), FontProperties(), False)[0]) / 72.0


def wrapped(text: str, inches: float, size: str) -> str:
    """Break a text into lines of about a width, and protect what matplotlib would read as a formula."""
    scale = 0.833 if size == "small" else 1.0
    letters = max(8, int(inches * 72.0 / (mpl.rcParams["font.size"] * scale * 0.58)))
    words = [part for word in text.split() for part in _parts(word, letters)]
    lines = textwrap.wrap(" ".join(words), letters)
    for narrower in range(max(map(len, words), default=letters), letters):
        balanced = textwrap.wrap(" ".join(words), narrower)
        if len(balanced) == len(lines):
            lines = balanced
            break
    return "\n".join(map(literal, lines)) or " "


def _parts(word: str, letters: int) -> Iterator[str]:
    """Yield a word in parts that fit a line, broken after a sign such as _ or = if possible."""
    part = ""
    for piece in re.split(r"(?<=[_=./])", word):
        if part and len(part) + len(piece) > letters:
            yield part
            part = ""
        part += piece
    yield part


def literal(text: str) -> str:
    """Return a text as matplotlib shows it unchanged."""
    # $ begins a formula; a legend leaves out what begins with an underscore.
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def short_names(tasks: Sequence[str]) -> list[str]:
    """Return the names of tasks without the version that all have: reach for reach-v3."""
    ends = {re.sub(r".*(?=-v\d+$)", "", task) for task in tasks}
    (end,) = ends if len(ends) == 1 else ("",)
    return [task.removesuffix(end) for task in tasks] if end != tasks[0] else list(tasks)
