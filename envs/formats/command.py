"""Tool calls as one shell-like line, arguments in signature order: `cat /a/b`.

A fraction of the tokens of JSON, and nothing to balance: the format for tiny models.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from turnwise.envs.calls import Action, ActionFormat, ToolCall, failed
from turnwise.envs.formats.strict_json import surrogate
from turnwise.envs.formats.words import word

_BLANKS = " \t\r\n"
_SPACE = re.compile(r"[ \t\r\n]*")
_PIECE = re.compile(r"""([^ \t\r\n'"\\]+)|'([^']*)'|"([^"\\]*(?:\\.[^"\\]*)*)"|\\(.)""", re.S)
_ESCAPE = re.compile(r'\\(["\\])')


class _Fault(Exception):
    """A line that cannot be read, and where."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(why)
        self.at = at


def _word(text: str, at: int) -> tuple[str, int]:
    """Read one word at `at`, quotes and backslashes as in `shlex`; return it and its end."""
    pieces = []
    while at < len(text) and text[at] not in _BLANKS:
        if (match := _PIECE.match(text, at)) is None:
            what = "a backslash at the end" if text[at] == "\\" else f"unclosed quote {text[at]}"
            raise _Fault(at, what)
        plain, single, double, escaped = match.groups()
        pieces.append(plain or single or escaped or _ESCAPE.sub(r"\1", double or ""))
        at = match.end()
    return "".join(pieces), at


def _skip_blanks(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _split(text: str) -> list[str]:
    """Return the words of the one line in `text`."""
    words, at = [], _skip_blanks(text, 0)
    while at < len(text):
        word, end = _word(text, at)
        words.append(word)
        at = _skip_blanks(text, end)
        if at < len(text) and "\n" in text[end:at]:
            raise _Fault(at, "one command per turn, on one line")
    return words


def _fault(text: str) -> tuple[str, int, str] | None:
    """Return (code, offset, why) for text that is refused before it is split."""
    if (bad := surrogate(text)) is not None:
        return "bad_command", bad, "not valid UTF-8"
    if not text.strip(_BLANKS):
        return "no_call", 0, "expected a command"
    return None


def parse(text: str) -> Action:
    """Return the one command in `text`, its words split as `shlex.split` splits them.

    Blank lines around it are allowed. Nothing is expanded: `$`, `*` and `|` are plain characters.
    """
    raw = text.strip(_BLANKS)
    if (fault := _fault(text)) is not None:
        code, at, why = fault
        return Action(text, (failed(code, text, at, why, ""),))
    try:
        name, *words = _split(text)
    except _Fault as error:
        return Action(text, (failed("bad_command", text, error.at, str(error), raw),))
    if not name:
        return Action(text, (failed("bad_command", text, 0, "the command has no name", raw),))
    return Action(text, (ToolCall("c0", name, None, raw, words=tuple(words)),))


def render(name: str, args: Mapping[str, Any]) -> str:
    """Return the call as one line; `args` in signature order, none left out in between."""
    return " ".join([shlex.quote(name), *(shlex.quote(word(value)) for value in args.values())])


def describe(name: str, parameters: Sequence[str]) -> str:
    """Return the pattern of a call."""
    return " ".join([name, *(parameter.upper() for parameter in parameters)])


def system(schemas: Sequence[Mapping[str, Any]]) -> str:
    """Return a system prompt of one line per tool."""
    lines = ["Write one command per turn, and nothing else:"]
    for function in (schema["function"] for schema in schemas):
        pattern = describe(function["name"], list(function["parameters"]["properties"]))
        lines.append(f"{pattern} : {function['description'].splitlines()[0]}")
    return "\n".join(lines)


COMMAND = ActionFormat("command", parse, render, describe, system)
"""One shell-like line."""
