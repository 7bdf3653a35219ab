"""Keys and values of every live episode: one slot each, ragged lengths, addressed by slot.

Suffixes: S slots, T positions, B rows of one call, n new tokens per row, K key-value heads, E size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from turnwise.agents.engines.functional import Decoder, grouped_attention


class Slab:
    """Preallocated keys and values [layer][S, T, K, E] beside a `Decoder`.

    The last position of each slot is scratch: padding writes there and nothing ever reads it.
    """

    def __init__(self, decoder: Decoder, slots: int, max_len: int) -> None:
        weight = decoder.embed.weight
        shape = (slots, max_len + 1, decoder.kv_heads, decoder.head_dim)
        self.decoder, self.slots, self.max_len = decoder, slots, max_len
        self.keys, self.values = (
            [torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in decoder.layers]
            for _ in range(2)
        )
        self.lengths = [0] * slots
        self.device = weight.device

    def copy_prefix(self, source: int, targets: Sequence[int], length: int) -> None:
        """Give `targets` the first `length` positions of `source`: a group pays once."""
        rows = torch.tensor(list(targets), device=self.device)
        for slab in (*self.keys, *self.values):
            slab[rows, :length] = slab[source, :length]
        for target in targets:
            self.lengths[target] = length

    @torch.no_grad()
    def extend(self, slots: Sequence[int], new_ids: Sequence[Sequence[int]]) -> Tensor:
        """Append `new_ids[b]` to slot `slots[b]` and return the logits after each row's last token.

        Returns:
            float32 [B, V].
        """
        rows = torch.tensor(list(slots), device=self.device)
        starts = torch.tensor([self.lengths[s] for s in slots], device=self.device)
        counts = torch.tensor([len(ids) for ids in new_ids], device=self.device)
        n = int(counts.max())
        ids = torch.tensor([[*x, *([0] * (n - len(x)))] for x in new_ids], device=self.device)
        steps = torch.arange(n, device=self.device)
        positions = starts[:, None] + steps
        real = steps < counts[:, None]
        hidden = self._forward(rows, ids, positions, real)
        for slot, x in zip(slots, new_ids, strict=True):
            self.lengths[slot] += len(x)
        last = hidden[torch.arange(len(rows), device=self.device), counts - 1]
        return self.decoder.logits(last)

    def _forward(self, rows: Tensor, ids: Tensor, positions: Tensor, real: Tensor) -> Tensor:
        top = int(positions.masked_fill(~real, 0).max()) + 1
        where = positions.masked_fill(~real, self.max_len)
        view = self._view(rows)
        mask = torch.arange(top, device=self.device) <= positions[..., None]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.keys[layer], self.values[layer]
            keys[rows[:, None], where] = k
            values[rows[:, None], where] = v
            return grouped_attention(q, keys[view, :top], values[view, :top], mask)

        return self.decoder.hidden(ids, where, attend)

    def _view(self, rows: Tensor) -> Tensor | slice:
        """Address rows without a copy where they are consecutive."""
        first, count = int(rows[0]), len(rows)
        consecutive = int(rows[-1]) - first + 1 == count and bool((rows.diff() == 1).all())
        return slice(first, first + count) if consecutive else rows
