"""Which tasks a step plays: the next ones, and now and then one that was lately half solved.

A task that all attempts solve, or none, teaches a group-relative method nothing. Replay brings back
what is just being learnt. Every draw follows from the run's seed and the slot's number, so that a
resumed run plays what it would have.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from turnwise.envs.seeds import derive
from turnwise.envs.types import Group

HALF = (0.25, 0.75)
"""Success of a task's last attempts, bounds included, at which it is worth playing again."""


class Prompts:
    """The tasks of a run, in the order in which they are played.

    Args:
        tasks: those of the split.
        seed: the run's.
        replay: probability that a slot goes to a task that was lately half solved; the task that
            the slot would have had waits for the next round through the split.
    """

    def __init__(self, tasks: Sequence[Any], *, seed: int, replay: float) -> None:
        self.tasks, self.seed, self.replay = tasks, seed, replay
        self.half_solved: set[int] = set()
        """Indices of the tasks whose last attempts succeeded about half the time."""
        self.settled: set[int] = set()
        """Those of them after the last whole step, which is what is saved."""
        self.replayed = self.chosen = 0
        self.noted: dict[int, bool] = {}
        """Whether a task was half solved, for those tried since this was made or copied."""

    def copied(self) -> Prompts:
        """Return what goes on from here by itself."""
        other = copy.copy(self)
        other.half_solved, other.noted = set(self.half_solved), {}
        other.settled = set(self.half_solved)
        other.replayed = other.chosen = 0
        return other

    def merge(self, other: Prompts) -> None:
        """Take what a copy has noted."""
        for index, half in other.noted.items():
            (self.half_solved.add if half else self.half_solved.discard)(index)

    def choose(self, first: int, count: int) -> list[int]:
        """Return the indices of `count` tasks for the slots from `first` on."""
        found: list[int] = []
        for slot in range(first, first + count):
            waiting = sorted(self.half_solved.difference(found))
            again = derive(self.seed, "replay", slot) < self.replay * 2**31
            if again and waiting:
                found.append(waiting[derive(self.seed, "which", slot) % len(waiting)])
                self.replayed += 1
            else:
                found.append(slot % len(self.tasks))
        self.chosen += count
        return found

    def note(self, indices: Sequence[int], groups: Sequence[Group]) -> None:
        """Take the attempts at the tasks of `indices`."""
        if not self.replay:
            return
        for index, group in zip(indices, groups, strict=True):
            if tried := group.trainable:
                rate = sum(episode.success for episode in tried) / len(tried)
                half = self.noted[index] = HALF[0] <= rate <= HALF[1]
                (self.half_solved.add if half else self.half_solved.discard)(index)

    def settle(self) -> None:
        """Take what was noted for good: the step that it is of is whole."""
        self.settled = set(self.half_solved)

    def metrics(self) -> dict[str, float]:
        """Return the share of replayed tasks since the last call; nothing where there is none."""
        share = self.replayed / max(self.chosen, 1)
        self.replayed = self.chosen = 0
        return {"replayed": share} if self.replay else {}

    def save(self, folder: Path) -> None:
        """Write what a resumed run needs: it plays a step again that is not whole."""
        (folder / "prompts.json").write_text(json.dumps(sorted(self.settled)))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self.half_solved = set(json.loads((folder / "prompts.json").read_text()))
        self.settle()
