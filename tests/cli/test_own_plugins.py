"""Flags of networks and methods that users bring along."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.conftest import Calls, helped, train_mt10

NETWORK = '''
from torch import nn

class Net(nn.Module):
    """A network of the user's own.

    Args:
        width: units.
        gated: whether there are gates.
    """

    def __init__(self, inputs: int, outputs: int, num_tasks: int, width: int = 64, gated: bool = True):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.layer(x)
'''


def test_options_of_a_network_and_of_one_role_alone(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    text = helped(capsys, "--network", "net.py:Net")
    assert "--network.options.width INT units. (default: 64)" in text
    assert "--network.critic-options.width INT|None units. (default: not-set)" in text
    line = "--network=net.py:Net --network.options.width 32 --network.critic-options.width 128"
    assert train_mt10(*line.split(), "--network.actor-options.gated", "false") == 0
    network = calls.config.network
    assert network.architecture == "net.py:Net"
    assert network.options == {"width": 32, "gated": True}
    assert (network.actor_options, network.critic_options) == ({"gated": False}, {"width": 128})
    assert train_mt10(*line.split(), "--network.actor-options.gated", "3") == 2
    assert "network.actor_options.gated must be true or false; found 3" in capsys.readouterr().err
    assert train_mt10("--network.actor-options.width", "3") == 2
    assert "unknown flag '--network.actor-options.width'" in capsys.readouterr().err


INVERSE = '''
import torch
from mtrl.combiners import LossCombiner

class Inverse(LossCombiner):
    """Weights in inverse proportion to the losses.

    Args:
        power: exponent of the losses.
        kind: which one.
    """

    name = "inverse"

    def __init__(self, *, num_tasks: int, power: float = 1.0, kind: str = "plain") -> None:
        super().__init__(num_tasks=num_tasks)
        if power < 0:
            raise ValueError(f"power must be positive; found {power}.")

    def _weights(self, losses: torch.Tensor) -> torch.Tensor:
        return losses.abs().pow(-1.0)
'''


@pytest.mark.parametrize("name", ["my_inverse:Inverse", "my_inverse.py:Inverse"])
def test_a_method_in_a_file_of_the_users_own_has_typed_options(
    name: str, calls: Calls, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "my_inverse.py").write_text(INVERSE)
    assert train_mt10("--method", name, "--method.power", "2", "--method.kind", "3") == 0
    assert (calls.config.method, calls.config.method_options) == (name, {"power": 2.0, "kind": "3"})
    assert "--method.power FLOAT exponent of the losses. (default: 1.0)" in helped(capsys, "--method", name)
    for line, message in (
        ("--method.power -1", "method my_inverse.* power must be positive"),
        ("--method.power x", "method_options.power must be a finite number; found 'x'"),
        ("--method.powre 1", "Did you mean '--method.power'"),
    ):
        assert train_mt10("--method", name, *line.split()) == 2
        assert re.search(message, capsys.readouterr().err)


def test_an_option_without_a_default_is_a_flag_that_has_to_be_given(
    calls: Calls, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "my_inverse.py").write_text(INVERSE.replace("power: float = 1.0", "power: float"))
    name = "my_inverse.py:Inverse"
    assert train_mt10("--method", name, "--method.power", "2") == 0
    assert calls.config.method_options == {"power": 2.0, "kind": "plain"}
    assert "--method.power" in helped(capsys, "--method", name)
    assert train_mt10("--method", name) == 2
    assert "needs a value for its option 'power'; found none." in capsys.readouterr().err
    (tmp_path / "mine.yaml").write_text(
        "method: my_inverse.py:Inverse\nmethod_options: {power: 3}\n"
        "method_defaults: {'my_inverse.py:Inverse': {kind: odd}}\n"
    )
    calls.made.clear()
    assert train_mt10("--preset", "mine.yaml") == 0
    assert calls.config.method_options == {"power": 3.0, "kind": "odd"}


def test_options_that_are_tuples_have_flags_also_without_a_default(calls: Calls, tmp_path: Path) -> None:
    own = "order: tuple[int, ...], span: tuple[float, float] = (0.0, 1.0), power: float = 1.0"
    (tmp_path / "my_inverse.py").write_text(INVERSE.replace("power: float = 1.0", own))
    line = "--method my_inverse.py:Inverse --method.order 3 0 1"
    assert train_mt10(*line.split(), "--method.span", "[0, 2]") == 0
    found = calls.config.method_options
    assert (found["order"], found["span"]) == ((3, 0, 1), (0.0, 2.0))


def test_an_option_of_several_words_can_be_that_of_one_network(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Linear):\n"
        "    def __init__(self, inputs, outputs, num_tasks, widths: tuple[int, ...] = (64, 64)):\n"
        "        super().__init__(inputs, outputs)\n"
    )
    assert train_mt10("--network=net.py:Net", *["--network.critic-options.widths", "128", "64"]) == 0
    assert calls.config.network.critic_options == {"widths": (128, 64)}
    assert calls.config.network.actor_options == {}


def test_a_users_method_from_yaml(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "my_inverse.py").write_text(INVERSE)
    (tmp_path / "mine.yaml").write_text(
        "method: my_inverse.py:Inverse\nmethod_defaults: {'my_inverse.py:Inverse': {power: 3}}\n"
    )
    assert train_mt10("--preset", "mine.yaml") == 0
    assert calls.config.method_options == {"power": 3.0, "kind": "plain"}
