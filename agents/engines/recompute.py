"""The cache of architectures that the functional forward does not know: none at all.

Every call runs the Hugging Face model over whole histories. Slow, and right for any causal model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Recompute:
    """Keeps token ids per slot instead of keys and values; the same calls as `Slab`."""

    def __init__(self, model: nn.Module, slots: int) -> None:
        self.model = model
        self.lengths = [0] * slots
        self._ids: list[list[int]] = [[] for _ in range(slots)]

    def copy_prefix(self, source: int, targets: Sequence[int], length: int) -> None:
        """Give `targets` the first `length` tokens of `source`."""
        for target in targets:
            self._ids[target] = self._ids[source][:length]
            self.lengths[target] = length

    @torch.no_grad()
    def extend(self, slots: Sequence[int], new_ids: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens and return float32 logits [B, V] after each row's last one."""
        for slot, ids in zip(slots, new_ids, strict=True):
            self._ids[slot] = [*self._ids[slot][: self.lengths[slot]], *ids]
            self.lengths[slot] = len(self._ids[slot])
        rows = [self._ids[slot] for slot in slots]
        width = max(map(len, rows))
        device = next(self.model.parameters()).device
        padded = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        lengths = torch.tensor(list(map(len, rows)), device=device)
        mask = (torch.arange(width, device=device) < lengths[:, None]).long()
        logits = self.model(input_ids=padded, attention_mask=mask).logits
        return logits[torch.arange(len(rows), device=device), lengths - 1].float()
