"""A decoder's forward pass with the attention left to the caller.

The parameters, norms, projections and MLPs stay those of the Hugging Face model (LoRA layers
included); only the layout of tokens and the place of keys and values are ours. That lets the engine
keep one KV slot per live episode, and the trainer compute a group's prompt once.
`prove` compares logits and gradients with the Hugging Face forward before either relies on it.

Suffixes: N tokens (any leading shape), D hidden, H heads, K key-value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [..., H, E], k [..., K, E], v [..., K, E]) -> [..., H, E]."""
Layer = Callable[[int, Tensor, Tensor, Tensor, Attend], Tensor]
"""(layer, x [..., D], cos and sin [..., 1, E], attend) -> [..., D]."""

SUPPORTED = frozenset({"qwen3", "qwen2", "llama"})


MOVING: dict[str, Callable[[Any], int]] = {
    "dynamic": lambda config: config.max_position_embeddings,
    "longrope": lambda config: config.rope_parameters["original_max_position_embeddings"],
}
"""RoPE whose frequencies depend on the longest sequence of a call, and up to where they do not."""


class NotEquivalent(RuntimeError):
    """The functional forward disagrees with the Hugging Face model; use the model itself."""


def base_model(model: nn.Module) -> nn.Module:
    """Return the causal model inside LoRA or distributed wrappers."""
    while hasattr(model, "module") and isinstance(model.module, nn.Module):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def supported(model: nn.Module) -> bool:
    """Whether the architecture is one that `Decoder` knows: plain RoPE, full attention."""
    config = base_model(model).config
    rope = getattr(config, "rope_parameters", None) or {}
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return (
        config.model_type in SUPPORTED
        and rope.get("rope_type", "default") == "default"
        and not sliding
    )


def require_fixed_positions(model: nn.Module, max_len: int) -> None:
    """Refuse sequences that are long enough to change how their first tokens were read.

    Raises:
        ValueError: the model's RoPE has other frequencies for `max_len` tokens than for few. What
            was sampled early would be trained on under others, or beside a longer neighbour.
    """
    config: Any = base_model(model).config
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if kind in MOVING and max_len > MOVING[kind](config):
        raise ValueError(
            f"rope_type {kind!r} turns all positions another way in sequences of more than "
            f"{MOVING[kind](config)} tokens, and up to {max_len} may come: lower max_tokens, or "
            "take a model whose config has frequencies that stay ('yarn', 'linear', 'llama3')"
        )


class Decoder:
    """The layers of a Qwen2, Qwen3 or Llama model over tokens in any layout.

    Args:
        model: a Hugging Face causal model; its parameters are used in place.
        max_len: longest position that will be asked for, in tokens.
    """

    def __init__(self, model: nn.Module, max_len: int) -> None:
        causal = base_model(model)
        core, config = causal.model, causal.config
        self.causal, self.layers = causal, core.layers
        self.embed, self.norm, self.head = core.embed_tokens, core.norm, causal.lm_head
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.max_len = max_len
        self.through: Layer = self.layer
        """How a layer is run; whoever shards or recomputes layers puts itself in front of it."""
        self._rope: tuple[Tensor, Tensor] | None = None

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin of `positions`, shape [..., 1, E], from a table made once."""
        weight = self.embed.weight
        if self._rope is None or self._rope[0].device != weight.device:
            every = torch.arange(self.max_len + 1, device=weight.device)[None]
            with torch.no_grad():
                cos, sin = self.causal.model.rotary_emb(weight[None, :1].float(), every)
            self._rope = cos[0].to(weight.dtype), sin[0].to(weight.dtype)
        cos, sin = self._rope
        return cos[positions].unsqueeze(-2), sin[positions].unsqueeze(-2)

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Return the last layer's output, before the final norm.

        Args:
            ids: int64 token ids of any shape [...].
            positions: int64, same shape: each token's position in its own sequence.
            attend: attention over whatever keys the caller keeps.

        Returns:
            [..., D] in the model's dtype.
        """
        x = self.embed(ids)
        cos, sin = self.rope(positions)
        for i in range(len(self.layers)):
            x = self.through(i, x, cos, sin, attend)
        return x

    def layer(self, i: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Return the output of layer `i`. [..., D]"""
        layer = self.layers[i]
        q, k, v = self._qkv(layer.self_attn, _norm(x, layer.input_layernorm), cos, sin)
        x = x + layer.self_attn.o_proj(attend(i, q, k, v).flatten(-2))
        return x + layer.mlp(_norm(x, layer.post_attention_layernorm))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return [..., V] in float32 from the selected rows of `hidden`."""
        return self.head(_norm(hidden, self.norm)).float()

    def _qkv(self, attn: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        q = attn.q_proj(x).unflatten(-1, (self.heads, self.head_dim))
        k = attn.k_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        v = attn.v_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        if hasattr(attn, "q_norm"):
            q, k = _norm(q, attn.q_norm), _norm(k, attn.k_norm)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention in which several query heads share a key head, without copying keys.

    Args:
        q: [B, n, H, E].
        k: [B, T, K, E], `v` alike; H is a multiple of K.
        mask: bool [B, n, T], True where a query may look; None lets every query see every key.

    Returns:
        [B, n, H, E].
    """
    b, n, h, e = q.shape
    kv, share = k.shape[2], h // k.shape[2]
    folded = q.unflatten(2, (kv, share)).permute(0, 2, 3, 1, 4).reshape(b, kv, share * n, e)
    if mask is not None:
        mask = mask[:, None, None].expand(b, 1, share, n, mask.shape[-1]).flatten(2, 3)
    out = F.scaled_dot_product_attention(folded, k.transpose(1, 2), v.transpose(1, 2), mask)
    return out.reshape(b, kv, share, n, e).permute(0, 3, 1, 2, 4).flatten(2, 3)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of each token to its row up to itself, without a mask.

    So a GPU may take its flash kernel. Keys are copied for the heads that share them: not every
    kernel takes fewer of them than queries.

    Args:
        q: [B, n, H, E].
        k: [B, n, K, E], `v` alike; H is a multiple of K.

    Returns:
        [B, n, H, E].
    """
    share = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(share, 2) for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def full_causal(decoder: Decoder, ids: Tensor) -> Tensor:
    """Return logits [B, T, V] of plain causal sequences: the reference use of `Decoder`."""
    b, t = ids.shape
    mask = torch.ones(t, t, dtype=torch.bool, device=ids.device).tril().expand(b, t, t)
    positions = torch.arange(t, device=ids.device).expand(b, t)
    return decoder.logits(
        decoder.hidden(ids, positions, lambda _, q, k, v: grouped_attention(q, k, v, mask))
    )


@torch.enable_grad()
def prove(model: nn.Module, decoder: Decoder, *, tolerance: float = 1e-4, tokens: int = 12) -> None:
    """Compare logits and gradients of `decoder` with the Hugging Face forward.

    A decoder of fewer than `tokens` positions is compared over those that it has.

    Args:
        tolerance: largest absolute difference of logits, and relative of the gradient; 50 times
            as much below float32.

    Raises:
        NotEquivalent: they differ by more.
    """
    weight = decoder.embed.weight
    generator = torch.Generator().manual_seed(0)
    shape = (2, min(tokens, decoder.max_len))
    ids = torch.randint(weight.shape[0], shape, generator=generator).to(weight.device)
    slack = tolerance if weight.dtype == torch.float32 else 50 * tolerance
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    ours, theirs = full_causal(decoder, ids), model(input_ids=ids).logits.float()
    for module, training in modes:
        module.training = training
    gap = (ours - theirs).abs().max().item()
    grad_gap = _gradient_gap(model, ours, theirs)
    if not (gap < slack * max(1.0, theirs.abs().max().item()) and grad_gap < 10 * slack):
        raise NotEquivalent(f"logits differ by {gap:.2e} and a gradient by {grad_gap:.2e}")


def _gradient_gap(model: nn.Module, ours: Tensor, theirs: Tensor) -> float:
    # Two, because the first of a new pair of adapters has no gradient: the second one is zero.
    probes = [p for p in model.parameters() if p.requires_grad][:2]
    if not probes:
        return 0.0
    a, b = (torch.autograd.grad(z.square().mean(), probes) for z in (ours, theirs))
    gaps = ((x - y).norm() / y.norm().clamp(min=1e-12) for x, y in zip(a, b, strict=True))
    return max(gap.item() for gap in gaps)


def _norm(x: Tensor, module: nn.Module) -> Tensor:
    # Under autocast a projection gives less than what the weights are in.
    x = x.to(module.weight.dtype)
    return F.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
