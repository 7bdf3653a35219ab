"""The way through a task: played once, remembered as actions, the start of many attempts.

A way is what the environment's own `expert()` does from the beginning, or another guide, with the
seed that the attempts at the task have, too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from turnwise.agents.jobs import Job, answer_key
from turnwise.agents.policy import Policy, ScriptedPolicy, Seat, expert
from turnwise.agents.reenact import as_played
from turnwise.agents.rollout import Settings, play
from turnwise.agents.watchdog import Watchdog
from turnwise.envs.base import Env
from turnwise.envs.types import Episode

log = logging.getLogger("turnwise")


class NoExpert(ValueError):
    """The curriculum follows a way, and nobody shows one."""


@dataclass(frozen=True, slots=True)
class Way:
    """What was done to solve a task, and how it was answered."""

    actions: tuple[str, ...]
    answers: tuple[str, ...]
    """`answer_key` of each answer."""


class Ways:
    """The ways of a run.

    Args:
        make_env: returns an environment, with an `expert()` if there is no guide.
        settings: how the ways are played.
        guide: who shows them; None is the environment's own expert.
    """

    def __init__(
        self, make_env: Callable[[], Env], settings: Settings, guide: Policy | None = None
    ) -> None:
        self.make_env, self.settings = make_env, settings
        self.guide, self._alone = guide, threading.Lock()
        self.watchdog: Watchdog | None = None
        """Of the rollout that waits for the ways."""
        self.turns = 0
        """Turns that were played to find them, of all calls."""
        self._known: dict[str, Way | None] = {}

    def copied(self) -> Ways:
        """Return what goes on from here by itself."""
        other = Ways(self.make_env, self.settings, self.guide)
        other._known, other._alone = dict(self._known), self._alone
        return other

    def merge(self, other: Ways) -> None:
        """Take the ways that a copy has found."""
        self._known.update(other._known)

    def of(self, jobs: Sequence[Job]) -> dict[str, Way | None]:
        """Return the way through each job's task, by the task's key; None if its guide fails."""
        new = {job.task.key: job for job in jobs if job.task.key not in self._known}
        asked = [Job(job.task, key, 0, job.env_seed, job.env_seed) for key, job in new.items()]
        lost = set()
        for episode in self._played(asked):
            self.turns += len(episode.turns)
            self._known[episode.group] = _way(episode)
            if not episode.outcome.trainable:
                lost.add(episode.group)
        found = {job.task.key: self._known[job.task.key] for job in jobs}
        for key in lost:  # a machine that failed says nothing about the guide: ask again later
            del self._known[key]
        return found

    def _played(self, asked: Sequence[Job]) -> Iterator[Episode]:
        """Yield what the guide does; batches in flight share it, and take turns."""
        if self.guide is None:
            policy = ScriptedPolicy(_expert)
            yield from play(asked, self.make_env, policy, self.settings, self.watchdog)
            return
        with self._alone:
            yield from play(asked, self.make_env, self.guide, self.settings, self.watchdog)


def ahead(job: Job, way: Way, start: int) -> Job:
    """Return `job`, begun at turn `start` of a way."""
    return replace(job, prelude=way.actions[:start], prelude_answers=way.answers[:start])


def _way(episode: Episode) -> Way | None:
    if not episode.success:
        return None
    turns = episode.turns
    read = [*(turn.observation for turn in turns[1:]), episode.final_observation]
    answers = map(answer_key, read, (turn.state_after for turn in turns))
    return Way(tuple(as_played(turn) for turn in turns), tuple(answers))


def _expert(seat: Seat) -> str:
    """Do what the expert does; one that raises says nothing, and so solves nothing."""
    try:
        return expert(seat)
    except Exception as error:
        log.debug("the expert failed at turn %d of %s", seat.turn, seat.key, exc_info=error)
        return ""
