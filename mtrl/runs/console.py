"""What a run prints: a start screen, progress, results, warnings. rich on a terminal, plain lines else."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from mtrl.runs.evaluation import Evaluation

_REFRESH_SECONDS = 0.5
_WINDOW_SECONDS = 30.0  # of training over which the rate is taken


def start_screen(
    title: str,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str] = (),
    *,
    console: Console | None = None,
) -> None:
    """Print what a run is about to do: one panel on a terminal, aligned `name  value` lines elsewhere."""
    console = console or Console()
    if not console.is_interactive:
        width = max((len(name) for name, _ in facts), default=0)
        lines = [
            title,
            *(f"  {name:<{width}}  {value}" for name, value in facts),
            *(f"  {note}" for note in notes),
        ]
        _print_plain(console, lines)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(name), Text(value))
    parts: list[RenderableType] = [table, *(Text(note, style="yellow") for note in notes)]
    _print_rich(
        console, Panel(Group(*parts), title=Text(title, style="bold"), title_align="left", expand=False)
    )


def evaluation_line(step: int, result: Evaluation) -> str:
    """The means of an evaluation in one line."""
    return (
        f"evaluation at {step:,}: success {_success(result.mean_success)} "
        f"(last step {_success(result.mean_success_last)}), return {result.mean_return:.1f}"
    )


def evaluation_table(result: Evaluation, *, console: Console | None = None) -> None:
    """Print success at any step, success at the last step and return of each task, and their means."""
    console = console or Console()
    any_step, last_step, returns = (
        array.mean(axis=1) for array in (result.success, result.success_last, result.episode_return)
    )
    rows = [
        (name, _success(any_step[index]), _success(last_step[index]), f"{returns[index]:.1f}")
        for index, name in enumerate(result.task_names)
    ]
    mean = (
        "mean",
        _success(result.mean_success),
        _success(result.mean_success_last),
        f"{result.mean_return:.1f}",
    )
    header = (f"task ({result.episodes_per_task} episodes each)", "success", "last step", "return")
    if not console.is_interactive:
        _print_plain(console, _aligned([header, *rows, mean]))
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column(header[0], no_wrap=True)
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    table.add_section()
    table.add_row(*mean, style="bold")
    _print_rich(console, table)


def say(text: str) -> None:
    """Print a line to stdout."""
    _print_plain(Console(), [text])


def warning(text: str) -> None:
    """Print one warning to stderr."""
    _to_stderr("warning", "yellow", text)


def once() -> Callable[[str], None]:
    """Return a `warning` that prints each text once."""
    printed: set[str] = set()

    def warn(text: str) -> None:
        if text not in printed:
            printed.add(text)
            warning(text)

    return warn


def error(text: str) -> None:
    """Print one error to stderr."""
    _to_stderr("error", "red", text)


class ProgressReport:
    """Progress of a run in vector steps; a context manager.

    On a terminal one bar that stays at the bottom and moves twice a second; elsewhere one line per `line`,
    for log files.

    Args:
        total_steps: length of the run in vector steps.
        start_step: where this process starts, not zero after a resume.
        success: success rate of the last evaluation, if there was one.
        console: where to print; stdout by default.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        *,
        success: float | None = None,
        console: Console | None = None,
    ) -> None:
        self.success = success
        self._total = total_steps
        self._console = console or Console()
        self._shown_at = -_REFRESH_SECONDS
        self._window: deque[tuple[float, int]] = deque([(0.0, start_step)])
        self._bar: Progress | None = None
        if self._console.is_interactive:
            self._bar = Progress(
                BarColumn(bar_width=None, complete_style="green"),
                TextColumn("{task.fields[numbers]}"),
                console=self._console,
                auto_refresh=False,
            )
            numbers = f"{start_step:,}/{total_steps:,}  starting"
            self._row = self._bar.add_task("", total=total_steps, completed=start_step, numbers=numbers)
            with _whatever_became_of_the_output():
                self._bar.start()

    def step(self, step: int, seconds: float, activity: str = "") -> None:
        """Move the bar to a vector step, at most twice a second; cheap enough to be called at every step.

        Args:
            step: vector steps done.
            seconds: this process has trained, without evaluations and checkpoints.
            activity: what it does besides training now.
        """
        now = time.monotonic()
        if self._bar is None or now - self._shown_at < _REFRESH_SECONDS:
            return
        self._shown_at = now
        if step > self._window[-1][1]:
            self._window.append((seconds, step))
        while len(self._window) > 2 and seconds - self._window[1][0] > _WINDOW_SECONDS:
            self._window.popleft()
        (first_seconds, first), (last_seconds, last) = self._window[0], self._window[-1]
        rate = (last - first) / (last_seconds - first_seconds) if last > first else None
        numbers = f"{step:,}/{self._total:,}  {self._numbers(step, rate)}  {activity}".rstrip()
        with _whatever_became_of_the_output():
            self._bar.update(self._row, completed=step, numbers=numbers, refresh=True)

    def line(self, step: int, steps_per_second: float | None) -> None:
        """Print one line where there is no bar."""
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
            with _whatever_became_of_the_output():
                self._bar.stop()

    def _numbers(self, step: int, rate: float | None) -> str:
        return "  ".join(
            (
                f"success {_success(self.success)}",
                ("-" if not rate else f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}") + " steps/s",
                "ETA " + _duration(self._total - step, rate),
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _to_stderr(label: str, style: str, text: str) -> None:
    console = Console(stderr=True)
    if console.is_interactive:
        _print_rich(console, Text.assemble((f"{label}: ", f"bold {style}"), text))
    else:
        with _whatever_became_of_the_output():
            print(
                f"{label}: {text}", file=sys.stderr, flush=True
            )  # which the bar has put its own file before


def _print_plain(console: Console, lines: Sequence[str]) -> None:
    # Not console.print: it would wrap at 80 columns, which makes log files hard to search.
    with _whatever_became_of_the_output():
        print("\n".join(lines), file=console.file, flush=True)


def _print_rich(console: Console, what: RenderableType) -> None:
    with _whatever_became_of_the_output():
        console.print(what)


@contextlib.contextmanager
def _whatever_became_of_the_output() -> Iterator[None]:
    """Go on where nothing can be printed: the disk of a log file is full, the terminal or `tee` is gone.

    A run has more to lose than what it says, not least the checkpoint that a closed terminal asks for.
    """
    with contextlib.suppress(OSError):
        yield


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]


def _duration(steps: int, steps_per_second: float | None) -> str:
    if not steps_per_second or steps_per_second <= 0:
        return "-"
    seconds = round(max(steps, 0) / steps_per_second)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _success(rate: float | None) -> str:
    """A success rate; a dash before the first one, and of a suite that has none."""
    return "-" if rate is None or math.isnan(rate) else f"{rate:.3f}"
