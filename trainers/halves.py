"""A causal model's backbone and its output layer, called apart: logits only where they are needed.

For architectures that `Decoder` does not know. Some models do more than the two: they cap the
logits, scale or bias them, or change what the output layer reads. `halves` returns nothing for
those, and the model itself is run.

Shape suffixes: B rows, T positions, M trained tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from turnwise.agents.engines.functional import base_model
from turnwise.trainers.batch import Packed

PROBE = 12
"""Tokens of a row of the proof."""
TOLERANCE = 1e-5
"""Of hidden states, as a part of the largest of them; 1000 times as much below float32."""


class Halves:
    """The two halves of a causal model, which `halves` has proved to be all of it."""

    def __init__(self, model: nn.Module) -> None:
        self.causal: Any = base_model(model)

    @property
    def head(self) -> Any:
        """The output layer; None where the model names none."""
        return self.causal.get_output_embeddings()

    @property
    def backbone(self) -> Any:
        """What comes before it; the model itself where it names none."""
        return self.causal.base_model

    def hidden(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return what the backbone gives the output layer. [B, T, D]"""
        found = self.backbone(input_ids=ids_BT, attention_mask=mask_BT)
        hidden_BTD: Tensor = found.last_hidden_state
        return hidden_BTD

    def logits(self, hidden: Tensor) -> Tensor:
        """Return [..., V] in float32 from the selected rows of `hidden`."""
        logits: Tensor = self.head(hidden)
        return logits.float()


def halves(model: nn.Module, max_len: int) -> Halves | None:
    """Return backbone and output layer of a causal model, if they are all that it computes.

    None where a parameter is in neither of the two, where they disagree with the model, and under
    a wrapper that gathers weights or synchronises in the forward pass of the whole.

    Args:
        model: a Hugging Face causal model, adapters included; run twice, on a few tokens.
        max_len: longest sequence that it takes, in tokens.
    """
    parts = Halves(model)
    if not _callable_apart(model) or not isinstance(parts.head, nn.Module):
        return None
    both = [*parts.backbone.parameters(), *parts.head.parameters()]
    if set(model.parameters()) - set(both):
        return None
    with torch.no_grad(), _evaluated(model):
        return parts if _agree(model, parts, max_len) else None


def _callable_apart(model: nn.Module) -> bool:
    wrapped = isinstance(getattr(model, "module", None), nn.Module)
    return not wrapped and not any(isinstance(part, FSDPModule) for part in model.modules())


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Without dropout for a while. Adapters may stand in another mode than what is inside them."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _agree(model: nn.Module, parts: Halves, max_len: int) -> bool:
    """Whether the output layer reads what the backbone gives, and the model says what it says.

    The output layer is made to say numbers of any size: a soft cap leaves small ones as they are,
    and a large one hides what is added to it.
    """
    ids_BT, mask_BT = _probe(parts, max_len)
    read: list[Tensor] = []
    said: list[Tensor] = []

    def say(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        read.extend(args)
        said.append(_of_any_size(out))
        return said[-1]

    handle = parts.head.register_forward_hook(say)
    try:
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    finally:
        handle.remove()
    if len(read) != 1 or not torch.equal(logits_BTV.float(), said[0].float()):
        return False
    try:
        return _close(read[0], parts.hidden(ids_BT, mask_BT))
    except (AttributeError, TypeError, ValueError):  # it wants more than the model passes on
        return False


def _probe(parts: Halves, max_len: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask of two rows, the second of them padded. int64 [2, T] each"""
    weight = parts.causal.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    width = min(PROBE, max_len)
    ids_BT = torch.randint(weight.shape[0], (2, width), generator=generator)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, (width + 1) // 2 :] = 0
    return ids_BT.to(weight.device), mask_BT.to(weight.device)


def _of_any_size(like: Tensor) -> Tensor:
    """Numbers of both signs from a thousandth to ten thousand."""
    generator = torch.Generator().manual_seed(1)
    size, sign = (torch.rand(like.shape, generator=generator) for _ in range(2))
    return (10 ** (7 * size - 3) * torch.where(sign < 0.5, -1.0, 1.0)).to(like)


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    slack = TOLERANCE if expected.dtype == torch.float32 else 1000 * TOLERANCE
    gap = (found.float() - expected.float()).abs().max()
    return bool(gap <= slack * expected.float().abs().max())


def padded(packed: Packed) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return ids and mask of the rows, int64 [B, T], and where each trained token is looked from.

    That is the row, and the position before the token: int64 [M] each.
    """
    rows, device = [row.ids for row in packed.rows], packed.ids_N.device
    width = max(map(len, rows))
    ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    lengths_B = torch.tensor(list(map(len, rows)), device=device)
    mask_BT = (torch.arange(width, device=device) < lengths_B[:, None]).long()
    where = [(b, r.start + i - 1) for b, r in enumerate(packed.rows) for i in r.trained]
    b_M, t_M = torch.tensor(where, dtype=torch.int64, device=device).reshape(-1, 2).T
    return ids_BT, mask_BT, (b_M, t_M)
