"""Turn-based games of several agents, and one agent's seat in them as an environment of its own.

    class Nim(MultiAgentEnv):
        agents = ("first", "second")

        def tasks(self, split): ...
        def setup(self, task, rng): self.piles = list(task.piles)
        def observe(self, agent): return f"piles: {self.piles}"

        @tool
        def take(self, pile: int, count: int) -> None:
            '''Take sticks from one pile.'''
            ...
            self.next_agent()                        # or self.pay(agent, 1.0); self.finish()

    game = Nim()                                     # the interface is that of PettingZoo's AEC
    game.reset(seed=0)
    for agent in game.agent_iter():
        observation, reward, terminated, truncated, info = game.last()
        game.step(policies[agent](observation))

    env = as_single_agent(Nim(), agent="first", others={"second": policy})       # a gymnasium.Env

With the last one everything else works: `check_env`, rollouts, training. For self-play the other's
policy is the agent itself, frozen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

from gymnasium.error import ResetNeeded

from turnwise.envs import types
from turnwise.envs.actions import FORMATS
from turnwise.envs.calling import Calling
from turnwise.envs.calls import ActionFormat
from turnwise.envs.clock import Taped
from turnwise.envs.seeds import derive
from turnwise.envs.types import Outcome


class MultiAgentEnv(Calling, Taped):
    """A game in which one agent acts at a time: `agent_selection`.

    Write `agents`, `tasks`, `setup`, `observe` and `@tool` methods. A tool makes the move of
    `agent_selection`, raises `ToolFailed` where that is against the rules, and then calls
    `next_agent` or `finish`; once it has, the rest of the action is not run.

    Args:
        actions: How calls are written: a name in `FORMATS`.
    """

    Task: ClassVar[type[types.Task]] = types.Task
    agents: ClassVar[tuple[str, ...]] = ()
    """In the order in which they act, unless a tool says otherwise; the first one begins."""
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")
    fast: ClassVar[bool] = True
    max_turns: int = 64
    """Actions of all agents together."""
    max_errors: int = 3
    """So many malformed or illegal actions of an agent one after another end the game."""
    reward_range: tuple[float, float] = (0.0, 1.0)
    """Of the sum of one agent's rewards."""
    chance_reward: float = 0.0
    step_timeout_s: float = 30.0
    rules: str = ""
    """What an agent reads before its first observation."""
    agent_selection: str = ""
    """Whose turn it is."""

    def __init__(self, *, actions: str = "hermes") -> None:
        if len(self.agents) < 2:
            raise TypeError(f"{type(self).__name__} must name its agents, two or more")
        self._actions = actions
        self.format = self._fitted()

    def _fitted(self) -> ActionFormat:
        return FORMATS[self._actions].fitted(tuple(self.parts.tools.values()))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what an environment with this game in its seat makes again, and the format."""
        return {k: v for k, v in vars(self).items() if k not in ("format", "_tape")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.format = self._fitted()

    def tasks(self, split: str) -> Sequence[types.Task]:
        """Return the tasks of `split` in a fixed order; splits share none. May be lazy."""
        raise NotImplementedError(f"{type(self).__name__} must define tasks(split)")

    def setup(self, task: Any, rng: random.Random) -> None:
        """Make the initial state from `task` and `rng`."""
        raise NotImplementedError(f"{type(self).__name__} must define setup(task, rng)")

    def observe(self, agent: str) -> str:
        """Return what `agent` sees now."""
        raise NotImplementedError(f"{type(self).__name__} must define observe(agent)")

    def state_hash(self) -> str:
        """Return the canonical hash of the present state; empty where none is offered."""
        return ""

    def succeeded(self, agent: str) -> bool:
        """Say whether `agent` won: by default, whether it earned more than every other one."""
        return all(self.earned[agent] > self.earned[name] for name in self.agents if name != agent)

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        """Start a game: of `options["task"]`, else of one drawn by seed from `options["split"]`."""
        seed = random.SystemRandom().randrange(2**31) if seed is None else seed
        self.task = self._choose(seed, options or {})
        self.rng = random.Random(seed)
        self.turn = 0
        self.agent_selection = self.agents[0]
        self.earned = dict.fromkeys(self.agents, 0.0)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._since = dict.fromkeys(self.agents, 0.0)
        self.infos: dict[str, dict[str, Any]] = {agent: {} for agent in self.agents}
        self._mistakes = dict.fromkeys(self.agents, 0)
        self._over = self._ended = self._cut = False
        self.setup(self.task, self.rng)

    def _choose(self, seed: int, options: Mapping[str, Any]) -> types.Task:
        if (task := options.get("task")) is not None:
            return cast(types.Task, task)
        tasks = self.tasks(options.get("split", "train"))
        return tasks[derive(seed, "task") % len(tasks)]

    def step(self, action: str) -> None:
        """Let `agent_selection` act; then `last` says what whoever is next sees.

        Raises:
            ResetNeeded: the game is over or was never started.
        """
        if not self.agent_selection or self._over:
            raise ResetNeeded(f"the game of {type(self).__name__} is over; call reset()")
        actor, self.turn = self.agent_selection, self.turn + 1
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._since[actor], self._ended = 0.0, False
        calls, answers = self.run_calls(action)
        if calls[-1].error is None and self.parts.tools[calls[-1].name].final:
            self.finish()
        self.infos[actor] = {"calls": [call.to_json() for call in calls], "answers": answers}
        codes = [call.code for call in calls if call.code is not None]
        self._mistakes[actor] = self._mistakes[actor] + 1 if codes else 0
        if codes:
            self.infos[actor]["error"] = codes[0]
        self._conclude(actor)

    def _conclude(self, actor: str) -> None:
        if self._over:
            return
        if self._mistakes[actor] >= self.max_errors:
            self.infos[actor]["outcome"] = Outcome.AGENT_ERROR.value
            self._over = self._cut = True
        elif self.turn >= self.max_turns:
            self._over = self._cut = True

    def next_agent(self, agent: str | None = None) -> None:
        """Pass the turn to `agent`, or to the next one in order; ends this action."""
        if agent is None:
            place = self.agents.index(self.agent_selection) + 1
            agent = self.agents[place % len(self.agents)]
        self.agent_selection, self._ended = agent, True

    def pay(self, agent: str, amount: float) -> None:
        """Give `agent` a reward for this action, whoever made it."""
        self.rewards[agent] += amount
        self._since[agent] += amount
        self.earned[agent] += amount

    def finish(self, *, truncated: bool = False) -> None:
        """End the game after this call."""
        super().finish(truncated=truncated)
        self._over = True

    @property
    def terminations(self) -> dict[str, bool]:
        """Whether the game has ended by its rules, by agent."""
        return dict.fromkeys(self.agents, self._over and not self._cut)

    @property
    def truncations(self) -> dict[str, bool]:
        """Whether the game was cut off, by agent."""
        return dict.fromkeys(self.agents, self._over and self._cut)

    def last(self) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """What `agent_selection` sees: observation, reward since its last action, flags, info."""
        agent = self.agent_selection
        ended = self.terminations[agent], self.truncations[agent]
        return self.observe(agent), self._since[agent], *ended, self.infos[agent]

    def agent_iter(self) -> Iterator[str]:
        """Yield whose turn it is, until the game is over."""
        while not self._over:
            yield self.agent_selection
