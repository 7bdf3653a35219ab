"""From a Python annotation to JSON schema, and from what the agent gave to a typed value.

Strict both ways: an annotation that JSON cannot hold is refused where the tool is defined, and a
value of the wrong type is refused with the parameter, the type and the value in one line.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from turnwise.envs.formats.strict_json import JsonFault, loads
from turnwise.envs.names import hint


class BadArgs(ValueError):
    """The agent's arguments do not fit the tool; the message is shown to the agent."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of parameter."""

    schema: dict[str, Any]
    text: str
    """As the agent reads it: `list[int]`."""
    check: Callable[[str, Any], Any]
    """(where, JSON value) to the typed value. Raises `BadArgs`."""
    read: Callable[[str, str], Any]
    """(where, word of a command line) to the typed value. Raises `BadArgs`."""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _wrong(where: str, text: str, value: Any) -> BadArgs:
    return BadArgs(f"{where} must be {text}, got {_shown(value)}")


def _str(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "str", value)
    return value


def _int(where: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(where, "int", value)
    return value


def _float(where: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(where, "float", value)
    try:
        return float(value)
    except OverflowError:
        raise BadArgs(f"{where} is too large for a float") from None


def _bool(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, "bool", value)
    return value


def _any(where: str, value: Any) -> Any:
    return value


def _read_bool(where: str, word: str) -> bool:
    """Read `true` or `false`, also with a capital: chat templates write Python's own spelling."""
    found = {"true": True, "false": False}.get(word.strip().lower())
    return _bool(where, word if found is None else found)


def _as_json(text: str, check: Callable[[str, Any], Any]) -> Callable[[str, str], Any]:
    """Return a reader of command-line words that hold JSON."""

    def read(where: str, word: str) -> Any:
        try:
            value = loads(word)
        except JsonFault:
            raise _wrong(where, text, word) from None
        return check(where, value)

    return read


def _simple(json_type: str, text: str, check: Callable[[str, Any], Any]) -> Kind:
    return Kind({"type": json_type}, text, check, _as_json(text, check))


_KINDS: dict[Any, Kind] = {
    str: Kind({"type": "string"}, "str", _str, _str),
    int: _simple("integer", "int", _int),
    float: _simple("number", "float", _float),
    bool: Kind({"type": "boolean"}, "bool", _bool, _read_bool),
    Any: Kind({}, "any", _any, _any),
}
SUPPORTED = "str, int, float, bool, Literal, list[...], dict[str, ...], `... | None` or Any"


def _choice(values: tuple[Any, ...]) -> Kind:
    if not all(isinstance(value, str) for value in values):
        raise TypeError(f"a Literal must hold str only, got {values!r}")
    text = f"one of {', '.join(values)}"

    def check(where: str, value: Any) -> str:
        if value not in values:
            near = f" ({hint(value, values)})" if isinstance(value, str) else ""
            raise BadArgs(f"{where} must be {text}, got {_shown(value)}{near}")
        return str(value)

    return Kind({"type": "string", "enum": list(values)}, text, check, check)


def _list(item: Kind) -> Kind:
    text = f"list[{item.text}]"

    def check(where: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _wrong(where, text, value)
        return [item.check(f"{where}[{index}]", entry) for index, entry in enumerate(value)]

    return Kind({"type": "array", "items": item.schema}, text, check, _as_json(text, check))


def _dict(item: Kind) -> Kind:
    text = f"dict[str, {item.text}]"

    def check(where: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(where, text, value)
        return {key: item.check(f"{where}[{key!r}]", entry) for key, entry in value.items()}

    schema = {"type": "object", "additionalProperties": item.schema}
    return Kind(schema, text, check, _as_json(text, check))


def _optional(kind: Kind) -> Kind:
    def check(where: str, value: Any) -> Any:
        return None if value is None else kind.check(where, value)

    def read(where: str, word: str) -> Any:
        return None if word == "null" else kind.read(where, word)

    return Kind({"anyOf": [kind.schema, {"type": "null"}]}, f"{kind.text} or null", check, read)


def kind_of(annotation: Any) -> Kind:
    """Return the `Kind` of a resolved annotation.

    Raises:
        TypeError: JSON cannot hold it; the message lists what can be used.
    """
    if annotation in (str, int, float, bool, Any):
        return _KINDS[annotation]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return _choice(args)
    if origin is list and len(args) == 1:
        return _list(kind_of(args[0]))
    if origin is dict and len(args) == 2 and args[0] is str:
        return _dict(kind_of(args[1]))
    if origin in (typing.Union, types.UnionType) and len(args) == 2 and type(None) in args:
        return _optional(kind_of(args[0] if args[1] is type(None) else args[1]))
    raise TypeError(f"{annotation!r} cannot be a tool parameter; use {SUPPORTED}")
