"""What holds for a method and what does not, measured: the table in docs/choosing.md.

`python -m tests.helpers.method_properties docs/choosing.md` measures the methods that have no row there, and
leaves all other rows alone, of which processors round a few differently. Every method has its default
options and takes two updates on a problem, of which the last is looked at; losses are positive and go with
the gradients.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrl.combiners import COMBINERS, Combiner, LossCombiner, make_combiner
from tests.helpers.evaluators import Linear
from tests.helpers.loss_methods import losses_of

PUBLISHED = {f"{name} (paper)": {"solver": "paper"} for name in ("cagrad", "fairgrad", "sdmgrad")}
# Not `torchjd`: it is another library's, and what it does depends on its version.
METHODS = sorted((set(COMBINERS) | set(PUBLISHED)) - {"torchjd"})
HEADER = (
    "| method | harms, independent | harms, dependent | may stop early | unit | power | lengths | order "
    "| per update |"
)
UPDATES = 2
Problem = tuple[Tensor, Tensor]  # rows [T, P] and losses [T]


class Row(NamedTuple):
    """One row of the table: the words in its cells."""

    harmed: str  # of 60 problems with independent gradients, those in which a task gets worse
    harmed_dependent: str  # of 30 problems with dependent gradients
    stops: str  # whether it can stop where some task could improve without harm to another
    unit: str  # what another unit of each task's loss, and so of its gradient, changes
    power: str  # p where gradients s times as long, all of them, give a direction s^p times as long
    lengths: str  # whether the direction is linear in the lengths of the gradients
    order: str  # whether the order of the tasks matters
    cost: str  # gradients of an update: J is all T of them, b one backward pass, f one more forward pass


def row(name: str) -> Row:
    """Measure a method."""
    return Row(
        harmed(name, independent_problems()),
        harmed(name, dependent_problems(), dependent=True),
        *rest(name),
    )


def rest(name: str) -> list[str]:
    """Measure what does not count problems: the cells from `stops` on."""
    return [
        "no" if all(_moves(name, rows) for rows in unfinished_problems()) else "yes",
        _unit(name),
        _power(name),
        "linear" if _is_linear(name) else "no",
        "ignored" if _is_equivariant(name) else "matters",
        _cost(name),
    ]


def line(name: str, cells: Row) -> str:
    """A row of the table as Markdown."""
    method, _, rest = name.partition(" ")
    return f"| `{method}`{' ' if rest else ''}{rest} | {' | '.join(cells)} |"


def independent_problems() -> Iterator[Tensor]:
    """Gradients that are independent, so that some direction improves every task; norms differ."""
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        tasks = (2, 3, 5, 10)[seed % 4]
        lengths = 10.0 ** (0.5 * torch.randn(tasks, 1, generator=generator, dtype=torch.float64))
        yield lengths * torch.randn(tasks, tasks + 1, generator=generator, dtype=torch.float64)


def dependent_problems() -> Iterator[Tensor]:
    """More gradients than dimensions: often no direction improves every task."""
    for seed in range(30):
        generator = torch.Generator().manual_seed(1000 + seed)
        tasks = (3, 5, 10, 10)[seed % 4]
        yield torch.randn(tasks, (tasks + 1) // 2, generator=generator, dtype=torch.float64)


def unfinished_problems() -> Iterator[Tensor]:
    """Two gradients cancel, and the others could go on without harm to these two."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(2000 + seed)
        rows = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        rows[1] = -(0.5 + float(torch.rand(1, generator=generator))) * rows[0]
        yield rows


def direction(name: str, problems: Sequence[Problem]) -> Tensor:
    """The direction of a fresh instance for the last of some problems, one after the other."""
    combiner = _made(name, len(problems[0][1]))
    for rows, losses in problems:
        found = _step(combiner, Linear(rows, losses=losses))
    return found


def _made(name: str, tasks: int) -> Combiner:
    options: dict[str, dict[str, Any]] = {"blocks": {"sizes": (-1,)}, **PUBLISHED}
    return make_combiner(name.partition(" ")[0], num_tasks=tasks, **options.get(name, {}))


def _step(combiner: Combiner, evaluator: Linear) -> Tensor:
    """One update at the least cost, as `mtl_step` and training take it."""
    if isinstance(combiner, LossCombiner):
        found = evaluator.weighted(combiner.weights)
    else:
        found = combiner.direction(evaluator)
    if combiner.looks_again:
        combiner.after_step(evaluator.losses)
    return found


def _on(name: str, rows: Tensor) -> Tensor:
    updates = max(UPDATES, len(rows) if name == "m_config" else 0)  # which looks at one task per update
    return direction(name, [(rows, losses_of(rows))] * updates)


def harmed(name: str, problems: Iterator[Tensor], *, dependent: bool = False) -> str:
    """In how many of the problems a task gets worse."""
    worse, count = 0, 0
    for rows in problems:
        found = _on(name, rows)
        # Where only zero harms nobody, a direction is rounding error and its own length says nothing.
        least = 1e-3 * rows.norm(dim=1).mean() if dependent else 1e-6 * found.norm()
        worse += bool((rows @ found < -least * rows.norm(dim=1)).any())
        count += 1
    return f"{worse} of {count}" if worse else "none"


def _moves(name: str, rows: Tensor) -> bool:
    return float(_on(name, rows).norm()) > 1e-3 * float(rows.norm(dim=1).min()) / len(rows)


def _sequence(change: Callable[[Tensor, Tensor], Problem]) -> list[Problem]:
    """Ten problems of five tasks in conflict, one for each update, after a change."""
    problems = []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(5, 7, generator=generator, dtype=torch.float64)
        losses = 0.5 + torch.rand(5, generator=generator, dtype=torch.float64)
        problems.append(change(rows, losses))
    return problems


@cache
def _plain(name: str) -> Tensor:
    return direction(name, _sequence(lambda rows, losses: (rows, losses)))


def _unit(name: str) -> str:
    plain = _plain(name)
    units = torch.tensor([4.0, 0.02, 1.0, 7.0, 0.3], dtype=torch.float64)
    found = direction(name, _sequence(lambda rows, losses: (rows * units[:, None], losses * units)))
    if torch.allclose(found, plain, rtol=1e-4, atol=1e-6):
        return "ignored"
    return "length" if _cosine(found, plain) > 1.0 - 1e-8 else "matters"


def _power(name: str) -> str:
    plain = _plain(name)
    powers = []
    for scale in (2.0**-10, 2.0**16):

        def scaled(rows: Tensor, losses: Tensor, scale: float = scale) -> Problem:
            return rows * scale, losses

        found = direction(name, _sequence(scaled))
        if _cosine(found, plain) < 1.0 - 1e-8:
            return "none"
        powers.append(math.log(float(found.norm() / plain.norm())) / math.log(scale))
    if abs(powers[0] - powers[1]) > 1e-3:
        return "none"
    return next(
        (
            word
            for word, power in (("1", 1.0), ("0", 0.0), ("-1/3", -1.0 / 3.0))
            if abs(powers[0] - power) < 1e-3
        )
    )


def _is_linear(name: str) -> bool:
    generator = torch.Generator().manual_seed(0)
    first, second = 10.0 ** torch.randn(2, 5, generator=generator, dtype=torch.float64)
    parts = [
        direction(name, _sequence(lambda rows, losses, by=by: (rows * by[:, None], losses)))  # type: ignore[misc]
        for by in (first, second, first + second)
    ]
    return torch.allclose(parts[0] + parts[1], parts[2], rtol=1e-6, atol=1e-8)


def _is_equivariant(name: str) -> bool:
    order = torch.tensor([3, 0, 4, 1, 2])
    found = direction(name, _sequence(lambda rows, losses: (rows[order], losses[order])))
    return torch.allclose(found, _plain(name), rtol=1e-6, atol=1e-8)


def _cost(name: str) -> str:
    tasks, updates = 20, 20  # every 10th is the rarest Jacobian of a default
    combiner, rows, backwards = _made(name, tasks), 0.0, 0.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        jacobian = torch.randn(tasks, 30, generator=generator, dtype=torch.float64)
        evaluator = Linear(jacobian, losses=losses_of(jacobian))
        _step(combiner, evaluator)
        rows += sum(tasks if asked.tasks is None else len(asked.tasks) for asked in evaluator.asked)
        backwards += evaluator.backwards
    jacobians = rows / updates / tasks
    parts = [f"{jacobians:g} J" if jacobians != 1.0 else "J"] if jacobians else []
    parts += [f"{backwards / updates:g} b" if backwards != updates else "b"] if backwards else []
    return " + ".join(parts + ["f"] * combiner.looks_again)


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first, second, dim=0))


def table(known: Mapping[str, str]) -> str:
    """The whole table as Markdown; only methods without a known row are measured."""
    rule = "|---" * (HEADER.count("|") - 1) + "|"
    rows = (known[name] if name in known else line(name, row(name)) for name in METHODS)
    return "\n".join((HEADER, rule, *rows))


def documented(page: str) -> str:
    """The table as a page has it: from the header to the first empty line."""
    return page[page.index(HEADER) :].partition("\n\n")[0]


def lines_of(page: str) -> dict[str, str]:
    """The table's rows as a page has them, by the name of the method."""
    return {text.split(" | ")[0][2:].replace("`", ""): text for text in documented(page).splitlines()[2:]}


def main(page: Path) -> None:
    """Write the rows that the page lacks."""
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace(documented(text), table(lines_of(text))), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
