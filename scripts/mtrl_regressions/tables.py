"""The analysis that docs/decisions/studies.md registers for study B."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    shared = {method: sorted(own.keys() & ends.get(BASELINE, {}).keys()) for method, own in ends.items()}
    shared = {method: seeds for method, seeds in shared.items() if seeds}
    if not shared:
        return Table(setting, setting, ("method",), [])
    others = [method for method in shared if method != BASELINE]

    def logs(method: str, statistic: Callable[[Any], float], seeds: Sequence[int]) -> NDArray[np.float64]:
        return np.log10([statistic(ends[method][seed]) for seed in seeds])

    def ratio(method: str, statistic: Callable[[Any], float]) -> stats.Interval:
        ours, means = (logs(name, statistic, shared[method]) for name in (method, BASELINE))
        return _ratio(stats.paired(ours - means, comparisons=len(others)))

    worst, mean = (
        {method: logs(method, statistic, seeds) for method, seeds in shared.items()}
        for statistic in (np.max, np.mean)
    )
    ratios = [{method: ratio(method, statistic) for method in others} for statistic in (np.max, np.mean)]
    body: list[list[Cell]] = []
    for method in sorted(shared, key=lambda name: float(worst[name].mean())):
        cells: list[Cell] = [10.0 ** float(of[method].mean()) for of in (worst, mean)]
        body.append([method, f"{sizes[method]:g}", *cells, *(found.get(method) for found in ratios)])
    note = (
        f"Geometric means over {_numbers(shared)} seeds; errors are in units of each target's variance. "
        f"Ratios are paired by seed; brackets: 95 % of Student's t, simultaneous over {len(others)} "
        f"comparisons (Bonferroni). The learning rate is the best of three on seed {TUNING_SEED}. "
        f"{_counts(ratios[0])}"
    )
    columns = ("method", "learning rate", "worst task", "all tasks", "worst / mean's", "all / mean's")
    return Table(setting, f"Setting: {setting}", columns, body, note, decimals=3)


def _numbers(shared: Mapping[str, Sequence[int]]) -> str:
    """Return the number of seeds, or a range with the methods that have fewer."""
    sizes = {method: len(seeds) for method, seeds in shared.items()}
    least, most = min(sizes.values()), max(sizes.values())
    if least == most:
        return str(most)
    fewer = ", ".join(method for method, size in sizes.items() if size < most)
    return f"{least} to {most} (fewer than {most}: {fewer})"


def _ratio(found: stats.Interval) -> stats.Interval:
    """Turn a difference of log10 into a ratio; an interval of one seed stays empty."""
    return stats.Interval(*(10.0**end for end in found))


def _counts(ratios: Mapping[str, stats.Interval]) -> str:
    better = sum(found.high < 1.0 for found in ratios.values())
    worse = sum(found.low > 1.0 for found in ratios.values())
    still_open = len(ratios) - better - worse
    return f"Worst task: {better} methods better than the mean, {worse} worse, {still_open} open."
