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

from mtrl.runs.log import SINKS, Evaluation, RunInfo, Stamp

CONFIG = {"method": "cagrad", "method_options": {"c": 0.4}, "seed": 3, "sac": {"gamma": 0.9}}


class Page:
    """A page of the stand-in, with all that it was given."""

    def __init__(self, **options: Any) -> None:
        self.options, self.points, self.is_over = options, dict[int, dict[str, float]](), False

    def log(self, values: dict[str, float], step: int) -> None:
        self.points.setdefault(step, {}).update(values)

    def finish(self) -> None:
        self.is_over = True


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Page]]:
    found: list[Page] = []

    def init(**options: Any) -> Page:
        found.append(Page(**options))
        return found[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    sys.modules.pop("mtrl.runs.wandb", None)
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
        assert page.points[10] == {
            "train/critic_loss": 0.5, "weight/reach-v3": 0.25, "weight/push-v3": 0.75, "env_steps": 20,
        }  # fmt: skip
        assert page.points[20]["success/reach-v3"] == 0.5
        assert page.points[20]["success/mean"] == 0.75
        assert page.points[20]["return/push-v3"] == 100.0
    assert pages[0].options["id"] == pages[1].options["id"]
    assert pages[0].options["resume"] == "allow"


def test_a_page_that_could_not_be_opened_can_be_closed(pages: list[Page], tmp_path: Path) -> None:
    sink = SINKS["wandb"]()
    with pytest.raises(OSError):
        sink.open(RunInfo(tmp_path / "missing", ("reach-v3",), CONFIG, {}, None))
    sink.close()
    assert not pages
