r"""An answer in LaTeX's box, as models write it that were trained on mathematics: `\boxed{42}`.

The box is the argument of the environment's one tool. The last box that is begun counts, and the
others are workings. Braces inside are balanced, and `\{` and `\}` are none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from turnwise.envs.calls import Action, ActionFormat, FormatMisfit, ToolCall, failed
from turnwise.envs.formats.reading import after_thought
from turnwise.envs.formats.strict_json import surrogate
from turnwise.envs.formats.words import word

if TYPE_CHECKING:
    from turnwise.envs.signatures import Tool

EXPECTED = "expected \\boxed{...}"

_BOX = re.compile(r"\\boxed(?![A-Za-z])\s*(\{)?")
_BRACE = re.compile(r"\\.|([{}])", re.S)


def parse(text: str, tool: str = "submit") -> Action:
    """Return the call of `tool` with the last box; its content is one word.

    Args:
        text: The action.
        tool: The environment's one tool; `fit` fills it in.
    """
    if (bad := surrogate(text)) is not None:
        return Action(text, (failed("bad_command", text, bad, "not valid UTF-8", ""),))
    at, thought = after_thought(text)
    box = _last(text, at)
    end = _closing(text, box.end()) if box and box[1] else None
    if box is None or (thought and thought.start() >= (end or len(text))):
        return Action(text, (failed("no_call", text, len(text), EXPECTED, ""),))
    if end is None:
        where, why = (len(text), "the box is not closed") if box[1] else (box.end(), EXPECTED)
        raw = text[box.start() :]
        return Action(text, (failed("bad_command", text, where, why, raw),))
    raw = text[box.start() : end + 1]
    return Action(text, (ToolCall("c0", tool, None, raw, words=(text[box.end() : end],)),))


def _last(text: str, at: int) -> re.Match[str] | None:
    last = None
    for match in _BOX.finditer(text, at):
        last = match
    return last


def _closing(text: str, at: int) -> int | None:
    """Return where the brace that was opened before `at` is closed."""
    depth = 1
    for match in _BRACE.finditer(text, at):
        depth += {"{": 1, "}": -1}.get(match[1], 0)
        if depth == 0:
            return match.start()
    return None


def render(name: str, args: Mapping[str, Any]) -> str:
    """Return the box.

    Raises:
        ValueError: there is not one argument, its braces are not balanced, or it holds a box.
    """
    if len(args) != 1:
        raise ValueError(f"a box holds one argument, got {list(args)}")
    (value,) = map(word, args.values())
    text = f"\\boxed{{{value}}}"
    if parse(text).calls[0].words != (value,):
        raise ValueError(
            f"a box cannot hold {value[:40]!r}: its braces must be balanced, and no box in it; "
            "use another format, as actions='hermes'"
        )
    return text


def describe(name: str, parameters: Sequence[str]) -> str:
    """Return the pattern of a call."""
    return f"\\boxed{{{(parameters[0] if parameters else name).upper()}}}"


def system(schemas: Sequence[Mapping[str, Any]]) -> str:
    """Return a system prompt of two lines."""
    (function,) = (schema["function"] for schema in schemas)
    pattern = describe(function["name"], list(function["parameters"]["properties"]))
    return f"{function['description'].splitlines()[0]}\nWrite it as {pattern}; the last box counts."


def fit(tools: Sequence[Tool]) -> ActionFormat:
    """Return the format for an environment of one tool with one parameter.

    Raises:
        FormatMisfit: there are more.
    """
    if len(tools) != 1 or len(tools[0].parameters) != 1:
        wrong = [tool.signature for tool in tools if len(tool.parameters) != 1 or not tool.final]
        named = ", ".join(wrong or [tool.signature for tool in tools[1:]]) or "no tool"
        raise FormatMisfit(
            f"format 'boxed' cannot call {named}: a box is the one argument of an environment's "
            "one tool; use actions='fenced' for tools of one argument, 'command' or 'hermes' for "
            "any"
        )
    return replace(BOXED, parse=partial(parse, tool=tools[0].name))


BOXED = ActionFormat("boxed", parse, render, describe, system, fit=fit)
r"""`\boxed{...}`: the argument of the one tool."""
