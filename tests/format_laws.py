"""What the tests of all call formats share: values to write, texts to read, and what must hold."""

from __future__ import annotations

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from turnwise.envs.actions import FORMATS, ActionFormat, ToolCall
from turnwise.envs.formats.words import word

NAMES = st.from_regex(r"[a-z][a-z_0-9]{0,9}", fullmatch=True)
TEXTS = st.text(max_size=20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
ARGS = st.dictionaries(NAMES, VALUES, max_size=4)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)

OPENERS = {
    "hermes": ("<tool_call>",),
    "qwen_coder": ("<tool_call>", "<function="),
    "llama3": ("{", "<|python_tag|>", 'So: {"'),
    "mistral": ("[TOOL_CALLS]",),
    "pythonic": ("[", "<|python_start|>", "So: [f(", "f("),
    "fenced": ("```", "So:\n```"),
    "boxed": ("\\boxed ", "So \\boxed{"),
}
"""How a call begins; `command` takes any text for one."""
TAGS = [
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "[THINK]", "[/THINK]", "<function=f>"),
    *("<parameter=a>", "</parameter>", "</function>", "<|python_tag|>", "<|python_start|>"),
    *("<|python_end|>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "```", "```cat", "\\boxed{"),
]
SCRAPS = [
    *('{"name"', ': "cat"', "cat", ', "arguments": {}', ', "parameters": {}', "}", "{", '"', "\\"),
    *("'", " ", "\n", "NaN", "\\ud800", "[", "]", "1e999", "(", ")", "a=", ",", ";", "'''", '"""'),
]
NOISE = st.lists(st.sampled_from([*TAGS, *SCRAPS]) | ANY_TEXT, max_size=12).map("".join)


def rendered(format: ActionFormat, name: str, args: dict[str, Any]) -> str:
    """Return the call as text; pass over what the format has no way to write."""
    try:
        return format.render(name, args)
    except ValueError:
        assume(False)
        raise


def said(call: ToolCall) -> dict[str, Any]:
    """Return what a call says, by the way in which it says it."""
    found = {"args": call.args, "words": call.words, "texts": call.texts, "error": call.error}
    (given,) = ((key, value) for key, value in found.items() if value is not None)
    return {given[0]: given[1]}


def meant(format: ActionFormat, args: dict[str, Any]) -> dict[str, Any]:
    """Return what `said` should say of a call with these arguments."""
    if format.name in ("command", "fenced", "boxed"):
        return {"words": tuple(map(word, args.values()))}
    if format.name == "qwen_coder":
        return {"texts": {key: word(value) for key, value in args.items()}}
    return {"args": args}


def refused(name: str, text: str) -> str:
    """Return the error of the one call in `text`."""
    (call,) = FORMATS[name].parse(text).calls
    assert said(call) == {"error": call.error}
    return str(call.error)
