"""The public calls: what each refuses, and that its docstring names the type of error it then raises."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtrl
from mtrl import errors
from mtrl.config.presets import build_config, load_preset
from mtrl.export.run import export_run
from mtrl.training.events import TrainResult
from mtrl.training.run import resume_or_start
from tests.helpers import short_runs

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"

MODEL = nn.Linear(2, 2)
SGD = torch.optim.SGD(MODEL.parameters(), lr=0.1)
MEAN = mtrl.make_combiner("mean", num_tasks=2)


def losses(batch: int = 0) -> Tensor:
    found: Tensor = MODEL(torch.ones(1, 2)).square().mean(dim=0)
    return found


def step(**wrong: Any) -> Any:
    arguments = {"combiner": MEAN, "losses": losses, "model": MODEL, "optimizer": SGD}
    return mtrl.mtl_step(**{**arguments, **wrong})


def small(**changes: Any) -> mtrl.Config:
    return short_runs.counting(**changes)


# name of the public call -> calls of it that are wrong in the way that the label says
WRONG: dict[str, dict[str, Callable[[Path], Any]]] = {
    "Config": {
        "unknown field": lambda _: mtrl.Config(stepz=3),  # type: ignore[call-arg]
        "out of range": lambda _: mtrl.Config(steps=0),
        "wrong type": lambda _: mtrl.Config(steps="many"),  # type: ignore[arg-type]
        "wrong section": lambda _: mtrl.Config(sac={"gammma": 0.9}),  # type: ignore[arg-type]
        "options without a method": lambda _: mtrl.Config(critic_method_options={"c": 0.5}),
    },
    "Config.from_preset": {
        "no such preset": lambda _: mtrl.Config.from_preset("lapptop"),
        "no such file": lambda path: mtrl.Config.from_preset(str(path / "own.yaml")),
        "unknown setting": lambda _: mtrl.Config.from_preset("laptop", {"eval.intervall": 3}),
        "no section": lambda _: mtrl.Config.from_preset("laptop", {"eval": 3}),
    },
    "build_config": {
        "unknown key": lambda _: build_config({"stepz": 3}),
        "out of range": lambda _: build_config({"sac": {"gamma": 2.0}}),
    },
    "load_preset": {"no such preset": lambda _: load_preset("lapptop")},
    "make_combiner": {
        "unknown method": lambda _: mtrl.make_combiner("meen", num_tasks=2),
        "unknown argument": lambda _: mtrl.make_combiner("cagrad", num_tasks=2, d=1),
        "out of range": lambda _: mtrl.make_combiner("cagrad", num_tasks=2, c=-1.0),
        "wrong type": lambda _: mtrl.make_combiner("cagrad", num_tasks=2, c="wide"),
        "no module": lambda _: mtrl.make_combiner("no_such_module:Name", num_tasks=2),
        "no class": lambda _: mtrl.make_combiner(3, num_tasks=2),  # type: ignore[arg-type]
        "no tasks": lambda _: mtrl.make_combiner("mean", num_tasks=0),
    },
    "mtl_step": {
        "name instead of a combiner": lambda _: step(combiner="mean"),
        "no optimiser": lambda _: step(optimizer=None),
        "optimiser of another model": lambda _: step(optimizer=torch.optim.SGD(nn.Linear(2, 2).parameters())),
        "optimiser with a closure": lambda _: step(optimizer=torch.optim.LBFGS(MODEL.parameters())),
        "text as losses": lambda _: step(losses="ab"),
        "losses without a graph": lambda _: step(losses=torch.ones(2)),
        "losses of three tasks": lambda _: step(losses=lambda _: torch.cat((losses(), losses()))[:3]),
        "losses that are not finite": lambda _: step(losses=lambda _: losses() * torch.nan),
        "losses where a function is needed": lambda _: step(
            combiner=mtrl.make_combiner("famo", num_tasks=2), losses=losses()
        ),
        "text as model": lambda _: step(model="model"),
        "one head for two tasks": lambda _: step(heads=[nn.Linear(2, 2)]),
        "no batches": lambda _: step(micro_batches=0),
        "no tasks per pass": lambda _: step(chunk_size=0),
        "negative norm": lambda _: step(max_norm=-1.0),
        "norm that is no number": lambda _: step(max_norm="1"),
        "no process group": lambda _: step(distributed=True),
    },
    "task_jacobian": {
        "no graph": lambda _: mtrl.task_jacobian(torch.ones(2), MODEL),
        "other parameters": lambda _: mtrl.task_jacobian(losses(), nn.Linear(2, 2)),
        "no parameters": lambda _: mtrl.task_jacobian(losses(), ["weight"]),
        "no tasks per pass": lambda _: mtrl.task_jacobian(losses(), MODEL, chunk_size=-1),
    },
    "set_gradient": {
        "other length": lambda _: mtrl.set_gradient(MODEL, torch.ones(2)),
        "no tensor": lambda _: mtrl.set_gradient(MODEL, [1.0] * 6),  # type: ignore[arg-type]
        "no parameters": lambda _: mtrl.set_gradient("model", torch.ones(6)),
    },
    "train": {
        "a mapping": lambda _: mtrl.train({"tasks": ["reach-v3"]}),  # type: ignore[arg-type]
        "unknown method": lambda path: mtrl.train(small(method="meen"), run_dir=path / "run"),
        "unknown task": lambda path: mtrl.train(small(tasks=("nowhere",)), run_dir=path / "run"),
        "unknown option": lambda path: mtrl.train(small(method_options={"d": 1}), run_dir=path / "run"),
        "no folder": lambda path: mtrl.train(small(), run_dir=path / "file" / "run"),
    },
    "resume_training": {
        "no run": lambda path: mtrl.resume_training(path / "nothing"),
        "no checkpoint": lambda path: mtrl.resume_training(path),
        "no steps": lambda path: mtrl.resume_training(path / "run", steps=0),
        "unknown device": lambda path: mtrl.resume_training(path / "run", device="tpu"),  # type: ignore[arg-type]
    },
    "resume_or_start": {
        "a mapping": lambda path: resume_or_start({}, path / "run"),  # type: ignore[arg-type]
        "another configuration": lambda path: resume_or_start(small(seed=5), path / "run"),
    },
    "evaluate_run": {
        "no run": lambda path: mtrl.evaluate_run(path / "nothing"),
        "no episodes": lambda path: mtrl.evaluate_run(path / "run", episodes=0),
        "no such checkpoint": lambda path: mtrl.evaluate_run(path / "run", checkpoint=7),
        "no best policy": lambda path: mtrl.evaluate_run(path / "run", best=True),
    },
    "load_runs": {"no run": lambda path: mtrl.load_runs(path / "nothing")},
    "load_policy": {
        "no policy": lambda path: mtrl.load_policy(path),
        "no such kind of device": lambda path: mtrl.load_policy(path / "policy", device="tpu"),
        "no such device": lambda path: mtrl.load_policy(path / "policy", device="cuda:99"),
        "no module": lambda path: mtrl.load_policy(path / "policy", architecture="no_such_module:Name"),
    },
}
CALLABLES = {
    **{name: getattr(mtrl, name) for name in mtrl.__all__},
    "Config.from_preset": mtrl.Config.from_preset,
    "build_config": build_config,
    "load_preset": load_preset,
    "resume_or_start": resume_or_start,
}


def raised_by(docstring: str) -> list[type[Exception]]:
    """The types that stand in the docstring's section "Raises"."""
    section = re.search(r"^Raises:\n((?:(?: .*)?\n?)+)", inspect.cleandoc(docstring), flags=re.MULTILINE)
    names = re.findall(r"^    (\w+):", section[1], flags=re.MULTILINE) if section else []
    builtins = {"ValueError": ValueError, "RuntimeError": RuntimeError, "ImportError": ImportError}
    return [{**builtins, **vars(errors)}[name] for name in names]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, first_half: Path) -> Path:
    """A folder with a file, a run of a few steps and its policy."""
    path = tmp_path_factory.mktemp("api")
    (path / "file").write_text("")
    shutil.copytree(first_half, path / "run")
    export_run(path / "run", path / "policy")
    return path


def test_every_public_call_is_tried() -> None:
    assert set(WRONG) == set(CALLABLES)


@pytest.mark.parametrize("name", CALLABLES)
def test_wrong_calls_raise_what_the_docstring_says(name: str, place: Path) -> None:
    documented = raised_by(CALLABLES[name].__doc__ or "")
    assert documented
    for label, call in WRONG[name].items():
        with pytest.raises(Exception) as caught:
            call(place)
        assert type(caught.value) in documented, f"{name}, {label}: {caught.value!r}"
        assert len(str(caught.value)) > 20, label


def modules_of_the_page() -> dict[str, set[str]]:
    """Modules of docs/api.md -> the names that it shows of them; none if it shows all."""
    found = re.findall(
        r"^::: (\S+)\n(?: +options: \{members: \[(.*?)\]\})?", PAGE.read_text(), flags=re.MULTILINE
    )
    return {module: set(re.findall(r"\w+", names)) for module, names in found}


@pytest.mark.parametrize("module", modules_of_the_page())
def test_docstrings_of_the_page_name_what_the_code_raises(module: str) -> None:
    """Every `raise Type(...)` in the body of a public function stands in its docstring, or in its class's."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    tree = ast.parse((path if path.exists() else path.with_suffix("") / "__init__.py").read_text())
    shown = modules_of_the_page()[module]
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        if shown and node.name not in shown:
            continue
        of_class = (ast.get_docstring(node) or "") if isinstance(node, ast.ClassDef) else ""
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        for function in inner:
            if not isinstance(function, ast.FunctionDef):
                continue
            if function.name.startswith("_") and function.name != "__init__":
                continue
            raised = {
                raise_.exc.func.id
                for raise_ in ast.walk(function)
                if isinstance(raise_, ast.Raise)
                and isinstance(raise_.exc, ast.Call)
                and isinstance(raise_.exc.func, ast.Name)
            }
            told = (ast.get_docstring(function) or "") + (of_class if function.name == "__init__" else "")
            assert {name for name in raised if name not in told} == set(), f"{node.name}.{function.name}"


def test_the_page_says_what_a_run_returns() -> None:
    told = TrainResult.__doc__ or ""
    assert all(f"        {name}: " in told for name in TrainResult._fields)
