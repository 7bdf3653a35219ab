r"""Tool calls as XML, as Qwen3-Coder and later Qwen models are trained on.

    <tool_call>
    <function=cat>
    <parameter=path>
    /a/b
    </parameter>
    </function>
    </tool_call>

A value is plain text: the tool's schema says whether `3` is a number. One line break behind the
opening tag and one before the closing tag belong to the format, all others to the value. Nothing is
escaped. So a value ends at the first `</parameter>` behind which the next `<parameter=...>` or the
`</function>` follows, and any other tag in it is text. `render` refuses the few values that this
rule would cut short.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from turnwise.envs.calls import Action, ActionFormat, ToolCall, failed
from turnwise.envs.formats.reading import read_calls, skip_space
from turnwise.envs.formats.words import word

OPEN, CLOSE = "<tool_call>", "</tool_call>"

_BEGIN = re.compile(r"<tool_call>|<function=")
_FUNCTION = re.compile(r"<function=([^<>=\s]+)>\s*")
_PARAMETER = re.compile(r"<parameter=([^<>=\s]+)>\n?")
_VALUE_END = re.compile(
    r"(?P<value>\n?</parameter>)(?=\s*(?:<parameter=[^<>=\s]+>|</function>))"
    r"|</function>\s*</tool_call>"
)
_END = re.compile(r"</function>\s*</tool_call>")


class _Fault(Exception):
    """A call that cannot be read, and where; `reach` is how far it goes at least."""

    def __init__(self, at: int, why: str, reach: int | None = None) -> None:
        super().__init__(why)
        self.at, self.reach = at, at if reach is None else reach


def parse(text: str) -> Action:
    """Return the calls in `text`, strictly; text around them is allowed and ignored."""
    return read_calls(text, _find, _read, code="bad_command", expected=f"expected {OPEN}")


def _find(text: str, at: int) -> int:
    match = _BEGIN.search(text, at)
    return match.start() if match else -1


def _read(text: str, start: int, index: int) -> tuple[list[ToolCall], int]:
    """Read the call that begins at `start`."""
    try:
        name, texts, stop = _call(text, start)
    except _Fault as fault:
        close = text.find(CLOSE, fault.reach)
        stop = close + len(CLOSE) if close >= 0 else len(text)
        raw = text[start:stop]
        return [failed("bad_command", text, fault.at, str(fault), raw, index=index)], stop
    return [ToolCall(f"c{index}", name, None, text[start:stop], texts=texts)], stop


def _call(text: str, start: int) -> tuple[str, dict[str, str], int]:
    """Return (name, texts, offset behind the call)."""
    if not text.startswith(OPEN, start):
        raise _Fault(start, f"expected {OPEN} before <function=...>")
    at = skip_space(text, start + len(OPEN))
    if (function := _FUNCTION.match(text, at)) is None:
        raise _Fault(at, "expected <function=NAME>")
    texts: dict[str, str] = {}
    at = function.end()
    while (parameter := _PARAMETER.match(text, at)) is not None:
        if parameter[1] in texts:
            raise _Fault(at, f"duplicate parameter {parameter[1][:40]!r}")
        texts[parameter[1]], at = _value(text, parameter.end())
    if (end := _END.match(text, at)) is None:
        raise _Fault(at, f"expected <parameter=NAME> or </function> and {CLOSE}")
    return function[1], texts, end.end()


def _value(text: str, start: int) -> tuple[str, int]:
    """Return the value that starts at `start` and where the next tag is."""
    why = "the parameter is not closed by </parameter>"
    if (end := _VALUE_END.search(text, start)) is None:  # so no call behind it can be whole
        raise _Fault(start, why, len(text))
    if end["value"] is None:
        raise _Fault(end.start(), why)
    return text[start : end.start()], skip_space(text, end.end())


def render(name: str, args: Mapping[str, Any]) -> str:
    """Return the call as Qwen3-Coder's chat template writes it; a value that is no str as JSON.

    Raises:
        ValueError: a name or a value holds what this format takes for its end.
    """
    values = {parameter: word(value) for parameter, value in args.items()}
    body = "".join(f"<parameter={p}>\n{value}\n</parameter>\n" for p, value in values.items())
    text = f"{OPEN}\n<function={name}>\n{body}</function>\n{CLOSE}"
    plain = not any("</parameter>" in value or "</function>" in value for value in values.values())
    if not plain or not all(_NAME.fullmatch(part) for part in (name, *values)):
        _require_same(text, name, values)
    return text


_NAME = re.compile(r"[\w.\-]+")


def _require_same(text: str, name: str, values: Mapping[str, str]) -> None:
    try:
        same = _call(text, 0) == (name, values, len(text))
    except _Fault:
        same = False
    if not same:
        raise ValueError(
            f"qwen_coder has no way to write this call of {name[:40]!r}: a value may not hold the "
            "tags that end it (</parameter> or </function> before another tag), a name no blanks, "
            "`<`, `>` or `=`; use a JSON format, as actions='hermes'"
        )


def describe(name: str, parameters: Sequence[str]) -> str:
    """Return the pattern of a call."""
    body = "".join(f"<parameter={parameter}>\n...\n</parameter>\n" for parameter in parameters)
    return f"{OPEN}\n<function={name}>\n{body}</function>\n{CLOSE}"


def system(schemas: Sequence[Mapping[str, Any]]) -> str:
    """Return the system prompt that Qwen3-Coder models were trained with."""
    listed = "\n".join(_listed(schema["function"]) for schema in schemas)
    return (
        f"# Tools\n\nYou have access to the following functions:\n\n<tools>\n{listed}\n</tools>\n\n"
        "If you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
        f"{OPEN}\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n"
        "</parameter>\n<parameter=example_parameter_2>\nThis is the value for the second parameter"
        "\nthat can span\nmultiple lines\n</parameter>\n</function>\n"
        f"{CLOSE}\n\n<IMPORTANT>\nReminder:\n"
        "- Function calls MUST follow the specified format: an inner <function=...></function> "
        "block must be nested within <tool_call></tool_call> XML tags\n"
        "- Required parameters MUST be specified\n"
        "- You may provide optional reasoning for your function call in natural language BEFORE "
        "the function call, but NOT after\n</IMPORTANT>"
    )


def _listed(function: Mapping[str, Any]) -> str:
    """Return one tool as the template lists it."""
    parameters = function["parameters"]
    rows = [_row("name", function["name"]), _row("description", function["description"].strip())]
    rows.append("<parameters>")
    for name, schema in parameters["properties"].items():
        entries = {key: value for key, value in schema.items() if key != "type"}
        typed = {"type": schema["type"]} if "type" in schema else {}
        fields = {"name": name, **typed, **entries}
        rows.append("\n".join(["<parameter>", *map(_row, fields, fields.values()), "</parameter>"]))
    rows.append(_row("required", parameters["required"]))
    return "\n".join(["<function>", *rows, "</parameters>", "</function>"])


def _row(key: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"<{key}>{text}</{key}>"


QWEN_CODER = ActionFormat("qwen_coder", parse, render, describe, system, tags=(OPEN, CLOSE))
"""XML in `<tool_call>` tags, values as plain text."""
