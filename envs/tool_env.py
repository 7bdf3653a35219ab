"""`ToolEnv`: an environment whose actions are calls of its own methods.

Example:
    class Vault(ToolEnv):
        def tasks(self, split): ...

        def setup(self, task, rng):
            self.code = rng.randrange(100)
            return "Find the two-digit code."

        @tool
        def guess(self, code: int) -> str:
            '''Try a code.'''
            return "higher" if code < self.code else "lower" if code > self.code else "open"

        @tool(final=True)
        def submit(self, code: int) -> None:
            '''Give the answer.'''
            self.answer = code

        @reward(weight=1.0)
        def opened(self, episode) -> float:
            return float(self.answer == self.code)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from turnwise.envs.actions import FORMATS, HERMES
from turnwise.envs.base import Response, TextEnv
from turnwise.envs.calls import ActionFormat, ToolCall
from turnwise.envs.names import hint
from turnwise.envs.schema import BadArgs
from turnwise.envs.signatures import Tool
from turnwise.envs.tools import Grader, Parts, ToolFailed, parts_of
from turnwise.envs.types import Message, Outcome, Task
from turnwise.sandboxes.base import SandboxError

MAX_ERROR_CHARS = 400
MALFORMED = (
    *("bad_json", "bad_command", "no_call", "unknown_tool", "bad_args"),
    *("not_allowed", "budget_exhausted"),
)
"""Codes that count towards `max_errors`: the call itself was wrong."""
CODES = (*MALFORMED, "tool_raised", "timeout")
"""Every code that an observation `ToolError[code] ...` can carry."""


@dataclass(slots=True)
class EpisodeView:
    """The episode so far, as graders see it. For reading only."""

    task: Task
    actions: list[str] = field(default_factory=list)
    observations: list[str] = field(default_factory=list)
    """The answers to `actions`, one each."""
    calls: list[ToolCall] = field(default_factory=list)
    """Every call, with its arguments bound, or with the error that it met."""
    terminated: bool = False
    outcome: Outcome = Outcome.OK

    @property
    def n_turns(self) -> int:
        """How many actions the agent took."""
        return len(self.actions)

    @property
    def errors(self) -> list[str]:
        """The codes of all calls that did not work."""
        return [call.code for call in self.calls if call.code is not None]


class ToolEnv(TextEnv):
    """An environment of tools: write `tasks`, `setup`, `@tool` methods and `@reward` methods.

    Args:
        actions: How calls are written: a name in `FORMATS`.
        max_turns: Overrides the class's.

    Raises:
        UnknownName: there is no such format.
        ToolSchemaError: a tool cannot be offered as it is written.
    """

    role: ClassVar[Literal["user", "tool"]] = "tool"
    max_errors: int = 3
    """So many malformed turns one after another end the episode with outcome `agent_error`."""
    max_calls: int = 8
    """Calls per turn; the others are answered with `budget_exhausted`."""
    max_observation_chars: int = 8000
    """Of one tool's answer; the middle of a longer one is left out, and said to be."""
    hints: bool = True
    """Whether error observations say what would be right. Costs tokens."""
    format: ActionFormat = HERMES

    def __init__(self, *, actions: str = "hermes", max_turns: int | None = None) -> None:
        self.format = FORMATS[actions]
        self.max_turns = type(self).max_turns if max_turns is None else max_turns
        self.parts  # noqa: B018  a tool that cannot be offered is refused here, not at a call

    @property
    def parts(self) -> Parts:
        """The tools, rewards and metrics of this class."""
        return parts_of(type(self))

    def system(self) -> str:
        """Return the system prompt: what the tools are and how to call them."""
        return self.format.system(self.tool_schemas())

    def tool_schemas(self) -> list[dict[str, Any]]:
        """Return the JSON schemas of the tools, new objects at each call."""
        return [tool.schema() for tool in self.parts.tools.values()]

    def call_text(self, tool: str, /, **args: Any) -> str:
        """Return the action that calls `tool`; for `expert` methods and tests.

        Raises:
            KeyError: there is no such tool.
            BadArgs: the arguments do not fit it.
        """
        known = self.parts.tools[tool]
        known.bind(ToolCall("c0", tool, args, ""))
        ordered = {p.name: args[p.name] for p in known.parameters if p.name in args}
        return self.format.render(tool, ordered)

    def finish(self, *, truncated: bool = False) -> None:
        """End the episode after this call; for tools that are not always final."""
        self._ended, self._cut = True, truncated

    def succeeded(self, values: dict[str, float]) -> bool:
        """Say whether the task was solved.

        Args:
            values: What each end reward of positive weight returned, before its weight.

        By default: there are some, and each returned at least 1.
        """
        return bool(values) and min(values.values()) >= 1.0

    def begin(self, *args: Any, **kwargs: Any) -> Task:
        """Start the books of an episode."""
        task = super().begin(*args, **kwargs)
        self.episode = EpisodeView(task)
        self._mistakes = 0
        self._ended = self._cut = False
        return task

    def respond(self, action: str) -> Response:
        """Parse the action, run its calls in order, and answer each."""
        calls: list[ToolCall] = []
        answers: list[str] = []
        for index, call in enumerate(self.format.parse(action).calls):
            if index == self.max_calls:
                call = replace(call, args=None, words=None, error=self._over_budget())
            call, text = self._run(call)
            calls.append(call)
            answers.append(text)
            if self._ended or index == self.max_calls:
                break
        return self._answer(action, calls, answers)

    def _over_budget(self) -> str:
        return f"budget_exhausted at most {self.max_calls} calls per turn; the rest was not run"

    def _answer(self, action: str, calls: list[ToolCall], answers: list[str]) -> Response:
        view, text = self.episode, "\n".join(answers)
        view.actions.append(action)
        view.observations.append(text)
        view.calls += calls
        messages = [Message(role="tool", content=answer) for answer in answers]
        info: dict[str, Any] = {"calls": [call.to_json() for call in calls]}
        codes = [call.code for call in calls if call.code is not None]
        if codes:
            info["error"] = codes[0]
        answer = Response(text, messages=messages, info=info)
        answer.terminated, answer.truncated = self._ended and not self._cut, self._cut
        answer.outcome = Outcome.TRUNCATED if self._cut else Outcome.OK
        self._count_mistakes(answer, calls)
        self._pay(answer, self.parts.turn_rewards)
        return answer

    def _count_mistakes(self, answer: Response, calls: list[ToolCall]) -> None:
        """End the episode after too many turns in which nothing that was asked for made sense."""
        malformed = all(call.code in MALFORMED for call in calls)
        self._mistakes = self._mistakes + 1 if malformed else 0
        if self._mistakes >= self.max_errors and not answer.terminated:
            answer.truncated, answer.outcome = True, Outcome.AGENT_ERROR

    def _run(self, call: ToolCall) -> tuple[ToolCall, str]:
        """Return the call as it was run, or with its error, and what the agent reads."""
        if call.error is not None:
            code, _, why = call.error.partition(" ")
            return call, self._complaint(code, why)
        if (tool := self.parts.tools.get(call.name)) is None:
            why = f"no tool {call.name[:40]!r}; {hint(call.name[:40], self.parts.tools)}"
            return self._fail(call, "unknown_tool", why)
        try:
            args = tool.bind(call)
        except BadArgs as error:
            return self._fail(call, "bad_args", str(error), tool)
        try:
            result = tool.function(self, **args)
        except ToolFailed as error:
            return self._fail(replace(call, args=args, words=None), error.code, str(error), tool)
        self._ended = self._ended or tool.final
        return replace(call, args=args, words=None), self._shown(result)

    def _fail(
        self, call: ToolCall, code: str, why: str, tool: Tool | None = None
    ) -> tuple[ToolCall, str]:
        return replace(call, error=f"{code} {why}"), self._complaint(code, why, tool)

    def _complaint(self, code: str, why: str, tool: Tool | None = None) -> str:
        """Return `ToolError[code] why`, with a hint where `hints` is set."""
        text = f"ToolError[{code}] {why}"
        if self.hints and code in MALFORMED and (advice := self._advice(code, tool)):
            text = f"{text[: MAX_ERROR_CHARS - len(advice) - 1]} {advice}"
        return text[:MAX_ERROR_CHARS]

    def _advice(self, code: str, tool: Tool | None) -> str:
        """Return at most 200 characters on what would be right."""
        if tool is not None:
            names = [parameter.name for parameter in tool.parameters]
            return f"Write {self.format.describe(tool.name, names)}"[:200]
        if code == "budget_exhausted":
            return ""
        listed = ", ".join(tool.signature for tool in self.parts.tools.values())
        return f"Tools: {listed}"[:200]

    def _shown(self, result: Any) -> str:
        """Return a tool's result as text that UTF-8 can hold."""
        if result is None:
            return "ok"
        if not isinstance(result, str):
            result = json.dumps(result, ensure_ascii=False, allow_nan=False)
        text = str(result)
        if len(text) > (limit := self.max_observation_chars):
            half = limit // 2
            cut = len(text) - 2 * half
            text = f"{text[:half]}\n[{cut} characters left out]\n{text[-half:]}"
        return text if text.isascii() else text.encode("utf-8", "replace").decode()

    def judge(self, answer: Response) -> None:
        """Pay the end rewards, and note success and metrics."""
        self.episode.terminated, self.episode.outcome = answer.terminated, answer.outcome
        values = self._pay(answer, self.parts.end_rewards)
        paid = {g.name: values[g.name] for g in self.parts.end_rewards if g.weight > 0 and values}
        if answer.outcome in (Outcome.OK, Outcome.TRUNCATED, Outcome.AGENT_ERROR):
            answer.success = self.succeeded(paid)
        answer.metrics |= {"n_calls": len(self.episode.calls), "n_errors": len(self.episode.errors)}
        for grader in self.parts.metrics:
            answer.metrics[grader.name] = float(grader.function(self, self.episode))

    def _pay(self, answer: Response, graders: Iterable[Grader]) -> dict[str, float]:
        """Add each grader's reward to `answer`; return the values before their weights."""
        values: dict[str, float] = {}
        for grader in graders:
            if (value := self._grade(answer, grader)) is None:
                return {}
            values[grader.name] = value
            answer.rewards[grader.name] = grader.weight * value
        answer.reward = math.fsum(answer.rewards.values())
        return values

    def _grade(self, answer: Response, grader: Grader) -> float | None:
        """Return what the grader says, or None after it failed and the episode is spoilt."""
        try:
            value = float(grader.function(self, self.episode))
        except SandboxError:
            raise
        except Exception as error:
            self.spoil(answer, f"{grader.name} raised {type(error).__name__}: {error}")
            return None
        if not math.isfinite(value):
            self.spoil(answer, f"{grader.name} must return a finite number, got {value!r}")
            return None
        return value
