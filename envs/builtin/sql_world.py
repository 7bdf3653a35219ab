"""The databases of `Sql`: a few schemas, and rows made for them by a seed."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Rows = Mapping[str, Sequence[tuple[Any, ...]]]
"""Table -> rows, in the order of the columns."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column; its kind says how it is filled and what can be asked about it."""

    name: str
    kind: Literal["id", "label", "category", "number", "date", "ref"]
    values: tuple[str, ...] = ()
    """Of a category."""
    low: int = 0
    high: int = 0
    """Of a number; both included."""
    table: str = ""
    """Of a ref: the table whose id it holds."""

    @property
    def sql(self) -> str:
        """The column as `create table` takes it."""
        if self.kind == "id":
            return f"{self.name} integer primary key"
        if self.kind == "ref":
            return f"{self.name} integer not null references {self.table}(id)"
        return f"{self.name} {'integer' if self.kind == 'number' else 'text'} not null"


@dataclass(frozen=True, slots=True)
class Table:
    """A table: `name` is what many of its things are called, `one` is a single one."""

    name: str
    one: str
    columns: tuple[Column, ...]

    def of(self, kind: str) -> list[Column]:
        """Return the columns of a kind."""
        return [column for column in self.columns if column.kind == kind]

    @property
    def sql(self) -> str:
        """The statement that makes it."""
        return f"create table {self.name} ({', '.join(c.sql for c in self.columns)});"


@dataclass(frozen=True, slots=True)
class Schema:
    """Some tables; a table stands after those that it refers to."""

    name: str
    tables: tuple[Table, ...]

    def __getitem__(self, name: str) -> Table:
        return next(table for table in self.tables if table.name == name)

    @property
    def script(self) -> str:
        """The statements that make all tables."""
        return "\n".join(table.sql for table in self.tables)


def _table(name: str, one: str, *columns: Column) -> Table:
    return Table(name, one, (Column("id", "id"), *columns))


def _label(name: str) -> Column:
    return Column(name, "label")


def _one_of(name: str, values: str) -> Column:
    return Column(name, "category", tuple(values.split()))


def _number(name: str, low: int, high: int) -> Column:
    return Column(name, "number", low=low, high=high)


def _date(name: str) -> Column:
    return Column(name, "date")


def _ref(table: str, one: str) -> Column:
    return Column(f"{one}_id", "ref", table=table)


CITIES = "Oslo Lima Kyiv Bonn Cork"
SCHEMAS: dict[str, Schema] = {
    schema.name: schema
    for schema in (
        Schema(
            "shop",
            (
                _table("customers", "customer", _label("name"), _one_of("city", CITIES)),
                _table(
                    "products", "product", _label("name"),
                    _one_of("kind", "tool toy food book"), _number("price", 2, 40),
                ),
                _table(
                    "orders", "order", _ref("customers", "customer"), _ref("products", "product"),
                    _number("quantity", 1, 6), _date("day"),
                ),
            ),
        ),
        Schema(
            "cinema",
            (
                _table(
                    "films", "film", _label("title"),
                    _one_of("genre", "drama comedy crime family"), _number("minutes", 80, 120),
                ),
                _table("halls", "hall", _label("name"), _one_of("city", CITIES)),
                _table(
                    "showings", "showing", _ref("films", "film"), _ref("halls", "hall"),
                    _number("tickets", 5, 30), _date("day"),
                ),
            ),
        ),
        Schema(
            "clinic",
            (
                _table(
                    "doctors", "doctor", _label("name"),
                    _one_of("field", "heart skin bone eye"), _number("age", 30, 60),
                ),
                _table("patients", "patient", _label("name"), _one_of("city", CITIES)),
                _table(
                    "visits", "visit", _ref("doctors", "doctor"), _ref("patients", "patient"),
                    _number("cost", 10, 40), _date("day"),
                ),
            ),
        ),
        Schema(
            "library",
            (
                _table("authors", "author", _label("name"), _one_of("country", "Peru Mali Iran")),
                _table(
                    "books", "book", _ref("authors", "author"), _label("title"),
                    _one_of("genre", "novel poems crime essay"), _number("pages", 50, 90),
                ),
                _table("members", "member", _label("name"), _one_of("city", CITIES)),
                _table(
                    "loans", "loan", _ref("books", "book"), _ref("members", "member"),
                    _number("days", 3, 20), _date("start"),
                ),
            ),
        ),
        Schema(
            "airline",
            (
                _table("airports", "airport", _label("name"), _one_of("country", "Peru Mali Iran")),
                _table("planes", "plane", _label("name"), _one_of("maker", "Ax Byr Cot")),
                _table(
                    "flights", "flight", _ref("airports", "airport"), _ref("planes", "plane"),
                    _label("code"), _number("distance", 10, 50),
                ),
                _table("travellers", "traveller", _label("name"), _one_of("class", "one two")),
                _table(
                    "bookings", "booking", _ref("flights", "flight"),
                    _ref("travellers", "traveller"), _number("price", 5, 30), _date("day"),
                ),
            ),
        ),
    )
}  # fmt: skip
"""Every schema by its name."""

_WORDS = "Al Ben Cor Da El Fin Gor Han Il Jo Kas Lu Mar Ned Or Pip Ros Sim Tor Ul"
_ENDS = "a bert da ena fa gil ia ka lin mo na ot ra sa ton"
LABELS = tuple(start + end for start in _WORDS.split() for end in _ENDS.split())


Draw = Callable[[Column, Any], Any]
"""What stands in a column of numbers or dates in place of a value that was drawn evenly."""


def make_rows(
    rng: random.Random, schema: Schema, size: int, draw: Draw = lambda _, value: value
) -> dict[str, list[tuple[Any, ...]]]:
    """Return rows for every table: about `size` in those that refer to nothing, else three times.

    A few rows are referred to by none. Labels are unique in a table.
    """
    rows: dict[str, list[tuple[Any, ...]]] = {}
    for table in schema.tables:
        refers = bool(table.of("ref"))
        count = rng.randint(size, size + 4) * (3 if refers and not table.of("label") else 1)
        labels = iter(rng.sample(LABELS, count))
        wanted = {
            ref.table: rng.sample(range(1, n + 1), max(2, n - 2))
            for ref in table.of("ref")
            for n in [len(rows[ref.table])]
        }
        rows[table.name] = [
            tuple(_value(rng, column, number, labels, wanted, draw) for column in table.columns)
            for number in range(1, count + 1)
        ]
    return rows


def _value(
    rng: random.Random,
    column: Column,
    number: int,
    labels: Any,
    wanted: Mapping[str, list[int]],
    draw: Draw,
) -> Any:
    if column.kind == "id":
        return number
    if column.kind == "label":
        return next(labels)
    if column.kind == "category":
        return rng.choice(column.values)
    if column.kind == "number":
        return draw(column, rng.randint(column.low, column.high))
    if column.kind == "date":
        return draw(column, f"2024-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}")
    return rng.choice(wanted[column.table])


def answers(schema: Schema, rows: Rows, queries: Sequence[str]) -> list[list[tuple[Any, ...]]]:
    """Return what queries of ours give, in this process; an agent's never run here."""
    with sqlite3.connect(":memory:") as db:
        db.executescript(schema.script)
        for name, lines in rows.items():
            marks = ",".join("?" * len(lines[0]))
            db.executemany(f"insert into {name} values ({marks})", lines)
        found = [db.execute(query).fetchall() for query in queries]
    db.close()
    return found
