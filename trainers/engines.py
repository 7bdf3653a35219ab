"""Where a run samples: on the trainer's own weights, or on servers that are given them.

`--engine http://host:8000` and nothing else changes: the same recipe, seed and config give the
same tokens wherever the engine draws as the embedded one does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from turnwise.agents.engines.base import Engine
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.engines.functional import base_model
from turnwise.envs.names import hint
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.learner import Learner
from turnwise.trainers.model import quiet, save_model

EMBEDDED = "embedded"
ADDRESS = ("http://", "https://")
"""What the address of a server begins with."""


@dataclass(frozen=True)
class Sampler:
    """An engine, and what it is to be given after every update."""

    engine: Engine
    weights: Callable[[], Any]
    """Returns the `source` of `Engine.update_weights`."""

    def __post_init__(self) -> None:
        if shaping := getattr(self.engine, "shaping", None):
            raise ValueError(
                f"the engine samples with {shaping}, and its log-probabilities are then not those "
                "of the policy that is trained: train on an engine without shaping"
            )

    def publish(self, version: int) -> None:
        """Tell the engine that the weights have changed."""
        self.engine.update_weights(self.weights(), version)

    def close(self) -> None:
        """Close the connections of an engine that has any."""
        getattr(self.engine, "close", lambda: None)()


def sampler_for(config: TrainConfig, learner: Learner, tokenizer: Any) -> Sampler:
    """Return the engine that `config.engine` names; servers hold the learner's weights then.

    Raises:
        ValueError: an address, route or way that is none.
        ServerUnfit: a server is not what training needs; the message says what to change.
        EngineError: a server does not answer, or does not take the weights.
    """
    if config.engine in ("", EMBEDDED):
        slots = config.tasks_per_step * config.group_size
        engine = EmbeddedEngine(learner.model, slots=slots, max_len=config.max_tokens)
        return Sampler(engine, lambda: None)
    return _remote(config, learner, tokenizer)


def is_address(name: str) -> bool:
    """Whether a model is named by the address of a server that holds it."""
    return name.startswith(ADDRESS)


def served(addresses: str, tokenizer: Any, max_len: int) -> Engine:
    """Return the engine of a model that vLLM servers hold for good: it samples and scores.

    Args:
        addresses: of one or several servers, with commas between.
        tokenizer: the student's; the server must have the same.
        max_len: tokens of the longest episode.

    Raises:
        ServerUnfit: another tokenizer, too short, processed log-probabilities, another version.
        EngineError: a server does not answer.
    """
    from turnwise.agents.engines.vllm import VllmEngine
    from turnwise.agents.engines.vllm_start import KEY_VARIABLE, Needs

    needs = Needs(max_len=max_len, tokenizer=tokenizer)
    return VllmEngine(_listed(addresses), needs=needs, api_key=os.environ.get(KEY_VARIABLE, ""))


def _listed(addresses: str) -> list[str]:
    return addresses.replace(",", " ").split()


def _remote(config: TrainConfig, learner: Learner, tokenizer: Any) -> Sampler:
    from turnwise.agents.engines.vllm import VllmEngine
    from turnwise.agents.engines.vllm_start import KEY_VARIABLE, Needs
    from turnwise.agents.engines.vllm_weights import SavedWeights, four_phases, hot_lora
    from turnwise.agents.engines.vllm_weights import reload_folder as reload
    from turnwise.agents.engines.vllm_wire import COMPLETIONS, GENERATE

    ways = {"reload": reload, "phases": four_phases, "lora": hot_lora}
    way = _named("engine_sync", config.engine_sync, ways)
    wire = _named(
        "engine_route", config.engine_route, {"completions": COMPLETIONS, "generate": GENERATE}
    )
    if way is hot_lora and not config.lora_rank:
        raise ValueError("engine_sync lora needs adapters to send: set lora_rank, or use reload")
    engine = VllmEngine(
        _listed(config.engine),
        needs=Needs(max_len=config.max_tokens, tokenizer=tokenizer, updates=True),
        api_key=os.environ.get(KEY_VARIABLE, ""),
        wire=wire,
        way=way,
        tolerance=config.engine_tolerance,
    )
    save = _save_adapter if way is hot_lora else save_model
    causal: Any = base_model(learner.model)
    vocab = causal.get_input_embeddings().weight.shape[0]

    def weights() -> SavedWeights:
        folder = save(base_of(learner), tokenizer, config.out / "served")
        return SavedWeights(folder, lambda ids: own_logprobs(learner.model, ids), vocab)

    sampler = Sampler(engine, weights)
    try:
        sampler.publish(learner.updates)
    except BaseException:
        engine.close()
        raise
    return sampler


def base_of(learner: Learner) -> nn.Module:
    """Return the learner's model as it is saved: without what Accelerate put around it."""
    return learner.accelerator.unwrap_model(learner.model)


@torch.no_grad()
def own_logprobs(model: nn.Module, ids: Sequence[int]) -> list[float]:
    """Return the trainer's log-probabilities of ids[1:], nats at T = 1: one plain forward pass."""
    given = torch.tensor([list(ids)], device=next(model.parameters()).device)
    logprobs = model(input_ids=given).logits[0, :-1].float().log_softmax(-1)
    return logprobs.gather(-1, given[0, 1:, None])[:, 0].tolist()


def _save_adapter(model: Any, tokenizer: Any, folder: Path) -> Path:
    with quiet():
        model.save_pretrained(folder)
    return folder


def _named(field: str, name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        raise ValueError(f"{field} {name!r} is unknown; {hint(name, known)}")
    return known[name]
