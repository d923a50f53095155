"""Files of an exported policy that are damaged, were edited or come from a stranger are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

import mtrl
from mtrl.errors import UserError
from tests.export.conftest import edit


def test_what_is_damaged_or_missing_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no policy in"):
        mtrl.load_policy(tmp_path / "nowhere")
    tensors, spec = exported / "policy.safetensors", exported / "policy.json"
    intact, description = tensors.read_bytes(), json.loads(spec.read_text())
    tensors.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    with pytest.raises(UserError, match="SHA-256 differs"):
        mtrl.load_policy(exported)
    tensors.write_bytes(intact)
    description["network"]["arguments"]["width"] = 17
    spec.write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"expected .*\[1, 17, 8\].*; found .*\[1, 16, 8\]"):
        mtrl.load_policy(exported)
    spec.write_text(json.dumps(description | {"format": 99}))
    with pytest.raises(UserError, match="export the policy again"):
        mtrl.load_policy(exported)


@pytest.mark.parametrize("named", ["net.py:Net", "{folder}/net.py:Net", "stranger_module:Net"])
def test_code_that_the_files_name_is_not_run(
    named: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported)
    monkeypatch.syspath_prepend(str(exported))
    named = named.format(folder=exported)
    for name in ("net.py", "stranger_module.py"):
        (exported / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Net: pass\n")
    edit(exported, lambda spec: spec["network"].update(architecture=named))
    with pytest.raises(UserError, match="whose code would be run"):
        mtrl.load_policy(".")
    assert not (tmp_path / "ran").exists()


BOMBS: dict[str, Any] = {
    "width": {"width": 60_000},
    "depth": {"depth": 1_000_000},
    "stack": {"stack": 10**9},
    "outputs": {"outputs": 10**9},
    "negative width": {"width": -1},
    "width in words": {"width": "many"},
}


@pytest.mark.parametrize("changes", BOMBS.values(), ids=BOMBS)
def test_a_network_larger_than_its_file_is_refused_before_it_takes_memory(
    changes: dict[str, Any], exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(exported, lambda spec: spec["network"]["arguments"].update(changes))

    def draw(*_: Any) -> None:
        raise AssertionError("parameters were drawn")

    monkeypatch.setattr("mtrl.networks.mlp.MLP.initial_parameters", draw)
    with pytest.raises(UserError, match="larger network"):
        mtrl.load_policy(exported)


@pytest.mark.parametrize(
    "changes",
    [{"activation": "relo"}, {"activation": []}, {"width": 0}, {"head_range": "x"}, {"head_range": None}],
    ids=str,
)
def test_an_argument_that_the_network_cannot_take_is_a_user_s_error(
    changes: dict[str, Any], exported: Path
) -> None:
    edit(exported, lambda spec: spec["network"]["arguments"].update(changes))
    with pytest.raises(UserError, match=r"policy\.json"):
        mtrl.load_policy(exported)


@pytest.mark.parametrize("key", ["sha256", "tasks", "obs_dim", "network", "format"])
@pytest.mark.parametrize("value", [None, [], {}, "x", -1, 1e999, "absent"])
def test_a_description_that_lacks_something_is_a_user_s_error(key: str, value: Any, exported: Path) -> None:
    edit(exported, lambda spec: spec.pop(key) if value == "absent" else spec.update({key: value}))
    with pytest.raises(UserError):
        mtrl.load_policy(exported)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 200_000, b"\xff", b"[]", b" " * (17 << 20)])
def test_a_description_that_is_none_is_a_user_s_error(text: bytes, exported: Path) -> None:
    (exported / "policy.json").write_bytes(text)
    with pytest.raises(UserError):
        mtrl.load_policy(exported)
