"""Wrappers that make a world harder: fewer turns, failing calls, slipping hands, short sight.

    env = make("turnwise/FileHunt-v1", wrappers=[["ToolFailures", {"p": 0.1}]])
    env = ToolFailures(make("turnwise/FileHunt-v1"), p=0.1)      # the same

All luck follows from the episode's seed and the turn, so that a replay and every attempt of a group
meet the same. With `p=0`, or a limit that is never reached, a wrapper changes nothing at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

from gymnasium.error import ResetNeeded

from turnwise.envs.base import Env, TextEnv
from turnwise.envs.calling import Calling
from turnwise.envs.fuzz import random_agent
from turnwise.envs.signatures import Tool
from turnwise.envs.tools import ToolFailed
from turnwise.envs.types import Outcome
from turnwise.envs.wrapper import Step, Wrapper, lent
from turnwise.envs.wrappers_budget import ObservationBudget

__all__ = ["ActionSlips", "ObservationBudget", "TimeLimit", "ToolFailures"]

FAILURES = {
    "timeout": "no answer in time; try again",
    "tool_raised": "the tool broke down; try again",
}
"""What the agent reads, by code."""


class TimeLimit(Wrapper):
    """Ends episodes as truncated after `turns` actions, unless they end before.

    Graders see it as they see `max_turns`: whatever the end pays, it pays then.

    Args:
        env: What is wrapped.
        turns: At most so many; a lower `max_turns` of the environment holds as well.

    Raises:
        ValueError: `turns` is below 1.
    """

    def __init__(self, env: Env, /, *, turns: int) -> None:
        if isinstance(turns, bool) or not isinstance(turns, int) or turns < 1:
            raise ValueError(f"turns must be an integer of at least 1, got {turns!r}")
        super().__init__(env, turns=turns)
        self.turns = turns

    @property
    def max_turns(self) -> int:  # type: ignore[override]
        """The lower one of both limits; that of the environment may depend on its task."""
        return min(self.turns, self.env.max_turns)

    def step(self, action: str) -> Step:
        """Play one turn; the last one ends the episode."""
        if self._turn >= self.turns:
            raise ResetNeeded(f"the episode ended after {self.turns} turns; call reset()")
        world = self.unwrapped
        if isinstance(world, TextEnv):  # which ends it itself, and pays what the end pays
            with lent(world, "max_turns", min(self.turns, world.max_turns)):
                return super().step(action)
        return self._cut(super().step(action))

    def _cut(self, answer: Step) -> Step:
        observation, reward, terminated, truncated, info = answer
        if terminated or truncated or self._turn < self.turns:
            return answer
        ending = {"success": False, "metrics": {}, "outcome": Outcome.TRUNCATED.value}
        return observation, reward, False, True, {**ending, **info}


class ToolFailures(Wrapper):
    """Lets calls fail at random. A call that fails is not run: the world stays as it was.

    The agent reads `ToolError[timeout] no answer in time; try again` in place of the result. Calls
    that are wrong are answered as ever. The metric `tool_failures` counts them.

    Args:
        env: An environment of tools, wrapped or not.
        p: How often, from 0 to 1.
        code: What the agent reads: `timeout` or `tool_raised`.

    Raises:
        TypeError: the environment has no tools.
        ValueError: `p` is no probability, or there is no such code.
    """

    def __init__(
        self, env: Env, /, *, p: float, code: Literal["timeout", "tool_raised"] = "timeout"
    ) -> None:
        super().__init__(env, p=_probability(p), code=code)
        if not isinstance(self.unwrapped, Calling):
            raise TypeError(
                f"ToolFailures needs an environment of tools, and {type(self.unwrapped).__name__} "
                "has none; ActionSlips takes any"
            )
        if code not in FAILURES:
            raise ValueError(f"code must be one of {', '.join(FAILURES)}, got {code!r}")
        self.p, self.code = p, code

    def step(self, action: str) -> Step:
        """Play one turn, in which any call may fail."""
        world = self.unwrapped
        assert isinstance(world, Calling)
        with lent(world, "run_tool", self._unreliable(world.run_tool)):
            *answer, info = super().step(action)
        return _counted(answer, info, "tool_failures", self)

    def _unreliable(self, run_tool: Callable[..., Any]) -> Callable[..., Any]:
        calls = 0

        def run(tool: Tool, args: dict[str, Any]) -> Any:
            nonlocal calls
            calls += 1
            if self.draw(calls) < self.p * 2**31:
                self.memory["count"] = self.memory.get("count", 0) + 1
                raise ToolFailed(FAILURES[self.code], self.code)
            return run_tool(tool, args)

        return run


class ActionSlips(Wrapper):
    """Lets the agent's hand slip: now and then another, valid action is played in place of its own.

    The agent is not told; it reads what that action did. `info["slipped"]` holds the action that
    was played, and the metric `slips` counts them.

    Args:
        env: What is wrapped.
        p: How often, from 0 to 1.
        actions: What may be played instead. By default the environment's own `random_action(rng)`,
            or a call of one of its tools, at random; never of one that ends the episode.

    Raises:
        TypeError: the environment offers neither, and no actions are given.
        ValueError: `p` is no probability.
    """

    def __init__(self, env: Env, /, *, p: float, actions: Sequence[str] | None = None) -> None:
        given = {} if actions is None else {"actions": list(actions)}
        super().__init__(env, p=_probability(p), **given)
        self.p, self._any = p, _chooser(env, actions)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode."""
        observation, info = super().reset(seed=seed, options=options)
        self.memory["read"] = observation
        return observation, info

    def step(self, action: str) -> Step:
        """Play this action, or another one."""
        if not isinstance(action, str) or self.draw() >= self.p * 2**31:
            *answer, info = super().step(action)
        else:
            played = self._any(random.Random(self.draw("which")), self.memory["read"])
            *answer, info = super().step(played)
            info = {**info, "slipped": played}
            self.memory["count"] = self.memory.get("count", 0) + 1
        self.memory["read"] = answer[0]
        return _counted(answer, info, "slips", self)


def _chooser(env: Env, actions: Sequence[str] | None) -> Callable[[random.Random, str], str]:
    """Return (randomness, what was read last) to a valid action."""
    if actions is not None:
        if isinstance(actions, str) or not actions:
            raise TypeError(f"actions is a list of texts, got {actions!r}")
        return lambda rng, read: rng.choice(actions)
    if callable(own := getattr(env, "random_action", None)):
        return lambda rng, read: str(own(rng))
    world = env.unwrapped
    tools = world.parts.tools.values() if isinstance(world, Calling) else ()
    if not (schemas := [tool.schema() for tool in tools if not tool.final]):
        raise TypeError(
            f"ActionSlips does not know what else an agent could do in {type(world).__name__}: "
            "define random_action(rng) there, or give actions=[...]"
        )
    return lambda rng, read: random_agent(schemas)(env, read, rng)


def _counted(answer: Sequence[Any], info: dict[str, Any], name: str, wrapper: Any) -> Step:
    """Return the five-tuple; at the end of an episode, with the count among the metrics."""
    observation, reward, terminated, truncated = answer
    if wrapper.p and (terminated or truncated):
        count = float(wrapper.memory.get("count", 0))
        info = {**info, "metrics": {**info.get("metrics", {}), name: count}}
    return observation, reward, terminated, truncated, info


def _probability(p: float) -> float:
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise ValueError(f"p is a probability, from 0 to 1, got {p!r}")
    return p
