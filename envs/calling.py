"""`Calling`: what runs the calls that an agent writes, and answers each.

A mixin of `ToolEnv` and `MultiAgentEnv`, whose methods are the tools.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from turnwise.envs.calls import ActionFormat, ToolCall, calls_of
from turnwise.envs.clock import in_time
from turnwise.envs.formats.hermes import HERMES
from turnwise.envs.names import hint
from turnwise.envs.schema import BadArgs
from turnwise.envs.signatures import Tool
from turnwise.envs.tools import Parts, ToolFailed, parts_of

MAX_ERROR_CHARS = 400
MALFORMED = (
    *("bad_json", "bad_command", "no_call", "unknown_tool", "bad_args"),
    *("not_allowed", "budget_exhausted"),
)
"""Codes that count towards `max_errors`: the call itself was wrong."""
TRUNCATED = "output_truncated"
"""Stands in an answer that is too long, where its middle was: the call did run, and is no error."""
CODES = (*MALFORMED, "tool_raised", "timeout", TRUNCATED)
"""Every code that an observation can carry: `ToolError[code] ...`, or `[output_truncated] ...`."""


class Calling:
    """The tools of a class, and how they are called."""

    max_calls: int = 8
    """Calls per turn; the others are answered with `budget_exhausted`."""
    max_observation_chars: int = 8000
    """Of one tool's answer; the middle of a longer one is left out, and said to be."""
    hints: bool = True
    """Whether error observations say what would be right. Costs tokens."""
    format: ActionFormat = HERMES
    _ended: bool = False
    """Whether nothing more is to be run."""
    _cut: bool = False

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
        with in_time():
            self._ended, self._cut = True, truncated

    def run_calls(self, action: str) -> tuple[list[ToolCall], list[str]]:
        """Run the calls of the action in order; return them as run, and the answers."""
        calls: list[ToolCall] = []
        answers: list[str] = []
        for index, call in enumerate(calls_of(action, self.format)):
            if index == self.max_calls:
                call = call.refused(self._over_budget())
            call, text = self._run(call)
            calls.append(call)
            answers.append(text)
            if self._ended or index == self.max_calls:
                break
        return calls, answers

    def _over_budget(self) -> str:
        return f"budget_exhausted at most {self.max_calls} calls per turn; the rest was not run"

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
            result = self.run_tool(tool, args)
        except ToolFailed as error:
            return self._fail(call.bound(args), error.code, str(error), tool)
        self._ended = self._ended or tool.final
        text, left_out = self._shortened(self._shown(result))
        return call.bound(args, left_out), text

    def run_tool(self, tool: Tool, args: dict[str, Any]) -> Any:
        """Run a call that fits its tool; a wrapper can stand in here and let it fail.

        Raises:
            ToolFailed: what the agent reads in place of a result.
            StepTimeout: a coroutine took longer than `step_timeout_s`.
        """
        if tool.is_async or tool.timeout_s is not None:
            from turnwise.envs.deadlines import run_slow  # few need what this imports

            return run_slow(self, tool, args)
        return tool.function(self, **args)

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
        return text if text.isascii() else text.encode("utf-8", "replace").decode()

    def _shortened(self, text: str) -> tuple[str, int]:
        """Return what the agent reads of a long answer, and how many characters it does not."""
        half = self.max_observation_chars // 2
        if len(text) <= self.max_observation_chars:
            return text, 0
        cut = len(text) - 2 * half
        note = f"[{TRUNCATED}] {cut} characters left out"
        return f"{text[:half]}\n{note}\n{text[len(text) - half :]}", cut


def format_of(env: Any) -> ActionFormat | None:
    """Return how calls are written in `env`, wrapped or not; None where any text is an action."""
    form = getattr(getattr(env, "unwrapped", env), "format", None)
    return form if isinstance(form, ActionFormat) else None
