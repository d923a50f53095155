from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mtrl.cli.train import main as main_train
from mtrl.config import Config


class Calls:
    """Stands for mtrl.training.run: keeps what it was called with and ends as told."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.ending: int | BaseException = 0

    def function(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.made.append((name, args, kwargs))
            if isinstance(self.ending, BaseException):
                raise self.ending
            return SimpleNamespace(exit_code=self.ending)

        return call

    @property
    def config(self) -> Config:
        ((name, (config,), _),) = self.made
        assert name == "train"
        assert isinstance(config, Config)
        return config

    @property
    def run_dir(self) -> Any:
        return self.made[0][2]["run_dir"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    calls, module = Calls(), ModuleType("mtrl.training.run")
    for name in ("train", "resume_training", "resume_or_start", "evaluate_run"):
        setattr(module, name, calls.function(name))
    monkeypatch.setitem(sys.modules, "mtrl.training.run", module)
    monkeypatch.chdir(tmp_path)
    return calls


def train_mt10(*arguments: str) -> int:
    return main_train(arguments, preset="mt10", tasks=("MT10",))


def helped(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert train_mt10(*arguments, "--help") == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())
