"""A tool call as data, and what a format of writing calls is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the agent asked for. Exactly one of `error`, `args` and `words` is set."""

    id: str
    """Unique within the action: `c0`, `c1`, ..."""
    name: str
    """The tool's name; empty where it could not be read."""
    args: dict[str, Any] | None
    """Arguments by name. None while they are still `words`, and whenever there is an `error`."""
    raw: str
    """The very text of this call in the action."""
    error: str | None = None
    """`code line L col C: message`, counted from the start of the action; None if well-formed."""
    words: tuple[str, ...] | None = None
    """Positional arguments of a COMMAND call, until the tool binds them to its parameters."""

    @property
    def code(self) -> str | None:
        """The code that `error` starts with, or None."""
        return self.error.split(" ", 1)[0] if self.error else None

    def to_json(self) -> dict[str, Any]:
        """Return the call as plain JSON values; what is None is left out, except `args`."""
        call: dict[str, Any] = {"id": self.id, "name": self.name, "args": self.args}
        call["raw"] = self.raw
        if self.error is not None:
            call["error"] = self.error
        if self.words is not None:
            call["words"] = list(self.words)
        return call

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ToolCall:
        """Return the call that `to_json` wrote."""
        words = value.get("words")
        return cls(**{**value, "words": None if words is None else tuple(words)})


@dataclass(frozen=True, slots=True)
class Action:
    """What the agent wrote in one turn."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    """In the order written; never empty: text without a call holds one `no_call` error."""

    @property
    def ok(self) -> bool:
        """Whether every call is well-formed."""
        return all(call.error is None for call in self.calls)


@dataclass(frozen=True, slots=True)
class ActionFormat:
    """One way of writing calls as text; `parse` undoes `render`."""

    name: str
    parse: Callable[[str], Action]
    """Text to `Action`; never raises on a str."""
    render: Callable[[str, Mapping[str, Any]], str]
    """(tool name, arguments in signature order) to the text of one call."""
    describe: Callable[[str, Sequence[str]], str]
    """(tool name, parameter names) to the pattern of a call, for error hints."""
    system: Callable[[Sequence[Mapping[str, Any]]], str]
    """JSON schemas of the tools to the system prompt that explains how to call them."""


def failed(code: str, text: str, at: int, why: str, raw: str, *, index: int = 0) -> ToolCall:
    """Return the call that `raw` was meant to be, marked with what is wrong at offset `at`."""
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    return ToolCall(f"c{index}", "", None, raw, f"{code} line {line} col {column}: {why}")
