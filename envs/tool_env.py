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

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from turnwise.envs.actions import FORMATS
from turnwise.envs.base import Response, TextEnv
from turnwise.envs.calling import CODES, MALFORMED, MAX_ERROR_CHARS, TRUNCATED, Calling
from turnwise.envs.calls import ToolCall
from turnwise.envs.knobs import count
from turnwise.envs.tools import Grader
from turnwise.envs.types import Message, Outcome, Task
from turnwise.sandboxes.base import SandboxError

__all__ = ["CODES", "MALFORMED", "MAX_ERROR_CHARS", "TRUNCATED", "EpisodeView", "ToolEnv"]


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


class ToolEnv(Calling, TextEnv):
    """An environment of tools: write `tasks`, `setup`, `@tool` methods and `@reward` methods.

    Args:
        actions: How calls are written: a name in `FORMATS`.
        max_turns: At least 1; rather than the class's, or what `setup` makes of it.

    Raises:
        UnknownName: there is no such format.
        FormatMisfit: the format has no way to call one of the tools.
        ToolSchemaError: a tool cannot be offered as it is written.
        ValueError: `max_turns` is no whole number from 1.
    """

    role: ClassVar[Literal["user", "tool"]] = "tool"
    max_errors: int = 3
    """So many malformed turns one after another end the episode with outcome `agent_error`."""

    def __init__(self, *, actions: str = "hermes", max_turns: int | None = None) -> None:
        # A tool that cannot be offered, or not in this format, is refused here and not at a call.
        self.format = FORMATS[actions].fitted(tuple(self.parts.tools.values()))
        self._own_limit = max_turns
        self.max_turns = type(self).max_turns if max_turns is None else max_turns
        count("max_turns", self.max_turns, 1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode; a limit of turns that was asked for wins over that of `setup`."""
        opening = super().reset(seed=seed, options=options)
        if self._own_limit is not None:
            self.max_turns = self._own_limit
        return opening

    def succeeded(self, values: dict[str, float]) -> bool:
        """Say whether the task was solved.

        Args:
            values: What each end reward of positive weight that is no shaping returned, before its
                weight.

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
        return self._answer(action, *self.run_calls(action))

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

    def judge(self, answer: Response) -> None:
        """Pay the end rewards, and note success and metrics."""
        self.episode.terminated, self.episode.outcome = answer.terminated, answer.outcome
        values = self._pay(answer, self.parts.end_rewards)
        paid = {g.name: values[g.name] for g in self.parts.end_rewards if g.decides and values}
        if answer.outcome in (Outcome.OK, Outcome.TRUNCATED, Outcome.AGENT_ERROR):
            answer.success = self.succeeded(paid)
        calls = self.episode.calls
        answer.metrics |= {"n_calls": len(calls), "n_errors": len(self.episode.errors)}
        answer.metrics["n_truncated"] = sum(call.left_out > 0 for call in calls)
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
        except SandboxError as error:
            if not getattr(error, "out_of_memory", False):
                raise
            value = 0.0  # the agent's files used up the memory of the grader's box
        except Exception as error:
            self.spoil(answer, f"{grader.name} raised {type(error).__name__}: {error}")
            return None
        if not math.isfinite(value):
            self.spoil(answer, f"{grader.name} must return a finite number, got {value!r}")
            return None
        return value
