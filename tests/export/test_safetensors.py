"""The reader and the writer against the package of the format's authors."""

from __future__ import annotations

import pytest
import torch

from mtrl.errors import UserError
from mtrl.export.safetensors import from_bytes, to_bytes

published = pytest.importorskip("safetensors.torch")


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "0.weight": torch.randn(3, 4, 5, generator=generator),
        "scalar": torch.tensor(-0.0),
        "empty": torch.zeros(0, 7),
        "transposed": torch.randn(6, 2, generator=generator).mT,
        "schön": torch.tensor([float("inf"), 1e-45, float("nan")]),
    }


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape
        assert found[name].contiguous().numpy().tobytes() == tensor.contiguous().numpy().tobytes()


def test_the_package_reads_what_we_write() -> None:
    assert_equal(published.load(to_bytes(tensors())), tensors())


def test_we_read_what_the_package_writes() -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors().items()}
    assert_equal(from_bytes(published.save(contiguous), "x"), tensors())


def test_other_types_are_refused_on_both_ways() -> None:
    with pytest.raises(TypeError, match="float32"):
        to_bytes({"a": torch.zeros(2, dtype=torch.float64)})
    with pytest.raises(UserError, match="F64"):
        from_bytes(published.save({"a": torch.zeros(2, dtype=torch.float64)}), "x")


@pytest.mark.parametrize("cut", [0, 4, 8, 60, -1])
def test_a_file_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(UserError, match="no \\.safetensors file"):
        from_bytes(to_bytes(tensors())[:cut], "x")


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}x",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}',
    ],
)
def test_a_header_that_lies_is_refused(header: bytes) -> None:
    with pytest.raises(UserError, match="no \\.safetensors file"):
        from_bytes(len(header).to_bytes(8, "little") + header + bytes(4), "x")
