"""minigrid's `BabyAIBot` as an oracle that survives whatever the agent did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turnwise.envs.babyai_view import make_level
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

    The bot keeps a map and a plan, and must see every action. It therefore walks along in a level
    of its own, and catches up when it is asked.
    """

    def __init__(self, level: str, seed: int) -> None:
        self._level = make_level(level)
        self._level.reset(seed=seed)
        self._seen = 0
        self._bot = self._fresh()
        self._advice = self._replan(None)

    def advise(self, actions: Sequence[int]) -> str:
        """Return the name of the action to take after `actions`.

        Args:
            actions: All of the episode so far; each call's continue those of the call before.
        """
        for action in actions[self._seen :]:
            self._level.step(action)
            self._advice = self._replan(action)
        self._seen = len(actions)
        return str(self._advice)

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
