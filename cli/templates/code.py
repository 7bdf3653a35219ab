"""MyEnv: write a program, which is judged in a box of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from turnwise.envs import CodeEnv, EpisodeView, Task, derive, register, reward, tool


@dataclass(frozen=True, kw_only=True)
class Factor(Task):
    """What to solve: the fields decide the world, and equal fields are the same task."""

    value: int


@register("my-env/MyEnv-v1", tags=("code",))
class MyEnv(CodeEnv):
    """Write solve.py, which multiplies what it reads; a right one pays 1.

    `CodeEnv` offers the tools python, bash, write and read, in a box without a network.
    """

    Task: ClassVar[type[Task]] = Factor
    task: Factor
    max_turns = 8

    def tasks(self, split: str) -> Sequence[Factor]:
        """Return the tasks of a split; no two splits share one."""
        first = 2 + 100 * self.splits.index(self.known_split(split))
        return [Factor(value=first + i) for i in range(100)]

    def setup(self, task: Factor, rng: random.Random) -> str:
        """Make the world and return what the agent reads first."""
        luck = random.Random(derive("my-env", task.value))
        self.inputs = [luck.randrange(2, 1000) for _ in range(3)]
        return f"Write solve.py: it reads a number and prints it times {task.value}. Then submit."

    @tool(final=True)
    def submit(self) -> None:
        """Hand in solve.py; ends the episode."""

    @reward()
    def solved(self, episode: EpisodeView) -> float:
        """Run the agent's file in a fresh box, and compare out here what it prints."""
        files = self.taken("solve.py", max_bytes=100_000)
        if not files:
            return 0.0
        with self.fresh_box(files) as box:  # the answers never enter a box
            for number in self.inputs:
                ran = box.exec(["python3", "solve.py"], stdin=b"%d" % number)
                if ran.stdout.split() != [b"%d" % (number * self.task.value)]:
                    return 0.0
        return 1.0

    def expert(self) -> str:
        """Return the right action now: the proof that it can be done, and a teacher."""
        code = f"print(int(input()) * {self.task.value})\n"
        if self.taken("solve.py") == {"solve.py": code.encode()}:
            return self.call_text("submit")
        return self.call_text("write", path="solve.py", text=code)
