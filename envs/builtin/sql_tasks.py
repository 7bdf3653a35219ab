"""What a task of `Sql` stands for: two databases, a question, and what is right on each."""

from __future__ import annotations

import functools
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turnwise.envs.builtin.sql_questions import DEPTHS, Question
from turnwise.envs.builtin.sql_world import SCHEMAS, Rows, Schema, answers, make_rows
from turnwise.envs.seeds import derive

TRIES = 500


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
    rng = random.Random(derive("sql", text))
    for _ in range(TRIES):
        schema = SCHEMAS[rng.choice(task["schemas"])]
        question = rng.choice(DEPTHS[task["depth"] - 1])(rng, schema)
        visible, hidden = (make_rows(rng, schema, task["size"]) for _ in range(2))
        if question is None:
            continue
        queries = [question.sql, *_lazy_queries(schema)]
        found = [answers(schema, rows, queries) for rows in (visible, hidden)]
        if _tells(found[0]) and _tells(found[1]) and found[0][0] != found[1][0]:
            return SqlWorld(schema, question, visible, hidden, (found[0][0], found[1][0]))
    raise RuntimeError(f"no question for {text} in {TRIES} tries; allow more schemas or rows")


def _lazy_queries(schema: Schema) -> list[str]:
    """Return queries that answer nothing in particular."""
    columns = [(t.name, c.name) for t in schema.tables for c in t.columns]
    lazy = [f"select {column} from {table}" for table, column in columns]
    return lazy + [f"select count(*) from {table.name}" for table in schema.tables]


def _tells(found: Sequence[Sequence[Any]]) -> bool:
    """Whether the first answer holds something and is none of the others."""
    right = Counter(found[0])
    empty = not right or all(value in (None, 0) for row in right for value in row)
    return not empty and all(right != Counter(other) for other in found[1:])
