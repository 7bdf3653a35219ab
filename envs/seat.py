"""`as_single_agent`: one seat of a game of several, as an environment like any other."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from turnwise.envs import types
from turnwise.envs.base import Response, TextEnv
from turnwise.envs.calls import ActionFormat
from turnwise.envs.multi_agent import MultiAgentEnv
from turnwise.envs.names import UnknownName, hint
from turnwise.envs.seeds import derive
from turnwise.envs.types import Message, Outcome

OtherPolicy = Callable[[Sequence[Message], random.Random], str]
"""(its conversation so far, the episode's randomness for it) to its action. Everything it does must
follow from these two, or an episode cannot be replayed."""


class IllegalPlay(RuntimeError):
    """The policy of another agent makes no legal move, which says nothing about the agent."""


class SingleAgentEnv(TextEnv):
    """One seat of a game; see `as_single_agent`."""

    role: ClassVar[Literal["user", "tool"]] = "tool"
    unsaved: ClassVar[tuple[str, ...]] = ("others",)

    def __init__(
        self, game: MultiAgentEnv, *, agent: str, others: Mapping[str, OtherPolicy]
    ) -> None:
        for name in (agent, *others):
            if name not in game.agents:
                raise UnknownName(f"no agent {name!r}; {hint(name, game.agents)}")
        if missing := set(game.agents) - {agent, *others}:
            raise TypeError(f"others lacks a policy for {', '.join(sorted(missing))}")
        self.game, self.agent, self.others = game, agent, dict(others)
        self.Task, self.splits = game.Task, game.splits  # type: ignore[misc]
        self.fast = game.fast  # type: ignore[misc]
        self.max_turns, self.step_timeout_s = game.max_turns, game.step_timeout_s
        self.reward_range, self.chance_reward = game.reward_range, game.chance_reward

    def tasks(self, split: str) -> Sequence[types.Task]:
        """Return the tasks of the game."""
        return self.game.tasks(self.known_split(split))

    def system(self) -> str:
        """Return what the game tells about its tools."""
        return self.game.system()

    def tool_schemas(self) -> list[dict[str, Any]]:
        """Return the tools of the game."""
        return self.game.tool_schemas()

    def call_text(self, tool: str, /, **args: Any) -> str:
        """Return the action that calls `tool`."""
        return self.game.call_text(tool, **args)

    @property
    def format(self) -> ActionFormat:
        """How the game's calls are written."""
        return self.game.format

    @property
    def expert(self) -> Callable[[], str]:
        """The game's own; absent where it has none."""
        found: Callable[[], str] = self.game.expert  # type: ignore[attr-defined]
        return found

    def state_hash(self) -> str:
        """Return the hash of the game."""
        return self.game.state_hash()

    def setup(self, task: types.Task, rng: random.Random) -> str:
        """Start the game and let the others act until it is the agent's turn."""
        seed = rng.randrange(2**31)
        self.restored()
        self.game.reset(seed=seed, options={"task": task})
        self._luck = {name: random.Random(derive(seed, name)) for name in self.others}
        self._said: dict[str, list[Message]] = {name: [] for name in self.others}
        self._paid = 0.0
        self._let_others_play()
        return "\n".join(filter(None, (self.game.rules, self.game.observe(self.agent))))

    def restored(self) -> None:
        """Let the game read the clock and the network through the tape of this environment."""
        self.game._tape = self.tape

    def respond(self, action: str) -> Response:
        """Act, let the others act, and say what the agent sees then."""
        self.game.step(action)
        info = dict(self.game.infos[self.agent])
        told = [text for text in info.pop("answers") if text != "ok"]
        outcome = Outcome(info.pop("outcome", Outcome.OK))
        self._let_others_play()
        seen = "\n".join(filter(None, (*told, self.game.observe(self.agent))))
        earned, self._paid = self.game.earned[self.agent] - self._paid, self.game.earned[self.agent]
        answer = Response(seen, earned, info=info)
        answer.terminated = self.game.terminations[self.agent]
        answer.truncated = self.game.truncations[self.agent]
        if answer.truncated:
            answer.outcome = Outcome.TRUNCATED if outcome is Outcome.OK else outcome
        answer.success = answer.terminated and self.game.succeeded(self.agent)
        return answer

    def _let_others_play(self) -> None:
        game = self.game
        while not game._over and (name := game.agent_selection) != self.agent:
            said = self._said[name]
            said.append(Message(role="user", content=game.observe(name)))
            action = self.others[name](said, self._luck[name])
            said.append(Message(role="assistant", content=action))
            game.step(action)
            if "outcome" in game.infos[name]:
                raise IllegalPlay(f"the policy of {name!r} made no legal move, last {action!r:.80}")


def as_single_agent(
    game: MultiAgentEnv, *, agent: str, others: Mapping[str, OtherPolicy]
) -> SingleAgentEnv:
    """Return the seat of `agent` as an environment; the others act within its steps.

    Args:
        game: The environment takes it over.
        agent: Whose seat.
        others: A policy for each other agent: a function of its conversation and a `Random`.

    Raises:
        UnknownName: the game has no such agent.
        TypeError: an agent has no policy.
    """
    return SingleAgentEnv(game, agent=agent, others=others)
