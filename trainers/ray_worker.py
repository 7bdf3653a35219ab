"""What a worker of a Ray cluster is: environments, a policy, and an engine.

The engine has weights of its own, or is on the servers that the learner brings new weights to.

It plays whole groups and hands each over as soon as it is over. Nothing that an episode is made of
follows from where it is played: its seeds are those of its job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from turnwise.agents.engines.base import Engine
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.jobs import Job
from turnwise.agents.policy import LLMPolicy
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import Settings, play
from turnwise.agents.watchdog import Watchdog
from turnwise.envs.base import Env
from turnwise.envs.types import Episode
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.engines import connected

FETCH_S = 600.0
"""How long the weights of a version may take to come."""


class Opens(Protocol):
    """How a worker comes to an engine, and the engine to weights."""

    def open(self) -> Engine:
        """Return the engine."""

    def give(self, engine: Any, weights: Any, version: int) -> None:
        """Have it play with these weights of the learner, under this version."""


@dataclass(frozen=True)
class OwnReplica:
    """An engine on the worker, on its GPU if it was given one."""

    model: nn.Module
    """A replica on the CPU; its weights are replaced before anything is played."""
    slots: int
    """Episodes that keep their cache."""
    max_len: int
    """Tokens of the longest history, action included."""

    def open(self) -> Engine:
        """Return an engine around the replica."""
        model = self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        return EmbeddedEngine(model, slots=self.slots, max_len=self.max_len)

    def give(self, engine: Any, weights: Any, version: int) -> None:
        """Fetch a state dict by its reference."""
        import ray

        engine.update_weights(ray.get(weights, timeout=FETCH_S), version)


@dataclass(frozen=True)
class OnServers:
    """An engine on the servers of the run."""

    config: TrainConfig
    tokenizer: Any
    servers: Sequence[str]
    """Their addresses."""
    key: str
    """Of the servers; the learner's, since a node need not know it."""

    def open(self) -> Engine:
        """Return an engine that is connected to all of them."""
        return connected(self.config, self.tokenizer, self.servers, self.key)

    def give(self, engine: Any, weights: Any, version: int) -> None:
        """Ask for what the learner has brought there, as its engine's `held` says."""
        engine.adopt(weights, version)


@dataclass(frozen=True)
class Kit:
    """What a worker is made of; it is sent once."""

    make_env: Callable[[], Env]
    engine: Opens
    tokenizer: Any
    temperature: float
    max_new_tokens: int
    settings: Settings
    threads: int


class RolloutWorker:
    """Plays groups on the node that it was placed on."""

    def __init__(self, kit: Kit) -> None:
        torch.set_num_threads(kit.threads)
        self.kit, self.version = kit, -1
        self.watchdog: Watchdog | None = None
        self.engine = kit.engine.open()
        self.policy = LLMPolicy(
            self.engine,
            Renderer(kit.tokenizer),
            temperature=kit.temperature,
            max_new_tokens=kit.max_new_tokens,
        )

    def opened(self) -> str:
        """Return the name of its node."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def play(self, jobs: Sequence[Job], weights: Sequence[Any], version: int) -> Iterator[Any]:
        """Yield the episodes of each group when its last one is over.

        Args:
            jobs: of whole groups.
            weights: one thing that `Opens.give` takes; it is taken if the version is new here.
            version: of these weights.
        """
        torch.set_num_threads(self.kit.threads)  # of this thread: Ray calls from another one
        self._take(weights, version)
        sizes, done = Counter(job.group for job in jobs), dict[str, list[Episode]]()
        for episode in self._play(jobs):
            group = done.setdefault(episode.group, [])
            group.append(episode)
            if len(group) == sizes[episode.group]:
                yield done.pop(episode.group)

    def _play(self, jobs: Sequence[Job]) -> Iterator[Episode]:
        self.watchdog = watchdog = Watchdog()
        kit = self.kit
        try:
            with watchdog.beside():
                yield from play(jobs, kit.make_env, self.policy, kit.settings, watchdog)
        finally:
            self.watchdog = None

    def _take(self, weights: Sequence[Any], version: int) -> None:
        if version != self.version:
            self.kit.engine.give(self.engine, weights[0], version)
            self.version = version

    def stuck(self) -> tuple[float, str]:
        """Return for how many seconds its rollout has not come back from a call, and which."""
        watchdog = self.watchdog
        return (0.0, "") if watchdog is None else (watchdog.stuck_s, watchdog.stuck())
