"""Sokoban: push every box onto a goal. A wrong push may cost the level; `restart` mends it.

    # # # # # #
    # @ . # # #
    # . $ . # #        @ you   $ box   _ goal   * box on a goal   + you on a goal
    # # . . _ #
    # # # # # #

Reward: 1 for the solved level, nothing on the way: boxes near their goals prove nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar, Literal

from turnwise.envs.builtin.sokoban_world import (
    Boxes,
    Cell,
    Level,
    make_level,
    make_place,
    solve,
    step,
)
from turnwise.envs.knobs import count, span
from turnwise.envs.seeds import derive
from turnwise.envs.split_shares import drawn_for
from turnwise.envs.task_range import TaskRange, check_drawn
from turnwise.envs.tool_env import EpisodeView, ToolEnv
from turnwise.envs.tools import ToolFailed, metric, reward, tool
from turnwise.envs.types import Task, digest

MAX_PUSHES = 12
SIZES = {"train": 1_000_000, "dev": 10_000, "test": 10_000}


@dataclass(frozen=True, kw_only=True)
class Puzzle(Task):
    """One level. It follows from these fields alone."""

    split: str = "train"
    index: int = 0
    size: int = 6
    boxes: int = 1
    pushes: int = 2

    def __post_init__(self) -> None:
        check_drawn(self, size=(5, 8), boxes=(1, 3), pushes=(1, MAX_PUSHES))


class Sokoban(ToolEnv):
    """Push boxes onto goals, one step a turn.

    Args:
        size: rows and columns, walls included, 5 to 8.
        boxes: how many, 1 to 3.
        pushes: the fewest pushes that solve a level, or (least, most), which the tasks take in
            turns; up to 12. The knob of difficulty. Small rooms may have no level that hard.
        slack: the turn limit is twice the expert's moves and so many more.
        actions: `command` (one line, few tokens) or another name of `FORMATS`.
    """

    Task: ClassVar[type[Task]] = Puzzle
    fast: ClassVar[bool] = True
    hints = False
    words: ClassVar[tuple[str, ...]] = ("up", "down", "left", "right", "move", "restart", "blocked")

    def __init__(
        self,
        *,
        size: int = 6,
        boxes: int = 1,
        pushes: int | Sequence[int] = (1, 4),
        slack: int = 8,
        actions: str = "command",
    ) -> None:
        super().__init__(actions=actions)
        self.size, self.boxes = count("size", size, 5, 8), count("boxes", boxes, 1, 3)
        self.pushes = span("pushes", pushes, 1, MAX_PUSHES)
        self.slack = count("slack", slack, 0, 1000)

    def tasks(self, split: str) -> Sequence[Puzzle]:
        """Return the levels of a split, made on demand; difficulties take turns."""
        self.known_split(split)
        low, high = self.pushes

        def puzzle(index: int) -> Puzzle:
            pushes = low + index % (high - low + 1)
            return Puzzle(split=split, index=index, size=self.size, boxes=self.boxes, pushes=pushes)

        return TaskRange(puzzle, SIZES[split])

    def system(self) -> str:
        """Return what the agent is told before the first picture."""
        return super().system() if self.format.name != "command" else "tools: move restart"

    def setup(self, task: Puzzle, rng: random.Random) -> str:
        """Set the level up."""
        self.level = task_level(task)
        self.player, self.placed = self.level.player, self.level.boxes
        plan = solution(self.level, self.player, self.placed)
        assert plan is not None, f"{task} has no solution"
        self.max_turns = 2 * len(plan) + self.slack
        return self._picture()

    @tool
    def move(self, direction: Literal["up", "down", "left", "right"]) -> str:
        """Take one step; a box in the way is pushed.

        Args:
            direction: Where to.
        """
        after = step(self.level, self.player, self.placed, direction)
        if after is None:
            raise ToolFailed("blocked")
        self.player, self.placed = after
        if self.placed == self.level.goals:
            self.finish()
        return self._picture()

    @tool
    def restart(self) -> str:
        """Put everything back to where it was at the start."""
        self.player, self.placed = self.level.player, self.level.boxes
        return self._picture()

    @reward()
    def solved(self, episode: EpisodeView) -> float:
        """Pay for every box on a goal."""
        return float(self.placed == self.level.goals)

    @metric
    def stuck(self, episode: EpisodeView) -> float:
        """Whether the level could not be solved any more at the end without a restart."""
        return float(solution(self.level, self.player, self.placed) is None)

    def expert(self) -> str:
        """Return the first move of a solution with the fewest pushes, else restart."""
        plan = solution(self.level, self.player, self.placed)
        if not plan:
            return self.call_text("restart")
        return self.call_text("move", direction=plan[0])

    def state_hash(self) -> str:
        """Hash where everything is."""
        return digest([self.task.key, self.player, sorted(self.placed)])

    def _picture(self) -> str:
        return self.level.picture(self.player, self.placed)


@lru_cache(maxsize=4096)
def solution(level: Level, player: Cell, boxes: Boxes) -> tuple[str, ...] | None:
    """Return `solve`'s answer; the attempts of a group ask again and again."""
    return solve(level, player, boxes)


@lru_cache(maxsize=4096)
def _level(text: str, split: str, size: int, boxes: int, pushes: int) -> Level:
    rng = random.Random(derive("sokoban", text))
    # The room and its goals decide, so that none of one split are those of another.
    draw = partial(make_place, rng, size, boxes)
    place = partial(drawn_for, split, draw, lambda place: list(map(sorted, place)))
    return make_level(rng, place, size, pushes)


def task_level(task: Puzzle) -> Level:
    """Return the level of a task."""
    text = json.dumps(task.to_json(), sort_keys=True)
    return _level(text, task.split, task.size, task.boxes, task.pushes)
