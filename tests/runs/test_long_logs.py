"""A resumed run cuts its logs by one pass over them, whatever their length and whatever happened to them."""

import json
import random
import tracemalloc
from pathlib import Path

import pytest

from mtrl.runs.jsonl import drop_after, lost_lines
from mtrl.runs.log import Stamp


def line(step: int, size: int = 0, **more: object) -> bytes:
    numbers = {f"number_{index}": index / 7 for index in range(size)}
    return (json.dumps({**Stamp(step, 2 * step, 0.5 * step)._asdict(), **more, **numbers}) + "\n").encode()


@pytest.mark.parametrize("seed", range(8))
def test_of_each_vector_step_the_last_line_stays(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    bad = [
        b"{\n",
        b"\0" * 50 + b"\n",
        b"[1]\n",
        b'{"vector_step": "3"}\n',
        b'{"vector_step": 40, "a": }\n',
        b"\n",
    ]
    steps = [draw.randrange(10, 80, 10) for _ in range(draw.randrange(20))]
    written = [line(step, mark=index) for index, step in enumerate(steps)]
    mixed = [*written, *draw.choices(bad, k=draw.randrange(4))]
    if seed % 2:
        draw.shuffle(mixed)
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(mixed) + draw.choice([b"", line(10)[:-1], b'{"vec']))
    newest: dict[int, int] = {}
    for raw in mixed:
        if raw in written and json.loads(raw)["vector_step"] <= 50:
            newest[json.loads(raw)["vector_step"]] = json.loads(raw)["mark"]
    history = drop_after(tmp_path, 50, steps=1_000)
    kept = [json.loads(raw) for raw in (tmp_path / "metrics.jsonl").read_bytes().splitlines()]
    assert {found["vector_step"]: found["mark"] for found in kept} == newest
    assert len(kept) == len(newest)
    due = [step for step in range(10, 60, 10) if step not in newest]
    said = lost_lines(history.steps, 50, log_interval=10, eval_interval=1000)
    assert len(said) == bool(due)
    assert all(f"lacks {len(due)} of its lines" in sentence for sentence in said)


def test_a_copy_of_hard_links_writes_into_a_log_of_its_own(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    for folder in (original, copy):
        folder.mkdir()
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        (original / name).write_bytes(line(10))
        (copy / name).hardlink_to(original / name)
    drop_after(copy, 10, steps=1_000)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        with open(copy / name, "ab") as file:
            file.write(line(20))
        assert (original / name).read_bytes() == line(10)
        assert (copy / name).read_bytes() == line(10) + line(20)


def test_a_log_that_is_in_order_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(10) + line(20))
    before = path.stat()
    drop_after(tmp_path, 20, steps=1_000)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    path.write_bytes(line(10) + line(20) + b"{")
    drop_after(tmp_path, 20, steps=1_000)
    assert path.read_bytes() == line(10) + line(20)


def test_a_long_log_is_never_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        for step in range(10, 1_010, 10):
            file.write(line(step, size=400))
    length = path.stat().st_size
    assert length > 900_000
    tracemalloc.start()
    try:
        history = drop_after(tmp_path, 990, steps=10_000)
        lost = lost_lines(history.steps, 990, log_interval=10, eval_interval=10_000)
        assert tracemalloc.get_traced_memory()[1] <= length / 4
    finally:
        tracemalloc.stop()
    assert path.stat().st_size == length - len(line(1_000, size=400))
    assert lost == []
