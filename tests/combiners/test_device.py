from __future__ import annotations

import pytest
import torch

from mtrl.combiners import COMBINERS, GramCombiner
from tests.combiners.calls import combined
from tests.combiners.oracles import ORACLES
from tests.helpers.evaluators import Linear
from tests.helpers.loss_methods import losses_of
from tests.helpers.matrices import jacobian

ON_DEVICE = sorted(name for name in COMBINERS if not ORACLES[name].reads_host)
GRAM_METHODS = sorted(name for name, cls in COMBINERS.items() if issubclass(cls, GramCombiner))


@pytest.mark.gpu
@pytest.mark.parametrize("tasks", [10, 50])
@pytest.mark.parametrize("name", ON_DEVICE)
def test_an_update_never_waits_for_the_device(name: str, tasks: int) -> None:
    rows = jacobian("iid", tasks, seed=0)
    expected = combined(ORACLES[name].make(name, tasks), rows)
    combiner = ORACLES[name].make(name, tasks).cuda()
    on_device, losses = rows.cuda(), losses_of(rows).cuda()
    with combiner.unchecked():
        combiner.combine(on_device, losses)  # libraries load at the first call
        combiner.after_step(losses)
        combiner.reset()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = combiner.combine(on_device, losses)
            combiner.after_step(losses)
            metrics = combiner.metrics()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(value.is_cuda for value in metrics.values())
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-6, atol=1e-8)


def test_a_device_without_float64_is_answered_with_a_way_that_works_there() -> None:
    with pytest.raises(ValueError, match=r"no float64.*CPU: combiner\.combine\(jacobian\.cpu\(\), losses"):
        ORACLES["cagrad"].make("cagrad", 2).check_device("jacobian", torch.device("mps:0"))


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAM_METHODS)
def test_weights_trace_into_one_graph(name: str) -> None:
    rows = jacobian("iid", 4, seed=0)
    traced, plain = (ORACLES[name].make(name, 4) for _ in range(2))
    assert isinstance(traced, GramCombiner)
    assert isinstance(plain, GramCombiner)
    torch.compiler.reset()  # methods share a wrapper: their recordings add up to more than torch allows
    with traced.unchecked():
        compiled = torch.compile(traced.weights, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(rows @ rows.T), plain.weights(rows @ rows.T))
        torch.testing.assert_close(traced.last_weights, plain.last_weights)


@pytest.mark.dear
@pytest.mark.parametrize("name", ON_DEVICE)
def test_no_operation_reads_a_number_back_to_the_host(name: str) -> None:
    # Tensors on the meta device have no numbers: reading one raises.
    combiner = ORACLES[name].make(name, 4).to("meta")
    with combiner.unchecked():
        losses = torch.empty(4, device="meta")
        rows = torch.empty(4, 7, device="meta")
        assert combiner.direction(Linear(rows, losses=losses)).shape == (7,)
        combiner.after_step(losses)
        assert combiner.metrics()["weights"].shape == (4,)
