"""The trained weights split over the processes by FSDP2: each holds a part of every tensor.

Weights, gradients and optimizer are sharded. A layer's weights are gathered while it runs, and its
gradient is summed and split again as soon as it is there. What plays, `model`, is a plain replica
on every rank, which `publish` fills after each step.

Accelerate's FSDP plugin wants a GPU or another accelerator and a forward pass through the wrapped
module; `fully_shard` of torch does without, and the packed forward pass runs inside its hooks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from turnwise.agents.engines.functional import base_model
from turnwise.trainers import ranks
from turnwise.trainers.replicated import spread
from turnwise.trainers.scorer import Scorer
from turnwise.trainers.shards import (
    SHARDS,
    read_shards,
    split_optimizer,
    split_weights,
    write_shards,
)


class Sharded:
    """A part of the weights on every rank.

    Args:
        model: a causal model; moved to Accelerate's device, and made rank 0's on all ranks.
        score: makes the scorer of a copy of it, which is then sharded.
        optimize: makes an optimizer of the trained shards.

    Raises:
        ValueError: there is one process.
    """

    level = True
    """Ranks take as many forward passes, since each is a collective."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        score: Callable[[nn.Module], Scorer],
        optimize: Callable[[list[nn.Parameter]], Optimizer],
    ) -> None:
        if ranks.count() == 1:
            raise ValueError(
                "shard splits the weights over processes, and there is one: start with "
                "--processes 2, or leave --shard out"
            )
        self.accelerator = accelerator
        self.model = accelerator.prepare_model(model, evaluation_mode=True)
        spread(self.model)
        self.split = copy.deepcopy(self.model)
        self.scorer = score(self.split)
        shard(self.scorer)
        self.trained = [p for p in self.split.parameters() if p.requires_grad]
        self.optimizer = optimize(self.trained)

    def sum_gradients(self) -> None:
        """Add up what the ranks found: it is done in each backward pass."""

    def clip(self, most: float) -> float:
        """Scale the gradient of all shards down to length `most`; return what it had."""
        norm = torch.nn.utils.clip_grad_norm_(self.trained, most)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    @torch.no_grad()
    def publish(self) -> None:
        """Bring the replica up to the trained weights."""
        pairs = zip(self.model.parameters(), self.split.parameters(), strict=True)
        for whole, part in pairs:
            if part.requires_grad:
                whole.copy_(part.full_tensor())

    def save(self, folder: Path) -> None:
        """Write the shards, each rank its own; the folder is one that all ranks see."""
        write_shards(folder / SHARDS, self.split, self.optimizer)

    def load(self, folder: Path) -> None:
        """Read what this or `Replicated` wrote."""
        if (folder / SHARDS).exists():
            read_shards(folder / SHARDS, self.split, self.optimizer)
        else:
            self.accelerator.load_state(str(folder))
            split_weights(self.model, self.split)
            split_optimizer(folder / "optimizer.bin", self.trained, self.optimizer)
        self.publish()


def shard(scorer: Scorer) -> None:
    """Shard a scorer's model in place: by layer where its forward pass is ours, else as a whole.

    A model that is a backbone and an output layer stays these two inside its hooks.
    """
    device = next(scorer.model.parameters()).device
    mesh = init_device_mesh(device.type, (ranks.count(),))
    causal, decoder = base_model(scorer.model), scorer.decoder
    if decoder is not None:
        decoder.rope(torch.zeros(1, dtype=torch.int64, device=device))  # while weights are whole
        run, layers = decoder.through, list[Any](decoder.layers)  # type: ignore[arg-type]
        for i, layer in enumerate(layers):
            layer.forward = partial(run, i)
            fully_shard(layer, mesh=mesh)
        decoder.through = lambda i, *rest: layers[i](*rest)
        causal.forward = scorer.of_decoder
        scorer.forward = causal
    elif scorer.halves is not None:  # found while weights are whole
        causal.forward = scorer.of_model
        scorer.forward = causal
    fully_shard(causal, mesh=mesh)
    for module in causal.modules():
        if isinstance(module, FSDPModule):
            _sum_gradients(module)


def _sum_gradients(module: FSDPModule) -> None:
    """Have gradients summed over ranks, not averaged: denominators are those of the batch."""
    module.set_force_sum_reduction_for_comms(True)
    module.set_gradient_divide_factor(1.0)
