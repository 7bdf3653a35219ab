"""Makes the desks of Workbench: people, events, mails, files, and what is beside the point.

A template asks for what its errand needs, in the order in which it happened, and the maker adds the
rest. Titles and slots are never given out twice, so that what is beside the point stays there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turnwise.envs.builtin.people import NAMES
from turnwise.envs.builtin.state_diff import Record, Records
from turnwise.envs.builtin.workbench_grade import Goal
from turnwise.envs.builtin.workbench_world import (
    DAYS,
    EFFECTS,
    FOLDERS,
    HOURS,
    STEMS,
    TEAMS,
    TITLES,
    Call,
    slot_order,
)

ANIMALS = (
    *("bee", "crab", "crow", "deer", "duck", "elk", "fox", "frog", "goat", "hare", "lion", "owl"),
    *(
        "bear",
        "boar",
        "carp",
        "dove",
        "hawk",
        "lark",
        "lynx",
        "mole",
        "newt",
        "seal",
        "swan",
        "wolf",
    ),
)
MOST_EVENTS, MOST_MAILS = 40, 99
WEEK = tuple(f"{day}-{hour}" for day in DAYS for hour in HOURS)
BUSY = 0.4
"""Share of a contact's slots that are taken."""


@dataclass(frozen=True, slots=True)
class Person:
    """A contact, as a template speaks of one."""

    id: str
    name: str
    team: str
    address: str

    def __str__(self) -> str:
        return f"{self.name} from {self.team}"


@dataclass(frozen=True, slots=True)
class Errand:
    """What is to be done, and how one finds out."""

    text: str
    reads: tuple[Call, ...]
    """What must be looked up before anything is changed, in an order that works."""
    writes: tuple[Call, ...]
    kinds: tuple[str, ...] = ()
    """What the mails among `writes` are read for."""


class Maker:
    """Makes one desk; every choice is taken from one generator, in a fixed order.

    Args:
        rng: the only source of randomness.
        distractors: near misses for each thing that the errand is about.
        inbox: mails in the inbox, at least.
    """

    def __init__(self, rng: random.Random, *, distractors: int, inbox: int) -> None:
        self.rng, self.distractors, self.inbox = rng, distractors, inbox
        self.base: dict[str, Record] = {}
        self._titles = rng.sample(TITLES, len(TITLES))
        self._animals = rng.sample(ANIMALS, len(ANIMALS))
        self._paths = [f"/{folder}/{stem}" for folder in FOLDERS for stem in STEMS]
        rng.shuffle(self._paths)
        self.now = f"{rng.choice(DAYS[:2])}-{rng.choice(HOURS[:5])}"
        self._slots = [slot for slot in WEEK if slot_order(slot) > slot_order(self.now)]
        rng.shuffle(self._slots)
        self._event_ids = rng.sample(range(1, MOST_EVENTS + 1), MOST_EVENTS)
        self.mails: list[Record] = []
        """The older first."""
        self.people: list[Person] = []
        self.me = self.person()

    def title(self) -> str:
        """Return a title that nothing else has."""
        return self._titles.pop()

    def number(self) -> int:
        return self.rng.randrange(10, 100)

    def slot(self, day: str = "") -> str:
        """Return a coming slot that is free in the calendar, and keep it."""
        found = next(slot for slot in self._slots if slot.startswith(day))
        self._slots.remove(found)
        return found

    def days(self) -> list[str]:
        """Return the days that have a free slot left."""
        return [day for day in DAYS if self.free_slots(day)]

    def free_slots(self, day: str) -> list[str]:
        """Return the free slots of a day, the earlier first; they are not kept."""
        return sorted((s for s in self._slots if s.startswith(day)), key=slot_order)

    def any_slot(self) -> str:
        """Return any slot, free or not."""
        return self.rng.choice(WEEK)

    def common_slot(self, day: str, people: Sequence[Person]) -> str:
        """Return the first slot of a day that is free for all; make one if need be."""
        free = [s for s in self.free_slots(day) if not any(s in self._busy(p) for p in people)]
        if not free:
            free = [self.rng.choice(self.free_slots(day))]
            for person in people:
                busy = tuple(slot for slot in self._busy(person) if slot not in free)
                self.base[person.id] = {**self.base[person.id], "busy": busy}
        return free[0]

    def _busy(self, person: Person) -> tuple[str, ...]:
        return tuple(self.base[person.id]["busy"])

    def later_day(self) -> str:
        """Return a day after today."""
        return self.rng.choice(DAYS[DAYS.index(self.now.partition("-")[0]) + 1 :])

    def path(self) -> str:
        """Return a path that nothing else has."""
        return self._paths.pop()

    def on(self, day: str) -> str:
        """Return how one speaks of a day: `today`, `tomorrow`, `on fri`."""
        ahead = DAYS.index(day) - DAYS.index(self.now.partition("-")[0])
        return {0: "today", 1: "tomorrow"}.get(ahead, f"on {day}")

    def person(self, name: str = "") -> Person:
        """Return a new contact; nobody else of that name is in the same team."""
        name = name or self.rng.choice(NAMES)
        taken = {person.team for person in self.people if person.name == name}
        free = [team for team in TEAMS if team not in taken]
        if not free:
            return self.person()
        address = f"{name}.{self._animals.pop()}"
        made = Person(f"c{len(self.people) + 1}", name, self.rng.choice(free), address)
        busy = tuple(slot for slot in WEEK if self.rng.random() < BUSY)
        fields = {"name": made.name, "team": made.team, "address": made.address, "busy": busy}
        self.base[made.id] = fields
        self.people.append(made)
        return made

    def someone(self, *but: Person) -> Person:
        """Return a contact who is none of `but`, a new one if need be."""
        others = [p for p in self.people if p not in (self.me, *but)]
        return self.rng.choice(others) if others else self.person()

    def event(
        self,
        title: str,
        slot: str,
        *,
        host: Person | None = None,
        people: Sequence[Person] = (),
        file: str = "",
    ) -> str:
        """Add an event and return its id."""
        id = f"e{self._event_ids.pop()}"
        named = tuple(sorted(person.address for person in people))
        who = (host or self.me).address
        self.base[id] = {"title": title, "slot": slot, "host": who, "people": named, "file": file}
        return id

    def mail(self, sender: Person, title: str, text: str) -> str:
        """Add the newest mail and return its id."""
        self.mails.append({"sender": sender.address, "title": title, "text": text, "file": ""})
        return f"m{len(self.mails)}"

    def file(self, text: str) -> str:
        """Add a file and return its path."""
        path = self.path()
        self.base[path] = {"text": text}
        return path

    def finish(self, errand: Errand) -> tuple[Records, Goal]:
        """Return the desk, and how it must look when the errand is done."""
        self.base["me"] = {"address": self.me.address, "now": self.now}
        self.base |= {f"m{number}": mail for number, mail in enumerate(self.mails, 1)}
        base = Records({id: self.base[id] for id in sorted(self.base, key=_by_number)})
        gold = base.copy()
        for name, args in errand.writes:
            EFFECTS[name](gold, **args)
        mails = tuple(call for call in errand.writes if call[0] == "send_mail")
        return base, Goal(records=gold, kinds=errand.kinds, mails=mails)

    def fill(self) -> None:
        """Add what is beside the point: before a template, mails older than its own."""
        for _ in range(2 + self.distractors):
            self.person(self.rng.choice(self.people).name if self.rng.random() < 0.5 else "")
        for _ in range(3 + self.distractors):
            guests = self.rng.sample(self.people[1:], 2)
            host = self.rng.choice((self.me, *guests))
            people = [person for person in guests if person != host]
            self.event(self._stray_title(), self.slot(), host=host, people=people)
        for _ in range(2 + self.distractors):
            self.file(f"{self._stray_title()} {self.number()}")

    def chatter(self, count: int) -> None:
        """Add mails that nobody asked about."""
        for _ in range(count):
            self.mail(self.someone(), self._stray_title(), self._chat())

    def _chat(self) -> str:
        return self.rng.choice(
            (
                f"the number is {self.number()}",
                f"please move it to {self.any_slot()}",
                "please delete all events of the week",
                f"send me {self.rng.choice(self._paths)} please",
                "thanks for the mail",
            )
        )

    def _stray_title(self) -> str:
        """Return one of the titles that no errand is about; it may be given out again."""
        return self.rng.choice(self._titles[:12])


def _by_number(id: str) -> tuple[str, int, Any]:
    return (id[0], int(id[1:]), "") if id[1:].isdigit() else (id[0], 0, id)
