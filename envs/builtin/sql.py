"""Sql: answer questions about a database with queries.

A submitted query is judged by what it gives, on the database that the agent can query and on
another one of the same schema that it never sees, so that the query must answer the question and
not only hold the answer. Both run in a sandbox; what they give is compared on this side.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from turnwise.envs.builtin.sql_box import Database, QueryFailed, Result
from turnwise.envs.builtin.sql_questions import DEPTHS, KINDS, asked_at
from turnwise.envs.builtin.sql_tasks import SqlWorld, make_world
from turnwise.envs.builtin.sql_world import SCHEMAS
from turnwise.envs.knobs import count, span
from turnwise.envs.names import hint, known_names
from turnwise.envs.task_range import TaskRange, check_drawn
from turnwise.envs.tool_env import EpisodeView, ToolEnv
from turnwise.envs.tools import ToolFailed, reward, tool
from turnwise.envs.types import Task, canonical_json, digest

SIZES = {"train": 1_000_000, "dev": 10_000, "test": 10_000}
SIZE = 6, 40
SPLIT_SCHEMAS = {
    "train": ("cinema", "clinic", "shop"),
    "dev": ("library",),
    "test": ("airline",),
}
"""Unless schemas are named by hand, a split asks about databases that no other split has."""


@dataclass(frozen=True, kw_only=True)
class Asked(Task):
    """One question. Both databases and the question follow from these fields alone."""

    split: str = "train"
    index: int = 0
    depth: int = 1
    schemas: tuple[str, ...] = ()
    size: int = 10
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_drawn(self, depth=(1, len(DEPTHS)), size=SIZE)
        schemas = known_names("schema", self.schemas or SPLIT_SCHEMAS[self.split], SCHEMAS)
        object.__setattr__(self, "schemas", schemas)  # JSON makes a list of it
        object.__setattr__(self, "kinds", known_names("kind of question", self.kinds, KINDS))
        asked_at(self.depth, self.kinds)


class Sql(ToolEnv):
    """Databases of a shop, a cinema, a clinic, a library and an airline, and questions about them.

    Look at `tables` and `schema`, try a `query`, and `submit` one. Order matters only where it is
    asked for; rows that occur twice matter. Reward: 1 if what the query gives is right on both
    databases, else 0. A query that only repeats what was seen is wrong on the hidden one.

    Args:
        depth: 1 to 5, or (least, most); task i has depth least + i mod (most - least + 1).
            1 filter; 2 join, dates; 3 group, having; 4 subquery, difference; 5 ranks with ties.
        schemas: names in `SCHEMAS`, for every split. By default train has three schemas, and dev
            and test one each that no other split has.
        size: rows of the smaller tables, 6 to 40; the others have three times as many.
        schema_shown: whether the first message holds the schema.
        max_rows: rows that `query` shows.
        slack: turns beyond what the expert needs.
        kinds: of question, names in `sql_questions.KINDS`; all of a depth by default. Some schemas
            cannot be asked all kinds, and with one schema some kinds ask few queries (`filtered` of
            a shop: nine): a split then asks for those that no other one ever shows, or none.

    Raises:
        ValueError: a number lies outside its range, or a depth has none of the kinds.
        UnknownName: there is no such schema or kind of question.
        RuntimeError: by `tasks`, where a split can ask none of the kinds.

    Example:
        env = make("turnwise/Sql-v1", depth=1, schemas=("shop",), schema_shown=True)
    """

    Task: ClassVar[type[Task]] = Asked
    unsaved: ClassVar[tuple[str, ...]] = ("_database",)
    _database: Database | None = None

    def __init__(
        self,
        *,
        depth: int | Sequence[int] = (1, 5),
        schemas: Sequence[str] = (),
        size: int = 10,
        schema_shown: bool = False,
        max_rows: int = 20,
        slack: int = 6,
        kinds: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.depths = span("depth", depth, 1, len(DEPTHS))
        self.schemas = known_names("schema", schemas, SCHEMAS)
        self.size = count("size", size, *SIZE)
        self.schema_shown, self.max_rows = schema_shown, count("max_rows", max_rows, 1, 100)
        self.slack = count("slack", slack, 0, 1000)
        self.kinds = known_names("kind of question", kinds, KINDS)
        for each in range(self.depths[0], self.depths[1] + 1):
            asked_at(each, self.kinds)

    def tasks(self, split: str) -> Sequence[Asked]:
        """Return the questions of a split, made on demand; depths take turns."""
        known = self.known_split(split)
        if self.kinds:
            make_world(canonical_json(self._task(known, 0).to_json()))  # refuses what it cannot ask
        return TaskRange(lambda index: self._task(known, index), SIZES[known])

    def _task(self, split: str, index: int) -> Asked:
        low, high = self.depths
        return Asked(
            split=split,
            index=index,
            depth=low + index % (high - low + 1),
            schemas=self.schemas or SPLIT_SCHEMAS[split],
            size=self.size,
            kinds=self.kinds,
        )

    def setup(self, task: Asked, rng: random.Random) -> str:
        """Make the databases and ask."""
        self._forget()
        self.world: SqlWorld = make_world(canonical_json(task.to_json()))
        question = self.world.question
        self._seen: set[str] = {"", *question.tables} if self.schema_shown else set()
        self._last = self._tried = self._submitted = ""
        self._result: Result | None = None
        self.max_turns = len(question.tables) * (not self.schema_shown) + 3 + self.slack
        text = f"{question.text} Submit one SQLite query that is right for any rows."
        return f"{text}\n{self.world.schema.script}" if self.schema_shown else text

    @tool
    def tables(self) -> str:
        """List the tables."""
        self._seen.add("")
        self._last = "tables"
        return " ".join(table.name for table in self.world.schema.tables)

    @tool
    def schema(self, table: str) -> str:
        """Show the columns of a table.

        Args:
            table: Its name.
        """
        names = [known.name for known in self.world.schema.tables]
        if table not in names:
            raise ToolFailed(f"no table {table[:60]!r}; {hint(table[:60], names)}")
        self._seen.add(table)
        self._last = f"schema {table}"
        return self.world.schema[table].sql

    @tool
    def query(self, sql: str) -> str:
        """Run a query and show the first rows.

        Args:
            sql: One SELECT.
        """
        result = self._rows_of(sql, self.max_rows)
        self._last, self._tried = digest(["query", sql]), sql
        return shown(result)

    @tool(final=True)
    def submit(self, sql: str) -> str:
        """Hand in a query; ends the episode, unless the query fails.

        Args:
            sql: One SELECT.
        """
        self._result, self._submitted = self._rows_of(sql), sql
        return "done"

    @reward
    def solved(self, episode: EpisodeView) -> float:
        """Whether the submitted query is right on both databases."""
        world, ordered = self.world, self.world.question.ordered
        if self._result is None or not same(self._result, world.expected[0], ordered=ordered):
            return 0.0
        hidden = Database(world.schema.script, world.hidden)
        try:
            result = hidden.query(self._submitted)
        except QueryFailed:
            return 0.0
        finally:
            hidden.close()
        return float(same(result, world.expected[1], ordered=ordered))

    def expert(self) -> str:
        """Return the right call now: it knows the query, and looks at what the query needs."""
        question = self.world.question
        if "" not in self._seen:
            return self.call_text("tables")
        for table in question.tables:
            if table not in self._seen:
                return self.call_text("schema", table=table)
        if self._tried != question.sql:
            return self.call_text("query", sql=question.sql)
        return self.call_text("submit", sql=question.sql)

    def state_hash(self) -> str:
        """Hash what was looked at and done last; the turn's number is left out."""
        known = [sorted(self._seen), self._last, self._tried, self._submitted]
        return digest([self.task.key, known])

    def restored(self) -> None:
        """Start without a connection; the next query makes one."""
        self._database = None

    def close(self) -> None:
        """Take the database out of the box. Safe to call twice."""
        self._forget()
        super().close()

    def _rows_of(self, sql: str, most: int | None = None) -> Result:
        world = self.world
        self._database = self._database or Database(world.schema.script, world.visible)
        try:
            result = self._database.query(sql, **({} if most is None else {"most": most}))
        except QueryFailed as error:
            why = str(error)[:300]
            raise (ToolFailed(why, "timeout") if error.late else ToolFailed(why)) from None
        finally:
            if self._database.box is not None:
                self.sandbox = self._database.box.backend
        return result

    def _forget(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()


def shown(result: Result) -> str:
    """Return a result as the agent reads it: the columns, then a line for each row."""
    lines = [" | ".join(result.columns), *(" | ".join(map(_cell, row)) for row in result.rows)]
    more = ["[more rows]"] if result.more else []
    return "\n".join([*lines, *(more or ([] if result.rows else ["[no rows]"]))])


def _cell(value: Any) -> str:
    return "null" if value is None else str(value)[:200]


def same(result: Result, expected: Sequence[Sequence[Any]], *, ordered: bool) -> bool:
    """Whether two results are equal: rows as often as expected, numbers to six places."""
    got, wanted = ([_plain(row) for row in rows] for rows in (result.rows, expected))
    if result.more:
        return False
    return got == wanted if ordered else Counter(got) == Counter(wanted)


def _plain(row: Sequence[Any]) -> tuple[Any, ...]:
    """Return a row so that 2 and 2.0 are equal, and 2 and '2' are not."""
    return tuple(round(float(v), 6) + 0.0 if isinstance(v, int | float) else v for v in row)
