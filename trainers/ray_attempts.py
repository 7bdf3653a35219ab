"""Attempts on the workers of a Ray cluster: those of a step, or of a batch in flight.

The first process of a run has the workers, and tells the others what was played.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from turnwise.agents.engines.functional import base_model
from turnwise.agents.jobs import Job
from turnwise.agents.watchdog import Watchdog
from turnwise.envs.types import Episode
from turnwise.trainers import ranks
from turnwise.trainers.attempts import Attempts
from turnwise.trainers.engines import Sampler, base_of, key_of_servers, servers_of
from turnwise.trainers.players import Player
from turnwise.trainers.ray_cluster import Cluster
from turnwise.trainers.ray_rollouts import RayRollouts
from turnwise.trainers.ray_worker import Kit, OnServers, OwnReplica
from turnwise.trainers.trainee import Trainee


class Crew:
    """The cluster of a run, and what its workers are made of.

    Raises:
        ValueError: the recipe plays rounds with a teacher.
        MissingExtra: Ray is not installed.
        ClusterLost: the cluster does not answer.
    """

    def __init__(self, attempts: Attempts, trainee: Trainee) -> None:
        if attempts.recipe.imitation is not None:
            raise ValueError(
                f"recipe {attempts.recipe.name!r} plays rounds with a teacher that is here: leave "
                "ray out, or take a recipe that learns from the student's own attempts alone"
            )
        self.attempts, self.trainee, self.config = attempts, trainee, attempts.config
        self.opened = ExitStack()
        self.cluster: Cluster | None = None
        try:
            ranks.on_main(self._join)
        except BaseException:
            self.close()
            raise

    def _join(self) -> None:
        self.cluster = Cluster(self.config)
        self.opened.callback(self.cluster.close)

    def rollouts(self, number: int = 0) -> RayRollouts | None:
        """Return the workers of one of the batches in flight; None but in the first process."""
        return ranks.on_main(lambda: self._rollouts(number))

    def _rollouts(self, number: int) -> RayRollouts:
        config = self.config
        count = len(range(number, config.ray_workers, max(config.pipeline_depth, 1)))
        kit = self._kit(number, -(-config.tasks_per_step // count) * config.group_size)
        rollouts = RayRollouts(config, kit, cast(Cluster, self.cluster), count)
        self.opened.callback(rollouts.close)
        return rollouts

    def _kit(self, number: int, slots: int) -> Kit:
        config, trainee = self.config, self.trainee
        opens: OnServers | OwnReplica
        if config.has_servers:
            servers, key = servers_of(config, number), key_of_servers()
            opens = OnServers(config, trainee.tokenizer, servers, key)
        else:
            model = copy.deepcopy(base_model(trainee.learner.model)).requires_grad_(False).cpu()
            opens = OwnReplica(model, slots, config.max_tokens)
        return Kit(
            make_env=self.attempts.make_env,
            engine=opens,
            tokenizer=trainee.tokenizer,
            temperature=trainee.policy.temperature,
            max_new_tokens=trainee.policy.sampling.max_tokens,
            settings=replace(self.attempts.settings, concurrency=slots),
            threads=config.threads,
        )

    def player(self, number: int) -> RayPlayer:
        """Return who plays one of the batches in flight."""
        return RayPlayer(self, number)

    def close(self) -> None:
        """End all workers and leave the cluster. Safe to call twice."""
        self.opened.close()


class OverRay(Attempts):
    """Attempts that are played on the workers of a cluster, a step's at a time.

    Raises:
        As `Crew`.
    """

    def __init__(self, attempts: Attempts, trainee: Trainee) -> None:
        self.take_over(attempts)
        self.trainee, self.crew = trainee, Crew(attempts, trainee)
        try:
            self.rollouts, self.line = self.crew.rollouts(), ranks.new_line()
        except BaseException:
            self.crew.close()
            raise

    def _episodes(self, jobs: Sequence[Job]) -> Iterable[Episode]:
        with ranks.on_line(self.line):
            return by_the_first(lambda: self._played(jobs))

    def _played(self, jobs: Sequence[Job]) -> list[Episode]:
        rollouts, learner = cast(RayRollouts, self.rollouts), self.trainee.learner
        rollouts.bring(brought(self.trainee.sampler, learner.model), learner.updates)
        return list(rollouts.play(jobs, Watchdog()))

    def close(self) -> None:
        """End the workers and leave the cluster."""
        self.crew.close()


class RayPlayer(Player):
    """Workers that play a batch in flight, under weights that are kept here for a checkpoint.

    Only the first process has workers and keeps weights; the others take part in what all do.

    Args:
        number: which of the players it is.
    """

    def __init__(self, crew: Crew, number: int) -> None:
        self.rollouts = crew.rollouts(number)
        super().__init__(crew.trainee, crew.config, number)

    def replica(self) -> nn.Module:
        """Return a model of its own in the first process; elsewhere the trained one, as it is."""
        return base_of(self.trainee.learner) if self.rollouts is None else super().replica()

    def put(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Play with these weights from now on."""
        if self.rollouts is None:
            self.sampler.publish(version)
            return
        super().put(weights, version)
        self.rollouts.bring(brought(self.sampler, self.model), version)

    def play(
        self, jobs: Sequence[Job], attempts: Attempts, watchdog: Watchdog
    ) -> Iterable[Episode]:
        """Play `jobs` on the workers; yield the episodes of a group when all are over."""
        return cast(RayRollouts, self.rollouts).play(jobs, watchdog)

    def share_out(
        self, jobs: Sequence[Job], run: Callable[[Sequence[Job]], Iterable[Episode]]
    ) -> list[Episode]:
        """Return the episodes of all `jobs`, which the first process runs."""
        return by_the_first(lambda: list(run(jobs)))

    def close(self) -> None:
        """End its workers, and its connections."""
        if self.rollouts is not None:
            self.rollouts.close()
        super().close()


def brought(sampler: Sampler, model: nn.Module) -> Any:
    """Return what workers are to play with: what servers hold, or else the model's weights."""
    held: Callable[[], Any] | None = getattr(sampler.engine, "held", None)
    return base_model(model).state_dict() if held is None else held()


def by_the_first(play: Callable[[], list[Episode]]) -> list[Episode]:
    """Return what `play` returns in the first process, in all of them.

    Raises:
        Whatever it raises there; `RankFailed` for it in the others if it cannot be sent.
    """
    return cast(list[Episode], ranks.tell(ranks.on_main(play)))
