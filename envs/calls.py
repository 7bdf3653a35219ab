"""A tool call as data, and what a format of writing calls is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from turnwise.envs.signatures import Tool


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the agent asked for.

    As it was parsed, exactly one of `error`, `args`, `words` and `texts` is set. A tool binds
    words and texts, each read by its parameter's type, and leaves `args`.
    """

    id: str
    """Unique within the action: `c0`, `c1`, ..."""
    name: str
    """The tool's name; empty where it could not be read."""
    args: dict[str, Any] | None
    """Arguments by name, as JSON values. None while they are still text."""
    raw: str
    """The very text of this call in the action."""
    error: str | None = None
    """`code line L col C: message`, counted from the start of the action; None if well-formed."""
    words: tuple[str, ...] | None = None
    """Arguments by position, as text: of formats that do not name parameters."""
    texts: dict[str, str] | None = None
    """Arguments by name, as text: of formats that do not tell a number from a string."""
    left_out: int = 0
    """So many characters of its answer the agent was not shown: `output_truncated`."""

    @property
    def code(self) -> str | None:
        """The code that `error` starts with, or None."""
        return self.error.split(" ", 1)[0] if self.error else None

    def bound(self, args: dict[str, Any], left_out: int = 0) -> ToolCall:
        """Return the call as it was run, its arguments typed."""
        return ToolCall(self.id, self.name, args, self.raw, left_out=left_out)

    def refused(self, error: str) -> ToolCall:
        """Return the call as one that was not run at all."""
        return ToolCall(self.id, self.name, None, self.raw, error)

    def to_json(self) -> dict[str, Any]:
        """Return the call as plain JSON values; what says nothing is left out, except `args`."""
        call: dict[str, Any] = {"id": self.id, "name": self.name, "args": self.args}
        call["raw"] = self.raw
        if self.error is not None:
            call["error"] = self.error
        if self.words is not None:
            call["words"] = list(self.words)
        if self.texts is not None:
            call["texts"] = dict(self.texts)
        if self.left_out:
            call["left_out"] = self.left_out
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


class Written(str):
    """An action of which more is known than its text: its calls, as its tokens say.

    To whoever reads text it is that text. What an environment runs are `calls`, even where the
    text looks as if it held others.
    """

    calls: tuple[ToolCall, ...]

    def __new__(cls, text: str, calls: Sequence[ToolCall]) -> Self:
        """Return `text` as an action of these calls, as they were parsed."""
        self = super().__new__(cls, text)
        self.calls = tuple(calls)
        return self

    def __getnewargs__(self) -> tuple[str, tuple[ToolCall, ...]]:  # type: ignore[override]
        """Let a copy and a snapshot keep the calls."""
        return str(self), self.calls


class FormatMisfit(ValueError):
    """A format cannot call a tool; the message names it, the rule and the way out."""


@dataclass(frozen=True, slots=True)
class ActionFormat:
    """One way of writing calls as text; `parse` undoes `render`."""

    name: str
    parse: Callable[[str], Action]
    """Text to `Action`; never raises on a str, and takes time that grows with its length alone."""
    render: Callable[[str, Mapping[str, Any]], str]
    """(tool name, arguments in signature order) to the text of one call. Raises ValueError where
    the format has no way to write a value, so that what is rendered is always read back."""
    describe: Callable[[str, Sequence[str]], str]
    """(tool name, parameter names) to the pattern of a call, for error hints."""
    system: Callable[[Sequence[Mapping[str, Any]]], str]
    """JSON schemas of the tools to the system prompt that explains how to call them."""
    tags: tuple[str, ...] = ()
    """Markers that many tokenizers have as one token: see `turnwise.agents.parsers`."""
    fit: Callable[[Sequence[Tool]], ActionFormat] | None = None
    """Where not every tool can be called: the tools of an environment to the format as it is used
    there. Raises `FormatMisfit`."""

    def fitted(self, tools: Sequence[Tool]) -> ActionFormat:
        """Return the format for an environment of these tools.

        Raises:
            FormatMisfit: one of them cannot be called in this format.
        """
        return self if self.fit is None else self.fit(tools)


def calls_of(action: str, form: ActionFormat) -> tuple[ToolCall, ...]:
    """Return the calls of an action: those that it is `Written` with, else those in its text."""
    return action.calls if isinstance(action, Written) else form.parse(action).calls


def failed(code: str, text: str, at: int, why: str, raw: str, *, index: int = 0) -> ToolCall:
    """Return the call that `raw` was meant to be, marked with what is wrong at offset `at`."""
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    return ToolCall(f"c{index}", "", None, raw, f"{code} line {line} col {column}: {why}")
