"""What an update and the storing of a vector step would do on a GPU, seen on the meta device.

Sums have a fixed order: there is no atomic addition and nothing that torch refuses where results must repeat.
Storing is one graph: nothing is read back, nothing copied from the host.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mtrl_benchmarks import _nodes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mtrl.agents.sac.losses import Atoms, _shared_out, project
from mtrl.agents.sac.replay import Replay
from mtrl.agents.sac.returns import ReturnScale
from mtrl.combiners import COMBINERS, make_combiner
from mtrl.combiners.solvers import hull

# From the documentation of torch.use_deterministic_algorithms: they raise or add in a varying order on CUDA.
QUICK = {"cagrad", "pcgrad", "modo"}
VARYING = {
    "bincount", "histc", "kthvalue", "median", "put", "scatter_add", "embedding_dense_backward",
    "cumsum", "cumprod", "logcumsumexp",
}  # fmt: skip
RUNNING = {"cumsum", "cumprod"}  # of integers they repeat


class Varying(TorchDispatchMode):
    """Collects the names of operations whose result varies on CUDA."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1].rstrip("_")
        accumulates = "index_put" in name and (kwargs or {}).get("accumulate", len(args) > 3 and args[3])
        exact = name in RUNNING and not result.is_floating_point()
        if (name in VARYING and not exact) or accumulates:
            self.found.append(name)
        return result


def test_an_operation_that_varies_is_found() -> None:
    with Varying() as seen:
        torch.zeros(3).scatter_add_(0, torch.zeros(2, dtype=torch.int64), torch.ones(2))
        torch.ones(3).cumsum(0)
        torch.ones(3, dtype=torch.int64).cumsum(0)
        torch.zeros(3).index_put_((torch.zeros(2, dtype=torch.int64),), torch.ones(2), accumulate=True)
    assert seen.found == ["scatter_add", "cumsum", "index_put"]


@pytest.mark.dear
@pytest.mark.parametrize(
    ("preset", "method"),
    [
        ("sac_laptop", "mean"),  # its critics are distributions, its returns span several steps
        *(
            pytest.param("mt10", method, marks=[] if method in QUICK else pytest.mark.slow)
            for method in sorted(set(COMBINERS) - {"torchjd"})
        ),
    ],
)
def test_an_update_on_a_gpu_adds_in_a_fixed_order(preset: str, method: str) -> None:
    with Varying() as seen:
        assert _nodes.count(preset, method, 3).nodes > 100
    assert seen.found == []


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reward_scaling": "ema"},
        {"reward_scaling": "return", "return_quantile": 0.99, "n_step": 3, "curriculum": 0.6},
    ],
    ids=["plain", "ema", "everything"],
)
def test_storing_a_vector_step_leaves_the_host_alone(options: dict[str, Any], complete: bool) -> None:
    sizes: dict[str, Any] = {
        "num_tasks": 3,
        "capacity_per_task": 40,
        "envs_per_task": 4,
        "obs_dim": 6,
        "action_dim": 2,
    }
    counts = _nodes.Counts(1, "high")
    with _nodes._stand_ins():
        replay = Replay(**sizes, device=_nodes.META, seed=0, **options)
        with _nodes._Counter(counts), Varying() as seen:
            replay._store(complete)
    assert counts.nodes > 0
    assert counts.host_reads == counts.host_copies == seen.found == []


def test_what_runs_beside_the_update_adds_in_a_fixed_order() -> None:
    scale = ReturnScale(
        num_tasks=2, envs_per_task=3, gamma=0.9, bound=1.0, device=torch.device("cpu"), quantile=0.9
    )
    none = torch.zeros(2, 3, dtype=torch.bool)
    capped = make_combiner("capped_mgda", num_tasks=3)
    capped.combine(torch.randn(3, 10, generator=torch.Generator().manual_seed(0)))
    with Varying() as seen:
        scale.add(torch.ones(2, 3), none, none)
        hull.project(torch.randn(4))
        capped.metrics()
    assert seen.found == []


def test_a_gpus_projection_on_atoms_is_that_of_a_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    atoms = Atoms(-2.0, 3.0, 11)
    probabilities = torch.rand(2, 5, 7, generator=generator).softmax(-1)
    values = torch.randn(2, 5, 7, generator=generator) * 3.0  # some beyond the ends
    values[0, 0] = torch.tensor([-2.0, 3.0, -2.0, 0.5, 0.5, 9.0, -9.0])  # and some on atoms
    found: Tensor = _shared_out(atoms.position(values), probabilities, atoms.number)
    torch.testing.assert_close(found, project(atoms, probabilities, values))
