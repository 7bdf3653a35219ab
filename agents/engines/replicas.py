"""Which server an episode is played on: always the same one, whose prefix cache knows it.

A new episode goes to the server with the least to do, by how long its answers take: one that is
twenty times slower gets a twentieth of what another one gets. A slow answer is no failure. A server
that fails several times in a row, by its silence or by its answers, is dead: its episodes move to
others, and after a rest it is asked whether it is back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import monotonic

from turnwise.agents.engines.base import EngineError
from turnwise.agents.engines.client import Server

LATELY, ENOUGH = 9, 3
"""Answers whose median time is a server's pace, and how many there must be."""
ALIKE = 1.5
"""Servers whose paces differ by less are as fast as each other."""
LOOK_AGAIN_S = 300.0
"""A server that has answered nothing for so long gets one episode, however slow it was; its pace is
told by what it answers from then on."""


class NoServer(EngineError):
    """Every server is dead; the message says why each is."""


@dataclass(eq=False)
class Replica:
    """One server among equals."""

    server: Server
    load: int = 0
    """Requests that it is working on."""
    sessions: int = 0
    """Episodes that have their cache here."""
    took: deque[float] = field(default_factory=lambda: deque(maxlen=LATELY))
    """Seconds of its last answers."""
    answered: float = 0.0
    """Clock time of the last one."""
    failures: int = 0
    """In a row."""
    resting_until: float = 0.0
    """Clock time; 0 for a server that is alive."""
    reason: str = ""
    proved: int | None = None
    """Version of the weights that it was proved to hold; what it says itself proves nothing."""
    asleep: int = 0
    """Level at which it was told to sleep; 0 when it was not, or was woken."""

    @property
    def alive(self) -> bool:
        """It is given requests."""
        return not self.resting_until

    @property
    def pace(self) -> float | None:
        """Seconds of an answer; None before there were enough."""
        return median(self.took) if len(self.took) >= ENOUGH else None

    @property
    def busy(self) -> int:
        """Episodes, or requests that their episodes have left behind."""
        return max(self.load, self.sessions)


class Replicas:
    """Routes sessions over servers.

    Args:
        servers: at least one; all hold the same model.
        strikes: failures in a row after which a server is dead.
        rest_s: how long a dead one is left alone.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        strikes: int = 3,
        rest_s: float = 30.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        if not servers:
            raise ValueError("there must be at least one server")
        self.every = [Replica(server) for server in servers]
        self.strikes, self.rest_s, self.clock = strikes, rest_s, clock
        self._home: dict[str, Replica] = {}

    @property
    def living(self) -> list[Replica]:
        """Those that are given requests."""
        return [replica for replica in self.every if replica.alive]

    def of(self, session: str, but: Collection[Replica] = ()) -> Replica:
        """Return the server of a session; a new or moved one gets the least loaded.

        Args:
            but: servers that are not to be asked, unless no other one lives.

        Raises:
            NoServer: all are dead.
        """
        home = self._home.get(session)
        if home is not None and home.alive and home not in but:
            return home
        self.forget(session)
        self.require_one()
        home = min(self.others(but) or self.living, key=lambda r: (self._queue(r), r.load))
        self._home[session] = home
        home.sessions += 1
        return home

    def _queue(self, replica: Replica) -> float:
        """Return how long a further session would take there, in those of the fastest server."""
        paces = [other.pace for other in self.living if other.pace is not None]
        old = not replica.busy and self.clock() - replica.answered > LOOK_AGAIN_S
        if replica.pace is None or old:
            return replica.busy + 1
        slower = replica.pace / max(min(paces), 1e-9)
        return (replica.busy + 1) * (slower if slower > ALIKE else 1.0)

    def others(self, but: Collection[Replica]) -> list[Replica]:
        """Return the living ones that are not among these."""
        return [replica for replica in self.living if replica not in but]

    def require_one(self) -> None:
        """Raise NoServer if all are dead."""
        if not self.living:
            reasons = "; ".join(sorted({replica.reason for replica in self.every}))
            raise NoServer(f"no server is left of {len(self.every)}: {reasons}")

    def forget(self, session: str) -> None:
        """The session is over, or moves."""
        home = self._home.pop(session, None)
        if home is not None:
            home.sessions -= 1

    def worked(self, replica: Replica, took: float | None = None) -> None:
        """It has answered, in so many seconds."""
        replica.failures = 0
        if took is not None:
            if self.clock() - took - replica.answered > LOOK_AGAIN_S:
                while len(replica.took) >= ENOUGH:  # so that a few answers tell its pace again
                    replica.took.popleft()
            replica.took.append(took)
            replica.answered = self.clock()

    def failed(self, replica: Replica, error: Exception, *, at_once: bool = False) -> None:
        """It has not. `at_once` needs no further strikes: it hung, or lost its weights."""
        replica.failures += 1
        replica.reason = str(error)
        if at_once or replica.failures >= self.strikes:
            replica.resting_until = self.clock() + self.rest_s

    def rested(self) -> list[Replica]:
        """Return the dead ones that may be asked again."""
        now = self.clock()
        return [r for r in self.every if not r.alive and r.resting_until <= now]

    def revive(self, replica: Replica) -> None:
        """It is back, and as fast as any other until it is known."""
        if not replica.alive:
            replica.took.clear()
        replica.failures, replica.resting_until, replica.reason = 0, 0.0, ""
