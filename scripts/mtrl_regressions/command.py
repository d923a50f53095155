"""The command line of study B: makes the runs that its folder lacks, then writes the tables."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field

from mtrl.cli import command
from mtrl.cli.flags import parse_command
from mtrl.cli.named_files import check_writable
from mtrl.config.files import write_file
from mtrl.config.values import settings
from mtrl.errors import UserError
from mtrl_regressions.tables import TUNING_SEED, write_tables

# Not in the study: a method that needs SAC's temperatures, one of another library, and two that equal another
# method here (`affinity` is its base, `pivrg` without evaluations is `fairgrad`).
LEFT_OUT = ("inverse_alpha", "torchjd", "affinity", "pivrg")
LEARNING_RATES = (6e-3, 2e-2, 6e-2)
FIRST_SEED = 1
POINTS = 5  # measurements of a run


@settings("--")
class _Flags:
    """Study B: how well each method fits six regressions that share one small network.

    Runs that are in the folder already are not run again. docs/decisions/studies.md has the design.
    """

    out: str = "results/regressions"
    """Folder of runs.jsonl, one line per run, and of the tables."""
    methods: tuple[str, ...] = ()
    """Methods to run; none given: all of the study."""
    seeds: Annotated[int, Field(gt=1, lt=TUNING_SEED)] = 8
    """Seeds of each method and setting, from 1 on; 100 is the seed for tuning."""
    steps: Annotated[int, Field(gt=4)] = 250
    """Steps of a run, a multiple of 5."""
    tables_only: bool = False
    """Run nothing; write the tables of the runs that are there."""


class Job(NamedTuple):
    """One run of the study."""

    setting: str
    method: str
    seed: int
    lr: float


@command
def main(arguments: list[str]) -> int:
    """Run the study."""
    flags = parse_command(_Flags, arguments)
    from mtrl.combiners import COMBINERS
    from mtrl_regressions.problem import SETTINGS

    if flags.steps % POINTS:
        raise UserError(f"--steps must be a multiple of {POINTS}; found {flags.steps}.")
    for name in flags.methods:
        _ = COMBINERS[name]  # raises where there is none
    methods = flags.methods or tuple(sorted(set(COMBINERS) - set(LEFT_OUT)))
    out = Path(flags.out)
    check_writable(out / "runs.jsonl")
    record = _Record(out / "runs.jsonl", flags.steps, reads_only=flags.tables_only)
    if not flags.tables_only:
        torch.set_num_threads(1)
        _note_versions(out / "versions.json")
        for job in _tuning(SETTINGS, methods):
            record.fill(job)
        # All methods and settings of a seed before the next seed: a study cut short still compares all.
        for seed in range(FIRST_SEED, FIRST_SEED + flags.seeds):
            for setting in SETTINGS:
                for method in methods:
                    record.fill(Job(setting, method, seed, record.best_lr(setting, method)))
    print(write_tables(record.runs, out, tuple(SETTINGS)), end="")
    return 0


def _tuning(names: Mapping[str, Any], methods: Sequence[str]) -> Iterator[Job]:
    for setting in names:
        for method in methods:
            for lr in LEARNING_RATES:
                yield Job(setting, method, TUNING_SEED, lr)


class _Record:
    """The runs in a file, one JSON object a line; a line that a kill has cut short is dropped.

    `reads_only`: the file stays as it is.
    """

    def __init__(self, path: Path, steps: int, *, reads_only: bool) -> None:
        self.path, self.steps = path, steps
        self.runs: dict[Job, dict[str, Any]] = {}
        content, kept = path.read_text(encoding="utf-8") if path.is_file() else "", ""
        for text in content.splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if line["steps"][-1] != steps:
                raise UserError(f"'{path}' has runs of {line['steps'][-1]} steps; found --steps {steps}.")
            self.runs[Job(line["setting"], line["method"], line["seed"], line["lr"])] = line
            kept += text + "\n"
        if kept != content and not reads_only:
            write_file(path, kept.encode())

    def fill(self, job: Job) -> None:
        """Run a job that is not there yet, and append its line."""
        from mtrl_regressions.problem import SETTINGS, run

        if job in self.runs:
            return
        began = time.process_time()
        setting = SETTINGS[job.setting]
        found = run(job.method, setting, seed=job.seed, lr=job.lr, steps=self.steps, points=POINTS)
        errors = [[float(f"{error:.4g}") for error in row] for row in found.errors]
        line = {**job._asdict(), "steps": found.steps, "errors": errors}
        line["cpu_s"] = round(time.process_time() - began, 2)
        if found.failure:
            line["failure"] = found.failure
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.runs[job] = line
        print(f"{len(self.runs)} {job.setting}, {job.method}, seed {job.seed}", file=sys.stderr)

    def best_lr(self, setting: str, method: str) -> float:
        """Return the learning rate with the smallest error of the worst task on the tuning seed."""
        ends = {lr: self.runs[Job(setting, method, TUNING_SEED, lr)]["errors"][-1] for lr in LEARNING_RATES}
        return min(ends, key=lambda lr: max(ends[lr]))


def _note_versions(path: Path) -> None:
    """Keep the versions, machine and load of every process that added runs."""
    from mtrl.runs.versions import versions

    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    known.append({**versions(), "load_average": load, "niceness": str(os.nice(0))})
    write_file(path, (json.dumps(known, indent=1) + "\n").encode())
