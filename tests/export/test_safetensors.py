"""Files of tensors: what is written, what is read, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save

from mtrl.errors import UserError
from mtrl.export.policy import read_tensors
from mtrl.export.run import tensor_bytes


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(10, generator=generator)
    return {
        "0.weight": torch.randn(3, 4, 5, generator=generator),
        "scalar": torch.tensor(-0.0),
        "empty": torch.zeros(0, 7),
        "transposed": torch.randn(6, 2, generator=generator).mT,
        "schön": torch.tensor([float("inf"), 1e-45, float("nan")]),
        "first half": vector[:5],
        "second half": vector[5:],
        "overlapping": vector[2:7],
    }


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape
        assert found[name].contiguous().numpy().tobytes() == tensor.contiguous().numpy().tobytes()


def by_specification(tensors: dict[str, torch.Tensor]) -> bytes:
    """The file as the format's specification has it, in the order given, as mtrl wrote it at first."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        content = tensor.contiguous().numpy().astype("<f4").tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def test_what_is_written_is_read_bit_for_bit() -> None:
    assert_equal(read_tensors(tensor_bytes(tensors()), "x"), tensors())


def test_files_of_the_first_writer_are_read() -> None:
    assert_equal(read_tensors(by_specification(tensors()), "x"), tensors())


def test_the_header_says_that_the_tensors_are_torch_s() -> None:
    content = tensor_bytes(tensors())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}


def test_other_types_are_refused_on_both_ways() -> None:
    with pytest.raises(TypeError, match="float32"):
        tensor_bytes({"a": torch.zeros(2, dtype=torch.float64)})
    with pytest.raises(UserError, match="float64"):
        read_tensors(save({"a": torch.zeros(2, dtype=torch.float64)}), "x")


@pytest.mark.parametrize("cut", [0, 4, 8, 60, -1])
def test_a_file_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(UserError, match="no \\.safetensors file"):
        read_tensors(tensor_bytes(tensors())[:cut], "x")


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}x",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
        b' "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b"[" * 100_000,
    ],
)
def test_a_header_that_lies_is_refused(header: bytes) -> None:
    with pytest.raises(UserError, match="no \\.safetensors file"):
        read_tensors(len(header).to_bytes(8, "little") + header + bytes(4), "x")
