"""Tables and curves of finished runs, from their evaluations.jsonl. matplotlib is imported only here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtrl.config.presets import load_config
from mtrl.errors import UserError
from mtrl.runs.directory import CONFIG_NAME, EVALUATIONS_NAME, VERSIONS_NAME


class Run(NamedTuple):
    """What a report needs of one run."""

    label: str  # method and seed
    evaluations: list[dict[str, Any]]  # lines of evaluations.jsonl, oldest first
    versions: dict[str, str]


def read_run(path: Path) -> Run:
    """Read a run directory; a half-written last line is dropped.

    Raises:
        UserError: not a run, or a run without an evaluation.
    """
    if not (path / CONFIG_NAME).is_file():
        raise UserError(f"'{path}' is not a run directory: expected {CONFIG_NAME} in it, found none.")
    log = path / EVALUATIONS_NAME
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.is_file() else []
    evaluations = [json.loads(line) for line in lines if line.endswith("\n")]
    if not evaluations:
        raise UserError(f"'{path}' has no evaluation yet: expected lines in {EVALUATIONS_NAME}, found none.")
    config = load_config(path / CONFIG_NAME)
    versions = path / VERSIONS_NAME
    found = json.loads(versions.read_text(encoding="utf-8")) if versions.is_file() else {}
    return Run(f"{config.method}, seed {config.seed}", evaluations, found)


def final_table(runs: Sequence[Run]) -> str:
    """Markdown table of the last evaluation: success at any step, at the last step, and return per task.

    Several runs are averaged, with equal weight.

    Raises:
        UserError: the runs are of different tasks or of different simulator versions.
    """
    last = [run.evaluations[-1] for run in runs]
    _check_comparable(runs)
    rows = ["| task | success | success at last step | return |", "|---|---|---|---|"]
    for task in last[0]["tasks"]:
        values = [evaluation["tasks"][task] for evaluation in last]
        rows.append(_row(task, values, ("success", "success_last", "return")))
    rows.append(_row("**mean**", last, ("mean_success", "mean_success_last", "mean_return")))
    return "\n".join(rows) + "\n"


def draw_success(runs: Sequence[Run], path: Path) -> None:
    """Write a PNG of success over vector steps: each run's mean, and all tasks where there is one run."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    if len(runs) == 1:
        for task in runs[0].evaluations[0]["tasks"]:
            axes.plot(*_curve(runs[0], task), linewidth=1, alpha=0.7, label=task)
    for run in runs:
        steps = [line["vector_step"] for line in run.evaluations]
        means = [line["mean_success"] for line in run.evaluations]
        axes.plot(
            steps, means, linewidth=3, color="black" if len(runs) == 1 else None, label=f"mean ({run.label})"
        )
    axes.set(xlabel="vector steps", ylabel="success at any step", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curve(run: Run, task: str) -> tuple[list[int], list[float]]:
    lines = run.evaluations
    return [line["vector_step"] for line in lines], [line["tasks"][task]["success"] for line in lines]


def _row(name: str, values: Sequence[dict[str, Any]], keys: tuple[str, str, str]) -> str:
    any_step, last_step, returned = (sum(value[key] for value in values) / len(values) for key in keys)
    return f"| {name} | {any_step:.2f} | {last_step:.2f} | {returned:.0f} |"


def _check_comparable(runs: Sequence[Run]) -> None:
    for what, found in (
        ("tasks", {tuple(run.evaluations[-1]["tasks"]) for run in runs}),
        ("metaworld versions", {run.versions.get("metaworld") for run in runs}),
        ("mujoco versions", {run.versions.get("mujoco") for run in runs}),
    ):
        if len(found) > 1:
            raise UserError(
                f"runs of different {what} cannot share a table: found {sorted(map(str, found))}."
            )
