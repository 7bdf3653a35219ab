r"""A tool call as one fenced block of code: the language is the tool, the block its argument.

    ```python
    print(6 * 7)
    ```

Exactly one block counts per turn: with a second one nothing is run, and the agent is told so. A
fence stands alone on its line; a longer fence (four backticks) may hold shorter ones. Text around
the block is ignored. A tool without parameters is a block without a line in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from turnwise.envs.calls import Action, ActionFormat, FormatMisfit, ToolCall, failed
from turnwise.envs.formats.reading import THOUGHT_TAGS, read_calls
from turnwise.envs.formats.words import word

if TYPE_CHECKING:
    from turnwise.envs.signatures import Tool

_OPEN = re.compile(r"(`{3,})[ \t]*([^`\s]+)[ \t\r]*(?=\n|\Z)")
_CLOSE = re.compile(r"\n(`{3,})[ \t\r]*(?=\n|\Z)")
_RUN = re.compile(r"^`{3,}", re.M)


def parse(text: str) -> Action:
    """Return the one call in `text`; its argument is one word, to be read by the tool's schema."""
    expected = "expected a block that begins with ``` and the tool's name"
    action = read_calls(text, _find, _read, code="bad_command", expected=expected)
    if len(action.calls) > 1:
        return Action(text, (action.calls[1],))
    return action


def _find(text: str, at: int) -> int:
    return text.find("```", at)


def _read(text: str, start: int, index: int) -> tuple[list[ToolCall], int]:
    """Read the block whose fence is at `start`; there should be no second one."""
    opened = _OPEN.match(text, start)
    if index > 0:
        why = "one block per turn; nothing was run"
        return [failed("bad_command", text, start, why, text[start:])], len(text)
    if opened is None or not _begins_line(text, start):
        why = "a fence stands alone on its line, with the tool's name: ```name"
        return [failed("bad_command", text, start, why, text[start:])], len(text)
    for close in _CLOSE.finditer(text, opened.end()):
        if len(close[1]) >= len(opened[1]):
            body = text[opened.end() + 1 : close.start()]
            words = (body,) if close.start() > opened.end() else ()
            raw = text[start : close.end()]
            return [ToolCall("c0", opened[2], None, raw, words=words)], close.end()
    why = f"the block is not closed by a line of {opened[1]}"
    return [failed("bad_command", text, len(text), why, text[start:])], len(text)


def _begins_line(text: str, at: int) -> bool:
    before = text[text.rfind("\n", 0, at) + 1 : at]
    return not before or before.endswith(THOUGHT_TAGS)


def render(name: str, args: Mapping[str, Any]) -> str:
    """Return the block; its fence is longer than those in the argument.

    Raises:
        ValueError: there is more than one argument, or the name holds a blank or a backtick.
    """
    if len(args) > 1 or not re.fullmatch(r"[^`\s]+", name):
        raise ValueError(f"a block holds one argument of one tool, got {name[:40]!r} {list(args)}")
    lines = [word(value) for value in args.values()]
    longest = max((len(run) for line in lines for run in _RUN.findall(line)), default=2)
    fence = "`" * (longest + 1)
    return "\n".join([f"{fence}{name}", *lines, fence])


def describe(name: str, parameters: Sequence[str]) -> str:
    """Return the pattern of a call."""
    return "\n".join([f"```{name}", *(parameter.upper() for parameter in parameters[:1]), "```"])


def system(schemas: Sequence[Mapping[str, Any]]) -> str:
    """Return a system prompt of one block per tool."""
    lines = ["Write exactly one block per turn, its fences alone on their lines:"]
    for function in (schema["function"] for schema in schemas):
        lines.append(function["description"].splitlines()[0])
        lines.append(describe(function["name"], list(function["parameters"]["properties"])))
    return "\n".join(lines)


def fit(tools: Sequence[Tool]) -> ActionFormat:
    """Return the format if each tool takes one argument at most.

    Raises:
        FormatMisfit: one takes more.
    """
    for tool in tools:
        if len(tool.parameters) > 1:
            raise FormatMisfit(
                f"format 'fenced' cannot call {tool.signature}: a block holds one argument and "
                f"this tool has {len(tool.parameters)}; give it one parameter, or use "
                "actions='command' or 'hermes'"
            )
    return FENCED


FENCED = ActionFormat("fenced", parse, render, describe, system, fit=fit)
"""One fenced block of code."""
