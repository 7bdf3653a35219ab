"""A policy by name: `expert`, `random`, `noop`, a model's folder or name, or one on a server."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnwise.agents.policy import Act, Policy, ScriptedPolicy, expert, noop, random_tool

SCRIPTED: dict[str, Act] = {"expert": expert, "random": random_tool, "noop": noop}


@dataclass(frozen=True)
class Player:
    """A policy and what tells it from another one, for the header of its record."""

    policy: Policy
    identity: dict[str, Any]


def scripted(name: str) -> Player:
    """Return the policy that acts by the function of this name."""
    return Player(ScriptedPolicy(SCRIPTED[name]), {"policy": name})


def language_model(
    name: str, *, temperature: float, max_new_tokens: int, max_tokens: int, slots: int, threads: int
) -> Player:
    """Return a policy that samples from a model on the embedded engine.

    Raises:
        ModelNotFound, TokenizerMismatch: as `load_model`.
        ValueError: the model takes fewer than `max_tokens` tokens.
    """
    import torch

    from turnwise.agents.engines.embedded import EmbeddedEngine
    from turnwise.agents.policy import LLMPolicy
    from turnwise.agents.renderer import Renderer
    from turnwise.trainers.model import load_model

    torch.set_num_threads(threads)
    model, tokenizer = load_model(name)
    longest = getattr(model.config, "max_position_embeddings", max_tokens)
    if longest < max_tokens:
        raise ValueError(f"the model takes at most {longest} tokens, got --max-tokens {max_tokens}")
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    engine = EmbeddedEngine(model, slots=slots, max_len=max_tokens)
    renderer = Renderer(tokenizer)
    policy = LLMPolicy(engine, renderer, temperature=temperature, max_new_tokens=max_new_tokens)
    sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    shown = {} if renderer.recall is None else {"recall": renderer.recall}
    return Player(policy, {"policy": name, "weights": weights_of(name), **sampling, **shown})


def served(name: str, *, temperature: float, max_new_tokens: int) -> Player:
    """Return a policy that asks an OpenAI-compatible server; `name` is `openai:MODEL@URL`.

    Raises:
        ValueError: the name has another form.
    """
    from turnwise.agents.openai_agent import ChatPolicy, chat_named

    chat = chat_named(name, temperature=temperature, max_new_tokens=max_new_tokens)
    sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    return Player(ChatPolicy(chat), {"policy": name, **sampling})


def weights_of(name: str) -> str:
    """Return 16 hex digits over the weight files of a folder; empty for a hub's name.

    A record must not go on with another model that was saved in the same place.
    """
    files = sorted(Path(name).glob("*.safetensors")) + sorted(Path(name).glob("*.bin"))
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16] if files else ""


def decoder(model: str) -> Callable[[Any], str] | None:
    """Return token ids to text by the tokenizer of `model`; None without a model."""
    if not model:
        return None
    from turnwise.trainers.model import load_tokenizer

    return load_tokenizer(model).decode
