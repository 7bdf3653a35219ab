"""Models small enough for a test, and the naive forward pass that everything is held against."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from turnwise.agents.engines.base import GenOutput, GenRequest, Sampling
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.trainers.tiny import tiny_model

VOCAB = 89
"""Ids 0 to 88; id 0 is the usual stop token of these tests."""


def qwen3(seed: int = 0, *, vocab: int = VOCAB, max_len: int = 256) -> nn.Module:
    """Weights large enough for peaked distributions: temperatures and stale caches then show."""
    return tiny_model(
        vocab,
        hidden=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        ffn=48,
        init_std=0.3,
        max_len=max_len,
        seed=seed,
    )


def other(kind: str, seed: int = 0) -> nn.Module:
    """A tiny random model of another architecture: qwen2, llama or gpt2."""
    shape = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
    configs = {
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**shape, num_key_value_heads=2)),
        "llama": (LlamaForCausalLM, LlamaConfig(**shape, num_key_value_heads=1, mlp_bias=True)),
        "gpt2": (
            GPT2LMHeadModel,
            GPT2Config(
                vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=0,
                eos_token_id=0, initializer_range=0.3,
            ),
        ),
    }  # fmt: skip
    make, config = configs[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(config).eval()


@torch.no_grad()
def naive_logprobs(model: nn.Module, ids: Sequence[int], temperature: float = 1.0) -> Tensor:
    """log_softmax(z / T) of ids[1:], from one plain forward pass of the model. [len - 1]"""
    logits = model(input_ids=torch.tensor([list(ids)])).logits[0, :-1].float()
    logprobs = torch.log_softmax(logits / temperature, -1)
    return logprobs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


@dataclass
class Talk:
    """One conversation in bare tokens: what was read and what was sampled."""

    name: str
    ids: list[int]
    outputs: list[GenOutput] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)

    @property
    def sampled(self) -> list[tuple[int, ...]]:
        """The tokens of each turn."""
        return [output.token_ids for output in self.outputs]


def converse(
    engine: EmbeddedEngine,
    names: Sequence[int],
    *,
    turns: int = 4,
    temperature: float = 1.0,
    at_once: int = 64,
) -> list[Talk]:
    """Play ragged conversations without a barrier; everything follows from a talk's own number."""
    talks = {str(n): Talk(str(n), _words(n, 0)) for n in names}
    waiting, busy = deque(talks.values()), set()

    def ask(talk: Talk) -> None:
        length = random.Random(f"{talk.name} {len(talk.outputs)}").randint(1, 12)
        sampling = Sampling(length, temperature, stop_ids=(0,))
        seed = int(talk.name) * 100 + len(talk.outputs)
        busy.add(talk.name)
        engine.submit(GenRequest(talk.name, list(talk.ids), sampling, seed))

    while waiting or busy:
        while waiting and len(busy) < at_once:
            ask(waiting.popleft())
        for output in engine.poll():
            talk = talks[output.session]
            busy.remove(talk.name)
            talk.spans.append((len(talk.ids), len(talk.ids) + len(output.token_ids)))
            talk.outputs.append(output)
            talk.ids += output.token_ids
            if len(talk.outputs) < turns:
                talk.ids += _words(int(talk.name), len(talk.outputs))
                waiting.append(talk)
    return list(talks.values())


def largest_gap(model: nn.Module, talks: Sequence[Talk], temperature: float = 1.0) -> float:
    """The largest difference between what the engine said and the naive forward pass, in nats."""
    gaps = [0.0]
    for talk in talks:
        naive = naive_logprobs(model, talk.ids, temperature)
        for (start, end), output in zip(talk.spans, talk.outputs, strict=True):
            said = torch.tensor(output.logprobs)
            gaps.append((naive[start - 1 : end - 1] - said).abs().max().item())
    return max(gaps)


def nudge(model: nn.Module, steps: int = 3, rate: float = 0.02, seed: int = 0) -> None:
    """Take optimizer steps that change every weight."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        ids = torch.randint(1, VOCAB, (4, 16), generator=generator)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _words(talk: int, turn: int) -> list[int]:
    rng = random.Random(f"words {talk} {turn}")
    return [rng.randrange(1, VOCAB) for _ in range(rng.randint(1, 20))]
