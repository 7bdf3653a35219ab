"""Log-probabilities of the trained tokens of a micro-batch, with their graph.

One forward pass over every token once: the projections and MLPs see flat tokens without padding, a
group's prompt is computed once and attended to by all its attempts, and the output layer runs at
the trained positions alone. Architectures that `Decoder` does not know run their own backbone over
padded rows; see `turnwise.trainers.halves`.

Shape suffixes: N tokens, M trained tokens, B padded rows of at most T tokens, D hidden, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from turnwise.agents.engines.functional import (
    SUPPORTED,
    Attend,
    Decoder,
    NotEquivalent,
    base_model,
    prove,
    require_fixed_positions,
    supported,
)
from turnwise.trainers.batch import Packed
from turnwise.trainers.block_attention import in_blocks
from turnwise.trainers.halves import Halves, halves, padded
from turnwise.trainers.precision import Precision, fp32, recomputed
from turnwise.trainers.tree_attention import Attention, fastest
from turnwise.trainers.vocabulary import LOGITS_AT_ONCE, Find, Head, by_parts, rows_at_once


class Scorer:
    """Scores packed rows with a causal model.

    Args:
        model: a Hugging Face causal model, adapters included.
        max_len: longest sequence in tokens.
        precision: of the matrix products; softmaxes are float32 in any.
        recompute: keep no activations inside the layers, and compute them again when the gradient
            passes.
        attention: of a micro-batch.
        flex: on a GPU, a compiled `flex_attention` in its place if it proves itself equal.

    Raises:
        ValueError: `recompute` is asked for an architecture that `Decoder` does not know, or the
            model reads the beginning of sequences of `max_len` otherwise than of short ones.
    """

    def __init__(
        self,
        model: nn.Module,
        max_len: int,
        *,
        precision: Precision = fp32,
        recompute: bool = False,
        attention: Attention | None = None,
        flex: bool = False,
    ) -> None:
        require_fixed_positions(model, max_len)
        self.model, self.max_len, self.precision = model, max_len, precision
        self.logits_at_once = LOGITS_AT_ONCE
        self.decoder: Decoder | None = None
        self.attention = attention or in_blocks
        if supported(model):
            decoder = Decoder(model, max_len)
            try:
                prove(model, decoder)
                self.decoder = decoder
                if flex:
                    self.attention = fastest(decoder, precision, self.attention)
            except NotEquivalent:
                self.decoder = None
        self.forward: Callable[..., tuple[Tensor, ...]] | None = None
        """What runs `of_decoder` or `of_model`, if whoever shards the model put itself in front."""
        if recompute:
            self._recompute()

    def _recompute(self) -> None:
        if self.decoder is None:
            raise ValueError(
                f"checkpoint_activations works for {sorted(SUPPORTED)}, and this is "
                f"{type(base_model(self.model)).__name__}: lower micro_tokens instead"
            )
        self.decoder.through = recomputed(self.decoder.layer)

    def make_room(self, tokens: int) -> None:
        """Take sequences of up to so many tokens from now on.

        Raises:
            ValueError: the model reads their beginning otherwise than that of short ones.
        """
        if tokens > self.max_len:
            require_fixed_positions(self.model, tokens)
            self.max_len = tokens
            self.decoder = None if self.decoder is None else Decoder(self.model, tokens)

    def logprobs(self, packed: Packed) -> Tensor:
        """Return log_softmax(logits / T) of every trained token, float32 [M], nats.

        Raises:
            ValueError: a row is longer than `max_len`.
        """
        return self.each(packed, partial(_chosen, packed))[0]

    def logprobs_and_entropy(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Also return the entropy of the distribution at each trained token, detached [M]."""
        logprobs_M, entropy_M = self.each(packed, partial(_chosen_and_entropy, packed))
        return logprobs_M, entropy_M

    def logits(self, packed: Packed) -> Tensor:
        """Return the logits before each trained token, float32 [M, V], before the temperature.

        Raises:
            ValueError: a row is longer than `max_len`.
        """
        return self._run(packed, None)[0]

    def each(self, packed: Packed, find: Find) -> tuple[Tensor, ...]:
        """Return what `find` gives of each trained token, without holding all logits at once.

        Args:
            find: the logits of some trained tokens and which these are, to columns.

        Raises:
            ValueError: a row is longer than `max_len`.
        """
        return self._run(packed, find)

    def by_parts(self, packed: Packed) -> Callable[[slice], Tensor]:
        """Return what gives the logits of some of the trained tokens, [m, V], when it is called.

        They have this scorer's precision, also where another one's is in force by then.

        Raises:
            ValueError: a row is longer than `max_len`.
        """
        self._require_short(packed)
        device = packed.ids_N.device
        with self._own_precision(device) as attending:
            if self.decoder is None:
                hidden_MD, head = self._by_model(*padded(packed))
            else:
                attend, head = attending(self.attention(packed)), self.decoder.logits
                hidden_MD = self.decoder.hidden(packed.ids_N, packed.positions_N, attend)
                hidden_MD = hidden_MD[packed.at_M]

        def of(part: slice) -> Tensor:
            with self._own_precision(device):
                return head(hidden_MD[part])

        return of

    @contextmanager
    def _own_precision(self, device: torch.device) -> Iterator[Callable[[Attend], Attend]]:
        with torch.autocast(device.type, enabled=False), self.precision(device) as attending:
            yield attending

    def _run(self, packed: Packed, find: Find | None) -> tuple[Tensor, ...]:
        self._require_short(packed)
        with self.precision(packed.ids_N.device) as attending:
            if self.decoder is None:
                return (self.forward or self.of_model)(*padded(packed), find)
            attend = attending(self.attention(packed))
            run = self.forward or self.of_decoder
            return run(packed.ids_N, packed.positions_N, packed.at_M, attend, find)

    def _require_short(self, packed: Packed) -> None:
        longest = max([row.start + len(row) for row in packed.rows] + packed.prompt_lengths)
        if longest > self.max_len:
            raise ValueError(
                f"a row of {longest} tokens is longer than max_len {self.max_len}: raise it, or "
                f"play with Settings(max_tokens={self.max_len})"
            )

    def of_decoder(
        self, ids_N: Tensor, positions_N: Tensor, at_M: Tensor, attend: Attend, find: Find | None
    ) -> tuple[Tensor, ...]:
        """Return what `find` gives of the tokens `at_M`, or their logits, float32 [M, V]."""
        assert self.decoder is not None
        hidden_MD = self.decoder.hidden(ids_N, positions_N, attend)[at_M]
        return self._found(self.decoder.logits, hidden_MD, find)

    def of_model(
        self, ids_BT: Tensor, mask_BT: Tensor, at: tuple[Tensor, Tensor], find: Find | None
    ) -> tuple[Tensor, ...]:
        """Return the same by the model's own layers; `at`: row and place of each token."""
        hidden_MD, head = self._by_model(ids_BT, mask_BT, at)
        return self._found(head, hidden_MD, find)

    def _found(self, head: Head, hidden_MD: Tensor, find: Find | None) -> tuple[Tensor, ...]:
        if find is None:
            return (head(hidden_MD),)
        causal: Any = base_model(self.model)
        words = int(causal.config.get_text_config().vocab_size)
        rows = rows_at_once(self.logits_at_once, words)
        return by_parts(head, hidden_MD, find, rows)

    def _by_model(
        self, ids_BT: Tensor, mask_BT: Tensor, at: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Head]:
        """Architectures that `Decoder` does not know: the model's own backbone over padded rows.

        Returns:
            What its output layer reads before each trained token, [M, D], and the layer. Where the
            model does more than these two, its logits there, [M, V], and what leaves them so.
        """
        if self.halves is None:
            return self.model(input_ids=ids_BT, attention_mask=mask_BT).logits[at], Tensor.float
        return self.halves.hidden(ids_BT, mask_BT)[at], self.halves.logits

    @cached_property
    def halves(self) -> Halves | None:
        """Backbone and output layer, if the model is these two; looked at when they are needed."""
        return halves(self.model, self.max_len)


def _chosen(packed: Packed, logits: Tensor, part: slice) -> tuple[Tensor]:
    scaled = logits / packed.temperature_M[part, None]
    chosen = scaled.gather(-1, packed.target_M[part, None])[:, 0]
    return (chosen - scaled.logsumexp(-1),)


def _chosen_and_entropy(packed: Packed, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logp = torch.log_softmax(logits / packed.temperature_M[part, None], -1)
        entropy = -(logp.exp() * logp).sum(-1)
    return *_chosen(packed, logits, part), entropy
