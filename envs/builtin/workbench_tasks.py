"""The errands of Workbench, one function each, by how much has to be looked up and done."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from turnwise.envs.builtin.state_diff import Records
from turnwise.envs.builtin.workbench_deep import (
    add_and_tell,
    add_mails,
    forward_file,
    meet,
    meet_by_mail,
    move_and_tell,
    somebody_left,
)
from turnwise.envs.builtin.workbench_grade import Goal
from turnwise.envs.builtin.workbench_maker import Errand, Maker
from turnwise.envs.builtin.workbench_parts import (
    ask_to_move,
    give_number,
    namesake,
    same_title,
    the_mail,
)
from turnwise.envs.builtin.workbench_world import Call
from turnwise.envs.names import known_names
from turnwise.envs.seeds import derive
from turnwise.envs.task_range import check_drawn
from turnwise.envs.types import Task


def drop_event(make: Maker) -> Errand:
    """Delete one event of a day."""
    title, slot = make.title(), make.slot()
    event = make.event(title, slot, people=[make.someone()])
    day = same_title(make, title, slot)
    reads: tuple[Call, ...] = (("list_events", {"day": day}),)
    text = f"delete the {title} event {make.on(day)}"
    return Errand(text, reads, (("delete_event", {"event": event}),))


def shift_event(make: Maker) -> Errand:
    """Move one event of a day."""
    title, slot, goal = make.title(), make.slot(), make.slot()
    event = make.event(title, slot, people=[make.someone()])
    day = same_title(make, title, slot)
    reads: tuple[Call, ...] = (("list_events", {"day": day}),)
    text = f"move the {title} event {make.on(day)} to {goal}"
    return Errand(text, reads, (("move_event", {"event": event, "slot": goal}),))


def copy_file(make: Maker) -> Errand:
    """Copy a file, sometimes over another one."""
    number = f"{make.title()} {make.number()}"
    path, to = make.file(number), make.rng.choice((make.path(), make.file("old")))
    reads: tuple[Call, ...] = (("read_file", {"path": path}),)
    write = {"path": to, "text": number}
    return Errand(f"copy the text of {path} to {to}", reads, (("write_file", write),))


def move_by_mail(make: Maker) -> Errand:
    """Move an event to where a mail wants it."""
    sender, title = namesake(make), make.title()
    event = make.event(title, make.slot(), people=[sender])
    goal = make.slot()
    reads = the_mail(make, sender, title, goal, ask_to_move)
    reads += (("search_events", {"word": title}),)
    text = f"move the {title} event to the slot that {sender} asks for in the newest mail about it"
    return Errand(text, reads, (("move_event", {"event": event, "slot": goal}),))


def save_number(make: Maker) -> Errand:
    """Write down the number that a mail gives."""
    sender, title, number = namesake(make), make.title(), str(make.number())
    reads = the_mail(make, sender, title, number, give_number)
    path = make.path()
    text = f"write the number in the newest mail of {sender} about {title} to {path}"
    return Errand(text, reads, (("write_file", {"path": path, "text": number}),))


def mail_number(make: Maker) -> Errand:
    """Send somebody the number that a file holds."""
    person, title, number = namesake(make), make.title(), make.number()
    path = make.file(f"{title} {number}")
    reads: tuple[Call, ...] = (
        ("find_contact", {"name": person.name}),
        ("read_file", {"path": path}),
    )
    mail = {"to": person.address, "text": str(number)}
    return Errand(
        f"send {person} the number in {path}", reads, (("send_mail", mail),), kinds=("numbers",)
    )


TEMPLATES: Mapping[int, tuple[Callable[[Maker], Errand], ...]] = {
    1: (drop_event, shift_event, copy_file),
    2: (move_by_mail, save_number, mail_number),
    3: (move_and_tell, add_mails, meet),
    4: (somebody_left, forward_file, add_and_tell, meet_by_mail),
}
"""By depth: 1 one app, 2 a chain through two or three, 3 and 4 longer chains that change more."""
MAX_DISTRACTORS, MAX_INBOX = 4, 64
BY_NAME = {template.__name__: template for row in TEMPLATES.values() for template in row}


@dataclass(frozen=True, kw_only=True)
class Chore(Task):
    """One errand at one desk; both follow from these fields alone."""

    split: str = "train"
    index: int = 0
    template: str = "drop_event"
    distractors: int = 2
    inbox: int = 8

    def __post_init__(self) -> None:
        check_drawn(self, distractors=(0, MAX_DISTRACTORS), inbox=(0, MAX_INBOX))
        known_names("template", [self.template], BY_NAME)


@dataclass(frozen=True, slots=True)
class Desk:
    """Somebody's calendar, mail, files and contacts, with an errand."""

    records: Records
    errand: Errand
    goal: Goal


def make_desk(task: Chore) -> Desk:
    """Return the world of a task; the same fields give the same world."""
    rng = random.Random(derive("workbench", task.to_json()))
    make = Maker(rng, distractors=task.distractors, inbox=task.inbox)
    make.fill()
    make.chatter(task.inbox // 2)
    errand = BY_NAME[task.template](make)
    make.chatter(task.inbox - len(make.mails))
    records, goal = make.finish(errand)
    return Desk(records, errand, goal)
