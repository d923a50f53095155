from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mtrl.cli.commands import main_evaluate, main_train
from mtrl.config.method_options import method_options
from mtrl.config.schema import Config
from mtrl.errors import EnvironmentFailure, NonFiniteError, UserError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


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
    for name in ("train", "resume_training", "evaluate_run"):
        setattr(module, name, calls.function(name))
    monkeypatch.setitem(sys.modules, "mtrl.training.run", module)
    monkeypatch.chdir(tmp_path)
    return calls


def train_mt10(*arguments: str) -> int:
    return main_train(arguments, preset="mt10", tasks=("MT10",))


def test_without_flags_the_scripts_preset_is_trained(calls: Calls) -> None:
    assert train_mt10() == 0
    assert calls.config == Config()
    assert calls.run_dir is None


def test_flags_reach_every_section(calls: Calls) -> None:
    assert (
        train_mt10(
            *[
                "--sac.gamma",
                "0.98",
                "--network.critic_width",
                "512",
                "--train.num-threads=2",
                "--steps",
                "1000",
                "--seed",
                "3",
            ],
            *[
                "--device",
                "cpu",
                "--env.envs_per_task",
                "2",
                "--replay.reward-scaling",
                "ema",
                "--eval.interval=7",
            ],
            *["--network.actor-layer-norm", "--sac.max-grad-norm", "None", "--run_dir", "here"],
        )
        == 0
    )
    config = calls.config
    assert (config.sac.gamma, config.network.critic_width, config.train.num_threads) == (0.98, 512, 2)
    assert (config.steps, config.seed, config.device, config.env.envs_per_task) == (1000, 3, "cpu", 2)
    assert (config.replay.reward_scaling, config.eval.interval) == ("ema", 7)
    assert (config.network.actor_layer_norm, config.sac.max_grad_norm) == (True, None)
    assert calls.run_dir == Path("here")


def test_flag_beats_preset_beats_default(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("sac: {gamma: 0.9, tau: 0.1}\n")
    assert train_mt10("--preset", "mine.yaml", "--sac.tau", "0.2") == 0
    sac = calls.config.sac
    assert (sac.gamma, sac.tau, sac.batch_per_task) == (0.9, 0.2, 128)


def test_preset_keeps_the_scripts_tasks(calls: Calls) -> None:
    assert train_mt10("--preset=laptop") == 0
    assert calls.config.tasks == ("MT10",)


def test_tasks_may_be_replaced(calls: Calls) -> None:
    assert train_mt10("--tasks", "reach-v3", "push-v3", "--method", "cagrad", "--seed", "4") == 0
    assert calls.config.tasks == ("reach-v3", "push-v3")


def test_method_options_are_typed_and_complete(calls: Calls) -> None:
    assert train_mt10("--method", "cagrad", "--method.c", "0.4") == 0
    expected = {option.name: option.default for option in method_options()["cagrad"].options} | {"c": 0.4}
    assert calls.config.method == "cagrad"
    assert calls.config.method_options == expected
    assert type(calls.config.method_options["c"]) is float


def test_preset_supplies_method_options_below_the_flags(calls: Calls) -> None:
    assert main_train(["--method=cagrad"], preset="mt50", tasks=("MT50",)) == 0
    assert calls.config.method_options["c"] == 0.5
    calls.made.clear()
    assert main_train(["--method=cagrad", "--method.c", "0.7"], preset="mt50", tasks=("MT50",)) == 0
    assert calls.config.method_options["c"] == 0.7


@pytest.mark.parametrize("name", sorted(method_options()))
def test_every_method_is_trainable_with_its_defaults(calls: Calls, name: str) -> None:
    expected = {option.name: option.default for option in method_options()[name].options}
    shift = ["--method.shift", "minimum"] if "shift" in expected else []
    assert train_mt10("--method", name, *shift) == 0
    assert calls.config.method_options == expected | ({"shift": "minimum"} if shift else {})


def test_train_script_without_tasks_says_what_to_give(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_train(["--preset", "debug"]) == 2
    assert "--tasks MT10" in capsys.readouterr().err
    assert main_train(["--preset", "mt50"]) == 0
    assert calls.config.tasks == ("MT50",)
    calls.made.clear()
    assert main_train(["--tasks", "reach-v3"]) == 0
    assert calls.config.tasks == ("reach-v3",)


MISTAKES = [
    ("--sac.gama 3", "unknown flag '--sac.gama'. Did you mean '--sac.gamma'?"),
    ("--gamma 3", "unknown flag '--gamma'. Did you mean '--sac.gamma'?"),
    ("--batch-per-tsk=3", "Did you mean '--sac.batch-per-task'?"),
    ("--stesp 3", "Did you mean '--steps'?"),
    ("--no-such-thing-at-all", "unknown flag '--no-such-thing-at-all'."),
    ("--sac.gamma x", "--sac.gamma: expected a number, found 'x'"),
    ("--seed 2e3", "--seed: expected an integer, found '2e3'"),
    ("--env.num-workers x", "--env.num-workers: expected an integer or None, found 'x'"),
    ("--sac.gamma", "Missing value for argument '--sac.gamma'"),
    ("--sac.gamma --seed 3", "Missing value for argument '--sac.gamma'"),
    ("stray", "Unrecognized options: stray"),
    (
        "--sac.temperature shard",
        "'shard' for argument '--sac.temperature'. Expected one of ('per_task', 'shared')",
    ),
    ("--device gpu", "'gpu' for argument '--device'. Expected one of ('auto', 'cpu', 'cuda')"),
    ("--method cagard", "unknown method 'cagard'. Did you mean 'cagrad'? Valid: adatask,"),
    ("--method", "Missing value for argument '--method'"),
    ("--method cagrad --method.cc 3", "unknown option of method 'cagrad' 'cc'. Did you mean 'c'?"),
    ("--method cagrad --method.c x", "--method.c: expected a number, found 'x'"),
    ("--method cagrad --method.c -3", "--method cagrad: c "),
    ("--method famo", "--method famo: famo needs positive losses and SAC's actor loss may be negative."),
    ("--method famo", "--method.shift minimum"),
    ("--method mean --method.c 3", "method 'mean' has no options; found --method.c"),
    ("--preset mt01", "unknown preset 'mt01'. Did you mean"),
    ("--preset absent.yaml", "cannot read absent.yaml: No such file or directory."),
    ("--tasks push-v2", "'push-v2'. Did you mean 'push-v3'?"),
    ("--tasks mt10", "'mt10'. Did you mean 'MT10'?"),
    ("--tasks", "at least one task"),
    ("--tasks MT10 reach-v3", "stands alone"),
    ("--tasks reach-v3 reach-v3", "reach-v3 more than once"),
    ("--sac.batch-per-task -3", "sac.batch_per_task must be positive and finite; found -3."),
    ("--sac.gamma nan", "sac.gamma must be a finite number; found nan."),
    ("--steps 0", "steps must be positive"),
    ("--train.warmup-steps 100", "sac.batch_per_task must be at most"),
    ("--resume somewhere --seed 3", "--resume continues a run with its own configuration"),
    ("--seed 3 --resume=somewhere", "found --seed"),
    ("--resume", "Missing value for argument '--resume'"),
    ("--resume somewhere --steps -5", "--steps must be positive; found -5."),
    ("--resume somewhere --steps x", "--steps: expected an integer or None, found 'x'"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistake_gives_one_message_code_2_and_leaves_nothing(
    line: str, message: str, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_mt10(*line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert calls.made == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "PATH"),
        ("run --episodes x", "--episodes: expected an integer, found 'x'"),
        ("run --episodes 0", "--episodes must be positive; found 0."),
        ("run --epsiodes 3", "unknown flag '--epsiodes'. Did you mean '--episodes'?"),
        ("run other", "Unrecognized options: other"),
    ],
)
def test_mistake_in_evaluation(
    line: str, message: str, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_evaluate(line.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert calls.made == []


def test_evaluation_passes_its_flags_on(calls: Calls) -> None:
    assert main_evaluate(["runs/a", "--episodes", "7", "--device", "cpu", "--allow-version-mismatch"]) == 0
    given = {"episodes": 7, "device": "cpu", "allow_version_mismatch": True, "video": False}
    assert calls.made == [("evaluate_run", (Path("runs/a"),), given)]


def test_resume_passes_only_what_was_given(calls: Calls) -> None:
    assert train_mt10("--resume", "runs/a") == 0
    assert train_mt10("--resume=runs/a", "--steps", "500", "--device", "cpu") == 0
    assert train_mt10("--resume", "runs/a", "--allow-version-mismatch") == 0
    given = [(None, None, False), (500, "cpu", False), (None, None, True)]
    assert calls.made == [
        (
            "resume_training",
            (Path("runs/a"),),
            {"steps": steps, "device": device, "allow_version_mismatch": allowed},
        )
        for steps, device, allowed in given
    ]


@pytest.mark.parametrize(
    ("ending", "code", "message"),
    [
        (143, 143, ""),
        (130, 130, ""),
        (UserError("no GPU"), 2, "error: no GPU\n"),
        (NonFiniteError("reward of push-v3"), 1, "error: reward of push-v3\n"),
        (EnvironmentFailure("worker 3 died"), 75, "error: worker 3 died\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_code_tells_how_training_ended(
    calls: Calls, capsys: pytest.CaptureFixture[str], ending: int | BaseException, code: int, message: str
) -> None:
    calls.ending = ending
    assert train_mt10() == code
    assert capsys.readouterr().err == message


def test_a_defect_of_the_program_is_not_disguised_as_a_mistake(calls: Calls) -> None:
    calls.ending = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        train_mt10()


def test_help_shows_flags_with_their_meaning_and_all_methods(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_mt10("--method", "cagrad", "--preset", "laptop", "--help") == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in (
        "--sac.gamma FLOAT Discount per env step. (default: 0.99)",
        "--preset {debug,",
        "--resume",
        "--run-dir",
    ):
        assert words in text
    assert "(default: laptop)" in text
    flags, _, overview = text.partition("methods and their options:")
    assert "--method.c FLOAT" in flags
    for method in method_options().values():
        assert f"{method.name}: {method.summary}" in overview
        for option in method.options:
            name = f"--method.{option.name.replace('_', '-')}"
            assert name in overview.partition(f"{method.name}: {method.summary}")[2]
            assert f"(default: {option.default})" in overview


def test_help_shows_the_values_of_the_preset(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_mt10("--preset", "mtrl_compat", "-h") == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert re.search(r"--env\.max-episode-steps INT [^(]*\([^)]*\)\. \(default: 150\)", text)
