"""Disturbs runs by seeded faults of every kind and compares each, bit for bit, with an undisturbed run.

    python scripts/chaos.py --faults 100 --out results/chaos
    python scripts/chaos.py --faults 20 --methods cagrad famo --seed 3 --metaworld

Each part of a run between two faults is a process forked from this one, which has done the imports. A fault
happens at a vector step, write or env step drawn from the seed. A replaced worker loses episodes, so the
numbers may differ: the checkpoint must say so, and the run is restored to its state before the fault.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtrl_chaos.siege import main

if __name__ == "__main__":
    sys.exit(main())
