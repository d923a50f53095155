"""A process that ends what a killed driver of a sweep leaves behind; it needs the standard library alone.

Ray's server and raylet die with the driver, but its agents keep retrying for a minute.
"""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path

_LOOK_SECONDS = 1.0
_GRACE_SECONDS = 8.0  # in which trials, told by Ray, end by themselves


def children() -> set[int]:
    """Return this process's children; none where there is no /proc."""
    return {pid for pid, (parent, _) in _processes().items() if parent == os.getpid()}


def watch(
    roots: Collection[int], *, grace: float = _GRACE_SECONDS, look_every: float = _LOOK_SECONDS
) -> None:
    """Start a process that, once this one or all `roots` are gone, ends what is left of them.

    It looks every `look_every` seconds and ends the roots and all their descendants after `grace` seconds, on
    Linux only.
    """
    if not roots or not hasattr(os, "pidfd_open"):
        return
    settings = map(str, (grace, look_every, os.getpid(), *roots))
    command = [sys.executable, "-I", "-S", __file__, *settings]
    # A session of its own: Ctrl-C and a closing terminal reach the driver alone. It holds no pipe open that
    # somebody reads to the end.
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0)
    others = [(os.POSIX_SPAWN_DUP2, 0, stream) for stream in (1, 2)]
    os.posix_spawn(command[0], command, os.environ, file_actions=[nothing, *others], setsid=True)


def _processes() -> dict[int, tuple[int, str]]:
    """Return pid -> (parent, start time) of all processes; the start time tells a reused pid."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (path / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] != "Z":
                found[int(path.name)] = int(fields[1]), fields[19]
    return found


def _main(grace: float, look_every: float, driver: int, roots: set[int]) -> None:
    known = _family(roots)
    with contextlib.suppress(ProcessLookupError):  # it is gone already
        descriptor = os.pidfd_open(driver)
        while not select.select([descriptor], [], [], look_every)[0]:
            known |= _family(_alive(known))
            if not roots.intersection(_alive(known)):
                break
    known |= _family(_alive(known))  # without the driver all have other parents, but stay known
    end = time.monotonic() + grace
    while (left := _alive(known)) and time.monotonic() < end:
        time.sleep(0.2)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _family(roots: Collection[int]) -> dict[int, str]:
    """Return pid -> start time of the roots that live and of all their descendants."""
    now = _processes()
    found = set(roots) & now.keys()
    while more := {pid for pid, (parent, _) in now.items() if parent in found} - found:
        found |= more
    return {pid: now[pid][1] for pid in found}


def _alive(known: dict[int, str]) -> list[int]:
    now = _processes()
    return [pid for pid, start in known.items() if pid in now and now[pid][1] == start]


if __name__ == "__main__":
    _main(float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), {int(pid) for pid in sys.argv[4:]})
