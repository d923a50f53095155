"""The worker processes, from the learner's side: starts, messages, deadlines, failures and ends."""

import contextlib
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from mtrl.envs.engine.shared import SharedArrays, Sizes, allocate
from mtrl.envs.engine.worker import COMMAND, DONE, ERROR, REFUSAL, RESULT, STEP
from mtrl.errors import EnvironmentFailure

# A plain interpreter instead of multiprocessing: workers never re-import the user's script, which may import
# torch or lack a `__main__` guard, and no helper process is left behind.
_BOOT = (
    "import json, sys; path, *args = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from mtrl.envs.engine.worker import main; main(*args)"
)
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_START_SECONDS = 600.0
_CLOSE_SECONDS = 2.0
_SLICE_SECONDS = 0.5
# Once the run is to stop: schedulers kill 30 seconds after SIGTERM, and a checkpoint must be written by then.
_HURRY_SECONDS = 8.0


class Failure(NamedTuple):
    """Why a worker failed; its process has ended."""

    worker: int
    row: int | None  # the row it was working on, None between steps
    reason: str
    classes: Sequence[str]  # names of the classes of the exception that it raised, if it did


class WorkerPool:
    """Processes that share one set of arrays; worker w owns the rows `rows[w]`.

    A worker that dies, raises or does not answer in time is killed and entered in `failures`; the others
    continue. `restart` replaces it. No method raises for a failed worker: callers check `failures`.

    Args:
        sizes: of the shared arrays.
        rows: of each worker.
        timeout: seconds without an answer after which a worker counts as hung.
        niceness: added to the workers' scheduling priority number.
        variables: environment variables of the workers, beside those of this process.
    """

    def __init__(
        self,
        sizes: Sizes,
        rows: Sequence[Sequence[int]],
        timeout: float,
        *,
        niceness: int = 0,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.rows = [tuple(own) for own in rows]
        self.failures: dict[int, Failure] = {}
        self._sizes, self._timeout, self._niceness = sizes, timeout, niceness
        self._variables = {**_ONE_THREAD, **(variables or {})}
        self._refusals: list[Exception] = []
        self._interrupted: str | None = None
        self.hurried: Callable[[], bool] = lambda: False  # whether answers must come within _HURRY_SECONDS
        self._waiting: set[int] = set()  # workers that owe an answer
        self._memory = allocate(sizes)
        self.arrays = SharedArrays.attach(self._memory, sizes)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[Connection] = []
        self._finalizer = weakref.finalize(
            self, _stop, self._processes, self._channels, self._memory, os.getpid()
        )
        self._polls: dict[int, select.poll] = {}
        for worker in range(len(self.rows)):
            try:
                process, channel = self._start(worker)
            except OSError as error:
                self._finalizer()
                raise EnvironmentFailure(
                    f"environment worker {worker} of {len(self.rows)} could not be started: {error}. If "
                    "processes or memory are short, choose fewer workers (num_workers)."
                ) from error
            self._processes.append(process)
            self._channels.append(channel)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._processes]

    def _start(self, worker: int) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            path = [entry for entry in sys.path if isinstance(entry, str)]  # imports ignore all others
            arguments = json.dumps([path, theirs.fileno(), self._memory, self._sizes, self._niceness])
            # A fresh interpreter, never a forked copy: forks of a process that uses CUDA are broken.
            process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._memory),
                env={**os.environ, **self._variables},
                process_group=0,  # so that Ctrl-C reaches the learner only, even while a worker starts
            )
            channel = Connection(ours.detach())
        self._polls[worker] = select.poll()
        self._polls[worker].register(channel.fileno(), select.POLLIN)
        return process, channel

    def restart(self, worker: int) -> None:
        """Replace a failed worker by a new process without environments; if none starts, it fails again."""
        self._channels[worker].close()
        try:
            self._processes[worker], self._channels[worker] = self._start(worker)
        except OSError as error:  # no process or no memory is left, or the interpreter is gone
            self.failures[worker] = Failure(worker, None, f"could not be started again: {error}", ())
        else:
            del self.failures[worker]

    def begin_step(self) -> None:
        """Tell every worker to step with the actions in the shared arrays."""
        for worker in range(len(self._channels)):
            self._send(worker, STEP)

    def finish_step(self) -> None:
        """Wait until every worker has stepped or failed; may be called again after a KeyboardInterrupt."""
        self._gather(self._timeout)

    def scatter(
        self, name: str, args: Mapping[int, tuple[Any, ...]], *, starting: bool = False
    ) -> dict[int, Any]:
        """Call a method of Worker with each worker's arguments; return the results of those that answered.

        Raises:
            UserError, EnvironmentFailure: a worker's method raised it, or an earlier call was interrupted.
        """
        for worker, own in args.items():
            self._send(worker, COMMAND + pickle.dumps((name, own)))
        self._refusals.clear()
        try:
            results = self._gather(max(self._timeout, _START_SECONDS) if starting else self._timeout)
        except KeyboardInterrupt:
            self._interrupted = f"'{name}' was interrupted and the workers' answers are lost."
            raise
        if self._refusals:
            raise self._refusals[0]
        return results

    def _send(self, worker: int, message: bytes) -> None:
        if self._interrupted is not None:
            raise EnvironmentFailure(self._interrupted)
        if worker in self.failures:
            return
        self._waiting.add(worker)
        try:
            self._channels[worker].send_bytes(message)
        except OSError:
            self._died(worker)

    def _gather(self, timeout: float) -> dict[int, Any]:
        """Collect the answers of the workers that owe one."""
        results: dict[int, Any] = {}
        began = seen = time.monotonic()
        deadline, hurried = began + timeout, False
        # In the order of their numbers: the learner needs all answers anyway, and waking up for each one
        # would take a core from the workers that still compute.
        for worker in sorted(self._waiting):
            while True:
                # In slices: the signal that asks the run to stop may come while a worker hangs.
                answered = self._polls[worker].poll(_slice(deadline))
                now = time.monotonic()
                # What is longer than a slice was no waiting: the processes of this job were suspended.
                excess = max(0.0, now - seen - _SLICE_SECONDS)
                seen, began, deadline = now, began + excess, deadline + excess
                if answered or now >= deadline:
                    break
                if not hurried and self.hurried():
                    hurried, deadline = True, min(deadline, now + _HURRY_SECONDS)
            if answered:
                self._receive(worker, results)
            else:
                slow = "raise step_timeout if the simulation is slow"
                self._fail(worker, f"gave no answer within {deadline - began:.3g} s; {slow}")
        return results

    def _receive(self, worker: int, results: dict[int, Any]) -> None:
        try:
            message = self._channels[worker].recv_bytes()
        except (EOFError, OSError):
            self._died(worker)
            return
        self._waiting.discard(worker)
        if message == DONE:
            return
        kind, body = message[:1], pickle.loads(message[1:])
        if kind == REFUSAL:
            self._refusals.append(body)
            return
        if kind == ERROR:
            text, classes = body
            self._fail(worker, f"raised:\n{text}", classes)
            return
        assert kind == RESULT
        results[worker] = body

    def _died(self, worker: int) -> None:
        process = self._processes[worker]
        if not _ends(process, _CLOSE_SECONDS):
            self._fail(worker, "closed its channel")
            return
        _kill(process)
        code = process.wait()  # its own: a process that has ended is killed no more
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = "; out of memory is the usual reason" if code == -signal.SIGKILL else ""
        self._fail(worker, f"died: {how}{hint}")

    def _fail(self, worker: int, reason: str, classes: Sequence[str] = ()) -> None:
        """Record a failure and kill the process: if it woke up later, it would write into the arrays."""
        process = self._processes[worker]
        _kill(process)
        process.wait()
        self._waiting.discard(worker)
        stepping = int(self.arrays.stepping[self.rows[worker][0]])
        self.arrays.stepping[self.rows[worker][0]] = 0
        self.failures[worker] = Failure(worker, stepping - 1 if stepping else None, reason, classes)

    def close(self, *, at_once: bool = False) -> None:
        """End all workers, by SIGKILL if `at_once`, after a failure or while an answer is due."""
        if not self._finalizer.alive:
            return
        if not (at_once or self.failures or self._interrupted or self._waiting):
            for channel in self._channels:
                try:
                    channel.send_bytes(COMMAND + pickle.dumps(("close", ())))
                except OSError:
                    continue  # the worker is dead already
            deadline = time.monotonic() + _CLOSE_SECONDS
            for process in self._processes:
                if not _ends(process, max(0.0, deadline - time.monotonic())):
                    break
        self._finalizer()


def _slice(deadline: float) -> float:
    """Return the milliseconds until `deadline`, at most one slice."""
    return 1000 * min(_SLICE_SECONDS, max(0.0, deadline - time.monotonic()))


def _ends(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Return whether a worker ends in time; its number stays its own, for `_kill`, where the system can."""
    if process.returncode is not None or not hasattr(os, "waitid"):  # macOS lacks it before Python 3.13
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):  # somebody else has waited for it
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
    return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and what its environments have started, such as a simulator: its process group."""
    if process.returncode is None:  # until somebody has waited for it, the number is its own
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _stop(
    processes: list[subprocess.Popen[bytes]], channels: list[Connection], memory: int, owner: int
) -> None:
    if os.getpid() != owner:
        return  # this is a fork of the learner, which must not end the learner's workers
    os.close(memory)
    for channel in channels:
        channel.close()
    for process in processes:
        _kill(process)
    for process in processes:
        process.wait()


def balanced(
    tasks: Sequence[str], num_workers: int, step_costs: Mapping[str, float]
) -> list[tuple[int, ...]]:
    """Split rows with the given tasks among at most num_workers workers of nearly equal cost.

    The most expensive rows are assigned first, each to the worker with the smallest load so far (Graham,
    "Bounds on multiprocessing timing anomalies", SIAM J. Applied Mathematics 17, 1969). Training results do
    not depend on the split.
    """
    workers = min(num_workers, len(tasks))
    costs = [step_costs.get(task, 1.0) for task in tasks]
    load = [0.0] * workers
    rows: list[list[int]] = [[] for _ in range(workers)]
    for row in sorted(range(len(tasks)), key=lambda row: (-costs[row], row)):
        worker = min(range(workers), key=lambda worker: (load[worker], len(rows[worker]), worker))
        load[worker] += costs[row]
        rows[worker].append(row)
    return [tuple(sorted(own)) for own in rows]
