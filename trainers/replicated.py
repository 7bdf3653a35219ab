"""The trained weights where every process holds all of them: one process, or data parallelism.

Each rank adds up the gradient of its own micro-batches, and one all-reduce per optimizer step sums
them over the ranks. torch's DistributedDataParallel would do the same from hooks in its own
forward, which the packed forward pass does not go through, and it wants as many backward passes on
every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from turnwise.trainers import ranks
from turnwise.trainers.model import quiet
from turnwise.trainers.scorer import Scorer
from turnwise.trainers.shards import SHARDS, read_shards

BUCKET = 2**24
"""Numbers of one all-reduce: few calls, and no second copy of all gradients."""


class Replicated:
    """All weights on every rank.

    Args:
        model: a causal model; moved to Accelerate's device, and made rank 0's on all ranks.
        score: makes its scorer.
        optimize: makes an optimizer of its trained parameters.
    """

    level = False
    """Ranks need not take as many forward passes."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        score: Callable[[nn.Module], Scorer],
        optimize: Callable[[list[nn.Parameter]], Optimizer],
    ) -> None:
        self.accelerator = accelerator
        self.model = accelerator.prepare_model(model, evaluation_mode=True)
        spread(self.model)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = accelerator.prepare_optimizer(optimize(self.trained))
        self.scorer = score(self.model)

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Add up what the ranks found; a parameter that none has a gradient for has none."""
        if ranks.count() == 1:
            return
        reached = torch.tensor([p.grad is not None for p in self.trained], dtype=torch.int32)
        dist.all_reduce(reached, op=dist.ReduceOp.MAX)
        for bucket in _buckets([p for p, on in zip(self.trained, reached, strict=True) if on]):
            _sum(bucket)

    def clip(self, most: float) -> float:
        """Scale the gradient down to length `most` and return the length that it had."""
        return float(self.accelerator.clip_grad_norm_(self.trained, most))

    def publish(self) -> None:
        """Bring `model` up to the trained weights: here it is they."""

    def save(self, folder: Path) -> None:
        """Write weights and optimizer with Accelerate; rank 0 does."""
        with quiet():
            self.accelerator.save_state(str(folder))

    def load(self, folder: Path) -> None:
        """Read what this or `Sharded` wrote."""
        if (folder / SHARDS).exists():
            read_shards(folder / SHARDS, self.model, self.optimizer)
        else:
            self.accelerator.load_state(str(folder))


@torch.no_grad()
def spread(model: nn.Module) -> None:
    """Give every rank the weights and buffers of rank 0."""
    if ranks.count() > 1:
        with ranks.named():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, src=0)


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[Tensor]]:
    """Return the gradients, zeros where this rank has none, in runs of one type and some size."""
    buckets: list[list[Tensor]] = []
    size = 0
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        full = not buckets or size + p.numel() > BUCKET or p.grad.dtype != buckets[-1][0].dtype
        if full:
            buckets.append([])
            size = 0
        buckets[-1].append(p.grad)
        size += p.numel()
    return buckets


def _sum(gradients: Sequence[Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
