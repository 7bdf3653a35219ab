"""Repair: mend a small program. Read it, run its tests, edit it, submit it.

The agent's code runs in a box of its own when it is tested, and in a fresh one when it is judged.
Both times it is given inputs only; what it returns is compared on this side with what the right
program returns, so there is no answer for it to find and no judge for it to talk to.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from turnwise.envs.builtin.code_box import outcomes, start_runner
from turnwise.envs.builtin.mend import Mend
from turnwise.envs.builtin.mutate_kinds import KINDS
from turnwise.envs.builtin.repair_programs import TEMPLATES
from turnwise.envs.builtin.repair_report import REPORTS, passes
from turnwise.envs.builtin.repair_world import World, make_world
from turnwise.envs.knobs import count
from turnwise.envs.names import known_names
from turnwise.envs.task_range import TaskRange
from turnwise.envs.types import Task, canonical_json
from turnwise.sandboxes.base import Limits, Sandbox

SIZES = {"train": 1_000_000, "dev": 10_000, "test": 10_000}
MAX_BUGS, MAX_FILES = 3, 4


@dataclass(frozen=True, kw_only=True)
class Bugs(Task):
    """One repair. The programs, their bugs and their tests follow from these fields alone."""

    split: str = "train"
    index: int = 0
    n_bugs: int = 1
    n_files: int = 1
    templates: tuple[str, ...] = ()
    kinds: tuple[str, ...] = tuple(KINDS)
    held_out: bool = True

    def __post_init__(self) -> None:
        for name in ("templates", "kinds"):  # JSON makes lists of them
            object.__setattr__(self, name, tuple(getattr(self, name)))


class Repair(Mend):
    """Programs of 15 to 35 lines with one to three bugs, and a test file for each.

    Reward: 1 if every test passes in a fresh box, eight of which the agent can read; else 0.
    Editing the tests, ending the process, printing answers or objects that claim to equal
    everything earn nothing.

    Args:
        n_bugs: 1 to 3, each of which a visible test sees by itself.
        n_files: 1 to 4 programs; the bugs are in any of them.
        templates: names in `TEMPLATES` to choose from; all by default. If they are named, every
            split uses them, and splits still share no program with bugs.
        held_out: train, dev and test are made from different templates (24, 4 and 6), so that
            a test asks for programs unlike any that were trained on.
        kinds: of bugs, names in `KINDS`.
        report: what a test run tells: `full`, `names` of the tests that failed, or their `count`.
        options: see `Mend`: line numbers, shaping, slack.

    Example:
        env = make("turnwise/Repair-v1", n_bugs=2, kinds=("compare", "constant"))
    """

    Task: ClassVar[type[Task]] = Bugs
    limits = Limits(memory_mb=192, pids=24, disk_mb=8, wall_s=10.0)
    warm = 4

    def __init__(
        self,
        *,
        n_bugs: int = 1,
        n_files: int = 1,
        templates: Sequence[str] = (),
        held_out: bool = True,
        kinds: Sequence[str] = tuple(KINDS),
        report: str = "full",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        count("n_bugs", n_bugs, 1, MAX_BUGS)
        count("n_files", n_files, 1, MAX_FILES)
        self.n_bugs, self.n_files, self.held_out = n_bugs, n_files, held_out
        self.templates = known_names("template", templates, TEMPLATES)
        self.kinds = known_names("kind of bug", kinds, KINDS)
        self.report = REPORTS[known_names("report", [report], REPORTS)[0]]

    def tasks(self, split: str) -> Sequence[Bugs]:
        """Return the repairs of a split, made on demand."""
        known = self.known_split(split)
        return TaskRange(lambda index: self._task(known, index), SIZES[known])

    def _task(self, split: str, index: int) -> Bugs:
        return Bugs(
            split=split,
            index=index,
            n_bugs=self.n_bugs,
            n_files=self.n_files,
            templates=self.templates,
            kinds=self.kinds,
            held_out=self.held_out and not self.templates,
        )

    def setup(self, task: Bugs, rng: random.Random) -> str:
        """Make the programs and say what is to be done."""
        self.world: World = make_world(canonical_json(task.to_json()))
        world = self.world
        self.begin_mend(
            world.original, world.broken, world.test_files, bugs=world.n_bugs, passing=world.passing
        )
        bugs = "a bug" if world.n_bugs == 1 else f"{world.n_bugs} bugs"
        return (
            f"There is {bugs} in {' '.join(self.files)}; {' '.join(self.read_only)} "
            "shows some of the tests. Mend the code and submit: hidden tests decide."
        )

    def try_visible(self) -> tuple[str, float]:
        """Run the visible tests in this episode's box, in which the agent's code has run."""
        tests = self.world.visible
        got = outcomes(self.box, self.files, [test.call for test in tests])
        return self.report(tests, got), sum(map(passes, tests, got)) / len(tests)

    def is_right(self) -> bool:
        """Run all tests in a fresh box, and compare here."""
        tests = self.world.hidden
        with self.fresh_box() as box:
            got = outcomes(box, self.files, [test.call for test in tests])
        return all(map(passes, tests, got))

    @staticmethod
    def prepare(box: Sandbox) -> None:
        """Have the test runner up in a box before it is asked for."""
        start_runner(box)
