"""PythonTool: questions that need a program, and Python in a sandbox to run it.

    What is the number of primes below 1542?
    > python(code="print(sum(all(k % d for d in range(2, k)) for k in range(2, 1542)))")
    243
    > answer(value=243)

Reward: 1 for the right number.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from turnwise.envs.builtin.python_problems import KINDS, Problem, make_problem
from turnwise.envs.code_env import CodeEnv, text_of
from turnwise.envs.knobs import count, span
from turnwise.envs.names import known_names
from turnwise.envs.seeds import derive
from turnwise.envs.split_shares import drawn_for
from turnwise.envs.task_range import TaskRange, check_drawn
from turnwise.envs.tool_env import EpisodeView
from turnwise.envs.tools import reward, tool
from turnwise.envs.types import Task, digest

MAX_TERMS = 3
SIZES = {"train": 1_000_000, "dev": 10_000, "test": 10_000}


@dataclass(frozen=True, kw_only=True)
class Puzzle(Task):
    """One question. It follows from these fields alone; `kind` joins those of its terms by `+`."""

    split: str = "train"
    index: int = 0
    kind: str = "multiples"

    def __post_init__(self) -> None:
        check_drawn(self)
        count("terms", len(self.kinds), 1, MAX_TERMS)
        known_names("kind of question", self.kinds, KINDS)

    @property
    def kinds(self) -> list[str]:
        """The kinds of its terms."""
        return self.kind.split("+")


class PythonTool(CodeEnv):
    """Write a program, run it in the episode's own box, and give the answer.

    Args:
        kinds: of question, names of `python_problems.KINDS`, which the tasks take in turns; all
            by default.
        terms: numbers that a question asks the sum of, or (least, most), 1 to 3; tasks take turns.
            One term of such a sum may be asked for alone in another split.
        options: See `SandboxEnv`.

    Raises:
        UnknownName: there is no such kind.
        ValueError: `terms` lies outside its range.

    Example:
        `make("turnwise/PythonTool-v1", kinds=("digit_sum", "primes_below"), terms=2)`
    """

    Task: ClassVar[type[Task]] = Puzzle
    warm: ClassVar[int] = 2
    max_turns = 8
    bash = write = read = None  # type: ignore[assignment]

    def __init__(
        self, *, kinds: Sequence[str] = (), terms: int | Sequence[int] = 1, **options: Any
    ) -> None:
        super().__init__(**options)
        self._terms = span("terms", terms, 1, MAX_TERMS)
        self.kinds = known_names("kind of question", kinds, KINDS) or tuple(KINDS)

    def tasks(self, split: str) -> Sequence[Puzzle]:
        """Return the questions of a split, made on demand; kinds and terms take turns."""
        self.known_split(split)
        return TaskRange(lambda index: self._puzzle(split, index), SIZES[split])

    def _puzzle(self, split: str, index: int) -> Puzzle:
        (least, most), offered = self._terms, len(self.kinds)
        terms = least + index // offered % (most - least + 1)
        chosen = [self.kinds[(index + term) % offered] for term in range(terms)]
        return Puzzle(split=split, index=index, kind="+".join(chosen))

    def setup(self, task: Puzzle, rng: random.Random) -> str:
        """Ask the question."""
        self.problem = task_problem(task)
        self.given: int | None = None
        self.ran: list[str] = []
        self.printed = ""
        return self.problem.text

    @tool
    def python(self, code: str) -> str:
        """Run Python code and show what it prints. Variables are kept between calls.

        Args:
            code: The code.
        """
        self.ran.append(code)
        self.printed = text_of(self.run_python(code))
        return self.printed

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
        """Run a program that prints the answer, unless it was just printed; then give it."""
        if self.printed != str(self.problem.answer):
            return self.call_text("python", code=self.problem.code)
        return self.call_text("answer", value=self.problem.answer)

    def state_hash(self) -> str:
        """Hash what was run, on which the kernel's state depends, and what was answered."""
        return digest([self.task.key, self.ran, self.printed, self.given])


def task_problem(task: Puzzle) -> Problem:
    """Return the problem of a task."""
    rng = random.Random(derive("python", json.dumps(task.to_json(), sort_keys=True)))
    return drawn_for(task.split, lambda: make_problem(rng, task.kinds), lambda made: made.text)
