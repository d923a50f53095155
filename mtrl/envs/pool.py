"""Worker processes as seen from the learner: start, signal, wait under a deadline, report failures, end."""

from __future__ import annotations

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
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from mtrl.envs.shared import SharedArrays, allocate
from mtrl.envs.worker import COMMAND, DONE, ERROR, RESULT, STEP
from mtrl.errors import EnvironmentFailure

# A plain interpreter instead of multiprocessing: workers never re-import the user's script (which may import
# torch, or lack a `__main__` guard), and there is no helper process beside them to outlive anybody.
_BOOT = (
    "import json, sys; path, *args = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from mtrl.envs.worker import main; main(*args)"
)
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_START_SECONDS = 600.0
_CLOSE_SECONDS = 2.0


class WorkerPool:
    """Processes that share one set of arrays; worker w owns the rows `rows[w]`.

    Every method raises EnvironmentFailure, naming worker and tasks, when a worker died, raised or did not
    answer in time, and again at every later call: only `close` is of use then.
    """

    def __init__(
        self, backend: str, tasks: Sequence[str], rows: Sequence[Sequence[int]], timeout: float
    ) -> None:
        self.rows = [tuple(own) for own in rows]
        self._tasks = tuple(tasks)  # of each row
        self._timeout = timeout
        self._failure: str | None = None
        self._waiting: set[int] = set()  # workers that owe an answer
        memory = allocate(len(tasks))
        self.arrays = SharedArrays.attach(memory, len(tasks))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[Connection] = []
        self._finalizer = weakref.finalize(self, _stop, self._processes, self._channels, os.getpid())
        self._poll = select.poll()
        self._worker_of: dict[int, int] = {}
        try:
            for _ in self.rows:
                self._start(backend, memory, len(tasks))
        finally:
            os.close(memory)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._processes]

    def _start(self, backend: str, memory: int, num_envs: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = json.dumps([sys.path, theirs.fileno(), memory, num_envs, backend])
            process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory),
                env={**os.environ, **_ONE_THREAD},
                process_group=0,  # so that Ctrl-C reaches the learner alone, even while a worker starts
            )
        channel = Connection(ours.detach())
        self._worker_of[channel.fileno()] = len(self._channels)
        self._poll.register(channel.fileno(), select.POLLIN)
        self._processes.append(process)
        self._channels.append(channel)

    def begin_step(self) -> None:
        """Tell every worker to step with the actions in the shared arrays."""
        for worker in range(len(self._channels)):
            self._send(worker, STEP)

    def finish_step(self) -> None:
        """Wait until every worker has stepped; may be called again if an interrupt (Ctrl-C) ended it."""
        self._gather(self._timeout)

    def call(
        self, name: str, *args: Any, workers: Sequence[int] | None = None, starting: bool = False
    ) -> list[Any]:
        """Run a worker's method with the same arguments in all or some workers; return their results."""
        chosen = range(len(self._channels)) if workers is None else workers
        return self.scatter(name, dict.fromkeys(chosen, args), starting=starting)

    def scatter(self, name: str, args: dict[int, tuple[Any, ...]], *, starting: bool = False) -> list[Any]:
        """Run a worker's method with arguments for each worker; return the results in the order of `args`."""
        for worker, own in args.items():
            self._send(worker, COMMAND + pickle.dumps((name, own)))
        timeout = max(self._timeout, _START_SECONDS) if starting else self._timeout
        try:
            results = self._gather(timeout)
        except KeyboardInterrupt:
            self._failure = f"'{name}' was interrupted: the workers' answers to it are lost."
            raise
        return [results[worker] for worker in args]

    def _send(self, worker: int, message: bytes) -> None:
        if self._failure is not None:
            raise EnvironmentFailure(self._failure)
        self._waiting.add(worker)
        try:
            self._channels[worker].send_bytes(message)
        except OSError:
            self._died(worker)

    def _gather(self, timeout: float) -> dict[int, Any]:
        """Collect the answers of the workers that owe one."""
        if self._failure is not None:
            raise EnvironmentFailure(self._failure)
        waiting = self._waiting
        results: dict[int, Any] = {}
        deadline = time.monotonic() + timeout
        while waiting:
            remaining = deadline - time.monotonic()
            ready = self._poll.poll(max(0.0, remaining) * 1000)
            if not ready and remaining <= 0:
                self._hung(min(waiting), timeout)
            for descriptor, _ in ready:
                worker = self._worker_of[descriptor]
                results[worker] = self._receive(worker)
                waiting.discard(worker)
        return results

    def _receive(self, worker: int) -> Any:
        try:
            message = self._channels[worker].recv_bytes()
        except (EOFError, OSError):
            self._died(worker)
        if message == DONE:
            return None
        kind, body = message[:1], pickle.loads(message[1:])
        if kind == ERROR:
            row, report = body
            where = self._name(worker) if row is None else f"{self._name(worker)}, in task {self._tasks[row]}"
            self._fail(f"{where} raised:\n{report}")
        assert kind == RESULT
        return body

    def _died(self, worker: int) -> NoReturn:
        process = self._processes[worker]
        try:
            code = process.wait(timeout=_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._fail(f"{self._name(worker)} closed its channel.")
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " Out of memory is the usual reason." if code == -signal.SIGKILL else ""
        self._fail(f"{self._name(worker)} died: {how}.{hint}")

    def _hung(self, worker: int, timeout: float) -> NoReturn:
        self._fail(
            f"{self._name(worker)} gave no answer within {timeout:g} s; raise step_timeout if it is slow."
        )

    def _fail(self, message: str) -> NoReturn:
        self._failure = message
        raise EnvironmentFailure(message)

    def _name(self, worker: int) -> str:
        tasks = ", ".join(dict.fromkeys(self._tasks[row] for row in self.rows[worker]))
        pid = self._processes[worker].pid
        return f"environment worker {worker} of {len(self._processes)} (pid {pid}; tasks: {tasks})"

    def close(self, *, at_once: bool = False) -> None:
        """End all workers, idempotently: by SIGKILL if `at_once`, after a failure or within an exchange."""
        if not self._finalizer.alive:
            return
        if not (at_once or self._failure or self._waiting):
            for channel in self._channels:
                try:
                    channel.send_bytes(COMMAND + pickle.dumps(("close", ())))
                except OSError:
                    continue  # already dead, which is what is wanted
            deadline = time.monotonic() + _CLOSE_SECONDS
            for process in self._processes:
                try:
                    process.wait(timeout=max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    break
        self._finalizer()


def balanced(num_envs: int, num_workers: int) -> list[range]:
    """Split the rows of the environments into consecutive blocks whose lengths differ by at most one."""
    workers = min(num_workers, num_envs)
    edges = [num_envs * worker // workers for worker in range(workers + 1)]
    return [range(low, high) for low, high in pairwise(edges)]


def _stop(processes: list[subprocess.Popen[bytes]], channels: list[Connection], owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked copy of the learner must not end the original's workers
    for channel in channels:
        channel.close()
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
