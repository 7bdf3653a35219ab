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

import inspect
import math
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
    timeout_s: float | None = None
    weight: float = 1.0
    turn: bool = False
    shaping: bool = False


@overload
def tool(function: F) -> F: ...
@overload
def tool(*, final: bool = False, timeout_s: float | None = None) -> Callable[[F], F]: ...
def tool(function: Any = None, *, final: bool = False, timeout_s: float | None = None) -> Any:
    """Offer a method to the agent, written `def` or `async def`.

    Every parameter needs a type and the method a docstring, whose `Args:` section describes the
    parameters. What it returns is the observation: a str as it is, None as `ok`, anything else as
    JSON. Raise `ToolFailed` for what the agent did wrong; any other exception is a bug.

    A coroutine runs on one event loop that all environments of this process share, so it must not
    block. The calls of one action run one after another, coroutines too.

    Args:
        final: The episode ends once the tool has run without a failure.
        timeout_s: A call that takes longer is answered with `ToolError[timeout]`. A coroutine is
            cancelled. A plain method runs on a thread of its own, which cannot be stopped: it goes
            on behind, and what it returns is dropped, so let it change the environment last.
            Without it, a coroutine that takes longer than the environment's `step_timeout_s` is a
            failure of the machine, and a plain method is not timed at all.

    Raises:
        ToolSchemaError: the signature cannot be offered; the message names the parameter.
    """

    def mark(method: F) -> F:
        refuse_signature(method)
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            where = method.__qualname__
            raise ToolSchemaError(f"{where}: timeout_s must be above 0 seconds, got {timeout_s!r}")
        setattr(method, _MARK, Mark("tool", final=final, timeout_s=timeout_s))
        return method

    return mark if function is None else mark(function)


@overload
def reward(weight: F) -> F: ...
@overload
def reward(
    weight: float = 1.0, *, turn: bool = False, shaping: bool = False
) -> Callable[[F], F]: ...
def reward(weight: Any = 1.0, *, turn: bool = False, shaping: bool = False) -> Any:
    """Mark a grader `(self, episode) -> float`; `episode` is an `EpisodeView`.

    An episode earns the sum of weight times value. It is a success if each end reward of positive
    weight that is no shaping returned at least 1; see `ToolEnv.succeeded`. A grader that needs
    another one's value calls it: `self.solved(episode)`.

    Args:
        weight: Factor of the returned value; negative for a cost, which no success depends on.
            Widen `reward_range` where the sum can leave it.
        turn: Call it after every turn, for that turn's reward, rather than once at the end.
        shaping: It is paid, and success does not depend on it: style, length, partial progress.

    Raises:
        ToolSchemaError: the weight is not finite, or the grader is a coroutine.
    """
    if callable(weight):
        return reward()(weight)

    def mark(method: F) -> F:
        _refuse_grader(method, "reward")
        if not math.isfinite(weight):
            raise ToolSchemaError(f"{method.__qualname__}: a weight is finite, got {weight!r}")
        mark = Mark("reward", weight=float(weight), turn=turn, shaping=shaping)
        setattr(method, _MARK, mark)
        return method

    return mark


def metric(method: F) -> F:
    """Mark a number `(self, episode) -> float` that is logged at the end of each episode."""
    _refuse_grader(method, "metric")
    setattr(method, _MARK, Mark("metric"))
    return method


def _refuse_grader(method: Callable[..., Any], role: str) -> None:
    if inspect.iscoroutinefunction(method):
        raise ToolSchemaError(f"{method.__qualname__}: a {role} is a plain method; write def")


@dataclass(frozen=True, slots=True)
class Grader:
    """One `@reward` or `@metric` method."""

    name: str
    function: Callable[..., Any]
    weight: float = 1.0
    decides: bool = False
    """Whether success depends on it."""


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
    tools = {
        name: make_tool(function, final=mark.final, timeout_s=mark.timeout_s)
        for name, mark, function in marked
        if mark.role == "tool"
    }
    rewards = [(m, _reward(n, m, f)) for n, m, f in marked if m.role == "reward"]
    return Parts(
        tools=tools,
        turn_rewards=tuple(grader for mark, grader in rewards if mark.turn),
        end_rewards=tuple(grader for mark, grader in rewards if not mark.turn),
        metrics=tuple(Grader(n, f) for n, m, f in marked if m.role == "metric"),
    )


def _reward(name: str, mark: Mark, function: Callable[..., Any]) -> Grader:
    decides = mark.weight > 0 and not mark.turn and not mark.shaping
    return Grader(name, function, mark.weight, decides)
