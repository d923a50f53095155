"""Prints the plan of a sweep with its cost, and its progress."""

import time
from collections.abc import Sequence
from typing import NamedTuple, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mtrl.runs.console import ignore_output_errors
from mtrl.sweep.plan import Progress, Resources, State, Trial, progress

_LINE_SECONDS = 60.0  # between two lines without a terminal, if no trial has ended


class _Setting(NamedTuple):
    """Trials that differ only in their seeds."""

    name: str
    trials: tuple[Trial, ...]
    progress: tuple[Progress, ...]

    @property
    def steps(self) -> int:
        return sum(trial.config.steps for trial in self.trials)

    @property
    def steps_done(self) -> int:
        pairs = zip(self.trials, self.progress, strict=True)
        return sum(min(p.step, trial.config.steps) for trial, p in pairs)

    @property
    def seconds_per_step(self) -> float | None:
        """Mean of the trials that have a log; None if no trial has one."""
        steps = sum(p.step for p in self.progress)
        return sum(p.seconds for p in self.progress) / steps if steps else None


def show_plan(trials: Sequence[Trial], resources: Resources) -> None:
    """Print the trials by setting, what is done, and how long the rest takes."""
    table = Table("setting", "seeds", "finished", "vector steps each", "left", "hours left")
    settings = _settings(trials)
    for setting in settings:
        left, pace = setting.steps - setting.steps_done, setting.seconds_per_step
        table.add_row(
            setting.name,
            str(len(setting.trials)),
            str(sum(p.finished for p in setting.progress)),
            f"{setting.trials[0].config.steps:,}",
            f"{left:,}",
            "unknown" if pace is None else f"{left * pace / 3600:.2f}",
        )
    console = Console()
    console.print(table)
    parallel = "as many as fit" if resources.parallel is None else f"{resources.parallel}"
    console.print(
        f"{len(trials)} trials of {resources.cpus:g} CPUs and {resources.gpus:g} GPUs, {parallel} at once; "
        f"{sum(s.steps - s.steps_done for s in settings):,} of {sum(s.steps for s in settings):,} vector "
        "steps left."
    )
    paces = [setting.seconds_per_step for setting in settings]
    known = [pace for pace in paces if pace is not None]
    if len(known) == len(paces):
        hours = sum((s.steps - s.steps_done) * pace for s, pace in zip(settings, known, strict=True)) / 3600
        console.print(f"About {hours:.2f} hours if trials run one at a time, at the speed measured so far.")
    else:
        console.print("Hours are known once a trial of each setting has a log: --seeds 1 measures them.")


class Watch:
    """Shows the progress of a sweep: a live table on a terminal, else lines. A context manager."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._trials = trials
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._began, self._steps_at_start = time.monotonic(), _steps(_settings(trials))
        self._last_line, self._last_counts = 0.0, (0, 0)

    def __enter__(self) -> Self:
        if self._live is not None:
            with ignore_output_errors():
                self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with ignore_output_errors():
                self._live.stop()

    def __call__(self, state: State) -> None:
        """Show `state`; without a terminal only after a change or a minute."""
        if self._live is not None:
            with ignore_output_errors():
                self._live.update(self._table(state), refresh=True)
            return
        counts = (len(state.done), len(state.failed))
        if counts == self._last_counts and time.monotonic() - self._last_line < _LINE_SECONDS:
            return
        self._last_line, self._last_counts = time.monotonic(), counts
        with ignore_output_errors():
            print(self._summary(state, _settings(self._trials)), flush=True)

    def _table(self, state: State) -> Table:
        settings = _settings(self._trials)
        title = self._summary(state, settings)
        table = Table("setting", "finished", "running", "waiting", "failed", "steps", "success", title=title)
        for setting in settings:
            names = {trial.name for trial in setting.trials}
            groups = (state.done, state.running, state.waiting, state.failed)
            found = [p.success for p in setting.progress if p.success is not None]
            table.add_row(
                setting.name,
                *(str(sum(name in names for name in group)) for group in groups),
                f"{setting.steps_done / setting.steps:.0%}",
                f"{sum(found) / len(found):.2f}" if found else "",
            )
        return table

    def _summary(self, state: State, settings: Sequence[_Setting]) -> str:
        done, all_steps = _steps(settings), sum(setting.steps for setting in settings)
        counts = f"{len(state.done)} of {len(self._trials)} trials finished, {len(state.running)} running"
        if state.failed:
            counts += f", {len(state.failed)} failed"
        gained, elapsed = done - self._steps_at_start, time.monotonic() - self._began
        text = f"{counts}; {done / all_steps:.0%} of {all_steps:,} vector steps"
        if gained > 0 and done < all_steps:  # less than 0: resumed trials have dropped their newest lines
            text += f", about {_clock((all_steps - done) * elapsed / gained)} left"
        return text


def _settings(trials: Sequence[Trial]) -> list[_Setting]:
    by_name: dict[str, list[Trial]] = {}
    for trial in trials:
        by_name.setdefault(trial.name.rpartition("/")[0], []).append(trial)
    return [_Setting(name, tuple(found), tuple(map(progress, found))) for name, found in by_name.items()]


def _steps(settings: Sequence[_Setting]) -> int:
    return sum(setting.steps_done for setting in settings)


def _clock(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min" if minutes else f"{seconds:.0f} s"
    return f"{minutes // 60}:{minutes % 60:02d} h"
