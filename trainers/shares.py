"""Which rows of a batch a rank computes, and how what it finds comes together again.

Every rank holds all rows of the batch, so that the denominators are those of the batch on each of
them. It computes a run of consecutive trajectories: what is found per token is joined by rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from turnwise.trainers import ranks
from turnwise.trainers.batch import Row, micro_batches, units


def share_of(rows: Sequence[Row], number: int, count: int) -> list[Row]:
    """Return the rows of rank `number` of `count`: whole trajectories, about as many tokens each.

    The shares of all ranks, one after the other, are `rows`.
    """
    whole = list(units(rows))
    sizes = [sum(map(len, unit)) + len(unit[0].prompt) for unit in whole]
    total, before, mine = sum(sizes), 0, list[Row]()
    for unit, size in zip(whole, sizes, strict=True):
        middle = before + size / 2
        if min(int(middle * count / total), count - 1) == number:
            mine += unit
        before += size
    return mine


def my_batches(
    rows: Sequence[Row], budget: int, *, level: bool
) -> Iterator[tuple[list[Row], bool]]:
    """Yield (micro-batch, whether it counts) for this rank.

    Args:
        budget: tokens of a micro-batch.
        level: every rank takes as many passes, because each pass is a collective; who has fewer
            adds passes that do not count.
    """
    number, count = ranks.rank(), ranks.count()
    mine = list(micro_batches(share_of(rows, number, count), budget))
    yield from ((some, True) for some in mine)
    if level and rows:
        passes = max(
            len(list(micro_batches(share_of(rows, other, count), budget))) for other in range(count)
        )
        yield from (([rows[0]], False) for _ in range(passes - len(mine)))


def found_by_all(
    rows: Sequence[Row],
    budget: int,
    find: Callable[[list[Row]], dict[str, Tensor]],
    *,
    level: bool,
) -> dict[str, Tensor]:
    """Return the columns that `find` gives of each trained token of `rows`, on every rank.

    Args:
        find: a micro-batch to named columns [M].
    """
    parts = []
    for some, counts in my_batches(rows, budget, level=level):
        columns = find(some)
        if counts:
            parts.append({name: column.cpu() for name, column in columns.items()})
    parts = [part for theirs in ranks.gather(parts) for part in theirs]
    return {name: torch.cat([part[name] for part in parts]) for name in (parts or [{}])[0]}
