"""Workbench: errands at a desk with a calendar, mail, files and contacts.

    now tue-9. you are the assistant of nina.owl.
    move the budget event to the slot that ada from sales asks for in the newest mail about it, and
    send all its people the new slot

What the desk looks like when the agent finishes is compared with how it should look, place by
place: an event too many, a mail to somebody else, a file that was written over, and nothing is
paid. A week has the days mon to fri, a day the hours 8 to 17; time stands still.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from turnwise.envs.base import Response
from turnwise.envs.builtin import workbench_world as world
from turnwise.envs.builtin.people import NAMES
from turnwise.envs.builtin.workbench_grade import repairs, wrongs
from turnwise.envs.builtin.workbench_maker import ANIMALS
from turnwise.envs.builtin.workbench_tasks import (
    MAX_DISTRACTORS,
    MAX_INBOX,
    TEMPLATES,
    Chore,
    make_desk,
)
from turnwise.envs.builtin.workbench_tools import BenchTools, key_of
from turnwise.envs.knobs import count, span
from turnwise.envs.task_range import TaskRange
from turnwise.envs.tool_env import EpisodeView
from turnwise.envs.tools import reward
from turnwise.envs.types import Task, digest

SIZES = {"train": 1_000_000, "dev": 10_000, "test": 10_000}
MAX_DEPTH = 4
RULES = (
    "change nothing else. a mail that you send says what it is to say and holds no other slot, "
    "number or title. when all is done, call done."
)


class Workbench(BenchTools):
    """A desk with one errand, which may take several apps.

    The reward is 1 when the agent finishes and calendar, files and sent mails are just as the
    errand has them, else 0. A mail is read for the slots, numbers or titles that it was to tell,
    all of them: a mail that lists guesses is a wrong mail.

    Args:
        depth: how long the chain is, 1 to 4, or (least, most): 1 one app, 2 a chain through two or
            three, 3 and 4 longer ones that change more.
        distractors: near misses for what the errand is about, 0 to 4.
        inbox: mails in the inbox, at least, 0 to 64.
        slack: turns beyond what the expert needs.
        actions: a name in `FORMATS`: `command` (one line, few tokens), `hermes` (JSON), ...
        max_turns: instead of that.

    Example:
        env = make("turnwise/Workbench-v1", depth=1, distractors=0, inbox=0)
    """

    Task: ClassVar[type[Task]] = Chore
    fast: ClassVar[bool] = True
    hints = False
    words: ClassVar[tuple[str, ...]] = (
        *(*NAMES, *ANIMALS, *world.TITLES, *world.TEAMS, *world.FOLDERS, *world.STEMS),
        *(*world.DAYS, "today", "tomorrow"),
        *(str(number) for number in range(8, 100)),
        *(f"{letter}{i}" for letter in "em" for i in range(1, 41)),
    )
    """What a tokenizer made for this environment should hold as single tokens."""

    def __init__(
        self,
        *,
        depth: int | Sequence[int] = (1, 4),
        distractors: int = 2,
        inbox: int = 8,
        slack: int = 8,
        actions: str = "command",
        max_turns: int | None = None,
    ) -> None:
        super().__init__(actions=actions, max_turns=max_turns)
        low, high = span("depth", depth, 1, MAX_DEPTH)
        self.distractors = count("distractors", distractors, 0, MAX_DISTRACTORS)
        self.inbox = count("inbox", inbox, 0, MAX_INBOX)
        self.slack = count("slack", slack, 0, 1000)
        self.templates = [
            template.__name__ for level in range(low, high + 1) for template in TEMPLATES[level]
        ]

    def tasks(self, split: str) -> Sequence[Chore]:
        """Return the errands of a split, made on demand; their kinds take turns."""
        name = self.known_split(split)
        return TaskRange(lambda index: self._chore(name, index), SIZES[name])

    def _chore(self, split: str, index: int) -> Chore:
        return Chore(
            split=split,
            index=index,
            template=self.templates[index % len(self.templates)],
            distractors=self.distractors,
            inbox=self.inbox,
        )

    def system(self) -> str:
        """Return the tools; in the terse format their names and parameters only."""
        if self.format.name != "command":
            return super().system()
        tools = self.parts.tools.values()
        shown = [self.format.describe(t.name, [p.name for p in t.parameters]) for t in tools]
        return "\n".join(["tools:", *shown])

    def setup(self, task: Chore, rng: random.Random) -> str:
        """Lay the desk out and return the errand."""
        self.desk = make_desk(task)
        self.db = self.desk.records.copy()
        self.wanted = {key_of(name, args) for name, args in self.desk.errand.reads}
        self.seen = set()
        self.max_turns = len(self.wanted) + len(self.desk.errand.writes) + 1 + self.slack
        me = self.db["me"]
        opening = f"now {me['now']}. you are the assistant of {me['address']}."
        return f"{opening}\n{self.desk.errand.text}\n{RULES}"

    @reward(weight=1.0)
    def done_right(self, episode: EpisodeView) -> float:
        """Pay for a desk that is just as it should be."""
        return float(episode.terminated and not wrongs(self.db, self.desk.goal))

    def judge(self, answer: Response) -> None:
        """Grade, and say for people what was wrong: the metric and `info["differences"]`."""
        super().judge(answer)
        differences = wrongs(self.db, self.desk.goal)
        answer.metrics["differences"] = float(len(differences))
        answer.info["differences"] = [str(difference) for difference in differences]

    def expert(self) -> str:
        """Return the right call now; after damage that cannot be mended, `done`."""
        left = repairs(self.db, self.desk.goal)
        if not left:
            return self.call_text("done")
        for name, args in self.desk.errand.reads:
            if key_of(name, args) not in self.seen:
                return self.call_text(name, **args)
        return self.call_text(left[0][0], **left[0][1])

    def state_hash(self) -> str:
        """Hash what was changed and what was looked up of that which the errand needs."""
        return digest([self.task.key, self.db.changes, sorted(self.seen)])
