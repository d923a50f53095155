"""Attacks runs with seeded faults of every kind and compares each, bit for bit, with the undisturbed run.

    python scripts/chaos.py --faults 100 --out results/chaos
    python scripts/chaos.py --faults 20 --methods cagrad famo --seed 3 --metaworld

Every leg of a run is a process of its own, forked from this one, which has paid for the imports. What a fault
does inside of a leg happens at a vector step, write or env step drawn from the seed. A replaced worker loses
episodes, so that what is saved afterwards differs rightfully: the checkpoint must say so, and the run is put
back to its state before the fault, as from a backup.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtrl_chaos.siege import main

if __name__ == "__main__":
    sys.exit(main())
