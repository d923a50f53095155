"""What a killed driver leaves behind is ended, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from mtrl.sweep import orphans
from tests.helpers.counting_workers import alive

# A driver with a child from before, and one that has a child, all deaf to SIGTERM; it prints their pids.
DRIVER = """
import subprocess, sys, time
from mtrl.sweep import orphans

deaf = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print(0, flush=True); time.sleep(600)"
)
parent = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[1]]);"
    "print(child.pid, flush=True); exec(sys.argv[1])"
)
older = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
older.stdout.readline()
before = orphans.children()
child = subprocess.Popen([sys.executable, "-c", parent, deaf], stdout=subprocess.PIPE, text=True)
grandchild = child.stdout.readline().strip()
orphans.watch(orphans.children() - before, grace=0.2, look_every=0.1)
print(older.pid, child.pid, grandchild, flush=True)
if sys.argv[1] == "ends":
    time.sleep(1.0)  # in which the watching process has started and looked, also on a busy machine
    child.kill()  # as ray.shutdown does, while the driver goes on
time.sleep(600)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
@pytest.mark.parametrize("how", ["killed", "ends"])
def test_descendants_of_a_driver_that_is_gone_end_and_others_stay(how: str) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, how], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    older, *ours = map(int, driver.stdout.readline().split())
    try:
        assert all(map(alive, (older, *ours)))
        time.sleep(0.2)  # the watching process has looked, or starts
        if how == "killed":
            driver.kill()
            driver.wait()
        end = time.monotonic() + 15.0
        while any(map(alive, ours)):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert alive(older)
        assert (driver.poll() is None) == (how == "ends")
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()
        for pid in (older, *ours):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_without_new_children_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_spawn")
    orphans.watch(set())
