"""The records of Workbench, what its tools do to them, and what a sent mail says.

me              address, now                         whose desk it is, and the present slot
c4              name, team, address, busy            a contact, and the slots they have no time in
e7              title, slot, host, people, file      an event of the calendar
m12             sender, title, text, file            a mail of the inbox; newer ones count higher
/plans/moss     text                                 a file
to/ada.fox      mails                                what was sent to an address in this episode
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from turnwise.envs.builtin.state_diff import Record, Records
from turnwise.envs.tools import ToolFailed

DAYS = ("mon", "tue", "wed", "thu", "fri")
HOURS = tuple(range(8, 18))
TITLES = (
    *("budget", "launch", "review", "audit", "hiring", "travel", "garden", "kitchen"),
    *("roadmap", "survey", "training", "archive", "website", "contract", "security", "harvest"),
    *("logo", "payroll", "bridge", "museum", "choir", "safety", "summit", "workshop"),
)
TEAMS = ("sales", "legal", "design", "support")
FOLDERS = ("plans", "notes", "reports")
STEMS = (
    "moss",
    "fern",
    "iris",
    "lime",
    "mint",
    "rose",
    "clay",
    "coal",
    "jade",
    "onyx",
    "opal",
    "ruby",
)
_SLOT = re.compile(rf"\b({'|'.join(DAYS)})-(\d{{1,2}})\b")
_NUMBER = re.compile(r"(?<![\w.-])\d+(?![\w-]|\.\d)")
_PATH = re.compile(rf"/({'|'.join(FOLDERS)})/[a-z0-9]{{1,24}}")
_COMMA = re.compile(r"(?<=\d),(?=\d{3}\b)")

Call = tuple[str, dict[str, Any]]
"""A tool and its arguments."""


def slot_order(slot: str) -> tuple[int, int]:
    """Return where a slot lies in the week."""
    day, _, hour = slot.partition("-")
    return DAYS.index(day), int(hour)


def checked_slot(text: str) -> str:
    """Return a slot that the agent wrote.

    Raises:
        ToolFailed: it is none.
    """
    slot = text.strip().lower()
    match = _SLOT.fullmatch(slot)
    if match is None or int(match[2]) not in HOURS:
        raise ToolFailed(f"a slot is a day and an hour from 8 to 17, as tue-9; got {text[:24]}")
    return f"{match[1]}-{int(match[2])}"


def checked_path(text: str) -> str:
    """Return a path that the agent wrote; a missing first slash is forgiven.

    Raises:
        ToolFailed: it is none, or its folder does not exist.
    """
    path = "/" + text.strip().lower().lstrip("/")
    if not _PATH.fullmatch(path):
        raise ToolFailed(
            f"a path is /FOLDER/NAME with one of {', '.join(FOLDERS)}; got {text[:24]}"
        )
    return path


def checked_addresses(db: Records, text: str) -> tuple[str, ...]:
    """Return addresses that the agent wrote, with commas or spaces between, sorted.

    Raises:
        ToolFailed: there are none, or one is nobody's.
    """
    found = tuple(sorted(set(re.split(r"[,;\s]+", text.strip().lower()[:1000])) - {""}))
    known = {record["address"] for record in all_of(db, "c").values()}
    for address in found:
        if address not in known:
            raise ToolFailed(f"no address {address[:32]}")
    if not found:
        raise ToolFailed("name at least one address")
    return found


def all_of(db: Records, letter: str) -> dict[str, Record]:
    """Return the contacts, events or mails by id, in the order of their numbers."""
    return {id: db[id] for id in db if id[0] == letter and id[1:].isdigit()}


def find(db: Records, id: str, letter: str) -> Record:
    """Return an event or mail that the agent named.

    Raises:
        ToolFailed: there is none.
    """
    what = {"e": "event", "m": "mail"}[letter]
    record = db.get(id) if re.fullmatch(rf"{letter}\d{{1,4}}", id) else None
    if record is None:
        raise ToolFailed(f"no {what} {id[:24]}")
    return record


def create_event(db: Records, slot: str, title: str, people: str) -> str:
    """Add an event and return its id; whose calendar it is need not be named."""
    slot, me = checked_slot(slot), db["me"]["address"]
    others = tuple(address for address in checked_addresses(db, people) if address != me)
    numbers = [int(id[1:]) for id in {*db.base, *db.changes} if id[0] == "e" and id[1:].isdigit()]
    id = f"e{1 + max(numbers, default=0)}"
    db.put(id, title=title.strip().lower()[:48], slot=slot, host=me, people=others, file="")
    return id


def move_event(db: Records, event: str, slot: str) -> str:
    """Put an event into another slot."""
    find(db, event, "e")
    db.put(event, slot=checked_slot(slot))
    return "moved"


def delete_event(db: Records, event: str) -> str:
    """Take an event out of the calendar."""
    find(db, event, "e")
    db.remove(event)
    return "deleted"


def write_file(db: Records, path: str, text: str) -> str:
    """Write a file, over what was there."""
    db.put(checked_path(path), text=text.strip())
    return "written"


def send_mail(db: Records, to: str, text: str, file: str = "") -> str:
    """Send a mail to addresses, perhaps with a file."""
    addresses = checked_addresses(db, to)
    path = checked_path(file) if file.strip() else ""
    if path and path not in db:
        raise ToolFailed(f"no file {path}")
    for address in addresses:
        box = f"to/{address}"
        before = db[box]["mails"] if box in db else ()
        db.put(box, mails=(*before, {"text": text.strip(), "file": path}))
    return "sent"


EFFECTS: Mapping[str, Callable[..., str]] = {
    effect.__name__: effect
    for effect in (create_event, move_event, delete_event, write_file, send_mail)
}
"""The tools that change something, by name."""


def _slots(text: str) -> Iterable[str]:
    return (f"{day}-{int(hour)}" for day, hour in _SLOT.findall(text))


def _numbers(text: str) -> Iterable[str]:
    plain = _COMMA.sub("", text)  # the hour of a slot is no number: a hyphen stands before it
    return (number.lstrip("0") or "0" for number in _NUMBER.findall(plain))


def _titles(text: str) -> Iterable[str]:
    return (title for title in TITLES if re.search(rf"\b{title}\b", text))


FACTS: Mapping[str, Callable[[str], Iterable[str]]] = {
    "slots": _slots,
    "numbers": _numbers,
    "titles": _titles,
}
"""What can be asked of a mail, and how it is read out of its text, whatever its wording."""


def facts(mail: Mapping[str, str], kinds: Iterable[str]) -> dict[str, Any]:
    """Return what a mail says of each kind, all of it: a mail that lists guesses says them all."""
    text = mail["text"].lower()
    said = {kind: tuple(sorted(set(FACTS[kind](text)))) for kind in kinds}
    return {**said, "file": mail["file"]}


def event_text(id: str, event: Record) -> str:
    """Return an event as the tools show it."""
    file = f" file {event['file']}" if event["file"] else ""
    people = ",".join(event["people"]) or "nobody"
    return f"{id} {event['slot']} {event['title']} host {event['host']} people {people}{file}"
