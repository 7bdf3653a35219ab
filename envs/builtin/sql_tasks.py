"""What a task of `Sql` stands for: two databases, a question, and what is right on each.

No query that is nearly right (see `sql_weaker`) gives on both databases what is right there.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from turnwise.envs.builtin.sql_questions import Question, asked_at
from turnwise.envs.builtin.sql_weaker import weakened
from turnwise.envs.builtin.sql_world import (
    SCHEMAS,
    Column,
    Draw,
    Rows,
    Schema,
    answers,
    make_rows,
)
from turnwise.envs.seeds import derive
from turnwise.envs.split_shares import belongs
from turnwise.envs.types import canonical_json

TRIES = 5000
HIDDEN_TRIES = 100
Rowset = Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class SqlWorld:
    """A question, two databases of one schema, and what is right on each."""

    schema: Schema
    question: Question
    visible: Rows
    hidden: Rows
    expected: tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]
    """On the visible and on the hidden database."""


@functools.lru_cache(maxsize=256)
def make_world(text: str) -> SqlWorld:
    """Return the world of a task, given as canonical JSON of its fields.

    Raises:
        RuntimeError: nothing of this depth can be asked about these schemas.
    """
    task = json.loads(text)
    asks = asked_at(task["depth"], kinds := task.pop("kinds"))
    # The tasks of before there was a choice stay what they were.
    rng = random.Random(derive("sql", text if kinds else canonical_json(task)))
    for _ in range(TRIES):
        schema = SCHEMAS[rng.choice(task["schemas"])]
        question = rng.choice(asks)(rng, schema)
        if question is None or not belongs(task["split"], question.sql):
            continue
        world = _world_of(rng, schema, question, task["size"])
        if world:
            return world
    raise RuntimeError(
        f"no question for {text} in {TRIES} tries; allow more schemas, more kinds or more rows"
    )


def _world_of(rng: random.Random, schema: Schema, question: Question, size: int) -> SqlWorld | None:
    """Return databases that tell the question from others, or None if none are found soon."""
    weaker, lazy = weakened(question.sql), _lazy_queries(schema)
    visible = make_rows(rng, schema, size)
    seen, *others = answers(schema, visible, [question.sql, *weaker, *lazy])
    if not _tells(seen, others[len(weaker) :]):
        return None
    same = _same_as(seen, question.ordered)
    left = [query for query, found in zip(weaker, others, strict=False) if same(found)]
    for _ in range(HIDDEN_TRIES):
        hidden = make_rows(rng, schema, size, few_values(rng, question.sql))
        found, *others = answers(schema, hidden, [question.sql, *left])
        if found == seen or any(map(_same_as(found, question.ordered), others)):
            continue
        if _tells(found, answers(schema, hidden, lazy)):
            return SqlWorld(schema, question, visible, hidden, (seen, found))
    return None


def _lazy_queries(schema: Schema) -> list[str]:
    """Return queries that answer nothing in particular."""
    columns = [(t.name, c.name) for t in schema.tables for c in t.columns]
    lazy = [f"select {column} from {table}" for table, column in columns]
    return lazy + [f"select count(*) from {table.name}" for table in schema.tables]


def few_values(rng: random.Random, sql: str) -> Draw:
    """Return how the hidden rows are drawn: of few values, so that bounds are met and ties occur.

    Three numbers at equal distances, most in the middle, where the query's bound stands; of the
    dates one in five is one of the query's.
    """
    bounds = [int(number) for number in re.findall(r"[<>]=? (\d+)", sql)]
    dates = re.findall(r"'(\d{4}-\d\d-\d\d)'", sql)
    part = rng.random()

    def draw(column: Column, value: Any) -> Any:
        if column.kind == "date":
            return rng.choice(dates) if dates and rng.random() < 0.2 else value
        inside = [bound for bound in bounds if column.low < bound < column.high]
        middle = inside[0] if inside else (column.low + column.high) // 2
        step = max(1, int(part * min(middle - column.low, column.high - middle)))
        return middle + rng.choice((-step, 0, 0, 0, step))

    return draw


def _same_as(right: Rowset, ordered: bool) -> Callable[[Rowset], bool]:
    """Return what says whether an answer is the right one."""
    if ordered:
        return lambda rows: rows == right
    counted = Counter(right)
    return lambda rows: Counter(rows) == counted


def _tells(found: Rowset, others: Sequence[Rowset]) -> bool:
    """Whether an answer holds something and is none of the others."""
    right = Counter(found)
    empty = not right or all(value in (None, 0) for row in right for value in row)
    return not empty and all(right != Counter(other) for other in others)
