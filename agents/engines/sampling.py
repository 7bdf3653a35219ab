"""Draws that depend on a request's seed and the token's number, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def sample(
    logits: Tensor, temperatures: Sequence[float], seeds: Sequence[int], counters: Sequence[int]
) -> tuple[list[int], list[float]]:
    """Draw one token per row by inverting the CDF at a uniform number named by (seed, counter).

    Args:
        logits: float32 [B, V].
        temperatures: per row; 0 takes the likeliest token.

    Returns:
        B token ids and their log-probabilities under log_softmax(logits / T), in nats.
    """
    scale = torch.tensor([t or 1.0 for t in temperatures], device=logits.device)
    logprobs = torch.log_softmax(logits.float() / scale[:, None], -1)
    uniform = torch.from_numpy(uniforms(seeds, counters)).to(logits.device)
    cdf = logprobs.double().exp().cumsum(-1)
    drawn = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)[:, 0]
    drawn = drawn.clamp(max=logits.shape[-1] - 1)
    if 0.0 in temperatures:
        greedy = torch.tensor([t == 0 for t in temperatures], device=logits.device)
        drawn = torch.where(greedy, logits.argmax(-1), drawn)
    return drawn.tolist(), logprobs.gather(-1, drawn[:, None])[:, 0].tolist()


def uniforms(seeds: Sequence[int], counters: Sequence[int]) -> np.ndarray:
    """Return float64 numbers in [0, 1), a pure function of (seed, counter): SplitMix64."""
    with np.errstate(over="ignore"):
        x = np.asarray(seeds, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = _mix(x + np.uint64(0x632BE59BD9B4E019)) + np.asarray(counters, np.uint64)
        return (_mix(x * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
