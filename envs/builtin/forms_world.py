"""The forms, people and briefs of Forms, from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Kind = Literal["text", "number", "date", "select", "radio", "checkbox"]
KINDS: tuple[str, ...] = get_args(Kind)

FIRST = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Ida", "Jon", "Kim")
LAST = ("Stone", "Marsh", "Field", "Brook", "Wood", "Frost", "Hale", "Reed")
TOWNS = ("Milton", "Ashford", "Weston", "Derby", "Selby", "Barton")
ROADS = ("Oak Street", "Mill Lane", "Hill Road", "Bay Avenue", "Park Row")
THINGS = ("amber", "cedar", "coral", "ivory", "olive", "slate")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
WHOSE = ("Former", "Partner's", "Old")
"""What a distractor's label begins with."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a form."""

    key: str
    label: str
    kind: Kind
    of: str = "word"
    """What it holds: a key of `VALUES`; of a number `low-high`."""
    options: tuple[str, ...] = ()
    optional: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return what the site needs to know."""
        named = {name: getattr(self, name) for name in ("key", "label", "kind", "of", "optional")}
        return {**named, "options": list(self.options)}


@dataclass(frozen=True, slots=True)
class Sheet:
    """One page of a form."""

    title: str
    fields: tuple[Field, ...]
    when: tuple[str, str] | None = None
    """(key, value) of an earlier answer without which the page is left out."""

    def to_json(self) -> dict[str, Any]:
        """Return what the site needs to know."""
        fields = [field.to_json() for field in self.fields]
        return {"title": self.title, "fields": fields, "when": self.when and list(self.when)}


def _text(key: str, label: str, of: str) -> Field:
    return Field(key, label, "text", of)


def _number(key: str, label: str, low: int, high: int) -> Field:
    return Field(key, label, "number", f"{low}-{high}")


def _date(key: str, label: str) -> Field:
    return Field(key, label, "date", "date")


def _select(key: str, label: str, *options: str) -> Field:
    return Field(key, label, "select", options=options)


def _radio(key: str, label: str, *options: str) -> Field:
    return Field(key, label, "radio", options=options)


def _tick(key: str, label: str) -> Field:
    return Field(key, label, "checkbox")


SHEETS: Mapping[str, tuple[Field, ...]] = {
    "About you": (
        _text("name", "Full name", "name"),
        _date("born", "Birth date"),
        _select("title", "Title", "Dr", "Mr", "Mrs", "Ms"),
        _text("nickname", "Nickname", "word"),
        _number("height", "Height in cm", 120, 210),
        _tick("student", "Student"),
    ),
    "Contact": (
        _text("phone", "Phone", "phone"),
        _text("postcode", "Postcode", "postcode"),
        _radio("reach", "Reach me by", "email", "phone", "post"),
        _text("town", "Town", "town"),
        _text("street", "Street", "street"),
        _tick("news", "Newsletter"),
    ),
    "Work": (
        _text("employer", "Employer", "firm"),
        _date("started", "Start date"),
        _select("team", "Team", "design", "law", "sales", "support"),
        _number("hours", "Hours per week", 4, 40),
        _radio("shift", "Shift", "day", "late", "night"),
        _tick("remote", "Remote work"),
    ),
    "Home": (
        _number("rooms", "Rooms", 1, 9),
        _radio("heating", "Heating", "gas", "oil", "wood"),
        _date("moved", "Moved in on"),
        _select("floor", "Floor", "ground", "first", "second", "top"),
        _text("landlord", "Landlord", "name"),
        _tick("garden", "Garden"),
    ),
    "Travel": (
        _select("to", "Destination", "Lisbon", "Oslo", "Rome", "Vienna"),
        _date("leave", "Leaves on"),
        _number("bags", "Bags", 1, 6),
        _radio("seat", "Seat", "aisle", "middle", "window"),
        _text("passport", "Passport", "postcode"),
        _tick("insured", "Insurance"),
    ),
    "Health": (
        _text("doctor", "Doctor", "name"),
        _select("blood", "Blood group", "A", "B", "AB", "O"),
        _number("weight", "Weight in kg", 40, 120),
        _radio("diet", "Diet", "any", "vegan", "vegetarian"),
        _date("checked", "Last check-up"),
        _tick("glasses", "Glasses"),
    ),
}
CAR = Field("car", "Has a car", "radio", options=("no", "yes"))
CAR_SHEET: tuple[Field, ...] = (
    _text("plate", "Plate", "postcode"),
    _select("fuel", "Fuel", "diesel", "electric", "petrol"),
    _number("year", "Built in", 1990, 2024),
    _text("make", "Make", "firm"),
    _radio("gear", "Gears", "automatic", "manual"),
    _tick("towbar", "Tow bar"),
)
OPTIONAL = (
    _text("remark", "Remark", "word"),
    _text("code", "Voucher", "postcode"),
    _text("fax", "Fax", "phone"),
)


@dataclass(frozen=True, slots=True)
class World:
    """Everything of one task."""

    sheets: tuple[Sheet, ...]
    answers: Mapping[str, str]
    """By key, as the form's database is to hold them; of the sheets that are shown alone."""
    facts: tuple[tuple[str, str], ...]
    """(label, value) of the brief, distractors among them."""

    @property
    def text(self) -> str:
        """The brief in words."""
        facts = "\n".join(f"{label}: {value}" for label, value in self.facts)
        return (
            f"Fill in the form, submit it, then call done. Leave blank what is not given.\n{facts}"
        )

    def shown(self) -> list[Sheet]:
        """Return the sheets that the right answers lead to."""
        return [
            s for s in self.sheets if s.when is None or self.answers.get(s.when[0]) == s.when[1]
        ]


def make_world(
    rng: random.Random,
    *,
    pages: int,
    fields: int,
    distractors: int,
    strict: bool,
    optional: int,
    kinds: Sequence[str] = KINDS,
) -> World:
    """Return a form, the answers and the brief.

    Args:
        rng: Every choice comes from it.
        pages: Sheets, among them one that only a certain answer leads to where there are two.
        fields: On each sheet.
        distractors: Facts that no field asks for.
        strict: Whether facts are written otherwise than the form wants them.
        optional: Fields for which there is no fact.
        kinds: Of the fields, but for the sheet about a car.
    """
    sheets = _sheets(rng, pages, fields, kinds)
    sheets = _with_optional(rng, sheets, optional)
    values = {f.key: _value(rng, f) for sheet in sheets for f in sheet.fields}
    world = World(tuple(sheets), values, ())
    shown = [field for sheet in world.shown() for field in sheet.fields]
    facts = [(f.label, _told(f, values[f.key], strict)) for f in shown if not f.optional]
    facts += _distractors(rng, facts, shown, distractors, strict)
    rng.shuffle(facts)
    return World(tuple(sheets), {field.key: values[field.key] for field in shown}, tuple(facts))


def _sheets(rng: random.Random, pages: int, fields: int, kinds: Sequence[str]) -> list[Sheet]:
    offered = _offered(kinds)
    titles = rng.sample(list(offered), pages - 1 if pages > 1 else 1)
    sheets = [Sheet(title, _some(rng, offered[title], fields)) for title in titles]
    if pages > 1:
        first = sheets[0]
        sheets[0] = replace(first, fields=(*first.fields[: fields - 1], CAR))
        car = Sheet("Car", _some(rng, CAR_SHEET, fields), when=("car", "yes"))
        sheets.insert(rng.randint(1, len(sheets)), car)
    return sheets


def _offered(kinds: Sequence[str]) -> dict[str, list[Field]]:
    """Return the sheets with the fields of these kinds; each kind stands on five at least."""
    found = {title: [f for f in fields if f.kind in kinds] for title, fields in SHEETS.items()}
    return {title: fields for title, fields in found.items() if fields}


def _some(rng: random.Random, fields: Sequence[Field], count: int) -> tuple[Field, ...]:
    return tuple(rng.sample(list(fields), min(count, len(fields))))


def _with_optional(rng: random.Random, sheets: list[Sheet], count: int) -> list[Sheet]:
    for field in rng.sample(OPTIONAL, count):
        i = rng.randrange(len(sheets))
        blank = replace(field, optional=True)
        sheets[i] = replace(sheets[i], fields=(*sheets[i].fields, blank))
    return sheets


def _value(rng: random.Random, field: Field) -> str:
    """Return the answer as the form's database is to hold it."""
    if field.optional:
        return ""
    if field.kind == "checkbox":
        return rng.choice(("no", "yes"))
    if field.kind == "number":
        low, high = map(int, field.of.split("-"))
        return str(rng.randint(low, high))
    return rng.choice(field.options) if field.options else _words(rng, field.of)


def _words(rng: random.Random, of: str) -> str:
    made = {
        "name": lambda: f"{rng.choice(FIRST)} {rng.choice(LAST)}",
        "word": lambda: rng.choice(THINGS),
        "firm": lambda: f"{rng.choice(LAST)} {rng.choice(('Bros', 'Group', 'Works'))}",
        "town": lambda: rng.choice(TOWNS),
        "street": lambda: f"{rng.randint(1, 99)} {rng.choice(ROADS)}",
        "phone": lambda: f"{rng.randint(2_000_000, 9_999_999)}",
        "postcode": lambda: "".join(rng.choices("ABCDEFGH", k=2)) + f"{rng.randint(100, 999)}",
        "date": lambda: (
            f"{rng.randint(1960, 2020)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        ),
    }
    return made[of]()


def _told(field: Field, value: str, strict: bool) -> str:
    """Return a value as the brief tells it: strict forms make one write it otherwise."""
    if not strict:
        return value
    if field.kind == "date":
        year, month, day = value.split("-")
        return f"{int(day)} {MONTHS[int(month) - 1]} {year}"
    if field.of == "phone":
        return f"{value[:3]} {value[3:]}"
    return f"{value[:2].lower()} {value[2:]}" if field.of == "postcode" else value


def _distractors(
    rng: random.Random,
    facts: Sequence[tuple[str, str]],
    shown: Sequence[Field],
    count: int,
    strict: bool,
) -> list[tuple[str, str]]:
    known = dict(facts)
    made: dict[str, str] = {}
    asked = [field for field in shown if not field.optional]
    for _ in range(20 * count):
        if len(made) == count:
            break
        field = rng.choice(asked)
        value = _told(field, _value(rng, field), strict)
        label = f"{rng.choice(WHOSE)} {field.label.lower()}"
        if value != known[field.label]:
            made.setdefault(label, value)
    return list(made.items())
