"""Losses over a large vocabulary: the logits of a few tokens at a time, forward and backward.

The logits of 4096 tokens over 150 000 words are 2.4 GB, and a loss keeps several tensors of that
size. What a loss needs of them is a number or two per token; the backward pass computes the logits
of each part again.

Shape suffixes: M trained tokens, m of a part, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Find = Callable[[Tensor, slice], tuple[Tensor, ...]]
"""(logits [m, V], which of the M tokens these are) -> columns [m]."""
Head = Callable[[Tensor], Tensor]
"""Hidden states [m, D] to logits, float32 [m, V]."""
LOGITS_AT_ONCE = 2**24
"""Logits that are held at once: 64 MB; a batch that has fewer is one part, and nothing is computed
again."""


def parts_of(tokens: int, rows: int) -> list[slice]:
    """Return consecutive slices of so many rows each: all of `tokens`; one, if there are none."""
    return [slice(first, first + rows) for first in range(0, max(tokens, 1), rows)]


def rows_at_once(logits: int, words: int) -> int:
    """Return of how many tokens so many logits are, one at least."""
    return max(1, logits // words)


def by_parts(head: Head, hidden_MD: Tensor, find: Find, rows: int) -> tuple[Tensor, ...]:
    """Return the columns that `find` gives of all tokens, [M] each.

    Args:
        rows: tokens of a part.
    """
    if len(hidden_MD) <= rows:
        return find(head(hidden_MD), slice(None))

    def of(hidden_mD: Tensor, part: slice) -> tuple[Tensor, ...]:
        return find(head(hidden_mD), part)

    parts = parts_of(len(hidden_MD), rows)
    found = [_forgotten(of, hidden_MD[part], part) for part in parts]
    return tuple(map(torch.cat, zip(*found, strict=True)))


def _forgotten(
    of: Callable[[Tensor, slice], tuple[Tensor, ...]], hidden_mD: Tensor, part: slice
) -> tuple[Tensor, ...]:
    if not torch.is_grad_enabled():
        return of(hidden_mD, part)
    found: tuple[Tensor, ...] = checkpoint(
        of, hidden_mD, part, use_reentrant=False, preserve_rng_state=False
    )
    return found
