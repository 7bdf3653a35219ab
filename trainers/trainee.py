"""A model being trained, and what plays with its weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from turnwise.agents.engines.base import Engine
from turnwise.agents.policy import LLMPolicy
from turnwise.agents.renderer import Renderer, remember
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.engines import Sampler, sampler_for
from turnwise.trainers.learner import Learner
from turnwise.trainers.model import add_lora
from turnwise.trainers.precision import PRECISIONS


@dataclass
class Trainee:
    """A model being trained, and the engine and policy that play with its weights."""

    model: nn.Module
    tokenizer: Any
    renderer: Renderer
    learner: Learner
    sampler: Sampler
    policy: LLMPolicy

    @property
    def engine(self) -> Engine:
        """What samples."""
        return self.sampler.engine

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any, config: TrainConfig) -> Trainee:
        """Build learner, engine and policy around a loaded model."""
        torch.set_num_threads(config.threads)
        positions = getattr(model.config, "max_position_embeddings", config.max_tokens)
        if config.max_tokens > positions:
            raise ValueError(
                f"max_tokens {config.max_tokens} is more than the {positions} positions of the "
                "model; lower it"
            )
        if config.lora_rank:
            model = add_lora(model, config.lora_rank, seed=config.seed)
        learner = Learner(
            model,
            learning_rate=config.learning_rate,
            schedule=partial(_schedule, config=config),
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            micro_tokens=config.micro_tokens,
            max_len=config.max_tokens,
            precision=PRECISIONS[config.precision],
            recompute=config.checkpoint_activations,
            flex=config.flex_attention,
            shard=config.shard,
        )
        remember(tokenizer, config.recall)
        renderer = Renderer(tokenizer)
        sampler = sampler_for(config, learner, tokenizer)
        policy = LLMPolicy(
            sampler.engine,
            renderer,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
        )
        return cls(model, tokenizer, renderer, learner, sampler, policy)

    def publish(self) -> None:
        """Tell the engine that the weights have changed."""
        self.sampler.publish(self.learner.updates)


def _schedule(update: int, config: TrainConfig) -> float:
    """Warm up linearly, hold, then fall linearly to a tenth."""
    step, total = update / config.updates_per_step, config.steps
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    start = config.decay_from * total
    left = 1.0 if step <= start else max(0.1, 1 - 0.9 * (step - start) / max(total - start, 1))
    return warm * left
