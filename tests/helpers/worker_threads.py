"""Workers in threads, in the place of processes, whose start is most of a short run. They cannot die."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import threading
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from mtrl.envs.engine.pool import WorkerPool
from mtrl.envs.engine.shared import SharedArrays
from mtrl.envs.engine.worker import serve

_TURN = threading.Lock()


class _InTurn(Connection):
    """Answers one message at a time: warning filters, which a worker sets, are those of the process."""

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        message = super().recv_bytes(maxlength)
        _TURN.acquire()
        return message

    def send_bytes(self, *message: Any) -> None:
        _TURN.release()
        super().send_bytes(*message)


class WorkerThread:
    """What a pool asks of a process."""

    def __init__(self, channel: socket.socket, arrays: SharedArrays) -> None:
        self._channel = channel
        self._thread = threading.Thread(target=self._serve, args=(arrays,), daemon=True)
        self._thread.start()

    def _serve(self, arrays: SharedArrays) -> None:
        with self._channel, contextlib.suppress(EOFError, OSError):
            serve(_InTurn(self._channel.detach()), arrays)

    @property
    def pid(self) -> NoReturn:
        """Refused: whoever asks wants to send a signal, which would reach the tests themselves."""
        raise AssertionError("this worker is a thread; mark the test with `processes`")

    returncode = 0  # it has no process group

    def wait(self, timeout: float = 20.0) -> int:
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise subprocess.TimeoutExpired("a worker", timeout)
        return 0

    def kill(self) -> None:
        """Do nothing: the thread ends when the learner closes the channel."""


def start(pool: WorkerPool, worker: int) -> tuple[WorkerThread, Connection]:
    """In the place of WorkerPool._start."""
    ours, theirs = socket.socketpair()
    channel = Connection(ours.detach())
    pool._polls[worker] = select.poll()
    pool._polls[worker].register(channel.fileno(), select.POLLIN)
    return WorkerThread(theirs, pool.arrays), channel
