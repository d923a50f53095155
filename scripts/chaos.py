"""Disturb runs by seeded faults and compare each with an undisturbed run; see --help.

python scripts/chaos.py --faults 100 --out results/chaos
python scripts/chaos.py --faults 20 --methods cagrad famo --seed 3 --metaworld
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl_chaos.siege"))
