"""Play the next batches while one is learnt from, and bound by when they start how old they are.

The law, for `pipeline_depth` d: batch n is played as a whole under the weights that batch n - d was
about to change (the first weights, for n < d). Which groups are played, with which seeds and under
which version, follows from the config alone, and never from who was faster:

    take n  ->  batch n + d starts, with a copy of the present weights  ->  learn from n

Nothing is thrown away for being old: what could become too old does not start. Each of the d
batches in flight has a player, a thread with an engine of its own; a step changes no weights that
anybody plays with.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from turnwise.agents.engines.functional import base_model
from turnwise.agents.faults import log
from turnwise.agents.jobs import Job
from turnwise.agents.policy import LLMPolicy
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import play
from turnwise.agents.watchdog import Watchdog, given_up
from turnwise.envs.types import Episode, Group, Task
from turnwise.trainers.attempts import Attempts, grouped
from turnwise.trainers.engines import base_of, player_for
from turnwise.trainers.frontier import Ticket, read_tickets, write_tickets
from turnwise.trainers.watch import TooManyLost

if TYPE_CHECKING:
    from turnwise.trainers.config import TrainConfig
    from turnwise.trainers.loop import Trainee

LOOK_S = 0.1
CLOSE_S = 10.0
"""How long to wait for rollouts that are told to stop; they go on stopping behind."""


class Player:
    """Weights of its own, an engine that plays with them, and the policy that acts by it.

    Args:
        number: which of the players it is.
    """

    def __init__(self, trainee: Trainee, config: TrainConfig, number: int) -> None:
        self.trainee = trainee
        theirs = trainee.policy
        self.model = copy.deepcopy(base_of(trainee.learner)).requires_grad_(False)
        # A tokenizer that two threads use at once may fail: "Already borrowed".
        tokenizer = copy.deepcopy(trainee.tokenizer)
        self.sampler = player_for(config, self.model, tokenizer, number)
        self.policy = LLMPolicy(
            self.sampler.engine,
            Renderer(tokenizer),
            temperature=theirs.temperature,
            max_new_tokens=theirs.sampling.max_tokens,
        )

    def take_weights(self) -> int:
        """Copy the trainee's present weights; return their version."""
        version = self.trainee.learner.updates
        self.put(base_model(self.trainee.learner.model).state_dict(), version)
        return version

    def put(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Play with these weights from now on."""
        base_model(self.model).load_state_dict(weights)
        self.sampler.publish(version)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return those that it plays with."""
        return base_model(self.model).state_dict()


class Batch(Attempts):
    """One step's attempts, played on a thread from where `attempts` stands now.

    Args:
        ticket: which step, and what is known of it from before.
        player: who plays it, and nothing else until it is over.
    """

    def __init__(self, attempts: Attempts, ticket: Ticket, player: Player) -> None:
        self.take_over(attempts.copied())
        self.ticket, self.player, self.policy = ticket, player, player.policy
        if ticket.state is not None:
            self.load(ticket.state)
        self.before = self.copied()
        self.watchdog = Watchdog()
        if self.coach is not None:
            self.coach.ways.watchdog = self.watchdog
        self.over = threading.Event()
        self.groups: list[Group] = []
        self.error: BaseException | None = None
        self._asked: list[tuple[Sequence[Task], Sequence[Job]]] = []
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Play, unless it does already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        torch.set_num_threads(self.config.threads)
        try:
            with self.watchdog.beside():
                self.groups = self.of_step(self.ticket.step)
        except BaseException as error:
            self.error = error
        finally:
            self.over.set()

    def _episodes(self, chosen: Sequence[Task], jobs: Sequence[Job]) -> Iterable[Episode]:
        """Return those that were played before, and play the others."""
        self._asked.append((chosen, jobs))
        kept = self.ticket.kept
        yield from (replace(kept[j.id], task=j.task) for j in jobs if j.id in kept)
        rest = [job for job in jobs if job.id not in kept]
        for episode in play(rest, self.make_env, self.policy, self.settings, self.watchdog):
            kept[episode.id] = episode
            yield episode

    def wait(self) -> list[Group]:
        """Return the groups, with what is lost by the time at which the rollout is given up.

        Raises:
            Whatever ended the rollout: a bug of the policy, never one of an environment.
        """
        while not self.over.wait(LOOK_S):
            if self.watchdog.stuck_s > self.config.stall_timeout_s:
                return self._give_up()
        if self.error is not None:
            raise self.error
        return self.groups

    def _give_up(self) -> list[Group]:
        """Return what there is; the thread is left behind, and ends itself if it ever comes back.

        Raises:
            TooManyLost: it hangs before its first attempt.
        """
        why, kept, number = self.watchdog.stuck(), dict(self.ticket.kept), self.ticket.step + 1
        self.watchdog.stop()
        if not self._asked:
            raise TooManyLost(f"step {number} has not begun: {why}; go on with --resume")
        log.warning("step %d goes on without the rest of its batch: %s", number, why)
        self.groups = [
            group
            for chosen, jobs in self._asked
            for group in grouped(chosen, jobs, (kept.get(j.id) or given_up(j, why) for j in jobs))
        ]
        # The thread left behind still has the old dict.
        self.ticket.kept = {e.id: e for group in self.groups for e in group.episodes}
        return self.groups

    @property
    def abandoned(self) -> bool:
        """Whether its thread may still be using its player."""
        return self._thread is not None and not self.over.is_set()

    @property
    def played(self) -> bool:
        """Whether all of it is over."""
        return bool(self.groups) and (self.over.is_set() or self.ticket.accepted)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return those it is played with, until another batch has the player."""
        return self.player.weights()

    def save_state(self, folder: Path) -> None:
        """Write from where it is played."""
        self.before.save(folder)

    def close(self) -> None:
        """Tell the rollout to stop."""
        self.watchdog.stop()

    def join(self, until: float) -> None:
        """Wait for the thread to end, at most until `until`."""
        if self._thread is not None:
            self._thread.join(max(until - time.monotonic(), 0.0))


class Paced(Attempts):
    """Attempts of which those of the next `pipeline_depth` steps are in flight.

    Args:
        attempts: how batches are played one by one; what they follow from is kept there.
        trainee: whose weights they are played with.
    """

    def __init__(self, attempts: Attempts, trainee: Trainee) -> None:
        self.take_over(attempts)
        self.trainee, self.depth = trainee, attempts.config.pipeline_depth
        with ExitStack() as opened:
            self.players = []
            for number in range(self.depth):
                self.players.append(Player(trainee, self.config, number))
                opened.callback(self.players[-1].sampler.close)
            opened.pop_all()
        self.batches: dict[int, Batch] = {}
        """In flight, by their step; the one that is being learnt from, too."""
        self.taken: Batch | None = None

    def of_step(self, step: int) -> list[Group]:
        """Return the groups of a step once they are played."""
        for n in range(step, step + self.depth):
            self._begin(n)
        self.taken = self.batches[step]
        groups = self.taken.wait()
        self.prompts.merge(self.taken.prompts)
        if self.coach is not None and self.taken.coach is not None:
            self.coach.merge(self.taken.coach)
        return groups

    def ahead(self, step: int) -> None:
        """Start batch `step` + depth with the present weights."""
        assert self.taken is not None
        self.taken.ticket.accepted = True
        if self.taken.abandoned:
            self._replace_player(step % self.depth)
        self._begin(step + self.depth)

    def _replace_player(self, number: int) -> None:
        """Leave one to the thread that hangs with it."""
        self.players[number].sampler.close()
        self.players[number] = Player(self.trainee, self.config, number)

    def _begin(self, step: int) -> None:
        """Let a batch be in flight; beyond the last step it only has its weights."""
        if step not in self.batches:
            player = self.players[step % self.depth]
            ticket = Ticket(step, player.take_weights())
            self.batches[step] = Batch(self, ticket, player)
        if step < self.config.steps:
            self.batches[step].start()

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

    def save(self, folder: Path) -> None:
        """Write what a resumed run needs, the frontier included."""
        super().save(folder)
        taken = None if self.taken is None else self.taken.ticket.step
        write_tickets(folder, list(self.batches.values()), fast=self.fast, taken=taken)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        super().load(folder)
        for ticket in read_tickets(folder):
            player = self.players[ticket.step % self.depth]
            if ticket.weights is not None:
                player.put(ticket.weights, ticket.version)
                ticket.weights = None
            self.batches[ticket.step] = Batch(self, ticket, player)

    def close(self) -> None:
        """Stop every rollout."""
        for batch in self.batches.values():
            batch.close()
        until = time.monotonic() + CLOSE_S
        for batch in self.batches.values():
            batch.join(until)
        for player in self.players:
            player.sampler.close()


def paced(attempts: Attempts, trainee: Trainee) -> Attempts:
    """Return `attempts`, some steps ahead if the config says so.

    Raises:
        ValueError: `pipeline_depth` is above 0 in a run of several processes.
    """
    if not attempts.config.pipeline_depth:
        return attempts
    if (processes := trainee.learner.accelerator.num_processes) > 1:
        raise ValueError(
            f"pipeline_depth {attempts.config.pipeline_depth} plays in one process, and "
            f"{processes} were launched; set it to 0, or launch one"
        )
    return Paced(attempts, trainee)
