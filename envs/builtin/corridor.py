"""Corridor: a chain of locked stages, in which one wrong action leads into a side branch.

    push elm blue        the agent reads this (elm is 1, and blue, 2, is the clue from now on),
    push 0               does this, since (1 + 2) mod 3 is 0,
    turn oak             and reads the next stage
    turn 2               a wrong action:
    lost 1               a side branch, two turns deep,
    back 1               out of which only this leads; anything else leads deeper

A tool may fail: nothing changes, the agent reads an error that hides the stage, and the right thing
is to do the same again. A hand may slip: another action is played. A world for studying how agents
learn, not a test of what they know: every text is two or three words, and a step takes
microseconds.

Rewards: `progress` of it in equal parts for each stage that is reached for the first time, the rest
for the end.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from turnwise.envs.base import Response, TextEnv
from turnwise.envs.builtin.corridor_world import (
    BACK,
    CLUES,
    FAILED,
    LOST,
    OPEN,
    SYMBOLS,
    VERBS,
    Stage,
    make_stages,
)
from turnwise.envs.knobs import count, share
from turnwise.envs.seeds import derive
from turnwise.envs.task_range import TaskRange, check_drawn
from turnwise.envs.types import Task, digest

SIZES = {"train": 1_000_000, "dev": 10_000, "test": 10_000}
MAX_STAGES = 48
DEEPEST = 3
"""Turns that lead out of the deepest place of a side branch."""


@dataclass(frozen=True, kw_only=True)
class Walk(Task):
    """One corridor. Its stages follow from these fields alone."""

    split: str = "train"
    index: int = 0
    stages: int = 8
    symbols: int = 3
    recall: int = 4
    phased: bool = False

    def __post_init__(self) -> None:
        bounds = {"stages": (1, MAX_STAGES), "symbols": (2, len(SYMBOLS)), "recall": (1, 16)}
        check_drawn(self, **bounds)


class Corridor(TextEnv):
    """Open one stage after the other; find back out of side branches.

    Args:
        stages: L, 1 to 48.
        turns: the turn limit; None is twice the number of stages.
        symbols: K, 2 to 5: so many symbols, clues and arguments there are.
        recall: stages that a clue holds for, 1 to 16: it is shown at the first of them alone.
        jump: depth of the side branch that a wrong action leads to, 0 to 3; at 0 nothing happens.
        phased: whether each third has its own verb and arithmetic, so that nothing that is needed
            late can be learnt early.
        p_fail: probability that a turn fails.
        p_slip: probability that another action is played, at random.
        progress: share of the reward that is paid on the way; 0 pays at the end alone.
    """

    Task: ClassVar[type[Task]] = Walk
    fast: ClassVar[bool] = True
    role = "tool"
    words: ClassVar[tuple[str, ...]] = (
        *(*VERBS, BACK, LOST, FAILED, OPEN, *SYMBOLS, *CLUES),
        *map(str, range(len(SYMBOLS))),
    )

    def __init__(
        self,
        *,
        stages: int = 8,
        turns: int | None = None,
        symbols: int = 3,
        recall: int = 4,
        jump: int = 2,
        phased: bool = False,
        p_fail: float = 0.0,
        p_slip: float = 0.0,
        progress: float = 0.5,
    ) -> None:
        self.stages = count("stages", stages, 1, MAX_STAGES)
        self.max_turns = 2 * stages if turns is None else count("turns", turns, 1)
        self.symbols = count("symbols", symbols, 2, len(SYMBOLS))
        self.recall, self.jump = count("recall", recall, 1, 16), count("jump", jump, 0, DEEPEST)
        self.phased, self.progress = phased, share("progress", progress)
        self.p_fail, self.p_slip = share("p_fail", p_fail), share("p_slip", p_slip)
        # Slips open stages for nothing: so large a share of them, at most, on average.
        by_slips = self.max_turns * p_slip / (4 * symbols * stages)
        self.chance_reward = min(1.0, by_slips)

    def tasks(self, split: str) -> Sequence[Walk]:
        """Return the corridors of a split, made on demand."""
        self.known_split(split)

        def walk(index: int) -> Walk:
            return Walk(
                split=split,
                index=index,
                stages=self.stages,
                symbols=self.symbols,
                recall=self.recall,
                phased=self.phased,
            )

        return TaskRange(walk, SIZES[split])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode."""
        opening, info = super().reset(seed=seed, options=options)
        return opening, info | {"kind": self.kind}

    def setup(self, task: Walk, rng: random.Random) -> str:
        """Start at the first stage."""
        self.way = task_stages(task)
        self.at = self.furthest = self.depth = 0
        self.sign = self.error = 0
        self.failed = False
        return self._text()

    def respond(self, action: str) -> Response:
        """Fail, slip or act, by this episode's luck: it does not depend on what is done."""
        luck, other = self.rng.random(), self.random_action(self.rng)
        sign, error = self.rng.randrange(self.symbols), self.rng.randrange(self.symbols)
        before = self.furthest
        self.failed = luck < self.p_fail
        if self.failed:
            self.error = error
        else:
            self._play(other if luck >= 1 - self.p_slip else action, sign)
        return self._answer(self.furthest - before)

    def _play(self, action: str, sign: int) -> None:
        """Let the action have its effect.

        Args:
            sign: what a side branch shows next.
        """
        right = action.strip() == self._right()
        if self.depth:
            self.depth = self.depth - 1 if right else min(self.depth + 1, DEEPEST)
        elif right:
            self.at += 1
            self.furthest = max(self.furthest, self.at)
        else:
            self.depth = self.jump
        self.sign = sign if self.depth else 0

    def _answer(self, newly: int) -> Response:
        done = self.at == len(self.way)
        rewards = {"progress": self.progress * newly / len(self.way)}
        rewards["end"] = (1 - self.progress) * done
        answer = Response(self._text(), sum(rewards.values()), terminated=done, success=done)
        answer.rewards, answer.info = rewards, {"kind": self.kind}
        answer.metrics = {"progress": self.furthest / len(self.way)}
        return answer

    @property
    def kind(self) -> str:
        """What the next turn is: `on` the path, `off` it, or after a failure (`failed`)."""
        return "failed" if self.failed else "off" if self.depth else "on"

    def expert(self) -> str:
        """Return the right action now; after a failure it is the same again."""
        return self._right()

    def random_action(self, rng: random.Random) -> str:
        """Return any action."""
        return f"{rng.choice((*VERBS, BACK))} {rng.randrange(self.symbols)}"

    def state_hash(self) -> str:
        """Hash where the agent is and what it reads; the turn's number is left out."""
        read = [self.failed, self.error if self.failed else 0]
        return digest([self.task.key, self.at, self.furthest, self.depth, self.sign, *read])

    def _right(self) -> str:
        return f"{BACK} {self.sign}" if self.depth else self.way[self.at].action

    def _text(self) -> str:
        if self.at == len(self.way):
            return OPEN
        if self.failed:
            return f"{FAILED} {self.error}"
        return f"{LOST} {self.sign}" if self.depth else self.way[self.at].text


def task_stages(task: Walk) -> Sequence[Stage]:
    """Return the stages of a task."""
    rng = random.Random(derive("corridor", json.dumps(task.to_json(), sort_keys=True)))
    return make_stages(
        rng, task.stages, symbols=task.symbols, recall=task.recall, phased=task.phased
    )
