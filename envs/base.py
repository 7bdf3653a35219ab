"""What every environment promises: a real `gymnasium.Env` that speaks text.

`Env` is the contract; `TextEnv` keeps the books of an episode so that an author writes `setup` and
`respond` and nothing else; `turnwise.envs.tool_env.ToolEnv` adds tools on top.

Three kinds of failure, kept apart. The *agent's* mistakes are observations. The *machine's*
failures are `SandboxError` and leave `step`. *Bugs* of an environment leave `step` as whatever
they are. The rollout turns the last two into outcomes; none of them is ever a reward of zero.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from gymnasium.error import ResetNeeded

from turnwise.envs.env import EndedEarly, Env
from turnwise.envs.snapshot import Pickled
from turnwise.envs.types import Message, Outcome

__all__ = ["EndedEarly", "Env", "Response", "TextEnv", "is_mute"]


def is_mute(messages: Iterable[Message]) -> bool:
    """Return whether an opening says nothing besides the system prompt."""
    return not any(said["content"].strip() for said in messages if said["role"] != "system")


@dataclass(slots=True)
class Response:
    """What an environment answers to one action."""

    observation: str = ""
    reward: float = 0.0
    terminated: bool = False
    success: bool = False
    truncated: bool = False
    outcome: Outcome = Outcome.OK
    rewards: dict[str, float] = field(default_factory=dict)
    """Parts of `reward` by name; empty for one part."""
    metrics: dict[str, float] = field(default_factory=dict)
    messages: list[Message] | None = None
    """The new messages, where they are more than the one that holds `observation`."""
    info: dict[str, Any] = field(default_factory=dict)
    """More entries for `info`."""


class TextEnv(Pickled, Env):
    """An environment of plain text: write `tasks`, `setup` and `respond`.

    Counts turns, ends the episode as truncated after `max_turns`, refuses a step after the end and
    a reward that is not finite.

    Example:
        class Parrot(TextEnv):
            def tasks(self, split): return [Task(hidden={"split": split})]
            def setup(self, task, rng): return "Say hello."
            def respond(self, action): return Response("", float(action == "hello"), True)
    """

    role: ClassVar[Literal["user", "tool"]] = "user"
    """The role of the messages that answer the agent."""
    turn: int = 0
    """How many actions this episode has had."""
    _running: bool = False

    def __init__(self) -> None:
        """Take no arguments: what a subclass takes, its own constructor names."""

    def setup(self, task: Any, rng: random.Random) -> str | list[Message]:
        """Make the initial state from `task` and `rng`; return what the agent reads first."""
        raise NotImplementedError(f"{type(self).__name__} must define setup(task, rng)")

    def respond(self, action: str) -> Response | str:
        """Act on the state and return the answer; a str is an observation without reward."""
        raise NotImplementedError(f"{type(self).__name__} must define respond(action)")

    def system(self) -> str:
        """Return the system prompt; empty for none."""
        return ""

    def tool_schemas(self) -> list[dict[str, Any]]:
        """Return the JSON schemas of the tools on offer, new objects at each call."""
        return []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode; see `Env` for `info`."""
        task = self.begin(seed, options)
        self.turn = 0
        self._running = True
        opening = self.setup(task, self.rng)
        messages: list[Message] = (
            [{"role": "user", "content": opening}] if isinstance(opening, str) else opening
        )
        if system := self.system():
            messages = [{"role": "system", "content": system}, *messages]
        info = {"task": task, "messages": messages, "tools": self.tool_schemas()}
        info["state"] = self.state_hash()
        self.take_reads(0, info)
        return messages[-1]["content"], info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one turn; see `Env` for `info`.

        Raises:
            ResetNeeded: the episode has ended or was never started.
            TypeError: `action` is not a str.
            SandboxError: the machine failed; the episode says nothing about the agent.
        """
        if not self._running:
            raise ResetNeeded(f"the episode of {type(self).__name__} has ended; call reset()")
        if not isinstance(action, str):
            raise TypeError(f"an action is a str, got {type(action).__name__}")
        self.turn += 1
        answer = self.respond(action)
        if isinstance(answer, str):
            answer = Response(answer)
        return self._finish(answer)

    def _finish(self, answer: Response) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Apply the turn limit, check the reward, and shape the five-tuple."""
        if self.turn >= self.max_turns and not answer.terminated and not answer.truncated:
            answer.truncated, answer.outcome = True, Outcome.TRUNCATED
        self._running = not (answer.terminated or answer.truncated)
        if not self._running and answer.outcome is not Outcome.JUDGE_ERROR:
            self.judge(answer)
        if not math.isfinite(answer.reward):
            self.spoil(answer, f"the reward must be finite, got {answer.reward!r}")
        info = self._info(answer)
        return answer.observation, answer.reward, answer.terminated, answer.truncated, info

    def _info(self, answer: Response) -> dict[str, Any]:
        messages = answer.messages or [Message(role=self.role, content=answer.observation)]
        info: dict[str, Any] = {"messages": messages, "state": self.state_hash(), "calls": []}
        info["rewards"] = answer.rewards or {"reward": answer.reward}
        if not self._running:
            info |= {"success": answer.success, "metrics": answer.metrics}
            if answer.outcome is not Outcome.OK:
                info["outcome"] = answer.outcome.value
        info |= answer.info
        if self._tape is not None:
            self.take_reads(self.turn, info)
        return info

    def judge(self, answer: Response) -> None:
        """Add final rewards, success and metrics; called once, when the episode has just ended."""

    def spoil(self, answer: Response, why: str) -> None:
        """End the episode as one that could not be judged: masked, not scored zero."""
        answer.info |= {"error": "judge_error", "detail": why}
        answer.outcome, answer.success = Outcome.JUDGE_ERROR, False
        answer.reward, answer.rewards = 0.0, {}
        answer.truncated = not answer.terminated
        self._running = False
