"""Attention of a micro-batch by padded blocks of similar runs, which every device has.

Prompts attend to themselves, rows to their prompt and themselves; a token of a run looks at no
other run. `turnwise.trainers.tree_attention` does the same without padding, on a GPU.

Shape suffixes: N tokens, G prompts, B rows. In a block of similar runs, B of them have at most S
tokens and at most P in front; H heads, K key-value heads, E head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from turnwise.agents.engines.functional import Attend, causal_attention, grouped_attention
from turnwise.trainers.batch import Packed


def in_blocks(packed: Packed) -> Attend:
    """Return attention by padded blocks, which every device has."""
    return _Layout(packed).attend


class _Layout:
    """Where each flat token sits in the padded blocks that attention needs.

    Sequences of similar length share a block, so that short ones are not padded to the longest.
    """

    def __init__(self, packed: Packed) -> None:
        prompts, rests = packed.prompt_lengths, packed.rest_lengths
        starts_G = np.cumsum([0, *prompts])
        starts_B = starts_G[-1] + np.cumsum([0, *rests])
        device, mine_B = packed.ids_N.device, packed.prompt_of_B.tolist()
        seen_B = packed.seen_of_B
        none = _Block([], [], device)
        self.blocks = [
            (_Block([starts_G[g] for g in some], [prompts[g] for g in some], device), none)
            for some in _similar(prompts)
        ]
        for some in _similar(rests, seen_B):
            own = _Block([starts_B[b] for b in some], [rests[b] for b in some], device)
            at = [starts_G[mine_B[b]] for b in some]
            self.blocks.append((own, _Block(at, [seen_B[b] for b in some], device)))
        self.back = torch.cat([own.index for own, _ in self.blocks]).argsort()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Prompts attend to themselves; rows to their prompt and themselves."""
        return torch.cat([_own(own, ahead, q, k, v) for own, ahead in self.blocks])[self.back]


def _own(own: _Block, ahead: _Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the tokens of `own` to themselves and to those `ahead` of them. [tokens, ...]"""
    if not ahead.width:
        # Padding is behind the end of a run, where no token of it looks.
        return own.flat(causal_attention(own.pad(q), own.pad(k), own.pad(v)))
    keys = torch.cat((ahead.pad(k), own.pad(k)), 1)
    values = torch.cat((ahead.pad(v), own.pad(v)), 1)
    return own.flat(_causal(own.pad(q), keys, values, ahead.real))


CHUNK = 128
"""Queries per attention call: keys behind the last of them are not looked at at all."""


def _causal(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention of each query to `seen` keys in front and to its own row up to itself.

    Args:
        q: [B, S, H, E].
        k: [B, P + S, K, E], `v` alike: the keys in front, then those of the row.
        seen: bool [B, P].
    """
    rows, width, ahead = q.shape[0], q.shape[1], seen.shape[1]
    tril = torch.ones(width, width, dtype=torch.bool, device=q.device).tril()
    parts = []
    for first in range(0, width, CHUNK):
        last = min(first + CHUNK, width)
        own = tril[first:last, :last].expand(rows, -1, -1)
        mask = torch.cat((seen[:, None].expand(-1, last - first, -1), own), -1)
        end = ahead + last
        parts.append(grouped_attention(q[:, first:last], k[:, :end], v[:, :end], mask))
    return torch.cat(parts, 1) if parts else q


def _similar(*lengths: Sequence[int]) -> list[list[int]]:
    """Group indices so that each of their lengths is within a third of the others'."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, some in enumerate(zip(*lengths, strict=True)):
        key = tuple([round(math.log(max(n, 1)) / math.log(4 / 3)) for n in some])
        groups.setdefault(key, []).append(i)
    return list(groups.values())


class _Block:
    """Ragged runs of the flat tokens as a padded block and back.

    Args:
        starts: where each run begins in the flat row.
        lengths: of the runs, in tokens.
    """

    def __init__(self, starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> None:
        self.width = max(lengths, default=0)
        counts = torch.tensor(list(lengths), dtype=torch.int64, device=device)
        steps = torch.arange(self.width, device=device)
        self.real = steps < counts[:, None]
        first = torch.tensor(np.array(starts, np.int64), device=device)
        # Behind its end a run repeats its first token, which the mask hides.
        self.places = first[:, None] + torch.where(self.real, steps, 0)
        self.index = self.places[self.real]

    def pad(self, x: Tensor) -> Tensor:
        """[N, ...] to [runs, width, ...]."""
        return x[self.places]

    def flat(self, x: Tensor) -> Tensor:
        """[runs, width, ...] to [tokens of the runs, ...]."""
        return x[self.real]
