"""Tools from plain methods: the JSON schema comes from the signature and the docstring.

    @tool
    def cat(self, path: str) -> str:
        '''Show a file.

        Args:
            path: Where it is.
        '''
        return self.files[path]

`@reward` marks a grader and `@metric` a number that is only logged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

from turnwise.envs.signatures import Tool, ToolSchemaError, make_tool, refuse_signature

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__turnwise__"


class ToolFailed(Exception):
    """Raise it in a tool to tell the agent that the call did not work: `no such file: /a/b`.

    Args:
        message: What the agent reads.
        code: `tool_raised`, or a nearer one: `timeout`, `not_allowed`, `budget_exhausted`.
    """

    def __init__(
        self,
        message: str,
        code: Literal["tool_raised", "timeout", "not_allowed", "budget_exhausted"] = "tool_raised",
    ) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Mark:
    """What a decorator remembers about a method."""

    role: Literal["tool", "reward", "metric"]
    final: bool = False
    weight: float = 1.0
    turn: bool = False


@overload
def tool(function: F) -> F: ...
@overload
def tool(*, final: bool = False) -> Callable[[F], F]: ...
def tool(function: Any = None, *, final: bool = False) -> Any:
    """Offer a method to the agent.

    Every parameter needs a type and the method a docstring, whose `Args:` section describes the
    parameters. What it returns is the observation: a str as it is, None as `ok`, anything else as
    JSON. Raise `ToolFailed` for what the agent did wrong; any other exception is a bug.

    Args:
        final: The episode ends once the tool has run without a failure.

    Raises:
        ToolSchemaError: the signature cannot be offered; the message names the parameter.
    """

    def mark(method: F) -> F:
        refuse_signature(method)
        setattr(method, _MARK, Mark("tool", final=final))
        return method

    return mark if function is None else mark(function)


def reward(weight: float = 1.0, *, turn: bool = False) -> Callable[[F], F]:
    """Mark a grader `(self, episode) -> float`; `episode` is an `EpisodeView`.

    Args:
        weight: Factor of the returned value.
        turn: Call it after every turn, for that turn's reward, rather than once at the end.
    """

    def mark(method: F) -> F:
        setattr(method, _MARK, Mark("reward", weight=weight, turn=turn))
        return method

    return mark


def metric(method: F) -> F:
    """Mark a number `(self, episode) -> float` that is logged at the end of each episode."""
    setattr(method, _MARK, Mark("metric"))
    return method


@dataclass(frozen=True, slots=True)
class Grader:
    """One `@reward` or `@metric` method."""

    name: str
    function: Callable[..., Any]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that decorators marked on a class."""

    tools: dict[str, Tool]
    turn_rewards: tuple[Grader, ...]
    end_rewards: tuple[Grader, ...]
    metrics: tuple[Grader, ...]


def _marked(cls: type) -> Iterator[tuple[str, Mark, Callable[..., Any]]]:
    """Yield (name, mark, function), base classes first, each name once."""
    marks: dict[str, Mark] = {}
    for owner in reversed(cls.__mro__):
        for name, value in vars(owner).items():
            if (mark := getattr(value, _MARK, None)) is not None:
                marks[name] = mark
            elif name in marks and callable(value):
                raise ToolSchemaError(
                    f"{owner.__qualname__}.{name} hides the {marks[name].role} of that name: "
                    f"decorate it too, or write `{name} = None` to take it away"
                )
            else:
                marks.pop(name, None)
    for name, mark in marks.items():
        yield name, mark, getattr(cls, name)


def parts_of(cls: type) -> Parts:
    """Return the tools, rewards and metrics of a class, in the order of their definition.

    Made once per class and kept on it.

    Raises:
        ToolSchemaError: one of the tools cannot be offered.
    """
    if (made := vars(cls).get("_parts")) is None:
        made = _collect(cls)
        cls._parts = made  # type: ignore[attr-defined]
    return made


def _collect(cls: type) -> Parts:
    marked = list(_marked(cls))
    tools = {n: make_tool(f, final=m.final) for n, m, f in marked if m.role == "tool"}
    rewards = [(m, Grader(n, f, m.weight)) for n, m, f in marked if m.role == "reward"]
    return Parts(
        tools=tools,
        turn_rewards=tuple(grader for mark, grader in rewards if mark.turn),
        end_rewards=tuple(grader for mark, grader in rewards if not mark.turn),
        metrics=tuple(Grader(n, f) for n, m, f in marked if m.role == "metric"),
    )
