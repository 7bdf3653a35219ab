"""Log-probabilities of the trained tokens of a micro-batch, with their graph.

One forward pass over every token once: the projections and MLPs see flat tokens without padding, a
group's prompt is computed once and attended to by all its attempts, and the output layer runs at
the trained positions alone.

Shape suffixes: N tokens, M trained tokens, G prompts of at most P tokens, B rows of at most S.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from turnwise.agents.engines.functional import (
    Decoder,
    NotEquivalent,
    grouped_attention,
    prove,
    supported,
)
from turnwise.trainers.batch import Packed


class Scorer:
    """Scores packed rows with a causal model.

    Args:
        model: a Hugging Face causal model, adapters included.
        max_len: longest sequence in tokens.
    """

    def __init__(self, model: nn.Module, max_len: int) -> None:
        self.model, self.max_len = model, max_len
        self.decoder: Decoder | None = None
        if supported(model):
            decoder = Decoder(model, max_len)
            try:
                prove(model, decoder)
                self.decoder = decoder
            except NotEquivalent:
                self.decoder = None

    def logprobs(self, packed: Packed) -> Tensor:
        """Return log_softmax(logits / T) of every trained token, float32 [M], nats.

        Raises:
            ValueError: a row is longer than `max_len`.
        """
        return self._chosen(packed, self._logits(packed))

    def logprobs_and_entropy(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Also return the entropy of the distribution at each trained token, detached [M]."""
        logits_MV = self._logits(packed)
        with torch.no_grad():
            logp_MV = torch.log_softmax(logits_MV / packed.temperature_M[:, None], -1)
            entropy_M = -(logp_MV.exp() * logp_MV).sum(-1)
        return self._chosen(packed, logits_MV), entropy_M

    def _logits(self, packed: Packed) -> Tensor:
        longest = max(len(row.prompt) + len(row) for row in packed.rows)
        if longest > self.max_len:
            raise ValueError(
                f"a row of {longest} tokens is longer than max_len {self.max_len}: raise it, or "
                f"play with Settings(max_tokens={self.max_len})"
            )
        if self.decoder is None:
            return self._by_model(packed)
        layout = _Layout(packed)
        hidden_ND = self.decoder.hidden(packed.ids_N, packed.positions_N, layout.attend)
        return self.decoder.logits(hidden_ND[packed.at_M])

    def _chosen(self, packed: Packed, logits_MV: Tensor) -> Tensor:
        scaled_MV = logits_MV / packed.temperature_M[:, None]
        chosen_M = scaled_MV.gather(-1, packed.target_M[:, None])[:, 0]
        return chosen_M - scaled_MV.logsumexp(-1)

    def _by_model(self, packed: Packed) -> Tensor:
        """Architectures that `Decoder` does not know: the model itself over padded rows."""
        rows = [[*row.prompt, *row.rest] for row in packed.rows]
        width, device = max(map(len, rows)), packed.ids_N.device
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        lengths = torch.tensor(list(map(len, rows)), device=device)
        mask = (torch.arange(width, device=device) < lengths[:, None]).long()
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        where = [(b, len(r.prompt) + i - 1) for b, r in enumerate(packed.rows) for i in r.trained]
        b, t = torch.tensor(where, device=device).reshape(-1, 2).T
        return logits[b, t].float()


class _Layout:
    """Where each flat token sits in the padded blocks that attention needs.

    Rows of similar length share a block, so that short rows are not padded to the longest one.
    """

    def __init__(self, packed: Packed) -> None:
        device = packed.ids_N.device
        self.prompts = _Block(packed.prompt_lengths, device)
        self.prompt_of_B = packed.prompt_of_B
        buckets = _similar(packed.rest_lengths)
        self.rests = [_Block([packed.rest_lengths[b] for b in rows], device) for rows in buckets]
        self.rows = [torch.tensor(rows, device=device) for rows in buckets]
        starts = np.cumsum([0, *packed.rest_lengths])
        order = [i for rows in buckets for b in rows for i in range(starts[b], starts[b + 1])]
        self.order = torch.tensor(order, dtype=torch.int64, device=device)
        self.back = self.order.argsort()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Prompts attend to themselves; rows to their prompt and themselves."""
        cut = self.prompts.tokens
        pq, pk, pv = (self.prompts.pad(x[:cut]) for x in (q, k, v))
        prompts = _causal(pq, pk, pv, self.prompts.real[:, :0])
        parts, start = [self.prompts.flat(prompts)], 0
        q, k, v = (x[cut:][self.order] for x in (q, k, v))
        rests = []
        for block, rows in zip(self.rests, self.rows, strict=True):
            some = slice(start, start := start + block.tokens)
            mine = self.prompt_of_B[rows]
            keys = torch.cat((pk[mine], block.pad(k[some])), 1)
            values = torch.cat((pv[mine], block.pad(v[some])), 1)
            seen = self.prompts.real[mine]
            rests.append(block.flat(_causal(block.pad(q[some]), keys, values, seen)))
        return torch.cat((*parts, torch.cat(rests)[self.back])) if rests else parts[0]


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


def _similar(lengths: Sequence[int]) -> list[list[int]]:
    """Split rows so that each is at least three quarters as long as the longest beside it."""
    buckets: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not buckets or lengths[row] < 0.75 * lengths[buckets[-1][0]]:
            buckets.append([])
        buckets[-1].append(row)
    return buckets


class _Block:
    """Ragged rows as a padded block and back."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.rows, self.width, self.tokens = len(lengths), max(lengths, default=0), sum(lengths)
        counts = torch.tensor(list(lengths), device=device)
        self.real = torch.arange(self.width, device=device) < counts[:, None]
        self.index = self.real.flatten().nonzero()[:, 0]

    def pad(self, x: Tensor) -> Tensor:
        """[tokens, ...] to [rows, width, ...], zeros behind each row."""
        block = x.new_zeros(self.rows * self.width, *x.shape[1:])
        return block.index_copy(0, self.index, x).unflatten(0, (self.rows, self.width))

    def flat(self, x: Tensor) -> Tensor:
        """The inverse of `pad`."""
        return x.flatten(0, 1)[self.index]
