"""The analysis that docs/decisions/studies.md registers for study B."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtrl.report import stats
from mtrl.report.table import Cell, Table

TUNING_SEED = 100
BASELINE = "mean"


def write_tables(runs: Mapping[Any, Mapping[str, Any]], out: Path, settings: Sequence[str]) -> str:
    """Write one table of each setting into `out` (Markdown, CSV); return the Markdown of all."""
    texts = []
    for setting in settings:
        table = table_of(runs, setting)
        if table.rows:
            name = setting.replace(", ", "-")
            (out / f"{name}.md").write_text(table.markdown(), encoding="utf-8")
            (out / f"{name}.csv").write_text(table.csv(), encoding="utf-8")
            texts.append(f"## {table.title}\n\n{table.markdown()}")
    return "\n".join(texts)


def table_of(runs: Mapping[Any, Mapping[str, Any]], setting: str) -> Table:
    """Row per method: error of the worst task and of all tasks, and its ratio to that of the mean.

    Ratios are geometric means over the seeds that the method shares with `mean`; their intervals are
    simultaneous over the methods of the setting.
    """
    ends: dict[str, dict[int, Any]] = {}
    sizes: dict[str, float] = {}
    for line in runs.values():
        if line["setting"] == setting and line["seed"] != TUNING_SEED:
            ends.setdefault(line["method"], {})[line["seed"]] = np.array(line["errors"][-1])
            sizes[line["method"]] = line["lr"]
    seeds = sorted(set.intersection(*(set(own) for own in ends.values()))) if ends else []
    if BASELINE not in ends or not seeds:
        return Table(setting, setting, ("method",), [])
    others = [method for method in ends if method != BASELINE]
    worst = {method: np.log10([own[seed].max() for seed in seeds]) for method, own in ends.items()}
    mean = {method: np.log10([own[seed].mean() for seed in seeds]) for method, own in ends.items()}
    ratios = [
        {
            method: _ratio(stats.paired(of[method] - of[BASELINE], comparisons=len(others)))
            for method in others
        }
        for of in (worst, mean)
    ]
    body: list[list[Cell]] = []
    for method in sorted(ends, key=lambda name: float(worst[name].mean())):
        cells: list[Cell] = [10.0 ** float(of[method].mean()) for of in (worst, mean)]
        body.append([method, f"{sizes[method]:g}", *cells, *(found.get(method) for found in ratios)])
    note = (
        f"Geometric means over {len(seeds)} seeds; errors are in units of each target's variance. Ratios are "
        f"paired by seed; brackets: 95 % of Student's t, simultaneous over {len(others)} comparisons "
        f"(Bonferroni). The learning rate is the best of three on seed {TUNING_SEED}. "
        f"{_counts(ratios[0])}"
    )
    columns = ("method", "learning rate", "worst task", "all tasks", "worst / mean's", "all / mean's")
    return Table(setting, f"Setting: {setting}", columns, body, note, decimals=3)


def _ratio(found: stats.Interval) -> stats.Interval:
    """Turn a difference of log10 into a ratio; an interval of one seed stays empty."""
    return stats.Interval(*(10.0**end for end in found))


def _counts(ratios: Mapping[str, stats.Interval]) -> str:
    better = sum(found.high < 1.0 for found in ratios.values())
    worse = sum(found.low > 1.0 for found in ratios.values())
    still_open = len(ratios) - better - worse
    return f"Worst task: {better} methods better than the mean, {worse} worse, {still_open} open."
