"""The questions of `Sql`: templates over any schema, by depth, each with the right query."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from turnwise.envs.builtin.sql_world import Column, Schema, Table


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and a query that answers it for any rows."""

    text: str
    sql: str
    tables: tuple[str, ...]
    """Those that the query reads."""
    ordered: bool = False
    """Whether the order of the rows is asked for."""


Ask = Callable[[random.Random, Schema], "Question | None"]
"""None where the schema has nothing to ask this about."""


@dataclass(frozen=True, slots=True)
class _Link:
    """A table, and one that it refers to."""

    many: Table
    one: Table
    by: Column

    @property
    def join(self) -> str:
        """The two tables as `from` takes them."""
        return f"{self.many.name} m join {self.one.name} o on m.{self.by.name} = o.id"


def _labelled(rng: random.Random, schema: Schema, *kinds: str) -> Table | None:
    """Return a table with a label and the other kinds of columns."""
    found = [t for t in schema.tables if all(t.of(kind) for kind in ("label", *kinds))]
    return rng.choice(found) if found else None


def _link(rng: random.Random, schema: Schema, one: str, many: str) -> _Link | None:
    """Return a link whose ends have columns of these kinds; the end referred to has a label."""
    found = [
        _Link(table, schema[ref.table], ref)
        for table in schema.tables
        for ref in table.of("ref")
        if table.of(many) and schema[ref.table].of("label") and schema[ref.table].of(one)
    ]
    return rng.choice(found) if found else None


def _threshold(rng: random.Random, column: Column) -> int:
    room = (column.high - column.low) // 4
    return rng.randint(column.low + room, column.high - room)


_SIGNS = {"above": ">", "below": "<", "at least": ">=", "at most": "<="}


def _period(rng: random.Random) -> tuple[str, str]:
    first = rng.randint(1, 9)
    days = rng.randint(1, 28), rng.randint(1, 28)
    return f"2024-{first:02}-{days[0]:02}", f"2024-{first + 2:02}-{days[1]:02}"


# ---------------------------------------------------------------- depth 1: one table


def filtered(rng: random.Random, schema: Schema) -> Question | None:
    """Rows of one category."""
    if (table := _labelled(rng, schema, "category")) is None:
        return None
    label, category = table.of("label")[0], rng.choice(table.of("category"))
    value = rng.choice(category.values)
    return Question(
        f"Give the {label.name} of the {table.name} whose {category.name} is {value}.",
        f"select {label.name} from {table.name} where {category.name} = '{value}'",
        (table.name,),
    )


def compared(rng: random.Random, schema: Schema) -> Question | None:
    """Rows with a number beyond a bound."""
    table = rng.choice([table for table in schema.tables if table.of("number")])
    number, (words, sign) = table.of("number")[0], rng.choice(list(_SIGNS.items()))
    bound = _threshold(rng, number)
    return Question(
        f"How many {table.name} are there with {number.name} {words} {bound}?",
        f"select count(*) from {table.name} where {number.name} {sign} {bound}",
        (table.name,),
    )


def narrowed(rng: random.Random, schema: Schema) -> Question | None:
    """Rows of a category with a number beyond a bound."""
    if (table := _labelled(rng, schema, "category", "number")) is None:
        return None
    label, number = table.of("label")[0], table.of("number")[0]
    category, (words, sign) = table.of("category")[0], rng.choice(list(_SIGNS.items()))
    value, bound = rng.choice(category.values), _threshold(rng, number)
    return Question(
        f"Give the {label.name} and {number.name} of the {table.name} whose {category.name} is "
        f"{value} and whose {number.name} is {words} {bound}.",
        f"select {label.name}, {number.name} from {table.name} "
        f"where {category.name} = '{value}' and {number.name} {sign} {bound}",
        (table.name,),
    )


# ---------------------------------------------------------------- depth 2: joins and dates


def joined(rng: random.Random, schema: Schema) -> Question | None:
    """A row for each link into a category."""
    if (link := _link(rng, schema, "category", "number")) is None:
        return None
    label, category = link.one.of("label")[0], link.one.of("category")[0]
    value, number = rng.choice(category.values), link.many.of("number")[0]
    return Question(
        f"For each of the {link.many.name} whose {link.one.one} has the {category.name} {value}, "
        f"give the {link.one.one}'s {label.name} and the {link.many.one}'s {number.name}.",
        f"select o.{label.name}, m.{number.name} from {link.join} "
        f"where o.{category.name} = '{value}'",
        (link.many.name, link.one.name),
    )


def linked(rng: random.Random, schema: Schema) -> Question | None:
    """How many links into a category."""
    if (link := _link(rng, schema, "category", "number")) is None:
        return None
    category = link.one.of("category")[0]
    value = rng.choice(category.values)
    return Question(
        f"How many {link.many.name} have a {link.one.one} whose {category.name} is {value}?",
        f"select count(*) from {link.join} where o.{category.name} = '{value}'",
        (link.many.name, link.one.name),
    )


def dated(rng: random.Random, schema: Schema) -> Question | None:
    """The sum over a period."""
    table = rng.choice([table for table in schema.tables if table.of("date")])
    number, day, (first, last) = table.of("number")[0], table.of("date")[0], _period(rng)
    return Question(
        f"What is the sum of {number.name} of the {table.name} with a {day.name} from {first} to "
        f"{last}, both included?",
        f"select sum({number.name}) from {table.name} "
        f"where {day.name} between '{first}' and '{last}'",
        (table.name,),
    )


# ---------------------------------------------------------------- depth 3: groups


def counted(rng: random.Random, schema: Schema) -> Question | None:
    """How many of each category."""
    table = rng.choice([table for table in schema.tables if table.of("category")])
    category = rng.choice(table.of("category"))
    return Question(
        f"Give each {category.name} of the {table.name}, and how many {table.name} have it.",
        f"select {category.name}, count(*) from {table.name} group by {category.name}",
        (table.name,),
    )


def summed(rng: random.Random, schema: Schema) -> Question | None:
    """A sum for each row that is referred to."""
    if (link := _link(rng, schema, "label", "number")) is None:
        return None
    label, number = link.one.of("label")[0], link.many.of("number")[0]
    return Question(
        f"For each {link.one.one} with {link.many.name}, give the {label.name} and the sum of the "
        f"{number.name} of its {link.many.name}.",
        f"select o.{label.name}, sum(m.{number.name}) from {link.join} group by o.id",
        (link.many.name, link.one.name),
    )


def frequent(rng: random.Random, schema: Schema) -> Question | None:
    """Rows that are referred to often enough."""
    if (link := _link(rng, schema, "label", "number")) is None:
        return None
    label, least = link.one.of("label")[0], rng.randint(2, 5)
    return Question(
        f"Give the {label.name} of each {link.one.one} with at least {least} {link.many.name}.",
        f"select o.{label.name} from {link.join} group by o.id having count(*) >= {least}",
        (link.many.name, link.one.name),
    )


# ---------------------------------------------------------------- depth 4: queries in queries


def outstanding(rng: random.Random, schema: Schema) -> Question | None:
    """Above the average."""
    if (table := _labelled(rng, schema, "number")) is None:
        return None
    label, number = table.of("label")[0], table.of("number")[0]
    return Question(
        f"Give the {label.name} of the {table.name} whose {number.name} is above the average "
        f"{number.name} of all {table.name}.",
        f"select {label.name} from {table.name} "
        f"where {number.name} > (select avg({number.name}) from {table.name})",
        (table.name,),
    )


def unused(rng: random.Random, schema: Schema) -> Question | None:
    """Rows that nothing refers to."""
    if (link := _link(rng, schema, "label", "number")) is None:
        return None
    label = link.one.of("label")[0]
    return Question(
        f"Give the {label.name} of each {link.one.one} without any {link.many.name}.",
        f"select {label.name} from {link.one.name} "
        f"where id not in (select {link.by.name} from {link.many.name})",
        (link.many.name, link.one.name),
    )


def absent(rng: random.Random, schema: Schema) -> Question | None:
    """Rows that nothing of a period refers to."""
    if (link := _link(rng, schema, "label", "date")) is None:
        return None
    label, day, (first, last) = link.one.of("label")[0], link.many.of("date")[0], _period(rng)
    return Question(
        f"Give the {label.name} of each {link.one.one} without {link.many.name} with a "
        f"{day.name} from {first} to {last}, both included.",
        f"select {label.name} from {link.one.name} where id not in "
        f"(select {link.by.name} from {link.many.name} "
        f"where {day.name} between '{first}' and '{last}')",
        (link.many.name, link.one.name),
    )


# ---------------------------------------------------------------- depth 5: ranks and orders


def most(rng: random.Random, schema: Schema) -> Question | None:
    """Whoever has the most, ties included."""
    if (link := _link(rng, schema, "label", "number")) is None:
        return None
    label = link.one.of("label")[0]
    counts = f"select count(*) from {link.many.name} group by {link.by.name}"
    return Question(
        f"Which {link.one.one} has the most {link.many.name}? Give the {label.name} and the "
        "number; if several share the first place, all of them.",
        f"select o.{label.name}, count(*) from {link.join} group by o.id "
        f"having count(*) = (select max(n) from (select count(*) as n "
        f"{counts.removeprefix('select count(*) ')}))",
        (link.many.name, link.one.name),
    )


def top(rng: random.Random, schema: Schema) -> Question | None:
    """The highest sums in order, ties at the last place included."""
    if (link := _link(rng, schema, "label", "number")) is None:
        return None
    label, number, k = link.one.of("label")[0], link.many.of("number")[0], rng.randint(2, 4)
    return Question(
        f"Rank each {link.one.one} by the sum of the {number.name} of its {link.many.name}. Give "
        f"{label.name} and sum of the first {k}, with all who share the last place; the highest "
        f"sum first, equal ones by {label.name}.",
        f"select name, total from (select o.{label.name} as name, sum(m.{number.name}) as total, "
        f"rank() over (order by sum(m.{number.name}) desc) as place from {link.join} "
        f"group by o.id) where place <= {k} order by total desc, name",
        (link.many.name, link.one.name),
        ordered=True,
    )


def crossed(rng: random.Random, schema: Schema) -> Question | None:
    """How many for each pair of categories, in order."""
    found = [table for table in schema.tables if _two_categories(schema, table)]
    table = rng.choice(found)
    (one, a), (two, b) = _two_categories(schema, table)
    first, second = schema[one.table].of("category")[0], schema[two.table].of("category")[0]
    return Question(
        f"For each {first.name} of the {one.table} and each {second.name} of the {two.table}, give "
        f"both and how many {table.name} there are with them, if any; the highest number first, "
        f"equal ones by {second.name}, then by {first.name}.",
        f"select a.{first.name}, b.{second.name}, count(*) as n from {table.name} m "
        f"join {one.table} a on m.{a} = a.id join {two.table} b on m.{b} = b.id "
        f"group by a.{first.name}, b.{second.name} "
        f"order by n desc, b.{second.name}, a.{first.name}",
        (table.name, one.table, two.table),
        ordered=True,
    )


def _two_categories(schema: Schema, table: Table) -> list[tuple[Column, str]]:
    refs = [ref for ref in table.of("ref") if schema[ref.table].of("category")]
    return [(ref, ref.name) for ref in refs[:2]] if len(refs) > 1 else []


DEPTHS: tuple[tuple[Ask, ...], ...] = (
    (filtered, compared, narrowed),
    (joined, linked, dated),
    (counted, summed, frequent),
    (outstanding, unused, absent),
    (most, top, crossed),
)
"""The templates of each depth, from 1."""

KINDS: dict[str, int] = {
    ask.__name__: depth for depth, asks in enumerate(DEPTHS, 1) for ask in asks
}
"""Name of each template -> its depth."""


def asked_at(depth: int, kinds: Sequence[str]) -> list[Ask]:
    """Return the templates of a depth, of these kinds if any are named.

    Raises:
        ValueError: the depth has none of them.
    """
    known = {ask.__name__: ask for ask in DEPTHS[depth - 1]}
    if kinds and not known.keys() & set(kinds):
        depths = sorted({KINDS[kind] for kind in kinds})
        raise ValueError(
            f"depth {depth} asks {', '.join(known)}, none of kinds {tuple(kinds)}: name one of "
            f"these, too, or ask at depth {' or '.join(map(str, depths))} alone"
        )
    return [ask for name, ask in known.items() if not kinds or name in kinds]
