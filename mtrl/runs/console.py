"""Prints the start screen, progress, results and warnings: with rich on a terminal, else in plain lines."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # a circle otherwise: the log imports this module for its warnings
    from mtrl.runs.log import Evaluation

_REFRESH_SECONDS = 0.5
_WINDOW_SECONDS = 30.0  # of training, over which the rate is averaged


def start_screen(
    title: str, facts: Sequence[tuple[str, str]], notes: Sequence[str] = (), *, console: Console | None = None
) -> None:
    """Print the facts of a run before it starts: a panel on a terminal, else aligned `name  value` lines."""
    console = console or Console()
    if not console.is_interactive:
        width = max((len(name) for name, _ in facts), default=0)
        below = [*(f"{name:<{width}}  {value}" for name, value in facts), *notes]
        _print_plain(console, [title, *(f"  {line}" for line in below)])
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(name), Text(value))
    content = Group(table, *(Text(note, style="yellow") for note in notes))
    _print_rich(console, Panel(content, title=Text(title, style="bold"), title_align="left", expand=False))


def evaluation_line(step: int, result: "Evaluation") -> str:
    """Return the means of an evaluation as one line."""
    return (
        f"evaluation at {step:,}: success {_success(result.mean_success)} "
        f"(last step {_success(result.mean_success_last)}), return {result.mean_return:.1f}"
    )


def evaluation_table(result: "Evaluation", *, console: Console | None = None) -> None:
    """Print success at any step, success at the last step and return of each task, and their means."""
    console = console or Console()
    tables = (result.success, result.success_last, result.episode_return)
    of_tasks = zip(*(table.mean(axis=1) for table in tables), strict=True)
    means = tuple(result.means().values())
    several = "s" if result.episodes_per_task > 1 else ""
    header = [f"task ({result.episodes_per_task} episode{several} each)", "success", "last step", "return"]
    rows = [
        [name, _success(success), _success(last), f"{episode_return:.1f}"]
        for name, (success, last, episode_return) in zip(
            (*result.task_names, "mean"), (*of_tasks, means), strict=True
        )
    ]
    if not console.is_interactive:
        first, *others = (max(map(len, column)) for column in zip(header, *rows, strict=True))
        lines = [[name.ljust(first), *map(str.rjust, cells, others)] for name, *cells in (header, *rows)]
        _print_plain(console, ["  ".join(line) for line in lines])
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column(header[0], no_wrap=True)
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows[:-1]:
        table.add_row(*map(Text, row))
    table.add_section()
    table.add_row(*rows[-1], style="bold")
    _print_rich(console, table)


def say(text: str) -> None:
    """Print a line to stdout."""
    _print_plain(Console(), [text])


def warning(text: str) -> None:
    """Print one warning to stderr."""
    console = Console(stderr=True)
    if console.is_interactive:
        _print_rich(console, Text.assemble(("warning: ", "bold yellow"), text))
    else:
        with ignore_output_errors():
            # sys.stderr is looked up at each call: while the bar is shown, rich redirects it.
            print(f"warning: {text}", file=sys.stderr, flush=True)


def once() -> Callable[[str], None]:
    """Return a `warning` that prints each text once."""
    printed: set[str] = set()

    def warn(text: str) -> None:
        if text not in printed:
            printed.add(text)
            warning(text)

    return warn


class RunProgress:
    """Progress of a run in vector steps; a context manager.

    On a terminal it is a bar, refreshed twice a second; in a log file each call of `line` prints one line.

    Args:
        total: length of the run in vector steps.
        start: vector steps done before this process.
        success: success rate of the last evaluation, if there was one.
        console: where to print; stdout by default.
    """

    def __init__(
        self, total: int, start: int, *, success: float | None = None, console: Console | None = None
    ) -> None:
        self.success = success
        self._total = total
        self._console = console or Console()
        self._trained, self._shown_at = 0.0, -_REFRESH_SECONDS
        self._bar: Progress | None = None
        if self._console.is_interactive:
            self._bar = Progress(
                BarColumn(bar_width=None, complete_style="green"),
                TextColumn("{task.fields[numbers]}"),
                console=self._console,
                # No refreshing by rich's thread: an output error in it would print a traceback.
                auto_refresh=False,
                get_time=lambda: self._trained,  # evaluations and checkpoints do not lower the rate
                speed_estimate_period=_WINDOW_SECONDS,
            )
            numbers = f"{start:,}/{total:,}  starting"
            self._row = self._bar.add_task("", total=total, completed=start, numbers=numbers)
            with ignore_output_errors():
                self._bar.start()

    def step(self, step: int, seconds: float, activity: str = "") -> None:
        """Move the bar, at most twice a second; cheap enough to be called at every vector step.

        Args:
            step: vector steps done.
            seconds: time that this process has trained, without evaluations and checkpoints.
            activity: shown beside the numbers, for example "evaluating".
        """
        now = time.monotonic()
        if self._bar is None or now - self._shown_at < _REFRESH_SECONDS:
            return
        self._shown_at, self._trained = now, seconds
        self._bar.update(self._row, completed=step)
        numbers = self._numbers(step, self._bar.tasks[0].speed)
        text = f"{step:,}/{self._total:,}  {numbers}  {activity}".rstrip()
        with ignore_output_errors():
            self._bar.update(self._row, numbers=text, refresh=True)

    def line(self, step: int, steps_per_second: float | None) -> None:
        """Print one line, unless there is a bar."""
        if self._bar is None:
            share = 100.0 * step / self._total if self._total else 100.0
            numbers = self._numbers(step, steps_per_second)
            _print_plain(self._console, [f"step {step:,} / {self._total:,} ({share:.1f} %)  {numbers}"])

    def message(self, text: str) -> None:
        """Print a line of text, above the bar if there is one."""
        if self._bar is not None:
            _print_rich(self._console, Text(text))
        else:
            _print_plain(self._console, [text])

    def close(self) -> None:
        """End the bar; further calls do nothing."""
        if self._bar is not None:
            with ignore_output_errors():
                self._bar.stop()

    def _numbers(self, step: int, rate: float | None) -> str:
        speed = "-" if not rate else f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        left = _duration(self._total - step, rate)
        return f"success {_success(self.success)}  {speed} steps/s  ETA {left}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _print_plain(console: Console, lines: Sequence[str]) -> None:
    # Not console.print: it would wrap at 80 columns, which makes log files hard to search.
    with ignore_output_errors():
        print("\n".join(lines), file=console.file, flush=True)


def _print_rich(console: Console, what: RenderableType) -> None:
    with ignore_output_errors():
        console.print(what)


def ignore_output_errors() -> contextlib.suppress:
    """Ignore printing errors (full disk, closed terminal, encoding); losing output must not end a run."""
    return contextlib.suppress(OSError, UnicodeEncodeError)


def _duration(steps: int, steps_per_second: float | None) -> str:
    if not steps_per_second or steps_per_second <= 0:
        return "-"
    seconds = round(max(steps, 0) / steps_per_second)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _success(rate: float | None) -> str:
    """Return a success rate as text; a dash if there is none yet or the suite knows no success."""
    return "-" if rate is None or math.isnan(rate) else f"{rate:.3f}"
