"""Attention of a whole micro-batch in one call, without padding, by PyTorch's FlexAttention.

The flat row of a micro-batch is a forest: prompts, and what followed each of them in every attempt.
A token sees its ancestors alone: of its own run what came before it, of its prompt what its row
saw. FlexAttention [arXiv:2412.05496] takes that as a function of two places, and its compiled
kernel leaves out blocks of keys that no query of a block sees. Uncompiled it holds all scores.

Suffixes: N tokens, H heads, K key-value heads, E head size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from turnwise.agents.engines.functional import Attend, Decoder
from turnwise.trainers.batch import Packed, Row, pack, totals_of
from turnwise.trainers.precision import Precision
from turnwise.trainers.surrogates import token_mean

log = logging.getLogger("turnwise")

Attention = Callable[[Packed], Attend]
"""A micro-batch to the attention of its tokens; what it needs for all layers is made once."""
Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, place of a query, place of a key) -> bool: whether the query may look there."""


def ancestors(packed: Packed) -> Sees:
    """Return which places of the flat row each of them sees: itself and its ancestors."""
    prompts, rests = packed.prompt_lengths, packed.rest_lengths
    starts = np.cumsum([0, *prompts, *rests])[:-1]
    above = np.concatenate((np.zeros_like(prompts), starts[packed.prompt_of_B.cpu().numpy()]))
    above_end = above + np.array([*(0 for _ in prompts), *packed.seen_of_B])
    spans = np.repeat(np.stack((starts, above, above_end)), [*prompts, *rests], axis=1)
    own_N, above_N, above_end_N = torch.from_numpy(spans).to(packed.ids_N.device)

    def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own = (own_N[q] <= k) & (k <= q)
        return own | ((above_N[q] <= k) & (k < above_end_N[q]))

    return sees


def in_one_row(
    packed: Packed,
    *,
    sees: Callable[[Packed], Sees] = ancestors,
    flex: Callable[..., Tensor] = flex_attention,
) -> Attend:
    """Return attention of all tokens at once: q [N, H, E], k and v [N, K, E] to [N, H, E].

    Args:
        sees: who may look where.
        flex: `flex_attention`, compiled or not.
    """
    n, device = len(packed.ids_N), packed.ids_N.device
    mask = create_block_mask(sees(packed), None, None, n, n, device=device)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Under autocast values come from a projection, and the others were rotated in float32.
        heads = (x.to(v.dtype).transpose(0, 1)[None] for x in (q, k, v))
        return flex(*heads, block_mask=mask, enable_gqa=True)[0].transpose(0, 1)

    return attend


def fastest(decoder: Decoder, precision: Precision, otherwise: Attention) -> Attention:
    """Return the compiled `in_one_row` on a GPU where it proves itself, else `otherwise`."""
    device = decoder.embed.weight.device
    if device.type != "cuda":
        return otherwise
    with precision(device):
        return proved(partial(in_one_row, flex=_compiled()), otherwise, decoder)


@cache
def _compiled() -> Callable[..., Tensor]:
    # The full graph or an error: to fall back to all scores at once would go unseen.
    # Graphs with a gradient and without, and of every layout that is met, are kept side by side.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def proved(attention: Attention, otherwise: Attention, decoder: Decoder) -> Attention:
    """Return `attention` if it gives what `otherwise` gives on small forests, else that one.

    Outputs, with a graph and without, and gradients are compared in the precision that is in force,
    on the decoder's device.
    """
    weight = decoder.embed.weight
    half = torch.is_autocast_enabled(weight.device.type)
    dtype = torch.get_autocast_dtype(weight.device.type) if half else weight.dtype
    try:
        forests = (_forest(weight.device, of) for of in (1, 8))
        gap = max(_gap(attention, otherwise, decoder, dtype, packed) for packed in forests)
    except Exception as error:  # there is no list of what compilers and drivers raise
        log.warning("attention in one row is not there, blocks are padded: %s", error)
        return otherwise
    if not gap < (1e-4 if dtype == torch.float32 else 3e-2):
        log.warning("attention in one row is off by %.1e, blocks are padded", gap)
        return otherwise
    return attention


def _gap(
    one: Attention, other: Attention, decoder: Decoder, of_values: torch.dtype, packed: Packed
) -> float:
    """Largest difference of outputs and gradients, relative."""
    weight, generator = decoder.embed.weight, torch.Generator().manual_seed(0)

    def drawn(heads: int, dtype: torch.dtype) -> Tensor:
        x = torch.randn(len(packed.ids_N), heads, decoder.head_dim, generator=generator)
        return x.to(weight.device, dtype).requires_grad_()

    q, k = drawn(decoder.heads, weight.dtype), drawn(decoder.kv_heads, weight.dtype)
    v, along = drawn(decoder.kv_heads, of_values), drawn(decoder.heads, torch.float32).detach()
    found = []
    for attention in (one, other):
        with torch.no_grad():
            bare = attention(packed)(0, q, k, v).float()
        with torch.enable_grad():
            out = attention(packed)(0, q, k, v).float()
            found.append((bare, out, *torch.autograd.grad((out * along).sum(), (q, k, v))))
    gaps = [(a - b).float().norm() / b.float().norm() for a, b in zip(*found, strict=True)]
    return max(gap.item() for gap in gaps)


def _forest(device: torch.device, times: int) -> Packed:
    """Two prompts, rows that branch off at several places of them; 93 tokens or as often more."""
    rows = [
        Row((1,) * n * times, [1] * rest * times, [], [], [], [], 0, seen=seen * times)
        for n, rest, seen in ((19, 25, 19), (19, 1, 9), (8, 23, 8), (8, 17, 1))
    ]
    return pack(rows, aggregate=token_mean, totals=totals_of(rows), device=device)
