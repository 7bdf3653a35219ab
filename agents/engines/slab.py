"""Keys and values of every live episode: one slot each, ragged lengths, addressed by slot.

What a call is made of is known on the host, so that nothing waits for the device; and on a GPU its
shapes are rounded up to few (`grain`), which its allocator and compiled kernels then meet again.

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

    Args:
        grain: lengths are rounded up to a multiple of it, rows and new tokens to powers of two; 1
            rounds nothing. None takes 1 on a CPU, where padding costs time, and 64 elsewhere.
    """

    def __init__(
        self, decoder: Decoder, slots: int, max_len: int, *, grain: int | None = None
    ) -> None:
        weight = decoder.embed.weight
        shape = (slots, max_len + 1, decoder.kv_heads, decoder.head_dim)
        self.decoder, self.slots, self.max_len = decoder, slots, max_len
        self.keys, self.values = (
            [torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in decoder.layers]
            for _ in range(2)
        )
        self.lengths = [0] * slots
        self.device = weight.device
        self.grain = grain or (1 if weight.device.type == "cpu" else 64)

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
        starts, counts = [self.lengths[s] for s in slots], [len(ids) for ids in new_ids]
        rows, n = self._rows(slots), self._many(max(counts))
        top = max(start + count for start, count in zip(starts, counts, strict=True))
        more = [0] * (len(rows) - len(slots))
        padded = [[*x, *([0] * (n - len(x)))] for x in (*new_ids, *([] for _ in more))]
        ids = torch.tensor(padded, device=self.device)
        starts_R, counts_R = torch.tensor([starts + more, counts + more], device=self.device)
        steps = torch.arange(n, device=self.device)
        real = steps < counts_R[:, None]
        hidden = self._forward(rows, ids, starts_R[:, None] + steps, real, self._length(top))
        for slot, x in zip(slots, new_ids, strict=True):
            self.lengths[slot] += len(x)
        last = torch.arange(len(slots), device=self.device), counts_R[: len(slots)] - 1
        return self.decoder.logits(hidden[last])

    def _forward(
        self, rows: Sequence[int], ids: Tensor, positions: Tensor, real: Tensor, top: int
    ) -> Tensor:
        where = positions.masked_fill(~real, self.max_len)
        at, view = torch.tensor(rows, device=self.device)[:, None], self._view(rows)
        mask = torch.arange(top, device=self.device) <= positions[..., None]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.keys[layer], self.values[layer]
            keys[at, where] = k
            values[at, where] = v
            return grouped_attention(q, keys[view, :top], values[view, :top], mask)

        return self.decoder.hidden(ids, where, attend)

    def _view(self, rows: Sequence[int]) -> Tensor | slice:
        """Address rows without a copy where they are consecutive."""
        span = range(rows[0], rows[0] + len(rows))
        same = list(rows) == list(span)
        return slice(span.start, span.stop) if same else torch.tensor(rows, device=self.device)

    def _rows(self, slots: Sequence[int]) -> list[int]:
        """Return a round many: `slots`, then any, of which the scratch alone is written.

        Those that follow come first, so that consecutive rows stay so.
        """
        more = min(self._many(len(slots)), self.slots) - len(slots)
        return [*slots, *range(slots[-1] + 1, self.slots), *range(slots[-1])][: len(slots) + more]

    def _many(self, count: int) -> int:
        return count if self.grain == 1 else 1 << (count - 1).bit_length()

    def _length(self, top: int) -> int:
        return min(-(-top // self.grain) * self.grain, self.max_len)
