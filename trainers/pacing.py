"""Play the next batches while one is learnt from, and bound by when they start how old they are.

The law, for `pipeline_depth` d: batch n is played as a whole under the weights that batch n - d was
about to change (the first weights, for n < d). Which groups are played, with which seeds and under
which version, follows from the config alone, and never from who was faster:

    take n  ->  batch n + d starts, with a copy of the present weights  ->  learn from n

Nothing is thrown away for being old: what could become too old does not start. Each of the d
batches in flight has a player with an engine of its own; a step changes no weights that anybody
plays with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from turnwise.agents.engines.base import EngineError, ServerUnfit
from turnwise.envs.types import Episode, Group
from turnwise.trainers import ranks
from turnwise.trainers.attempts import Attempts
from turnwise.trainers.engines import WeightsNotTaken
from turnwise.trainers.flights import Batch
from turnwise.trainers.frontier import InFlight, Ticket, read_tickets
from turnwise.trainers.players import Player
from turnwise.trainers.ray_attempts import Crew, OverRay
from turnwise.trainers.trainee import Trainee

CLOSE_S = 10.0
"""How long to wait for rollouts that are told to stop; they go on stopping behind."""


class Paced(Attempts):
    """Attempts of which those of the next `pipeline_depth` steps are in flight.

    Args:
        attempts: how batches are played one by one; what they follow from is kept there.
        make_player: from its number.
        close: gives back what players share.
    """

    def __init__(
        self,
        attempts: Attempts,
        make_player: Callable[[int], Player],
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.take_over(attempts)
        self.depth, self.make_player = attempts.config.pipeline_depth, make_player
        self.players: list[Player] = []
        with ExitStack() as opened:
            opened.callback(close)
            opened.callback(self._close_players)
            self.lines = [ranks.new_line() for _ in range(self.depth)]
            for number in range(self.depth):
                self.players.append(make_player(number))
            self.opened = opened.pop_all()
        self.batches: dict[int, Batch] = {}
        """In flight, by their step; the one that is being learnt from, too."""
        self.taken: Batch | None = None
        self.accepted = False
        """Whether the batch that was taken is learnt from, with what it has."""

    def of_step(self, step: int) -> list[Group]:
        """Return the groups of a step once they are played."""
        for n in range(step, step + self.depth):
            self._begin(n)
        self.taken, self.accepted = self.batches[step], False
        groups = self.taken.wait()
        self.prompts.merge(self.taken.prompts)
        if self.coach is not None and self.taken.coach is not None:
            self.coach.merge(self.taken.coach)
        return groups

    def ahead(self, step: int) -> None:
        """Start batch `step` + depth with the present weights."""
        assert self.taken is not None
        self.accepted = True
        if self.taken.short:
            self._replace_player(step % self.depth)
        self._begin(step + self.depth)

    def _replace_player(self, number: int) -> None:
        """Leave one to the thread that hangs with it.

        Raises:
            WeightsNotTaken: no fit server answers another one; on all ranks.
        """
        self.players[number].close()
        try:
            self.players[number] = self.make_player(number)
        except (EngineError, ServerUnfit, ranks.RankFailed) as error:
            raise WeightsNotTaken(
                f"a part of the batch hung, and nobody can play the next one: {error}; go on with "
                "--resume"
            ) from error

    def _begin(self, step: int) -> None:
        """Let a batch be in flight; beyond the last step it only has its weights."""
        if step not in self.batches:
            player = self.players[step % self.depth]
            self._put(Ticket(step, player.take_weights()))
        if step < self.config.steps:
            self.batches[step].start()

    def _put(self, ticket: Ticket) -> None:
        number = ticket.step % self.depth
        self.batches[ticket.step] = Batch(self, ticket, self.players[number], self.lines[number])

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Return what was chosen and how deep it went, of the batch that was last taken."""
        assert self.taken is not None
        return self.taken.metrics(episodes)

    def note(self, metrics: dict[str, float]) -> None:
        """Take the metrics of a whole step: its batch has been learnt from."""
        super().note(metrics)
        assert self.taken is not None
        del self.batches[self.taken.ticket.step]
        self.taken = None

    def in_flight(self) -> Sequence[InFlight]:
        """Return the batches that are in flight; all processes call this alike."""
        learnt = self.taken if self.accepted else None
        return [batch.told(accepted=batch is learnt) for batch in self.batches.values()]

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        super().load(folder)
        for ticket in read_tickets(folder):
            if ticket.weights is not None:
                self.players[ticket.step % self.depth].put(ticket.weights, ticket.version)
                ticket.weights = None
            self._put(ticket)

    def close(self) -> None:
        """Stop every rollout."""
        for batch in self.batches.values():
            batch.close()
        until = time.monotonic() + CLOSE_S
        for batch in self.batches.values():
            batch.join(until)
        self.opened.close()

    def _close_players(self) -> None:
        for player in self.players:
            player.close()


def paced(attempts: Attempts, trainee: Trainee) -> Attempts:
    """Return `attempts` as the config has them played: some steps ahead, on a Ray cluster, or here.

    Raises:
        ValueError: workers of Ray were asked for, and the recipe plays rounds with a teacher.
        MissingExtra: Ray is not installed.
        ClusterLost: the cluster does not answer.
    """
    config = attempts.config
    if not config.pipeline_depth:
        return OverRay(attempts, trainee) if config.ray else attempts
    if config.ray:
        crew = Crew(attempts, trainee)
        return Paced(attempts, crew.player, crew.close)
    return Paced(attempts, partial(Player, trainee, config))
