"""Configurations that strangers have made to hang or crash whoever reads them."""

import time
from pathlib import Path

import pytest

from mtrl.config.presets import load_config, load_preset
from mtrl.errors import UserError

NINE = "\n".join(
    f"a{depth}: &a{depth} [{', '.join([f'*a{depth - 1}' if depth else '1'] * 9)}]" for depth in range(9)
)
BOMBS = {
    "aliases": "tasks: [reach-v3]\nmethod_options:\n" + "".join(f"  {line}\n" for line in NINE.splitlines()),
    "itself": "method_options: &a {x: *a}",
    "brackets": "tasks: " + "[" * 5_000,
    "braces": "tasks: " + "{a: " * 20_000,
    "bytes": b"tasks: \xff",
    "a list": "[1, 2]",
    "wrong kinds": "steps: [x]\ntasks: {a: 1}",
    "no date": "tasks: [reach-v3]\nmethod_options: {a: 2026-30-11}",
    "no number": "seed: 0x_",
    "no bool": "device: !!bool maybe",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_configuration_that_is_a_bomb_is_refused_at_once(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    began = time.process_time()
    for read in (load_config, lambda file: load_preset(str(file))):
        with pytest.raises(UserError):
            read(path)
    assert time.process_time() - began < 5


def test_a_preset_may_use_aliases(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("tasks: &tasks [reach-v3, push-v3]\nmethod_options: {tasks: *tasks}\n")
    assert load_preset(str(path))["tasks"] == ("reach-v3", "push-v3")
