"""Tool calls as a list of Python calls, as Llama 3.2 and Llama 4 models are trained on.

    [cat(path="/a/b"), head(path="/c", lines=3)]

Arguments have names and are literals: text, numbers, lists, dicts with text as keys, and True,
False and None, also as JSON spells them. Nothing is evaluated; `literals.py` reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from turnwise.envs.calls import Action, ActionFormat, ToolCall, failed
from turnwise.envs.formats.literals import CALL_NAME, LiteralFault, Reader, literal
from turnwise.envs.formats.reading import read_calls

START, END = "<|python_start|>", "<|python_end|>"
"""Some Llama 4 models write them around the list."""

_NAME = re.compile(CALL_NAME)
_FIRST = re.compile(rf"\s*(?=\[|{CALL_NAME}\()")
_BEGIN = re.compile(rf"<\|python_start\|>|\[(?=\s*{CALL_NAME}\s*\()")
_LEAD = re.compile(r"(?:<\|python_start\|>\s*)?")


def parse(text: str) -> Action:
    """Return the calls in `text`, strictly; text around the list is allowed and ignored."""
    return read_calls(text, _find, _read, code="bad_command", expected="expected [name(...)]")


def _find(text: str, at: int) -> int:
    if (first := _FIRST.match(text, at)) is not None:
        return first.end()
    match = _BEGIN.search(text, at)
    return match.start() if match else -1


def _read(text: str, start: int, index: int) -> tuple[list[ToolCall], int]:
    """Read one list; the calls before a fault stand, what is behind it belongs to it."""
    lead = _LEAD.match(text, start)
    reader = Reader(text, lead.end() if lead else start)
    calls: list[ToolCall] = []
    begin = start
    try:
        for name, args, at in _calls(reader):
            raw = text[at : reader.at]
            calls.append(ToolCall(f"c{index + len(calls)}", name, args, raw))
            begin = reader.at
    except LiteralFault as fault:
        raw, number = text[begin:], index + len(calls)
        calls.append(failed("bad_command", text, fault.at, str(fault), raw, index=number))
        return calls, len(text)
    return calls, reader.at


def _calls(reader: Reader) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield (name, arguments, where it begins) of each call in a list."""
    reader.take("[", "calls stand in a list: [name(...)]")
    more = True
    while more:
        at = reader.skip_space()
        name = reader.name("a call: name(...)")
        reader.take("(", f"expected ( after {name[:40]}")
        yield name, reader.named(")"), at
        more = reader.found(",")
    reader.take("]", "expected , or ]")


def render(name: str, args: Mapping[str, Any]) -> str:
    """Return the list of one call.

    Raises:
        ValueError: an argument holds NaN or an infinity, or a name is none.
    """
    for part in (name, *args):
        if not _NAME.fullmatch(part):
            raise ValueError(
                f"a name in this format is letters, digits and _ . -, and begins with a letter or "
                f"_, got {part[:40]!r}"
            )
    given = ", ".join(f"{parameter}={literal(value)}" for parameter, value in args.items())
    return f"[{name}({given})]"


def describe(name: str, parameters: Sequence[str]) -> str:
    """Return the pattern of a call."""
    return f"[{name}({', '.join(f'{parameter}=...' for parameter in parameters)})]"


def system(schemas: Sequence[Mapping[str, Any]]) -> str:
    """Return the system prompt that Llama 3.2 models were trained with."""
    listed = "\n\n".join(json.dumps(schema, ensure_ascii=False, indent=4) for schema in schemas)
    return (
        "You have access to the following functions. To call functions, please respond with a "
        "python list of the calls. Respond in the format [func_name1(params_name1=params_value1, "
        "params_name2=params_value2...), func_name2(params)] Do not use variables.\n\n" + listed
    )


PYTHONIC = ActionFormat("pythonic", parse, render, describe, system, tags=(START, END))
"""A list of Python calls with literal arguments."""
