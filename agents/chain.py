"""The file under a record: JSON lines, each of which proves the one before it.

    line = {...body..., "prev": sha of the line before (the first: 64 zeros), "sha": sha}
    sha  = sha256(prev + body),   body = the line without `prev` and `sha`, byte for byte

A line that was changed, cut, moved, added or removed breaks the chain and is named by its number.
The chain is no signature: whoever can rewrite the whole file can rewrite the chain, and whole lines
missing at the end are seen only by whoever kept the `Position`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from turnwise.envs.types import canonical_json

SCHEMA = "turnwise.episode/1"
_TAIL = re.compile(rb',"prev":"([0-9a-f]{64})","sha":"([0-9a-f]{64})"\}\n')
_TAIL_LENGTH = len(',"prev":"","sha":""}\n') + 2 * 64


class RecordError(RuntimeError):
    """A record cannot be read or written as asked. `line` counts from 1; 0 is the whole file."""

    def __init__(self, path: str | os.PathLike[str], line: int, reason: str) -> None:
        where = f"{os.fspath(path)}, line {line}" if line else os.fspath(path)
        super().__init__(f"{where}: {reason}")
        self.path, self.line = Path(path), line


class NewerSchema(RecordError):
    """The record was written by a newer turnwise."""


@dataclass(frozen=True, slots=True)
class Position:
    """A durable point of a record; a checkpoint keeps it to cut the record back to it."""

    offset: int
    """Bytes from the start of the file."""
    lines: int
    """Whole lines before it, the header included."""
    head: str
    """`sha` of the last of those lines."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields; `Position(**position.to_json())` gives it back."""
        return dataclasses.asdict(self)


START = Position(0, 0, "0" * 64)


def to_body(value: Mapping[str, Any]) -> bytes:
    """Return `value` as the bytes that are hashed: canonical JSON.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON cannot hold.
        TypeError: `value` holds something else that JSON cannot hold.
    """
    try:
        return canonical_json(value).encode()
    except UnicodeEncodeError:  # a lone surrogate, as in a file name that is not UTF-8
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def seal(body: bytes, end: Position) -> tuple[bytes, Position]:
    """Return the line that holds `body` after `end`, and the end after that line."""
    prev = end.head.encode()
    sha = hashlib.sha256(prev + body).hexdigest()
    line = b'%b,"prev":"%b","sha":"%b"}\n' % (body[:-1], prev, sha.encode())
    return line, Position(end.offset + len(line), end.lines + 1, sha)


def prove(path: str | os.PathLike[str], file: BinaryIO) -> Iterator[tuple[Position, bytes]]:
    """Yield the end and the body of every line, the header first.

    Args:
        path: The name that errors give.
        file: The record, at its start.

    Raises:
        RecordError: at the first line that was changed, cut or moved; lines before it are good.
        NewerSchema: a newer turnwise wrote the file.
    """
    end = START
    for number, line in enumerate(file, start=1):
        if number == 1:
            _require_schema(path, line)
        body = line[:-_TAIL_LENGTH] + b"}"
        sealed, following = seal(body, end)
        if sealed != line:
            raise RecordError(path, number, _fault(line, end))
        yield following, body
        end = following


def _fault(line: bytes, end: Position) -> str:
    """Return why `line` does not follow `end`."""
    if not line.endswith(b"\n"):
        return "cut short; `RecordWriter.resume` drops an unfinished last line"
    tail = _TAIL.fullmatch(line[-_TAIL_LENGTH:])
    if tail is None:
        return "changed after it was written: it does not end with its hash"
    if tail[1].decode() != end.head:
        return "out of place: it does not follow the line before it"
    return "changed after it was written: it has another hash"


def _require_schema(path: str | os.PathLike[str], line: bytes) -> None:
    kind, _, known = SCHEMA.rpartition("/")
    try:
        found_kind, _, found = json.loads(line)["schema"].rpartition("/")
    except (ValueError, TypeError, KeyError, AttributeError):
        found_kind, found = "", ""
    if found_kind != kind or not found.isdecimal():
        raise RecordError(path, 1, f"not a record: the first line is no header of {kind}")
    if int(found) > int(known):
        reason = f"written with schema {kind}/{found}, this turnwise reads up to {SCHEMA}; "
        raise NewerSchema(path, 1, reason + "upgrade with `pip install -U turnwise`")
