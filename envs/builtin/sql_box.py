"""Databases in a sandbox, and queries of an agent on them that can only read and must end.

A query runs in SQLite under an authorizer (no writing, no files, no clock, no chance), a budget of
the database's own steps, limits of lengths and memory; all that in a box without a network. So
environments of one process share one box and its few kernels: SQL reaches no other connection.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turnwise.sandboxes.base import ProtocolError, Sandbox, SandboxError
from turnwise.sandboxes.shared import shared_sandbox

KERNELS = 4
MAX_STEPS = 3_000_000
"""Of SQLite's machine, for one query: the same on every computer."""
MAX_ROWS = 10_000
TIMEOUT_S = 5.0
"""Of a query that takes long within one of those steps; such functions are not allowed."""

# Runs inside the box. Arguments arrive as Python literals.
PROGRAM = r"""
import json, re, sqlite3, time
tw_open_ones = {}
TW_FUNCTIONS = set('''abs avg char coalesce concat concat_ws count cume_dist dense_rank first_value
    glob group_concat hex ifnull iif instr lag last_value lead length like likelihood likely
    lower ltrim max min nth_value ntile nullif percent_rank quote rank replace round
    row_number rtrim sign string_agg substr substring sum total trim typeof unicode unlikely
    upper date strftime julianday'''.split())

TW_LIMITS = {"LENGTH": 100000, "SQL_LENGTH": 10000, "EXPR_DEPTH": 100, "COMPOUND_SELECT": 20,
    "LIKE_PATTERN_LENGTH": 100, "COLUMN": 100}

def tw_allowed(action, one, two, database, trigger):
    if action == sqlite3.SQLITE_FUNCTION:
        return sqlite3.SQLITE_OK if two.lower() in TW_FUNCTIONS else sqlite3.SQLITE_DENY
    reading = sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE
    return sqlite3.SQLITE_OK if action in reading else sqlite3.SQLITE_DENY

def tw_without_clock(name):
    helper = sqlite3.connect(":memory:")
    first = int(name == "strftime")
    def call(*args):  # a day that is no number or no digits may be now; local time is a machine's
        words = [arg.lower() for arg in args[first:] if isinstance(arg, str)]
        if len(args) <= first or any(isinstance(arg, bytes) for arg in args):
            raise ValueError
        if isinstance(args[first], str) and not re.match(r"\s*[-+]?[0-9]", args[first]):
            raise ValueError
        if any("now" in word or "local" in word or "utc" in word for word in words):
            raise ValueError
        asked = "select %s(%s)" % (name, ",".join("?" * len(args)))
        return helper.execute(asked, args).fetchone()[0]
    return call

def tw_load(key, script, rows):
    tw_drop(key)
    db = sqlite3.connect(":memory:")
    db.executescript("pragma hard_heap_limit=167772160; pragma temp_store=memory;" + script)
    for table, lines in rows.items():
        if lines:
            marks = ",".join("?" * len(lines[0]))
            db.executemany("insert into %s values (%s)" % (table, marks), lines)
    db.commit()
    for name in ("date", "strftime", "julianday"):
        db.create_function(name, -1, tw_without_clock(name))
    if hasattr(db, "setlimit"):
        for limit, value in TW_LIMITS.items():
            db.setlimit(getattr(sqlite3, "SQLITE_LIMIT_" + limit), value)
    db.set_authorizer(tw_allowed)
    tw_open_ones[key] = db

def tw_drop(key):
    db = tw_open_ones.pop(key, None)
    if db is not None:
        db.close()

def tw_query(key, sql, steps, most):
    if key not in tw_open_ones:
        return {"lost": True}
    db, left, end = tw_open_ones[key], [steps // 1000], time.process_time() + 3
    def tick():
        left[0] -= 1
        return left[0] < 0 or time.process_time() > end
    db.set_progress_handler(tick, 1000)
    try:
        found = db.execute(sql)
        columns = [column[0] for column in found.description or ()]
        rows = found.fetchmany(most + 1)
        found.close()
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
        late = left[0] < 0 or "interrupted" in str(error)
        why = "the query took too many steps" if late else str(error) or "out of memory"
        return {"error": why, "late": late}
    rows = [[v.hex() if isinstance(v, bytes) else v for v in row] for row in rows]
    return {"columns": columns, "rows": rows[:most], "more": len(rows) > most}

def tw_answer(*args):
    text = json.dumps(tw_query(*args))
    print(text if len(text) < 900000 else json.dumps({"error": "its result is too large"}))
"""


class QueryFailed(Exception):
    """What SQLite or a limit of ours has against a query; the message is for the agent."""

    def __init__(self, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


@dataclass(frozen=True, slots=True)
class Result:
    """What a query gave."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: bool
    """Whether there were more rows than were asked for."""


_keys = itertools.count()


class Database:
    """One database in the shared box; it is put there when it is first asked.

    Args:
        script: makes the tables; trusted.
        rows: table -> rows.
    """

    def __init__(self, script: str, rows: Mapping[str, Sequence[Sequence[Any]]]) -> None:
        self.script, self.rows = script, rows
        number = next(_keys)
        self.key, self.kernel = f"db{number}", f"sql-{number % KERNELS}"
        self.box: Sandbox | None = None

    def query(self, sql: str, *, most: int = MAX_ROWS) -> Result:
        """Return at most `most` rows of a query.

        Raises:
            QueryFailed: SQLite or a limit refused it.
            SandboxError: the machine failed.
        """
        if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in sql):
            raise QueryFailed("a query is text without NUL")
        for _ in range(3):  # the kernel may have been lost, by this query or by another's
            answer = self._ask(f"tw_answer({self.key!r}, {sql!r}, {MAX_STEPS}, {most})")
            if "lost" not in answer:
                break
            self._load()
        if "rows" not in answer:
            late = bool(answer.get("late"))
            raise QueryFailed(answer.get("error", "it ended the database"), late=late)
        rows = tuple(tuple(row) for row in answer["rows"])
        return Result(tuple(answer["columns"]), rows, bool(answer["more"]))

    def close(self) -> None:
        """Take it out of the box. Safe to call twice; never raises."""
        box, self.box = self.box, None
        if box is not None:
            with contextlib.suppress(SandboxError):
                box.cell(f"tw_drop({self.key!r})", kernel=self.kernel)

    def _ask(self, code: str) -> dict[str, Any]:
        self.box = self.box or shared_sandbox("sql")
        ran = self.box.cell(code, kernel=self.kernel, timeout_s=TIMEOUT_S)
        if ran.timed_out or ran.state_lost:
            return {"error": "the query took too long", "late": True}
        if ran.exit_code:  # the kernel is new: it knows none of our functions
            return {"lost": True}
        answer: dict[str, Any] = json.loads(ran.stdout)
        return answer

    def _load(self) -> None:
        self.box = self.box or shared_sandbox("sql")
        rows = {table: list(map(list, lines)) for table, lines in self.rows.items()}
        code = f"tw_load({self.key!r}, {self.script!r}, {rows!r})"
        start = f'if "tw_load" not in globals():\n    exec({PROGRAM!r})\n'
        ran = self.box.cell(start + code, kernel=self.kernel)
        if ran.exit_code:
            raise ProtocolError(f"a database could not be loaded: {ran.text[-300:]}")
