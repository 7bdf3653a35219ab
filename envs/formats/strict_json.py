"""JSON as the standard has it: no duplicate keys, NaN, infinities, lone surrogates or deep nests.

What `json.loads` lets through here comes back later, as a record that cannot be written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from typing import Any

MAX_DEPTH = 32
"""Of nesting: far above what a tool takes, far below what breaks a JSON writer."""

_LONE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|([\[{])|[\]}]', re.S)


class JsonFault(ValueError):
    """Text that is not strict JSON: `at` is the offset of the fault in the text."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(why)
        self.at = at


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        for name, _ in pairs:
            if found.pop(name, pairs) is pairs:  # the second time
                raise ValueError(f"duplicate key {name[:40]!r}")
    return found


def _finite(literal: str) -> float:
    if not math.isfinite(value := float(literal)):
        raise ValueError(f"the number {literal[:20]} is not finite")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_float=_finite, parse_constant=_finite
)


def _too_deep(raw: str) -> bool:
    if raw.count("[") + raw.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for match in _BRACKET.finditer(raw):
        if not match[0].startswith('"'):
            depth += 1 if match[1] else -1
        if depth > MAX_DEPTH:
            return True
    return False


def surrogate(text: str) -> int | None:
    """Return the offset of the first character that UTF-8 cannot hold, or None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def decode(text: str, at: int = 0) -> tuple[Any, int]:
    """Return the JSON value that starts at `at` and the offset after it.

    Raises:
        JsonFault: it is not strict JSON.
    """
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise JsonFault(error.pos, error.msg[0].lower() + error.msg[1:]) from None
    except RecursionError:
        raise JsonFault(at, f"nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:  # our own hooks, and integers that are too long for int()
        why = str(error).split(" for integer")[0]
        raise JsonFault(at, why[0].lower() + why[1:]) from None
    raw = text[at:end]
    if _too_deep(raw):
        raise JsonFault(at, f"nested deeper than {MAX_DEPTH}")
    if _LONE_ESCAPE.search(raw) and surrogate(json.dumps(value, ensure_ascii=False)) is not None:
        raise JsonFault(at, "a \\ud800-\\udfff escape has no partner")
    return value, end


def loads(text: str) -> Any:
    """Return the JSON value that is the whole of `text`, blanks around it aside.

    Raises:
        JsonFault: it is not strict JSON.
    """
    body = text.strip(" \t\r\n")
    value, end = decode(body)
    if end != len(body):
        raise JsonFault(end, "extra text after the value")
    return value


def call_fault(value: Any, args: str, also: Collection[str] = ()) -> str | None:
    """Return why a JSON value is no call: an object of `name` and of arguments; None if it is one.

    Args:
        value: As it was decoded.
        args: The key of the arguments.
        also: Further keys that are allowed.
    """
    if not isinstance(value, dict):
        return f"expected an object, got {type(value).__name__}"
    if extra := sorted(value.keys() - {"name", args, *also}):
        return f"unexpected key {extra[0][:40]!r}; a call has the keys 'name' and {args!r}"
    if not isinstance(value.get("name"), str) or not value["name"]:
        return "expected a key 'name' that holds the tool's name"
    if not isinstance(value.get(args), dict):
        return f"expected a key {args!r} that holds an object"
    return None
