"""Who waits for whom, for how long, and when that ends.

A rollout tells its watchdog at every turn of its loop what each episode waits for. What takes long
is said in one line, again after twice the time. Deadlines end the waits of episodes as outcomes; a
rollout that is itself stuck in a call is seen from another thread, which gives it up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from turnwise.agents.engines.base import EngineError
from turnwise.agents.faults import log
from turnwise.agents.jobs import Job
from turnwise.envs.types import Episode, Outcome, Stop

LOOK_S = 1.0
"""Seconds between two looks at all waits."""


class NoReply(EngineError):
    """The engine let the deadline of a request pass."""


class RolloutStopped(RuntimeError):
    """Nobody waits for this rollout any more; it ended itself."""


class Wait(NamedTuple):
    """What an episode waits for."""

    episode: str
    """The job's id, with `#2` at its second attempt."""
    turn: int
    on: str
    """`the engine`, `its environment's reset`, `its environment's step`."""
    seconds: float

    def __str__(self) -> str:
        return (
            f"episode {self.episode} (turn {self.turn}) waits for {self.on}: {self.seconds:.0f} s"
        )


class Watchdog:
    """Watches one rollout.

    Args:
        report_after_s: a wait as long as this is said, and again each time that it has doubled.
    """

    def __init__(self, report_after_s: float = 60.0) -> None:
        self.report_after_s = report_after_s
        self.waits: Sequence[Wait] = ()
        """As of the last look."""
        self._call: tuple[str, int, str] | None = None
        self._beat = time.monotonic()
        self._next = 0.0
        self._told: dict[str, float] = {}
        self._stopped = False

    def stop(self) -> None:
        """Let the rollout end at its next `beat`."""
        self._stopped = True

    def entering(self, episode: str, turn: int, on: str) -> None:
        """Note the call that the rollout is about to make itself."""
        self._call = (episode, turn, on)

    def beat(self) -> bool:
        """Note that the rollout goes on; return whether it is time to `look` at its waits.

        Raises:
            RolloutStopped: after `stop`.
        """
        if self._stopped:
            raise RolloutStopped("nobody waits for this rollout any more")
        self._call, self._beat = None, time.monotonic()
        return self._beat >= self._next

    def look(self, waits: Sequence[Wait]) -> None:
        """Take what every episode waits for, and say what takes long: a line for each cause."""
        self.waits, self._next = waits, time.monotonic() + LOOK_S
        for on in {wait.on for wait in waits}:
            some = [wait for wait in waits if wait.on == on]
            longest = max(some, key=lambda wait: wait.seconds)
            others = f"; so do {len(some) - 1} others" if len(some) > 1 else ""
            self._say(on, longest.seconds, f"{longest}{others}")
        for on in self._told.keys() - {wait.on for wait in waits} - {_STUCK}:
            del self._told[on]

    @property
    def stuck_s(self) -> float:
        """Seconds for which the rollout has not come back from a call."""
        return time.monotonic() - self._beat

    def stuck(self) -> str:
        """Return in one line where the rollout is stuck, or what it waited for last."""
        call, seconds = self._call, self.stuck_s
        if call is not None:
            return f"{Wait(*call, seconds)}, and the whole rollout waits for that call"
        if self.waits:
            return str(max(self.waits, key=lambda wait: wait.seconds))
        return f"the rollout has not come to its first turn for {seconds:.0f} s"

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Say from a thread beside the rollout when that is stuck in a call."""
        over = threading.Event()
        self._beat = time.monotonic()
        threading.Thread(target=self._listen, args=(over,), daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _listen(self, over: threading.Event) -> None:
        while not over.wait(min(LOOK_S, self.report_after_s / 4)):
            if self.stuck_s < self.report_after_s:
                self._told.pop(_STUCK, None)
            else:
                self._say(_STUCK, self.stuck_s, self.stuck())

    def _say(self, cause: str, seconds: float, line: str) -> None:
        told = self._told.get(cause, 0.0)
        if seconds >= max(self.report_after_s, 2 * told):
            self._told[cause] = seconds
            log.warning("%s", line)
        elif seconds < told:  # another wait, which has just begun
            self._told[cause] = 0.0


_STUCK = "stuck"


def given_up(job: Job, why: str) -> Episode:
    """Return what a job becomes whose rollout never came back: masked, like every lost machine."""
    return Episode(
        id=job.id,
        env_id="",
        task=job.task,
        group=job.group,
        replica=job.replica,
        env_seed=job.env_seed,
        policy_seed=job.policy_seed,
        outcome=Outcome.INFRA_ERROR,
        stop=Stop.DEADLINE,
        error=why,
    )
