"""Play the attempts of a run on workers of a Ray cluster; the learner stays where it was started.

    groups of a step -> shares of whole groups -> workers -> a group back as soon as it is over

A worker or a node that is lost gives back nothing of the groups that it had not finished: they are
played again elsewhere, under the same weights and with the same seeds, and a group is taken once.
A worker is started in place of each that was lost.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from turnwise.agents.engines.base import EngineError
from turnwise.agents.faults import MOST, in_one_line, log
from turnwise.agents.jobs import Job
from turnwise.agents.watchdog import Watchdog, given_up
from turnwise.envs.types import Episode
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.ray_cluster import Cluster, ClusterLost, actor_options
from turnwise.trainers.ray_worker import Kit, RolloutWorker

TRIES = 3
"""Workers that a group may cost. Then its attempts are lost to the machine, and masked."""
GET_S = 120.0
"""How long the episodes of a group may take to come from the worker that has them."""
HEAD_S = 30.0
"""How long the head of the cluster may be silent."""
LOOK_S = 2.0
"""Seconds between two looks at what gives no sign."""


@dataclass(eq=False)
class Worker:
    """An actor, and the groups that it has been asked for."""

    number: int
    actor: Any
    opening: Any
    """The reference of its first answer; None once it has come."""
    node: str = ""
    stream: Any = None
    held: dict[str, list[Job]] = field(default_factory=dict)
    """What it has been asked for and has not given."""
    pulse: Any = None
    asked: float = 0.0
    """When it was asked how it is."""

    @property
    def waited(self) -> Any:
        """What its next sign of life comes from; None if it has nothing to do."""
        return self.opening if self.opening is not None else self.stream


class Round:
    """The groups of one batch: which are to be played, which are over."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.todo: deque[tuple[str, list[Job]]] = deque()
        self.left = {job.group for job in jobs}
        self.over: list[Episode] = []
        self.lost = Counter[str]()
        by_group: dict[str, list[Job]] = {}
        for job in jobs:
            by_group.setdefault(job.group, []).append(job)
        self.todo.extend(by_group.items())

    def share(self, count: int) -> dict[str, list[Job]]:
        """Return what one of `count` workers is to play.

        A group that has cost a worker is played alone: it may be the one that ends them.
        """
        share: dict[str, list[Job]] = {}
        for _ in range(-(-len(self.todo) // count)):
            if share and self.lost[self.todo[0][0]]:
                break
            name, jobs = self.todo.popleft()
            share[name] = jobs
            if self.lost[name]:
                break
        return share

    def take(self, episodes: Sequence[Episode]) -> None:
        """Take the whole group that `episodes` are, unless it was taken before."""
        if episodes[0].group in self.left:
            self.left.remove(episodes[0].group)
            self.over += episodes

    def again(self, held: dict[str, list[Job]], why: str) -> None:
        """Play groups again; one that has cost too many workers is lost."""
        for name, jobs in held.items():
            self.lost[name] += 1
            if self.lost[name] < TRIES:
                self.todo.append((name, jobs))
            else:
                self.take([given_up(job, f"lost with {TRIES} workers: {why}") for job in jobs])


class RayRollouts:
    """The workers of a run, or of one of its batches in flight.

    Args:
        kit: what each is made of.
        cluster: where they are.
        count: how many there are.
    """

    def __init__(self, config: TrainConfig, kit: Kit, cluster: Cluster, count: int) -> None:
        self.config, self.cluster, self.count = config, cluster, count
        self.ray = cluster.ray
        options = actor_options(self.config.worker_resources())
        # Whoever asks how it is does not wait until it has played.
        made_of = self.ray.remote(concurrency_groups={"pulse": 1})(RolloutWorker)
        self.make_actor = made_of.options(
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            **options,
        )
        with cluster.named():
            self.kit = self.ray.put(kit)
        self.brought: tuple[Any, int] = (None, -1)
        self.version, self.weights = -1, None
        self.started = self.failed = 0
        self.none_since: float | None = time.monotonic()
        self.looked = 0.0
        self.workers: list[Worker] = []
        self.closed = False
        self._fill()

    def _fill(self) -> None:
        """Start as many workers as are missing."""
        while len(self.workers) < self.count and not self.closed:
            self.started += 1
            actor = self.make_actor.remote(self.kit)
            self.workers.append(Worker(self.started, actor, actor.opened.remote()))

    def bring(self, weights: Any, version: int) -> None:
        """Have workers play what comes under these weights.

        Args:
            weights: a state dict, which stays as it is until all is played; or, where servers
                sample, what these hold.
        """
        self.brought = weights, version

    def play(self, jobs: Sequence[Job], watchdog: Watchdog) -> Iterator[Episode]:
        """Play every job and yield the episodes of a group when all of them are over.

        Args:
            watchdog: hears that this goes on; stops it.

        Raises:
            ClusterLost: no worker can be had, or the head of the cluster is gone.
            RolloutStopped: nobody waits for it any more.
            Whatever the policy raises.
        """
        round = Round(jobs)
        with self.cluster.named():
            while not self.cluster.answers(self._patience):
                watchdog.beat()
                time.sleep(LOOK_S)
            self._renew()
            while round.left:
                watchdog.beat()
                self._hand_out(round)
                for worker in self._heard():
                    watchdog.beat()
                    self._hear(worker, round)
                watchdog.beat()
                if time.monotonic() > self.looked + LOOK_S:
                    self._look(round)
                yield from round.over
                round.over = []

    @property
    def _patience(self) -> float:
        return min(HEAD_S, self.config.ray_timeout_s)

    def _renew(self) -> None:
        """Put weights where workers fetch them, once per version; what servers hold is said."""
        weights, version = self.brought
        if not isinstance(weights, Mapping):
            self.weights = weights
        elif version != self.version:
            self.weights = self.ray.put({name: w.detach().cpu() for name, w in weights.items()})
        self.version = version

    def _hand_out(self, round: Round) -> None:
        """Give each idle worker its share of what is to be played; who is being started has one."""
        idle = [worker for worker in self.workers if worker.waited is None]
        shares = len([worker for worker in self.workers if worker.opening is not None]) + len(idle)
        for worker in idle:
            worker.held = round.share(shares)
            shares -= 1
            if worker.held:
                jobs = [job for some in worker.held.values() for job in some]
                call = worker.actor.play.options(num_returns="streaming")
                worker.stream = call.remote(jobs, [self.weights], self.version)

    def _heard(self) -> list[Worker]:
        """Return those who have something to say; wait a little for the first."""
        waited = [worker for worker in self.workers if worker.waited is not None]
        if not waited:
            time.sleep(LOOK_S / 10)
            return []
        ready, _ = self.ray.wait([worker.waited for worker in waited], timeout=LOOK_S)
        return [worker for worker in waited if worker.waited in ready]

    def _hear(self, worker: Worker, round: Round) -> None:
        try:
            if worker.opening is not None:
                worker.node = self.ray.get(worker.opening, timeout=GET_S)
                worker.opening, self.none_since, self.failed = None, None, 0
                return
            episodes = self.ray.get(next(worker.stream), timeout=GET_S)
        except StopIteration:
            worker.stream = worker.pulse = None
            if worker.held:
                self._lose(worker, round, "it ended before its groups did")
        except self.ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if cause is None or isinstance(cause, (self.ray.exceptions.RayError, EngineError)):
                self._lose(worker, round, in_one_line(cause or error))
            else:
                raise cause from error
        except self.ray.exceptions.RayError as error:
            self._lose(worker, round, _last_line(error))
        else:
            worker.held.pop(episodes[0].group, None)
            round.take(episodes)

    def _lose(self, worker: Worker, round: Round, why: str) -> None:
        """Have what it was asked for played elsewhere; another is started at the next look."""
        self.cluster.end(worker.actor)
        self.failed += worker.opening is not None
        if self.failed >= TRIES * self.count:
            raise ClusterLost(
                f"no worker can be started on the Ray cluster at {self.cluster.address}: {why}"
            )
        where = f" on node {worker.node:.8}" if worker.node else ""
        held = f"; groups to be played again: {', '.join(worker.held)}" if worker.held else ""
        log.warning("worker %d%s of Ray is lost: %s%s", worker.number, where, why, held)
        round.again(worker.held, why)
        self.workers.remove(worker)
        if all(worker.opening is not None for worker in self.workers):
            self.none_since = time.monotonic()

    def _look(self, round: Round) -> None:
        """Look at what gives no sign by itself: the head, workers that hang, places not found."""
        self.looked = now = time.monotonic()
        if not self.cluster.answers(self._patience):
            return
        self._fill()
        patience = self.config.ray_timeout_s
        if self.none_since is not None and now - self.none_since > patience:
            raise ClusterLost(
                f"no worker was placed within {patience:g} s: each of {self.count} "
                f"asks for {self.config.worker_resources()}, and {self.cluster.offers()}; add "
                "nodes, or lower ray_worker_resources"
            )
        for worker in [worker for worker in self.workers if worker.stream is not None]:
            if why := self._stuck(worker, now):
                self._lose(worker, round, why)

    def _stuck(self, worker: Worker, now: float) -> str:
        """Return why a busy worker is to be given up, or an empty text; ask how it is."""
        patience = self.config.stall_timeout_s
        if worker.pulse is None:
            call = worker.actor.stuck.options(concurrency_group="pulse")
            worker.pulse, worker.asked = call.remote(), now
        if not self.ray.wait([worker.pulse], timeout=0)[0]:
            silent = now - worker.asked
            return f"it gives no answer for {silent:.0f} s" if silent > patience else ""
        try:
            seconds, where = self.ray.get(worker.pulse, timeout=GET_S)
        except self.ray.exceptions.RayError as error:
            return _last_line(error)
        worker.pulse = None
        return where if seconds > patience else ""

    def close(self) -> None:
        """End the workers. Safe to call twice, and while a thread left behind still plays."""
        self.closed = True
        for worker in list(self.workers):
            self.cluster.end(worker.actor)
        self.workers, self.kit, self.weights, self.brought = [], None, None, (None, -1)


def _last_line(error: Exception) -> str:
    """Return the type of an exception of Ray's and the line that tells; above is a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told, _, _ = (lines or [""])[-1].partition(" Worker exit type")
    return f"{type(error).__name__}: {told[:MOST]}"
