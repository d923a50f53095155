"""Runs the trials of a sweep on Ray Core: as many as fit at once; interrupted trials are tried again.

The driver stores nothing: the trials' directories tell what is done. It may be killed and started again with
the same command. Ray Tune is not used because it would store the same facts again, in its own checkpoints.
"""

import contextlib
import math
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ray
import ray.exceptions

from mtrl.config.presets import build_config, config_to_dict
from mtrl.device.resources import available_cores
from mtrl.errors import EnvironmentFailure, NonFiniteError, RunInUse, UserError
from mtrl.sweep import orphans
from mtrl.sweep.plan import Resources, State, Trial, progress

_POLL_SECONDS = 2.0
_WAIT_BEFORE_RETRY = 5.0  # seconds, in which the process of the former attempt ends and frees its lock
LOGS_NAME = "logs"


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP has asked the driver to stop; `exit_code` is 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


Watcher = Callable[[State], None]
Outcome = Literal["done", "again", "failed"]


class Result(NamedTuple):
    """How an attempt at a trial ended. Sent between processes, so it has plain values only."""

    outcome: Outcome  # "again": it was stopped or failed for an outside reason; the next attempt resumes it
    message: str


def connect(address: str | None, resources: Resources) -> None:
    """Start Ray on this machine, or connect to the cluster at `address`.

    Raises:
        UserError: no cluster there, or no node has the resources of one trial.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address is None:
            before = orphans.children()
            # A closing terminal hangs up on the whole process group. Ray's processes inherit this mask and
            # live until the trials have saved: the driver tells them to.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
            try:
                # Ray itself would count the whole node's cores, of which a job may have a few.
                cores = available_cores()
                ray.init(address="local", num_cpus=cores, include_dashboard=False, **options)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            orphans.watch(orphans.children() - before)
        else:
            ray.init(address=address, **options)
    except SystemExit as error:  # by Ray's own handler of SIGTERM, while it starts
        raise Stopped(signal.SIGTERM) from error
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address is None:
            raise UserError(f"Ray could not be started on this machine: {error}") from error
        raise UserError(
            f"no Ray cluster at '{address}': {error}. Start one with `ray start --head`."
        ) from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(
        node.get("CPU", 0) >= resources.cpus and node.get("GPU", 0) >= resources.gpus for node in nodes
    ):
        largest = max(node.get("CPU", 0) for node in nodes)
        gpus = max(node.get("GPU", 0) for node in nodes)
        ray.shutdown()
        raise UserError(
            f"no node has the {resources.cpus:g} CPUs and {resources.gpus:g} GPUs of one trial; the largest "
            f"have {largest:g} and {gpus:g}. Lower --cpus-per-trial or --gpus-per-trial."
        )


def run(trials: Sequence[Trial], out: Path, resources: Resources, *, retries: int, watch: Watcher) -> State:
    """Run all trials that are not finished; return how they ended.

    Args:
        trials: all trials of the sweep.
        out: the sweep's folder; the output of trials goes to its `logs`.
        resources: of each trial.
        retries: attempts at a trial after the first one.
        watch: called after each change and every few seconds.
    """
    with raising_on_signals():  # again: Ray has set handlers of its own since
        return _Driver(trials, out, resources, retries, watch).run()


@contextlib.contextmanager
def raising_on_signals() -> Iterator[None]:
    """Raise Stopped on SIGTERM and SIGHUP within the block: Ray would abort and tell no trial to save."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python forbids handlers
        yield
        return

    def stop(number: int, _: object) -> None:
        caught.append(number)
        if len(caught) == 1:  # shells and schedulers send them twice by themselves
            raise Stopped(number)

    # nohup ignores SIGHUP so that the sweep outlives its terminal.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except KeyboardInterrupt as error:
        if caught and not isinstance(error, Stopped):  # Ray makes a plain one of it
            raise Stopped(caught[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _ignoring_stop_signals() -> Iterator[None]:
    """Ignore SIGTERM and SIGHUP within the block, which would cut it off; Ctrl-C still does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_trial(config: dict[str, object], path: str, log: str, folder: str) -> Result:
    """Start the run in `path`, or continue it from its newest checkpoint, until it ends.

    It trains in the Ray worker's process, not in a child: if the worker is killed (a lost node, a killed
    driver), the run's lock is freed and no process trains beside the next attempt.

    Args:
        config: as returned by `config_to_dict`.
        path: run directory, on a file system that all nodes share.
        log: file to which the run's output is appended.
        folder: the driver's working directory; files of a user's plug-ins are relative to it.
    """
    os.chdir(folder)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8", buffering=1) as file, _printing_to(file.fileno()):
        from mtrl.training.run import resume_or_start

        try:
            result = resume_or_start(build_config(config), path)
        except (EnvironmentFailure, NonFiniteError, UserError) as error:
            print(f"error: {error}", file=file)
            # Where the run is in use, the former attempt may still be writing its last checkpoint.
            again = isinstance(error, EnvironmentFailure | RunInUse)
            return Result("again" if again else "failed", str(error))
        except Exception:
            traceback.print_exc(file=file)  # the driver keeps its last line only
            raise
    if result.exit_code:
        return Result("again", f"stopped at vector step {result.steps:,} (exit code {result.exit_code})")
    return Result("done", f"{result.steps:,} vector steps")


@contextlib.contextmanager
def _printing_to(descriptor: int) -> Iterator[None]:
    """Redirect standard output and error, also of child processes, to a file within the block."""
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    try:
        for stream, _ in kept:
            os.dup2(descriptor, stream)
        yield
    finally:
        for stream, before in kept:
            os.dup2(before, stream)
            os.close(before)


def _times(whole: float, part: float) -> int:
    """Return how often `part` fits into `whole`: .2 five times into 1, which 1 // .2 says is four."""
    return math.floor(whole / part + 1e-9)


class _Driver:
    def __init__(
        self, trials: Sequence[Trial], out: Path, resources: Resources, retries: int, watch: Watcher
    ) -> None:
        self._trials = {trial.name: trial for trial in trials}
        self._out, self._resources, self._retries, self._watch = out, resources, retries, watch
        self._done = [trial.name for trial in trials if progress(trial).finished]
        # In the order of seeds: a sweep that is half done then has some seeds of every setting.
        by_seed = sorted(trials, key=lambda trial: trial.config.seed)
        self._waiting = deque(trial.name for trial in by_seed if trial.name not in self._done)
        self._running: dict[Any, str] = {}  # reference of the attempt -> trial
        self._attempts = dict.fromkeys(self._trials, 0)
        self._not_before = dict.fromkeys(self._trials, 0.0)  # monotonic seconds
        self._failed: dict[str, str] = {}
        options: Any = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
        # No retries by Ray, which would neither count nor wait. One trial per process, so that its memory is
        # freed and a user's modules are imported anew.
        self._remote = ray.remote(max_retries=0, max_calls=1, **options)(run_trial)

    def run(self) -> State:
        self._watch(self._state())
        try:
            while self._waiting or self._running:
                self._submit()
                references = list(self._running)
                ready, _ = ray.wait(references, timeout=_POLL_SECONDS) if references else ([], [])
                if not references:
                    time.sleep(_POLL_SECONDS)
                for reference in ready:
                    self._settle(reference)
                self._watch(self._state())
        except BaseException:  # whatever ends the driver would otherwise end the trials unsaved
            self._stop()
            raise
        return self._state()

    def _submit(self) -> None:
        # A given number may exceed what fits: a cluster grows by the trials that wait in Ray's queue.
        limit = self._resources.parallel or self._capacity()
        for _ in range(len(self._waiting)):
            if len(self._running) >= limit:
                return
            name = self._waiting.popleft()
            if time.monotonic() < self._not_before[name]:
                self._waiting.append(name)
                continue
            trial = self._trials[name]
            log = self._out / LOGS_NAME / f"{name.replace('/', '-')}.log"
            paths = (str(path.resolve()) for path in (trial.path, log, Path.cwd()))
            self._attempts[name] += 1
            self._running[self._remote.remote(config_to_dict(trial.config), *paths)] = name

    def _capacity(self) -> int:
        """Return how many trials fit on the live nodes; Ray queues further ones."""
        cpus, gpus, _ = self._resources
        fits = 0
        for node in ray.nodes():
            if node["Alive"]:
                found = node["Resources"]
                by_cpus = _times(found.get("CPU", 0.0), cpus)
                fits += min(by_cpus, _times(found.get("GPU", 0.0), gpus)) if gpus else by_cpus
        return fits

    def _settle(self, reference: Any) -> None:
        """Record the outcome of an attempt that has ended."""
        name = self._running.pop(reference)
        try:
            result: Result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # a defect in the trial's code, or its imports
            result = Result("failed", str(error).strip().splitlines()[-1])
        except ray.exceptions.RayError as error:  # the worker or its node is gone
            result = Result("again", type(error).__name__)
        if result.outcome == "done":
            self._done.append(name)
        elif result.outcome == "again" and self._attempts[name] <= self._retries:
            self._not_before[name] = time.monotonic() + _WAIT_BEFORE_RETRY
            self._waiting.append(name)
        else:
            self._failed[name] = result.message

    def _stop(self) -> None:
        """Stop running trials as Ctrl-C stops a single run, and wait while they write a checkpoint."""
        with _ignoring_stop_signals():
            for reference in self._running:
                ray.cancel(reference, force=False)
            ray.wait(list(self._running), num_returns=len(self._running), timeout=60.0)

    def _state(self) -> State:
        begun, fits = tuple(self._running.values()), self._capacity()
        waiting = (*begun[fits:], *self._waiting)
        return State(waiting, begun[:fits], tuple(self._done), dict(self._failed))
