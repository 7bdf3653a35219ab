"""One batch in flight: a step's attempts, played on threads while the trainer learns from others.

    its conductor   chooses tasks, tells the other processes what was played here, hears of theirs
    its calls       play, and may hang in an environment or an engine; they are then left behind

With several processes every one of them plays its groups of the batch, and the conductors talk over
a line of their own: the trainer's is busy with gradients.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from contextvars import copy_context
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from turnwise.agents.faults import log
from turnwise.agents.jobs import Job
from turnwise.agents.watchdog import Watchdog, given_up
from turnwise.envs.types import Episode, Group
from turnwise.trainers import ranks
from turnwise.trainers.attempts import Attempts
from turnwise.trainers.frontier import InFlight, Ticket
from turnwise.trainers.players import Player
from turnwise.trainers.watch import TooManyLost

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LOOK_S = 0.1
"""Seconds between two looks at a call."""


class Batch(Attempts):
    """One step's attempts, played on threads from where `attempts` stands now.

    Args:
        ticket: which step, and what is known of it from before.
        player: who plays it, and nothing else until it is over.
        line: over which the processes tell each other what was played of it.
    """

    def __init__(
        self, attempts: Attempts, ticket: Ticket, player: Player, line: ProcessGroup | None
    ) -> None:
        self.take_over(attempts.copied())
        self.ticket, self.player, self.line = ticket, player, line
        if ticket.state is not None:
            self.load(ticket.state)
        self.before = self.copied()
        self.watchdog = Watchdog()
        if self.coach is not None:
            self.coach.ways.watchdog = self.watchdog
        self.groups: list[Group] = []
        self.error: BaseException | None = None
        self.short = False
        """A part of it hangs in some process and was given up: its player may still be in use."""
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def start(self) -> None:
        """Play, unless it does already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._conduct, daemon=True)
            self._thread.start()

    def _conduct(self) -> None:
        try:
            with ranks.on_line(self.line):
                self.groups = self.of_step(self.ticket.step)
        except BaseException as error:
            self.error = error
        finally:
            self._over.set()

    def _enough(self, groups: Sequence[Group]) -> bool:
        return self.short or super()._enough(groups)

    def _placed(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Return `jobs` with where they begin, for which an expert may have to find its ways.

        Raises:
            TooManyLost: it hangs there, in some process; in all of them.
        """
        if self.coach is None:
            return jobs
        coach, placed = self.coach, list[Sequence[Job]]()
        for why in ranks.each(lambda: self._watched(lambda: placed.append(coach.jobs(jobs)))):
            if why:
                number = self.ticket.step + 1
                raise TooManyLost(f"step {number} has not begun: {why}; go on with --resume")
        return placed[0]

    def _episodes(self, jobs: Sequence[Job]) -> Iterable[Episode]:
        """Return what was played before, and play the rest; what hangs is given up."""
        hangs = list[str]()
        episodes = self.player.share_out(jobs, lambda mine: self._part(mine, hangs))
        for why in (why for part in ranks.gather(hangs) for why in part):
            number, self.short = self.ticket.step + 1, True
            log.warning("step %d goes on without the rest of its batch: %s", number, why)
        return episodes

    def _part(self, jobs: Sequence[Job], hangs: list[str]) -> list[Episode]:
        """Return the episodes of this process; add to `hangs` where it hangs."""
        kept = self.ticket.kept
        rest = [job for job in jobs if job.id not in kept]
        if why := self._watched(lambda: self._play(rest, kept)):
            hangs.append(why)
            # The thread left behind still has the old dict.
            self.ticket.kept = kept = dict(kept)
            kept |= {job.id: given_up(job, why) for job in rest if job.id not in kept}
        return [replace(kept[job.id], task=job.task) for job in jobs]

    def _play(self, jobs: Sequence[Job], kept: dict[str, Episode]) -> None:
        for episode in self.player.play(jobs, self, self.watchdog):
            kept[episode.id] = episode

    def _watched(self, act: Callable[[], object]) -> str:
        """Call `act` on a thread; return where it hangs if it is left behind, or an empty text."""
        call: Future[object] = Future()
        arguments = (_call, act, call, self.config.threads)
        with self.watchdog.beside():
            threading.Thread(target=copy_context().run, args=arguments, daemon=True).start()
            while not wait([call], LOOK_S).done:
                if self.watchdog.stuck_s > self.config.stall_timeout_s:
                    why = self.watchdog.stuck()
                    self.watchdog.stop()
                    return why
        call.result()
        return ""

    def wait(self) -> list[Group]:
        """Return the groups, with what is lost where a part of them was given up.

        Raises:
            TooManyLost: it hangs before its first attempt.
            ClusterLost: Ray's workers, or their head, are gone.
            RankFailed, RankLost: another process failed, or is gone.
            Whatever else ended the rollout: a bug of the policy, never one of an environment.
        """
        while not self._over.wait(LOOK_S):
            pass
        if self.error is not None:
            raise self.error
        return self.groups

    def told(self, *, accepted: bool) -> InFlight:
        """Return it as it is saved, with what all processes have of it; they call this alike.

        Args:
            accepted: it is being learnt from, with what it has. What another one has lost is played
                again.
        """
        over = accepted or ranks.tell(self._complete)  # what is over there is over anywhere
        kept = list(self.ticket.kept.values())
        if not over:
            kept = [] if self.fast else [e for e in kept if e.outcome.trainable]
        everything = {episode.id: episode for part in ranks.gather(kept) for episode in part}
        weights = None if over else self.player.weights()
        return InFlight(self.ticket, list(everything.values()), weights, self.before.save)

    @property
    def _complete(self) -> bool:
        """Whether all of it is over, and nothing lost."""
        episodes = [episode for group in self.groups for episode in group.episodes]
        return self.ticket.over or (bool(episodes) and all(e.outcome.trainable for e in episodes))

    def close(self) -> None:
        """Tell the rollout to stop."""
        self.watchdog.stop()

    def join(self, until: float) -> None:
        """Wait for its conductor to end, at most until `until`."""
        if self._thread is not None:
            self._thread.join(max(until - time.monotonic(), 0.0))


def _call(act: Callable[[], object], call: Future[object], threads: int) -> None:
    torch.set_num_threads(threads)  # of this thread
    try:
        call.set_result(act())
    except BaseException as error:
        call.set_exception(error)
