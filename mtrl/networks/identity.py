"""How networks are told which task an input belongs to: columns appended to the inputs."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mtrl.errors import UserError
from mtrl.networks.initial import Fresh, dense_layer, normal, torch_default
from mtrl.networks.layers import Weights

Kind = Literal["one_hot", "embedding", "file", "none"]
Rows = Sequence[Sequence[float]]  # [T][D], numbers that describe each task

TABLE = "identity.table"  # [1, T, width], an own row of each task
PROJECTION = "identity"  # the layer of identity.weight [1, width, D] and identity.bias [1, width]

_LARGEST_FILE = 64 << 20  # bytes
_LARGEST_NUMBER = torch.finfo(torch.float32).max


class TaskIdentity:
    """Columns that tell a network the task of its inputs; the stacked networks share them.

    Args:
        kind: "one_hot": T columns; "embedding": a learnt vector per task, of length 1 (BRC, arXiv
            2505.23150); "file": given numbers per task, not trained, after a learnt projection to a vector of
            length 1 (the projection is ours); "none": no columns.
        num_tasks: T.
        width: columns of "embedding" and "file".
        rows: the given numbers of "file".

    Raises:
        ValueError: rows without "file" or "file" without rows; not one row of one length per task.
    """

    def __init__(self, kind: Kind, num_tasks: int, width: int = 32, rows: Rows | None = None) -> None:
        self.kind, self.num_tasks, self.width, self.rows = kind, num_tasks, width, rows
        if (kind == "file") != (rows is not None):
            found = "no rows" if rows is None else f"{len(rows)} rows"
            raise ValueError(f"identity_rows belong to task_identity=file; found {kind} and {found}.")
        if rows is not None and (len(rows) != num_tasks or len(set(map(len, rows))) != 1):
            sizes = sorted(set(map(len, rows)))
            found = f"{len(rows)} rows of lengths {sizes}"
            raise ValueError(f"identity_rows must be {num_tasks} rows of one length; found {found}.")
        self.columns = {"one_hot": num_tasks, "none": 0}.get(kind, width)
        self._constants = cache(self._constant)  # a captured graph must not copy them from the host

    def layout(self) -> tuple[dict[str, Fresh], frozenset[str]]:
        """Return shared parameters, and the names of those of which each task owns a row."""
        if self.kind == "embedding":
            deviation = 1.0 / math.sqrt(self.width)  # Flax's default, so that lengths begin near 1
            return {TABLE: Fresh((1, self.num_tasks, self.width), normal(deviation))}, frozenset({TABLE})
        if self.rows is not None:
            given = len(self.rows[0])
            draw = torch_default(given)
            return dense_layer(PROJECTION, 1, given, self.width, draw, draw), frozenset()
        return {}, frozenset()

    def append(self, weights: Weights, inputs: Tensor) -> Tensor:
        """Return inputs [N, B, I] with the columns of their tasks, [N, B, I + columns]."""
        if self.kind == "none":
            return inputs
        columns = self._columns(weights, inputs).unsqueeze(1)
        return torch.cat((inputs, columns.expand(-1, inputs.shape[1], -1)), dim=-1)

    def _columns(self, weights: Weights, inputs: Tensor) -> Tensor:
        if self.kind == "embedding":
            return F.normalize(weights.table(TABLE)[0], dim=-1)
        rows, tasks = self._constants(inputs.dtype, inputs.device), weights.tasks
        rows = rows if tasks is None else rows.index_select(0, tasks)
        if self.kind == "one_hot":
            return rows
        given = rows.unsqueeze(0).unsqueeze(2)  # [1, N, 1, D]
        return F.normalize(weights.dense(PROJECTION, given)[0, :, 0], dim=-1)

    def _constant(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        if self.rows is None:
            return torch.eye(self.num_tasks, dtype=dtype, device=device)
        return torch.tensor(self.rows, dtype=dtype, device=device)


def read_rows(path: str, task_names: Sequence[str]) -> list[list[float]]:
    """Return the numbers of each task [T][D] from a JSON file {"task name": [numbers]}.

    A name may have another version at its end, as reach-v1 for reach-v3: descriptions of tasks, such as those
    of facebookresearch/mtrl, outlive versions.

    Raises:
        UserError: file missing, too large or not of that form; numbers missing, ambiguous or unequally many.
    """
    content = _content(path)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"network.identity_file: {path} is not JSON: {error}.") from error
    if not isinstance(found, Mapping) or not all(map(_is_row, found.values())):
        raise UserError(f"{path} must hold a mapping from names of tasks to lists of float32 numbers.")
    by_stem = {_stem(name): row for name, row in found.items()}
    stems = Counter(map(_stem, found))
    unclear = [name for name in task_names if name not in found and stems[_stem(name)] > 1]
    if unclear:
        raise UserError(f"{path} has several versions of {', '.join(unclear)}, none of exactly that name.")
    missing = [name for name in task_names if name not in found and _stem(name) not in by_stem]
    if missing:
        raise UserError(
            f"{path} has no numbers for {', '.join(missing)}; it has {', '.join(found) or 'none'}."
        )
    rows = [[float(number) for number in found.get(name, by_stem.get(_stem(name)))] for name in task_names]
    lengths = {len(row) for row in rows}
    if len(lengths) > 1 or 0 in lengths:
        raise UserError(
            f"{path} must have as many numbers for each task, at least one; found {sorted(lengths)}."
        )
    return rows


def digest(path: str) -> str:
    """Return the SHA-256 of a file of task rows; raises UserError if it cannot be read."""
    return hashlib.sha256(_content(path)).hexdigest()


def _content(path: str) -> bytes:
    try:
        content = Path(path).expanduser().read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: of a home directory that is unknown
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"network.identity_file: cannot read {path}: {reason}.") from error
    if len(content) > _LARGEST_FILE:
        raise UserError(f"network.identity_file: {path} is larger than {_LARGEST_FILE:,} bytes.")
    return content


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and all(
        type(number) in (int, float) and abs(number) <= _LARGEST_NUMBER for number in row
    )


def _stem(name: str) -> str:
    return re.sub(r"-v\d+$", "", name)
