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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import gymnasium
from gymnasium.error import ResetNeeded

from turnwise.envs import types
from turnwise.envs.names import UnknownName, hint
from turnwise.envs.seeds import derive
from turnwise.envs.spaces import Unicode
from turnwise.envs.types import Message, Outcome


class Env(gymnasium.Env[str, str]):
    """A world that one agent acts in by text. Subclass it for full control; else see `TextEnv`.

    `reset` gives `info` with `task`, `messages` (the opening), `tools` (JSON schemas) and `state`.
    `step` gives `info` with `messages` (only the new ones), `state`, `rewards` by name, `calls`,
    `error` when the agent made a mistake, and on the last step `success`, `metrics` and, unless
    the episode ended well, `outcome`.

    Optional capabilities, discovered and never required: `expert() -> str` (a right action now),
    `snapshot() -> bytes` and `restore(bytes)`, `fast_forward(actions)`, `state_hash`.
    """

    Task: ClassVar[type[types.Task]] = types.Task
    fast: ClassVar[bool] = False
    """A step takes less than about 1 ms and never blocks: the scheduler runs it inline."""
    max_turns: int = 32
    step_timeout_s: float = 30.0
    reward_range: tuple[float, float] = (0.0, 1.0)
    """Of the sum of an episode's rewards."""
    chance_reward: float = 0.0
    """The most that an agent may earn which does not try: empty, echoing or format-only."""
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")

    env_id: str = ""
    """Set by `turnwise.envs.make`; with `env_kwargs` it makes this environment again."""
    env_kwargs: Mapping[str, Any] = {}

    sandbox: str = ""
    """The backend of the box that this episode's commands run in; goes into its record."""

    task: types.Task
    rng: random.Random
    """This episode's own randomness; seeded by `reset`. Never use the global generators."""

    @cached_property
    def observation_space(self) -> Unicode:  # type: ignore[override]
        """Any text."""
        return Unicode()

    @cached_property
    def action_space(self) -> Unicode:  # type: ignore[override]
        """Any text; what cannot be understood is answered, not refused."""
        return Unicode()

    def tasks(self, split: str) -> Sequence[types.Task]:
        """Return the tasks of `split` in a fixed order; splits share none. May be lazy."""
        raise NotImplementedError(f"{type(self).__name__} must define tasks(split)")

    def state_hash(self) -> str:
        """Return the canonical hash of the present state; empty where none is offered."""
        return ""

    def begin(self, seed: int | None, options: Mapping[str, Any] | None) -> types.Task:
        """Seed this episode and choose its task; call it first in `reset`.

        The task is `options["task"]`, else it is drawn by seed from `options["split"]` ("train").
        The episode's `rng` depends on the seed alone, so that a task that was drawn and the same
        task given by hand start alike.

        Raises:
            TypeError: the task is not of this environment's `Task` class.
            UnknownName: an option or split has an unknown name.
        """
        super().reset(seed=seed, options=dict(options or {}))
        episode_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self.rng = random.Random(episode_seed)
        self.task = self._choose(episode_seed, options or {})
        return self.task

    def _choose(self, seed: int, options: Mapping[str, Any]) -> types.Task:
        for name in options.keys() - {"task", "split"}:
            raise UnknownName(f"no reset option {name!r}; {hint(name, ('task', 'split'))}")
        if (task := options.get("task")) is not None:
            if not isinstance(task, self.Task):
                raise TypeError(
                    f"{type(self).__name__} takes tasks of class {self.Task.__name__}, "
                    f"got {type(task).__name__}; take one from tasks(split)"
                )
            return task
        split = self.known_split(options.get("split", "train"))
        tasks = self.tasks(split)
        if not len(tasks):
            raise ValueError(
                f"{type(self).__name__} has no tasks in its split {split!r}; "
                "tasks(split) must return some"
            )
        return tasks[derive(seed, "task") % len(tasks)]

    def known_split(self, split: str) -> str:
        """Return `split`.

        Raises:
            UnknownName: there is no such split; the message names the nearest.
        """
        if split not in self.splits:
            raise UnknownName(f"no split {split!r}; {hint(str(split), self.splits)}")
        return split


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


class TextEnv(Env):
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
        return messages[-1]["content"], {**info, "state": self.state_hash()}

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
        return info | answer.info

    def judge(self, answer: Response) -> None:
        """Add final rewards, success and metrics; called once, when the episode has just ended."""

    def spoil(self, answer: Response, why: str) -> None:
        """End the episode as one that could not be judged: masked, not scored zero."""
        answer.info |= {"error": "judge_error", "detail": why}
        answer.outcome, answer.success = Outcome.JUDGE_ERROR, False
        answer.reward, answer.rewards = 0.0, {}
        answer.truncated = not answer.terminated
        self._running = False
