"""What the matrix products of the trained forward pass are computed in, and what is kept of it.

The weights and their optimizer are float32 in any case. bf16 rounds the operands of every matrix
product; residuals, norms and softmaxes stay float32, the log-softmax over the vocabulary too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from turnwise.agents.engines.functional import Attend, Layer

Precision = Callable[[torch.device], AbstractContextManager[Callable[[Attend], Attend]]]
"""A device to the context of a forward pass there; it yields what is made of its attention."""


@contextmanager
def fp32(device: torch.device) -> Iterator[Callable[[Attend], Attend]]:
    """Compute as the weights are."""
    yield lambda attend: attend


@contextmanager
def bf16(device: torch.device) -> Iterator[Callable[[Attend], Attend]]:
    """Compute matrix products in bfloat16; attention in float32 on a CPU, where bfloat16 is slow
    and its softmax is rounded."""
    with torch.autocast(device.type, dtype=torch.bfloat16):
        yield _in_float32 if device.type == "cpu" else lambda attend: attend


PRECISIONS: dict[str, Precision] = {"fp32": fp32, "bf16": bf16}


def _in_float32(attend: Attend) -> Attend:
    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            return attend(layer, q.float(), k.float(), v.float())

    return attention


def recomputed(layer: Layer) -> Layer:
    """Return `layer` without its activations: the backward pass computes them again."""

    def again(i: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        if not torch.is_grad_enabled():
            return layer(i, x, cos, sin, attend)
        found: Tensor = checkpoint(
            layer, i, x, cos, sin, attend, use_reentrant=False, preserve_rng_state=False
        )
        return found

    return again
