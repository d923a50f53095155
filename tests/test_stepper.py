"""Updates that run while the environments step are the updates of a loop that does one after the other."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import torch

from mtrl.parts import Parts, build_envs
from mtrl.stepper import Stepper
from tests.helpers.short_runs import config

STEPS = 45


def _trained(*, overlap: bool) -> dict[str, Any]:
    settings = config(steps=STEPS, method="cagrad")
    with closing(build_envs(settings, num_workers=2)) as envs:
        if not overlap:
            results: list[Any] = []
            start, wait = envs.step_async, envs.step_wait

            def whole_step(actions: Any) -> None:
                start(actions)
                results.append(wait())

            envs.step_async, envs.step_wait = whole_step, results.pop  # type: ignore[method-assign]
        parts = Parts(settings, envs, torch.device("cpu"))
        stepper = Stepper(settings, parts)
        stepper.begin()
        for step in range(STEPS):
            stepper.vector_step(step)
        return {"vector": parts.agent.critic.flat.vector.detach(), "rows": parts.replay.state_dict()["rows"]}


def test_overlap_changes_no_number() -> None:
    beside, after = _trained(overlap=True), _trained(overlap=False)
    assert torch.equal(beside["vector"], after["vector"])
    assert torch.equal(beside["rows"], after["rows"])
