"""minigrid's `BabyAIBot` as an oracle that survives whatever the agent did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turnwise.envs.builtin.babyai_view import make_level
from turnwise.envs.extras import need

MAX_SUBGOALS = 1000


class _Plan(list[Any]):
    """The bot's stack, which refuses to grow for ever: far off the path the bot can loop."""

    def append(self, subgoal: Any) -> None:
        if len(self) >= MAX_SUBGOALS:
            raise OverflowError("the bot found no plan")
        super().append(subgoal)


class Oracle:
    """What the bot advises, as a function of the layout and of the actions so far.

    The bot keeps a map and a plan, and must see every action from the start. Asked before the
    first action it watches the agent's own level (`watching`); asked later it walks all of it
    again in a level of its own (`walking`). The advice is the same, and watching costs half.
    """

    def __init__(self, level: Any, *, own: bool = False) -> None:
        self._level, self._own = level, own
        self._bot = self._fresh()
        self.advice = self._replan(None)

    @classmethod
    def walking(cls, level: str, seed: int, actions: Sequence[int]) -> Oracle:
        """Return the oracle of an episode that went on without one."""
        copy = make_level(level)
        copy.reset(seed=seed)
        oracle = cls(copy, own=True)
        for action in actions:
            oracle.see(action)
        return oracle

    def see(self, action: int) -> None:
        """Take note of an action that the agent's level has carried out; renews `advice`."""
        if self._own:
            self._level.step(action)
        self.advice = self._replan(action)

    def _fresh(self) -> Any:
        bot = need("minigrid.utils.baby_ai_bot", extra="babyai").BabyAIBot(self._level)
        bot.stack = _Plan(bot.stack)
        return bot

    def _replan(self, action: int | None) -> str:
        """Tell the bot of `action` and return its advice; start it anew where it is lost."""
        try:
            return str(self._bot.replan(action).name)
        except Exception:
            self._bot = self._fresh()
        try:
            return str(self._bot.replan().name)
        except Exception:  # the mission cannot be accomplished any more, as after opening its box
            return "done"
