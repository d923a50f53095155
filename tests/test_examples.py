"""Every file of examples/ runs and does what its first line says."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtrl.errors import UserError
from mtrl.report.load import read_run

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TESTED = {"own_combiner.py", "own_suite.py", "optuna_search.py", "two_methods.ipynb", "slurm.sbatch"}

SMALL = """
extends: debug
suite: tests.helpers.counting_env:CountingSuite
suite_options: { step_seconds: 0.05 }
tasks: [task-1, task-2]
steps: 100
env: { num_workers: 1, max_episode_steps: 20 }
train: { log_interval: 10, checkpoint_interval: 1000, num_threads: 1 }
eval: { interval: 1000 }
"""


def main_of(name: str) -> Callable[..., Any]:
    main: Callable[..., Any] = runpy.run_path(str(EXAMPLES / name))["main"]
    return main


def test_every_example_has_a_test() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == TESTED


@pytest.mark.dear
def test_the_example_of_a_combiner_learns() -> None:
    first, last = main_of("own_combiner.py")(20)
    assert (last < first).all()


def test_the_example_of_a_suite_knows_its_tasks() -> None:
    with pytest.raises(UserError, match=r"unknown current 'strnog'\. Did you mean 'strong'"):
        runpy.run_path(str(EXAMPLES / "own_suite.py"))["Currents"](["calm", "strnog"])


@pytest.mark.slow
def test_the_example_of_a_suite_learns_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reaches a goal within 20 steps by chance in nine of ten episodes."""
    monkeypatch.chdir(tmp_path)
    result = main_of("own_suite.py")()
    assert result.evaluation.mean_success > 0.9
    config = read_run(result.path).config
    assert config["suite"] == f"{EXAMPLES / 'own_suite.py'}:Currents"


@pytest.mark.slow
def test_the_example_with_optuna_searches(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    short = {
        "train": {"warmup_steps": 70, "num_threads": 1},
        "eval": {"interval": 50, "episodes_per_task": 1},
    }
    study = main_of("optuna_search.py")(trials=2, folder=str(tmp_path), steps=100, **short)
    assert len(study.trials) == 2
    for trial in study.trials:
        run = read_run(tmp_path / str(trial.number))
        assert run.config["method_options"]["c"] == trial.params["c"]
        assert run.config["sac"]["actor_lr"] == trial.params["actor_lr"]
        assert trial.value == pytest.approx(run.evaluations[-1]["mean_success"])


@pytest.mark.slow
def test_the_cells_of_the_notebook_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By nbclient, which also returns what is shown, or else one after the other in one namespace."""
    text = (EXAMPLES / "two_methods.ipynb").read_text(encoding="utf-8")
    assert all(not cell.get("outputs") for cell in json.loads(text)["cells"])
    lengths = {
        "STEPS = 2000": "STEPS = 100",
        r"\"train.warmup_steps\": 200": r"\"train.warmup_steps\": 70",
        r"\"eval.interval\": 500": r"\"eval.interval\": 50, \"eval.final_episodes_per_task\": 2",
    }
    for printed, short in lengths.items():
        assert printed in text
        text = text.replace(printed, short)
    try:
        import nbclient
        import nbformat
    except ImportError:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MPLBACKEND", "agg")
        names: dict[str, Any] = {"__name__": "__main__"}
        for cell in json.loads(text)["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
        return
    resources = {"metadata": {"path": str(tmp_path)}}
    notebook = nbformat.reads(text, as_version=4)
    done = nbclient.NotebookClient(notebook, timeout=200, resources=resources).execute()
    shown = [output["data"] for cell in done.cells for output in cell.get("outputs", ()) if "data" in output]
    tables = [data["text/html"] for data in shown if "text/html" in data]
    assert len(tables) == 2
    assert all("strong gravity" in table for table in tables)
    assert any("image/png" in data for data in shown)


class Slurm:
    """Stands in for a cluster of one node: a job's environment, `srun`, `scontrol`, signals, the queue.

    `srun` becomes the command, so that a signal to it reaches the command, as Slurm's `srun` hands it on.
    """

    def __init__(self, folder: Path, script: Path) -> None:
        self.folder, self.script, self.log = folder, script, folder / "slurm.out"
        commands = folder / "bin"
        commands.mkdir()
        (commands / "srun").write_text(
            '#!/bin/sh\necho $$ >"$SRUN_PID"\n[ "$1" = --cpus-per-task=8 ] && shift && exec "$@"\n'
        )
        (commands / "scontrol").write_text('#!/bin/sh\necho "$@" >>"$SCONTROL_CALLS"\n')
        for command in commands.iterdir():
            command.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "4711",
            "SLURM_ARRAY_JOB_ID": "4700",
            "SLURM_ARRAY_TASK_ID": "3",
            "SLURM_CPUS_PER_TASK": "8",
            "SRUN_PID": str(folder / "srun.pid"),
            "SCONTROL_CALLS": str(folder / "calls"),
        }

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:  # --open-mode=append
            return subprocess.Popen(
                ["bash", str(self.script)], cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )

    def end(self, job: subprocess.Popen[bytes]) -> int:
        try:
            return job.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.kill(int((self.folder / "srun.pid").read_text()), signal.SIGKILL)
            job.kill()
            raise AssertionError(self.log.read_text(encoding="utf-8")) from None

    def wait_for_line(self, run: Path, more_than: int) -> int:
        """Wait until the run has logged a line after `more_than` vector steps; return its step."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            if (run / "metrics.jsonl").is_file():
                step = read_run(run).step
                if step > more_than:
                    return step
            time.sleep(0.1)
        raise AssertionError(self.log.read_text(encoding="utf-8"))

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_the_job_of_slurm_goes_on_after_its_time_limit_and_after_preemption(tmp_path: Path) -> None:
    """The time limit: USR1 to the script alone. Preemption: SIGTERM to the step; Slurm itself requeues."""
    text = (EXAMPLES / "slurm.sbatch").read_text(encoding="utf-8")
    assert text.count("--preset mt10") == 1
    script = tmp_path / "job.sbatch"
    script.write_text(text.replace("--preset mt10", "--preset small.yaml"))
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("")
    slurm, run = Slurm(tmp_path, script), tmp_path / "runs/mt10/cagrad/seed3"

    job = slurm.start()
    step = slurm.wait_for_line(run, more_than=10)
    job.send_signal(signal.SIGUSR1)
    slurm.end(job)
    assert slurm.calls == ["requeue 4711"], slurm.log.read_text(encoding="utf-8")
    assert not read_run(run).finished

    job = slurm.start()
    step = slurm.wait_for_line(run, more_than=step + 10)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGTERM)
    assert slurm.end(job) == 143

    assert slurm.end(slurm.start()) == 0
    assert slurm.calls == ["requeue 4711"]
    assert read_run(run).finished
    assert read_run(run).config["seed"] == 3

    shutil.move(run, tmp_path / "interrupted")
    assert slurm.end(slurm.start()) == 0
    whole, interrupted = read_run(run).evaluations, read_run(tmp_path / "interrupted").evaluations
    assert [{**line, "wall_s": 0} for line in interrupted] == [{**line, "wall_s": 0} for line in whole]
