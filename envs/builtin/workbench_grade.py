"""What is wrong with the records of Workbench, place by place, and which calls would mend it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from turnwise.envs.builtin.state_diff import Difference, Records, differences, record_differences
from turnwise.envs.builtin.workbench_world import Call, all_of, facts
from turnwise.envs.types import canonical_json

SENT = "to/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """How the records must look in the end."""

    records: Records
    kinds: tuple[str, ...] = ()
    """What is read out of the mails that must be sent: keys of `FACTS`."""
    mails: tuple[Call, ...] = ()
    """The `send_mail` calls that an expert makes."""


def wrongs(found: Records, goal: Goal) -> list[Difference]:
    """Return where the records differ from the goal.

    New events count by their content and not by their ids. A mail counts by what it says of the
    kinds that were asked for, and each address by itself: one mail to two people is two mails.
    """
    one, other = _comparable(found, goal), _comparable(goal.records, goal)
    return record_differences(one, other) + differences(
        _new_events(found), _new_events(goal.records), "new events"
    )


def _comparable(records: Records, goal: Goal) -> Records:
    copy = records.copy()
    for id in records.changes:
        if _is_new_event(records, id):
            del copy.changes[id]
        elif id.startswith(SENT):
            copy.changes[id] = {"mails": _read(records, goal, id)}
    return copy


def _read(records: Records, goal: Goal, box: str) -> list[Any]:
    mails = records[box]["mails"]
    return [facts(mail, goal.kinds) if box in goal.records else dict(mail) for mail in mails]


def _is_new_event(records: Records, id: str) -> bool:
    return id[0] == "e" and id not in records.base


def _new_events(records: Records) -> list[Any]:
    made = [records.changes[id] for id in records.changes if _is_new_event(records, id)]
    return sorted((event for event in made if event is not None), key=canonical_json)


def repairs(found: Records, goal: Goal) -> list[Call] | None:
    """Return the calls that lead from `found` to the goal; None if no calls do.

    A sent mail stays sent, and a deleted event or a new file cannot be taken back.
    """
    calls = [*_mend_records(found, goal), *_mend_new_events(found, goal), *_mend_mails(found, goal)]
    return None if None in calls else [call for call in calls if call is not None]


def _mend_records(found: Records, goal: Goal) -> Iterator[Call | None]:
    for id in sorted(found.changes.keys() | goal.records.changes.keys(), key=_by_number):
        if not id.startswith(SENT) and not (id[0] == "e" and id not in found.base):
            is_, should = found.get(id), goal.records.get(id)
            if is_ != should:
                yield _mend(id, is_, should)


def _by_number(id: str) -> tuple[str, int, str]:
    return (id[0], int(id[1:]), id) if id[1:].isdigit() else (id[0], 0, id)


def _mend(id: str, is_: Any, should: Any) -> Call | None:
    if id[0] == "/" and should is not None:
        return "write_file", {"path": id, "text": should["text"]}
    if id[0] == "e" and should is None:
        return "delete_event", {"event": id}
    if id[0] == "e" and is_ is not None:
        return "move_event", {"event": id, "slot": should["slot"]}
    return None


def _mend_new_events(found: Records, goal: Goal) -> Iterator[Call]:
    wanted = Counter(canonical_json(event) for event in _new_events(goal.records))
    for id in all_of(found, "e"):
        if _is_new_event(found, id):
            made = canonical_json(found[id])
            if not wanted[made]:
                yield "delete_event", {"event": id}
            wanted[made] -= 1
    for event in _new_events(goal.records):
        if wanted[canonical_json(event)] > 0:
            wanted[canonical_json(event)] -= 1
            people = ",".join(event["people"])
            given = {"slot": event["slot"], "title": event["title"], "people": people}
            yield "create_event", given


def _mend_mails(found: Records, goal: Goal) -> Iterator[Call | None]:
    for id in found.changes:
        if id.startswith(SENT) and (
            id not in goal.records or _read(found, goal, id) != _read(goal.records, goal, id)
        ):
            yield None
    for name, args in goal.mails:
        missing = [to for to in args["to"].split(",") if f"{SENT}{to}" not in found]
        if missing:
            yield name, {**args, "to": ",".join(missing)}
