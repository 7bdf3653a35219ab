"""Records that remember what was changed, and the list of what differs from how it should be.

A world of customers or of mails is a base that never changes and the few records that were written
on top of it. So a copy is cheap, a hash covers only what is new, and a grader can say path by path
what an agent left undone and what it broke besides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

Record = Mapping[str, Any]


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


NOTHING: Final = _Nothing()
"""Stands for what is not there; unlike None, no record holds it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where a state is not as it should be."""

    path: str
    """`o3.status`, `mail.ada.fox[0].slots`."""
    found: Any
    wanted: Any

    def __str__(self) -> str:
        return f"{self.path}: found {self.found!r}, wanted {self.wanted!r}"


class Records:
    """Records by id: a base that never changes, and what was put or removed on top of it.

    Example:
        db = Records({"o3": {"status": "pending"}})
        db.put("o3", status="cancelled")
        db.changes == {"o3": {"status": "cancelled"}}
    """

    __slots__ = ("base", "changes")

    def __init__(
        self, base: Mapping[str, Record], changes: Mapping[str, Record | None] | None = None
    ) -> None:
        self.base = base
        self.changes: dict[str, Record | None] = dict(changes or {})
        """Every record that is not as in `base`; None for one that is gone."""

    def get(self, id: str) -> Record | None:
        """Return the record of that id, or None; for reading only."""
        return self.changes[id] if id in self.changes else self.base.get(id)

    def __getitem__(self, id: str) -> Record:
        if (record := self.get(id)) is None:
            raise KeyError(id)
        return record

    def __contains__(self, id: str) -> bool:
        return self.get(id) is not None

    def __iter__(self) -> Iterator[str]:
        """Yield the ids: those of the base first, then new ones in the order of their making."""
        for id in self.base:
            if id not in self.changes or self.changes[id] is not None:
                yield id
        for id, record in self.changes.items():
            if id not in self.base and record is not None:
                yield id

    def put(self, id: str, **fields: Any) -> None:
        """Set fields of a record, which is made if there is none."""
        self._note(id, {**(self.get(id) or {}), **fields})

    def remove(self, id: str) -> None:
        """Take a record away; one that is not there stays away."""
        self._note(id, None)

    def _note(self, id: str, record: Record | None) -> None:
        if record == self.base.get(id):  # put back as it was: no change at all
            self.changes.pop(id, None)
        else:
            self.changes[id] = record

    def copy(self) -> Records:
        """Return records that can be changed without changing these."""
        return Records(self.base, self.changes)


def record_differences(found: Records, wanted: Records) -> list[Difference]:
    """Return where two states of one base differ, by id and then by field."""
    changed = sorted(found.changes.keys() | wanted.changes.keys())
    return [
        difference
        for id in changed
        for difference in differences(_or_nothing(found, id), _or_nothing(wanted, id), id)
    ]


def _or_nothing(records: Records, id: str) -> Any:
    record = records.get(id)
    return NOTHING if record is None else record


def differences(found: Any, wanted: Any, path: str = "") -> list[Difference]:
    """Return where two values differ; mappings and sequences are entered.

    Args:
        found: JSON values, tuples allowed; or `NOTHING`.
        wanted: The same.
        path: Of these values, for the reports.
    """
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        keys = sorted(found.keys() | wanted.keys())
        pairs = [(_join(path, k), found.get(k, NOTHING), wanted.get(k, NOTHING)) for k in keys]
    elif isinstance(found, (list, tuple)) and isinstance(wanted, (list, tuple)):
        longest = range(max(len(found), len(wanted)))
        pairs = [(f"{path}[{i}]", _at(found, i), _at(wanted, i)) for i in longest]
    else:
        return [] if _same(found, wanted) else [Difference(path, found, wanted)]
    return [inner for where, one, other in pairs for inner in differences(one, other, where)]


def _same(found: Any, wanted: Any) -> bool:
    """Return whether two plain values are equal; True is not 1 here."""
    return type(found) is type(wanted) and bool(found == wanted)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _at(values: list[Any] | tuple[Any, ...], index: int) -> Any:
    return values[index] if index < len(values) else NOTHING
