"""BabyAI: minigrid's own levels as text, with its bot as a live oracle.

The agent sees a 7 x 7 cone ahead of it, as minigrid gives it, in words:

    r2 blue key f3l1 red ball f4 wall
    go to the red ball

The key is two steps to the right, the ball three forward and one to the left; nearest first, then
the wall straight ahead (if it is seen) and what the agent carries. The mission stands below every
view, as minigrid repeats it in every observation, so an agent may forget all but the last one
(`Renderer(recall=0)`). An action is one word.

Chevalier-Boisvert et al., BabyAI, arXiv:1810.08272. Needs `pip install 'turnwise[babyai]'`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from turnwise.envs.builtin.babyai_bot import Oracle
from turnwise.envs.builtin.babyai_view import describe, make_level, state_of
from turnwise.envs.signatures import Tool
from turnwise.envs.task_range import TaskRange
from turnwise.envs.tool_env import EpisodeView, ToolEnv
from turnwise.envs.tools import reward, tool
from turnwise.envs.types import Task, digest

FIRST_SEED = {"train": 0, "dev": 1_000_000_000, "test": 2_000_000_000}
LEGEND = (
    "You walk on a grid and see what is ahead of you. f3l1 means three steps forward and one to "
    "the left, r2 means two to the right. The episode ends when the mission is accomplished."
)
TASKS = {"train": 1_000_000, "dev": 10_000, "test": 10_000}


@dataclass(frozen=True, kw_only=True)
class BabyTask(Task):
    """One layout of one level; everything follows from these two fields."""

    level: str
    seed: int


class BabyAI(ToolEnv):
    """A BabyAI level.

    Args:
        level: As minigrid names it, without prefix and version: `GoToLocal`.
        discounted: Pay minigrid's 1 - 0.9 * steps / max_steps for success rather than 1.
        max_turns: Rather than the level's own limit, which depends on the task.
        actions: `command` (one word) or `hermes` (JSON).

    Raises:
        MissingExtra: minigrid is not installed.
        UnknownName: minigrid has no such level.
    """

    Task: ClassVar[type[Task]] = BabyTask
    fast: ClassVar[bool] = True
    hints = False
    chance_reward = 0.35
    """Walking straight ahead for ever solves so many of the easiest levels."""

    def __init__(
        self,
        *,
        level: str = "GoToLocal",
        discounted: bool = False,
        max_turns: int | None = None,
        actions: str = "command",
    ) -> None:
        super().__init__(actions=actions, max_turns=max_turns)
        self._level = make_level(level)
        self.level, self.discounted = level, discounted
        self._oracle: Oracle | None = None

    def tasks(self, split: str) -> Sequence[BabyTask]:
        """Return the layouts of a split; splits take their seeds from disjoint ranges."""
        first = FIRST_SEED[self.known_split(split)]
        return TaskRange(lambda i: BabyTask(level=self.level, seed=first + i), TASKS[split])

    def system(self) -> str:
        """Return what the agent is told before the mission; in the terse format nothing.

        Seven words at the head of each prompt are a third of it, and the terse format is for
        agents that learn what they may do.
        """
        if self.format.name == "command":
            return ""
        return f"{super().system()}\n\n{LEGEND}"

    def setup(self, task: BabyTask, rng: random.Random) -> str:
        """Lay the level out and return the first view and the mission."""
        if task.level != self.level:
            raise ValueError(f"this is level {self.level!r}; the task is of {task.level!r}")
        seen, _ = self._level.reset(seed=task.seed)
        self.max_turns = int(self._level.max_steps)
        self._steps: list[int] = []
        self._paid = 0.0
        self._oracle = None
        return self._tell(seen)

    def _tell(self, seen: Any) -> str:
        self._told = f"{describe(seen['image'], self._level.carrying)}\n{self._level.mission}"
        return self._told

    def _complaint(self, code: str, why: str, tool: Tool | None = None) -> str:
        """Say what was wrong, and where the agent still is."""
        return f"{super()._complaint(code, why, tool)}\n{self._told}"

    def _act(self, name: str) -> str:
        action = int(self._level.actions[name])
        seen, paid, terminated, truncated, _ = self._level.step(action)
        self._steps.append(action)
        self._paid = float(paid)
        if terminated or truncated:
            self.finish(truncated=not terminated)
        elif self._oracle is not None:
            self._oracle.see(action)
        return self._tell(seen)

    @tool
    def left(self) -> str:
        """Turn left."""
        return self._act("left")

    @tool
    def right(self) -> str:
        """Turn right."""
        return self._act("right")

    @tool
    def forward(self) -> str:
        """Walk one step ahead."""
        return self._act("forward")

    @tool
    def pickup(self) -> str:
        """Pick up what is right ahead."""
        return self._act("pickup")

    @tool
    def drop(self) -> str:
        """Put down what is carried, right ahead."""
        return self._act("drop")

    @tool
    def toggle(self) -> str:
        """Open or close the door or box right ahead."""
        return self._act("toggle")

    @tool
    def done(self) -> str:
        """Wait."""
        return self._act("done")

    @reward(weight=1.0)
    def solved(self, episode: EpisodeView) -> float:
        """Pay for the mission that minigrid says is accomplished."""
        return self._paid if self.discounted else float(self._paid > 0)

    def succeeded(self, values: dict[str, float]) -> bool:
        """Say whether the mission was accomplished, whatever it paid."""
        return self._paid > 0

    def expert(self) -> str:
        """Return what minigrid's bot would do now, whatever was done before.

        It depends on the actions of the episode alone, not on when it was asked before.
        """
        if self._oracle is None:
            self._oracle = self._new_oracle()
        return self.call_text(self._oracle.advice)

    def _new_oracle(self) -> Oracle:
        if not self._steps:
            return Oracle(self._level)
        return Oracle.walking(self.level, self.task.seed, self._steps)  # type: ignore[attr-defined]

    def state_hash(self) -> str:
        """Return the hash of the whole grid, the agent and the progress of the mission."""
        return digest(state_of(self._level))

    def close(self) -> None:
        """Forget the oracle; nothing else is held."""
        self._oracle = None
