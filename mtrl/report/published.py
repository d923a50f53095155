"""Success rates that others have published on MT10 and MT50, each with what it was measured by.

Two lines of work use the names MT10 and MT50 for different benchmarks (docs/protocols.md): their numbers,
and ours, are comparable only within a line. `seen` says how a number reached this file: read in
the paper, read in files that its authors publish, or second-hand.
"""

from __future__ import annotations

from typing import NamedTuple

MTRL = "v1 tasks and rewards, 1 goal, 150 steps, best of mean curve, 10 seeds ± s.e."
MTRL_PER_SEED = "v1 tasks and rewards, 1 goal, 150 steps, mean of seeds' best, 10 seeds ± s.e."
PLUS = "v3 tasks, v2 rewards, 50 goals, 500 steps, 2M steps, final, IQM of 10 seeds [95 %]"


class Published(NamedTuple):
    """A row: method as its paper calls it, success on MT10 and MT50."""

    method: str | None  # name of the same combiner here, if there is one
    title: str
    mt10: str
    mt50: str
    protocol: str
    source: str
    seen: str


_READ, _FILES, _SECOND = "paper", "authors' files", "second-hand"

PUBLISHED = (
    Published("mean", "SAC without task identity", ".49 ± .07", ".36 ± .01", MTRL, "CAGrad, table 3", _READ),
    Published(None, "SAC with task encoder", ".54 ± .05", ".40 ± .02", MTRL, "CAGrad, table 3", _READ),
    Published(None, "Multi-head SAC", ".61 ± .04", ".45 ± .06", MTRL, "CAGrad, table 3", _READ),
    Published("pcgrad", "PCGrad", ".72 ± .02", ".50 ± .02", MTRL, "CAGrad, table 3", _READ),
    Published(None, "Soft modularization", ".73 ± .04", ".50 ± .04", MTRL, "CAGrad, table 3", _READ),
    Published("uw", "UW", ".77 ± .05", "", MTRL, "FAMO, table 4", _READ),
    Published("cagrad", "CAGrad", ".83 ± .05", ".52 ± .02", MTRL, "CAGrad, table 3", _READ),
    Published("cagrad_fast", "CAGrad-Fast", ".82 ± .04", ".50 ± .02", MTRL, "CAGrad, table 3", _READ),
    Published(None, "CARE", ".84 ± .05", ".54 ± .03", MTRL, "CAGrad, table 3", _READ),
    Published("famo", "FAMO", ".83 ± .05", "", MTRL, "FAMO, table 4", _READ),
    Published("fairgrad", "FairGrad, alpha 2", ".84 ± .07", "", MTRL, "NTKMTL, table 4", _READ),
    Published("conicgrad", "ConicGrad", ".89", "", MTRL, "ConicGrad", _SECOND),
    Published("nash_mtl", "Nash-MTL, every step", ".91 ± .03", "", MTRL_PER_SEED, "Nash-MTL, table 4", _READ),
    Published("nash_mtl", "Nash-MTL, rerun", ".80 ± .13", "", MTRL, "FAMO, table 4", _READ),
    Published("imgrad", "IMGrad", ".93 ± .07", "", MTRL, "IMGrad", _READ),
    Published(None, "NTKMTL", ".96 ± .03", "", MTRL, "NTKMTL, table 4", _READ),
    Published("aligned_mtl", "Aligned-MTL", ".97 ± .05", "", MTRL, "Aligned-MTL", _READ),
    Published(None, "One SAC per task", ".90 ± .03", ".74 ± .04", MTRL, "CAGrad, table 3", _READ),
    Published("mean", "Multi-head, 3x400", ".75 [.73, .77]", ".55 [.55, .55]", PLUS, "rainx0r/mtrl", _FILES),
    Published(None, "Soft modularization", ".81 [.77, .87]", ".66 [.65, .67]", PLUS, "rainx0r/mtrl", _FILES),
    Published(None, "MOORE", ".81 [.79, .84]", ".65 [.64, .66]", PLUS, "rainx0r/mtrl", _FILES),
    Published(None, "PaCo", ".74 [.73, .75]", ".59 [.57, .60]", PLUS, "rainx0r/mtrl", _FILES),
    Published(None, "Multi-head, 3x1024", ".87", ".73", PLUS, "rainx0r/mtrl", _FILES),
    Published(None, "Multi-head, 3x4096", ".94", ".83", PLUS, "rainx0r/mtrl", _FILES),
)  # fmt: skip


def counterparts(method: str, benchmark: str, protocols: tuple[str, ...]) -> str | None:
    """Return the published numbers of a method under any of `protocols`; None if there are none."""
    found = [
        getattr(row, benchmark.lower())
        for row in PUBLISHED
        if row.method == method and row.protocol in protocols
    ]
    numbers = [number for number in found if number]
    return " / ".join(numbers) or None
