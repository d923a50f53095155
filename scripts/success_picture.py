"""Draw the success of each task over the minutes of a run, the picture of README: RUN_DIR OUT.png."""

from __future__ import annotations

import argparse
from pathlib import Path

from mtrl.report.drawing import Look, Room, legend, line_style, panels, style
from mtrl.report.load import read_run


def main() -> int:
    """Read the run and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    run = read_run(arguments.run_dir)
    minutes = [line["wall_s"] / 60.0 for line in run.evaluations]
    with style(Look()):
        drawing, (axes,) = panels(Room(), 1, 8.0, 3.0)
        for index, task in enumerate(run.tasks):
            success = [line["tasks"][task]["success"] for line in run.evaluations]
            axes.plot(minutes, success, marker="o", markersize=3, label=task, **line_style(index))
        means = [line["mean_success"] for line in run.evaluations]
        axes.plot(minutes, means, color="black", linewidth=2.5, label="mean")
        axes.set(xlabel="minutes", ylabel="success rate", ylim=(-0.03, 1.03), xlim=(0.0, None))
        legend(Room(), drawing, *axes.get_legend_handles_labels())
        drawing.savefig(arguments.out, dpi=110)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
