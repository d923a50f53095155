"""Lines of a run's logs, from anywhere: every line is checked, and none can make reading slow."""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtrl.errors import UserError

Line = Mapping[str, Any]  # one line of a .jsonl file

LARGEST_STEP = 2**53  # larger integers are no exact floats
_TAIL = 1_000_000  # bytes at the end of a log that are read for its last line
_BEGINS = re.compile(rb'\{"vector_step": ([0-9]{1,16})[,}]')  # how a run writes a line


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise a UserError for what may not, or cannot, be read at or below `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read '{error.filename or path}': {error.strerror}.") from error


def read_lines(path: Path) -> Iterator[Line]:
    """Read a .jsonl file line by line."""
    return (_line(raw, place, path) for raw, place in _ended(path))


def read_spread(path: Path, interval: int, last: int) -> Iterator[Line]:
    """Read the first line of every interval of vector steps, from the second on, and that of step `last`."""
    taken = 0
    for raw, place in _ended(path):
        begins = _BEGINS.match(raw)  # most lines are left out, and need not be parsed
        step = int(begins[1]) if begins else _line(raw, place, path)["vector_step"]
        if step == last or (step < last and step // interval > taken):
            taken = step // interval
            yield _line(raw, place, path)
        if step == last:
            return


def last_line(path: Path) -> Line:
    """Read the last whole line of a .jsonl file; an empty one if there is none."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        ended = file.read().rpartition(b"\n")[0]
    start = ended.rfind(b"\n") + 1
    if start == 0 and len(ended) >= _TAIL // 2:  # a line that is longer than the tail
        for raw, _ in _ended(path):
            ended = raw
    return _line(ended[start:], "the last line", path) if ended else {}


def number(value: Any) -> float:
    """Return a number of a log as a float, NaN for null. Raises ValueError for text, true and all else."""
    if value is not None and type(value) not in (int, float):
        raise ValueError(f"expected a number or null, found {value!r:.60}")
    return math.nan if value is None else float(value)


def check_number(value: Any, place: str) -> None:
    """Raise a UserError that names `place` if a value is not what `number` takes."""
    try:
        number(value)
    except ValueError as error:
        raise UserError(f"{place}: {error}.") from None


def _ended(path: Path) -> Iterator[tuple[bytes, str]]:
    """Yield the lines of a file with their places, without a half-written one at the end."""
    with readable(path):
        if not path.is_file():
            return
        with path.open("rb") as file:
            for count, raw in enumerate(file, start=1):
                if raw.endswith(b"\n"):
                    yield raw, f"line {count}"


def _line(raw: bytes, place: str, path: Path) -> Line:
    try:
        line = json.loads(raw.decode(), parse_float=_finite, parse_int=_whole, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {place} is no JSON with finite numbers ({error}).") from error
    if not isinstance(line, dict) or not _is_step(line.get("vector_step")):
        begins = raw[:60].decode(errors="replace")
        raise UserError(f"{path}, {place}: expected an object with 'vector_step', a count, found {begins!r}.")
    check_number(line.get("wall_s"), f"{path}, {place}, wall_s")
    return line


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # a run writes null instead
        raise ValueError(f"found {text:.20}")
    return value


def _whole(text: str) -> int:
    _finite(text)  # larger integers are no floats
    return int(text)


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_STEP
