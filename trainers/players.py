"""Who plays a batch in flight: weights of its own, and an engine that samples with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from turnwise.agents.engines.functional import base_model
from turnwise.agents.jobs import Job
from turnwise.agents.policy import LLMPolicy
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import play
from turnwise.agents.watchdog import Watchdog
from turnwise.envs.types import Episode
from turnwise.trainers import ranks
from turnwise.trainers.attempts import Attempts
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.engines import base_of, player_for
from turnwise.trainers.trainee import Trainee


class Player:
    """Weights of its own, an engine that plays with them, and the policy that acts by it.

    Args:
        number: which of the players it is.
    """

    def __init__(self, trainee: Trainee, config: TrainConfig, number: int) -> None:
        self.trainee = trainee
        theirs = trainee.policy
        self.model = self.replica()
        # A tokenizer that two threads use at once may fail: "Already borrowed".
        tokenizer = copy.deepcopy(trainee.tokenizer)
        self.sampler = player_for(config, self.model, tokenizer, number)
        self.policy = LLMPolicy(
            self.sampler.engine,
            Renderer(tokenizer),
            temperature=theirs.temperature,
            max_new_tokens=theirs.sampling.max_tokens,
        )

    def replica(self) -> nn.Module:
        """Return a model of its own, with the trainee's weights."""
        return copy.deepcopy(base_of(self.trainee.learner)).requires_grad_(False)

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

    def play(
        self, jobs: Sequence[Job], attempts: Attempts, watchdog: Watchdog
    ) -> Iterable[Episode]:
        """Play `jobs` as `attempts` says; yield each episode when it is over."""
        return play(jobs, attempts.make_env, self.policy, attempts.settings, watchdog)

    def share_out(
        self, jobs: Sequence[Job], run: Callable[[Sequence[Job]], Iterable[Episode]]
    ) -> list[Episode]:
        """Return the episodes of all `jobs`: who of the processes runs which."""
        return ranks.share_out(jobs, run)

    def close(self) -> None:
        """Close its connections."""
        self.sampler.close()
