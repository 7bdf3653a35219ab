"""Calculator: word problems with a calculator at hand.

    Ada has 87 pens. Then 14 are sold. Then 6 boxes with 12 each arrive. How many pens are left?
    > calculate '87 - 14 + 6 * 12'
    145
    > answer 145

Reward: 1 for the right number.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from turnwise.envs.builtin import arithmetic
from turnwise.envs.builtin.word_problems import GOODS, PEOPLE, Problem, make_problem
from turnwise.envs.knobs import count, span
from turnwise.envs.seeds import derive
from turnwise.envs.split_shares import drawn_for
from turnwise.envs.task_range import TaskRange, check_drawn
from turnwise.envs.tool_env import EpisodeView, ToolEnv
from turnwise.envs.tools import ToolFailed, reward, tool
from turnwise.envs.types import Task, digest

MAX_STEPS = 8
SIZES = {"train": 1_000_000, "dev": 10_000, "test": 10_000}


@dataclass(frozen=True, kw_only=True)
class Question(Task):
    """One word problem. It follows from these fields alone."""

    split: str = "train"
    index: int = 0
    steps: int = 2
    digits: int = 2
    asides: int = 0

    def __post_init__(self) -> None:
        check_drawn(self, steps=(1, MAX_STEPS), digits=(1, 4), asides=(0, 4))


class Calculator(ToolEnv):
    """Turn a story into arithmetic, calculate it, and give the answer.

    Args:
        steps: sentences that change the stock, or (least, most), which the tasks take in turns.
        digits: of the largest number in a sentence, 1 to 4.
        asides: sentences with a number that changes nothing, 0 to 4.
        actions: `command` (one line, few tokens) or another name of `FORMATS`.
    """

    Task: ClassVar[type[Task]] = Question
    fast: ClassVar[bool] = True
    max_turns = 8
    hints = False
    words: ClassVar[tuple[str, ...]] = (*PEOPLE, *GOODS)

    def __init__(
        self,
        *,
        steps: int | Sequence[int] = (1, 4),
        digits: int = 2,
        asides: int = 0,
        actions: str = "command",
    ) -> None:
        super().__init__(actions=actions)
        self.steps = span("steps", steps, 1, MAX_STEPS)
        self.digits = count("digits", digits, 1, 4)
        self.asides = count("asides", asides, 0, 4)

    def tasks(self, split: str) -> Sequence[Question]:
        """Return the problems of a split, made on demand; difficulties take turns."""
        self.known_split(split)
        low, high = self.steps

        def question(index: int) -> Question:
            return Question(
                split=split,
                index=index,
                steps=low + index % (high - low + 1),
                digits=self.digits,
                asides=self.asides,
            )

        return TaskRange(question, SIZES[split])

    def system(self) -> str:
        """Return what the agent is told before the story."""
        return super().system() if self.format.name != "command" else "tools: calculate answer"

    def setup(self, task: Question, rng: random.Random) -> str:
        """Tell the story."""
        self.problem = task_problem(task)
        self.given: int | None = None
        self.result: Fraction | None = None
        return self.problem.text

    @tool
    def calculate(self, expression: str) -> str:
        """Calculate an expression exactly.

        Args:
            expression: Numbers, brackets and + - * / // %.
        """
        try:
            self.result = arithmetic.calculate(expression)
        except arithmetic.CannotCalculate as error:
            raise ToolFailed(str(error)) from None
        return arithmetic.shown(self.result)

    @tool(final=True)
    def answer(self, value: int) -> None:
        """Give the answer; ends the episode.

        Args:
            value: The number.
        """
        self.given = value

    @reward()
    def right(self, episode: EpisodeView) -> float:
        """Pay for the right number."""
        return float(self.given == self.problem.answer)

    def expert(self) -> str:
        """Calculate what solves it, unless that is what was calculated last; then answer."""
        if self.result != self.problem.answer:
            return self.call_text("calculate", expression=self.problem.expression)
        return self.call_text("answer", value=self.problem.answer)

    def state_hash(self) -> str:
        """Hash what was calculated last and what was answered."""
        return digest([self.task.key, str(self.result), self.given])


def task_problem(task: Question) -> Problem:
    """Return the problem of a task."""
    rng = random.Random(derive("calculator", json.dumps(task.to_json(), sort_keys=True)))

    def draw() -> Problem:
        return make_problem(rng, task.steps, digits=task.digits, asides=task.asides)

    return drawn_for(task.split, draw, lambda problem: problem.text)
