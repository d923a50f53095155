"""The sink for Weights & Biases, with a stand-in for the package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mtrl.errors import UserError
from mtrl.runs.log import SINKS, Evaluation, RunInfo, Stamp

CONFIG = {"method": "cagrad", "method_options": {"c": 0.4}, "seed": 3, "sac": {"gamma": 0.9}}


class Page:
    """A page of the stand-in, with all that it was given."""

    def __init__(self, **options: Any) -> None:
        self.options, self.is_over = options, False
        self.axes: dict[str, str | None] = {}
        self.points: list[dict[str, float]] = []

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict[str, float]) -> None:
        self.points.append(values)

    def finish(self) -> None:
        self.is_over = True


class Errors:
    """The errors of the package."""

    class UsageError(Exception): ...

    class CommError(Exception): ...

    class AuthenticationError(CommError): ...


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Page]]:
    found: list[Page] = []

    def init(**options: Any) -> Page:
        found.append(Page(**options))
        return found[-1]

    package = SimpleNamespace(init=init, errors=Errors)
    monkeypatch.setitem(sys.modules, "wandb", package)
    sys.modules.pop("mtrl.runs.wandb", None)
    # The registry keeps the class of the first import, whose module knows another stand-in.
    monkeypatch.setitem(SINKS["wandb"].open.__globals__, "wandb", package)
    yield found
    sys.modules.pop("mtrl.runs.wandb", None)
    importlib.invalidate_caches()


def test_a_run_has_a_page_with_its_configuration_and_a_line_per_task_and_resuming_continues_it(
    pages: list[Page], tmp_path: Path
) -> None:
    info = RunInfo(tmp_path, ("reach-v3", "push-v3"), CONFIG, {"torch": "2.6"}, None)
    for attempt in range(2):
        sink = SINKS["wandb"]()
        sink.open(info)
        sink.metrics(
            Stamp(10, 20, 1.0),
            {"train/critic_loss": 0.5, "train/entropy": float("nan")},
            {"weight": {"reach-v3": 0.25, "push-v3": 0.75}},
        )
        success = np.array([[1.0, 0.0], [1.0, 1.0]])
        result = Evaluation(("reach-v3", "push-v3"), success, success, success * 100)
        sink.evaluation(Stamp(20, 40, 2.0), result, final=True)
        sink.close()
        page = pages[attempt]
        assert page.is_over
        assert page.options["config"] == {**CONFIG, "versions": {"torch": "2.6"}}
        assert page.options["group"] == "cagrad"
        assert page.points[0] == {
            "train/critic_loss": 0.5, "weight/reach-v3": 0.25, "weight/push-v3": 0.75,
            "env_steps": 20, "vector_step": 10,
        }  # fmt: skip
        assert page.points[1]["success/reach-v3"] == 0.5
        assert page.points[1]["success/mean"] == 0.75
        assert page.points[1]["return/push-v3"] == 100.0
        assert page.points[1]["vector_step"] == 20
        # Without a step of wandb's own, which drops what comes back to a step: the axis is a number.
        assert page.axes == {"vector_step": None, "*": "vector_step"}
    assert pages[0].options["id"] == pages[1].options["id"]
    assert pages[0].options["resume"] == "allow"


def test_a_page_that_could_not_be_opened_can_be_closed(pages: list[Page], tmp_path: Path) -> None:
    sink = SINKS["wandb"]()
    with pytest.raises(OSError):
        sink.open(RunInfo(tmp_path / "missing", ("reach-v3",), CONFIG, {}, None))
    sink.close()
    assert not pages


@pytest.mark.parametrize("former", ["", "\n", "root:x:0:0\n", "dangling", "link"])
def test_a_page_has_an_id_of_its_own_and_nothing_is_read_or_written_through_a_link(
    former: str, pages: list[Page], tmp_path: Path
) -> None:
    path, outside = tmp_path / "run/wandb.id", tmp_path / "outside"
    path.parent.mkdir()
    if former == "link":
        outside.write_text("secret")
    if former in ("dangling", "link"):
        path.symlink_to(outside)
    else:
        path.write_text(former)
    SINKS["wandb"]().open(RunInfo(path.parent, ("reach-v3",), CONFIG, {}, None))
    assert len(pages[0].options["id"]) == 32
    assert path.read_text() == pages[0].options["id"]
    assert outside.exists() == (former == "link")
    assert former != "link" or outside.read_text() == "secret"


def test_errors_of_the_package_are_those_of_a_sink(
    pages: list[Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def failing(error: Exception) -> Any:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        return fail

    info = RunInfo(tmp_path, ("reach-v3",), CONFIG, {}, None)
    sink = SINKS["wandb"]()
    with monkeypatch.context() as patch:
        for kind in (Errors.UsageError, Errors.AuthenticationError):
            patch.setattr(wandb, "init", failing(kind("api_key not configured")))
            with pytest.raises(UserError, match=r"api_key not configured.*wandb login.*WANDB_MODE=offline"):
                sink.open(info)
        patch.setattr(wandb, "init", failing(Errors.CommError("timed out")))
        with pytest.raises(OSError, match="timed out"):
            sink.open(info)
    sink.open(info)
    for name in ("log", "finish"):
        monkeypatch.setattr(pages[0], name, failing(Errors.CommError("lost")))
    with pytest.raises(OSError, match="lost"):
        sink.metrics(Stamp(10, 20, 1.0), {}, {})
    with pytest.raises(OSError, match="lost"):
        sink.close()
