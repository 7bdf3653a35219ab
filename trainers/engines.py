"""Where a run samples: on the trainer's own weights, or on servers that are given them.

`--engine http://host:8000` and nothing else changes: the same recipe, seed and config give the
same tokens wherever the engine draws as the embedded one does. Several processes share the servers,
whose weights the first one changes; batches in flight have servers of their own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from turnwise.agents.engines.base import Engine, EngineError
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.engines.functional import base_model
from turnwise.envs.names import hint
from turnwise.trainers import ranks
from turnwise.trainers.addresses import addresses_in
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.learner import Learner
from turnwise.trainers.model import quiet, save_model

if TYPE_CHECKING:
    from turnwise.agents.engines.vllm import VllmEngine
    from turnwise.agents.engines.vllm_change import Held
    from turnwise.agents.engines.vllm_weights import SavedWeights, Way
    from turnwise.agents.engines.vllm_wire import Wire

TOLERANCE = TrainConfig.engine_tolerance
DRAWING_S = 600.0
"""After which a server that draws no tokens is dead, at least. That of a short `reply_timeout_s` is
not: the rollout ends the one episode, and the others on that server go on."""


class WeightsNotTaken(EngineError):
    """Servers did not take new weights: what was learnt before is whole. Raised on all ranks."""


class NotAsleep(EngineError):
    """Servers did not go to sleep: what was learnt before is whole. Raised on all ranks."""


@dataclass(frozen=True)
class Sampler:
    """An engine, and what it is to be given after every update."""

    engine: Engine
    publish: Callable[[int], object]
    """Has the engine play with the present weights from now on, under this version."""
    rest: Callable[[], object] = lambda: None
    """Leaves the machine to the learner until the next `publish`."""

    def __post_init__(self) -> None:
        if shaping := getattr(self.engine, "shaping", None):
            raise ValueError(
                f"the engine samples with {shaping}, and its log-probabilities are then not those "
                "of the policy that is trained: train on an engine without shaping"
            )

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
    if config.pipeline_depth:  # `player_for` is who plays
        return _embedded(config, learner.model, slots=1)
    if not config.has_servers:
        return _embedded(config, learner.model)
    sampler = _remote(config, base_of(learner), tokenizer, addresses_in(config.engine), "served")
    try:
        sampler.publish(learner.updates)
    except BaseException:
        sampler.close()
        raise
    return sampler


def player_for(config: TrainConfig, model: nn.Module, tokenizer: Any, number: int) -> Sampler:
    """Return what plays one of the `pipeline_depth` batches in flight; it has no weights yet.

    Args:
        model: its own copy. Its weights are what the engine gets from each `publish`.
        number: below `pipeline_depth`. With servers it has each depth-th of them to itself.

    Raises:
        As `sampler_for`.
    """
    if not config.has_servers:
        slots = 1 if config.ray else 0  # of Ray's workers each has an engine; this one waits
        return _embedded(config, model, slots)
    return _remote(config, model, tokenizer, servers_of(config, number), f"served-{number}")


def servers_of(config: TrainConfig, number: int) -> list[str]:
    """Return the servers that one of the batches in flight has to itself."""
    return addresses_in(config.engine)[number :: max(config.pipeline_depth, 1)]


def _embedded(config: TrainConfig, model: nn.Module, slots: int = 0) -> Sampler:
    """Return an engine in this process; 0 slots are one for every attempt of a step."""
    slots = slots or config.tasks_per_step * config.group_size
    engine = EmbeddedEngine(model, slots=slots, max_len=config.max_tokens)
    return Sampler(engine, partial(engine.update_weights, None))


def served(
    addresses: str,
    tokenizer: Any,
    max_len: int,
    tolerance: float = TOLERANCE,
    deadline_s: float = TrainConfig.reply_timeout_s,
) -> VllmEngine:
    """Return the engine of a model that vLLM servers hold for good: it samples and scores.

    Args:
        addresses: of one or several servers, with commas between.
        tokenizer: the student's; the server must have the same.
        max_len: tokens of the longest episode; a server needs one more, to score it to its end.
        tolerance: nats by which two ways to compute the same may differ there.
        deadline_s: of one answer, as `reply_timeout_s` of a run.

    Raises:
        ServerUnfit: another tokenizer, too short, processed log-probabilities, another version.
        EngineError: a server does not answer.
    """
    from turnwise.agents.engines.vllm import VllmEngine
    from turnwise.agents.engines.vllm_start import Needs

    needs = Needs(max_len=max_len + 1, tokenizer=tokenizer)  # it samples one behind what it scores
    servers, key = addresses_in(addresses), key_of_servers()
    return VllmEngine(servers, needs=needs, api_key=key, tolerance=tolerance, deadline_s=deadline_s)


def key_of_servers() -> str:
    """Return the key that servers ask for, from the environment."""
    from turnwise.agents.engines.vllm_start import KEY_VARIABLE

    return os.environ.get(KEY_VARIABLE, "")


def connected(config: TrainConfig, tokenizer: Any, servers: Sequence[str], key: str) -> VllmEngine:
    """Return an engine on some of the servers of a run; it brings or adopts their weights.

    Raises:
        As `sampler_for`.
    """
    from turnwise.agents.engines.vllm import VllmEngine
    from turnwise.agents.engines.vllm_start import Needs

    way, wire = _way_and_wire(config)
    return VllmEngine(
        servers,
        needs=Needs(
            max_len=config.max_tokens,
            tokenizer=tokenizer,
            updates=True,
            sleep=config.engine_sleep > 0,
        ),
        api_key=key,
        deadline_s=config.reply_timeout_s,
        drawing_s=max(DRAWING_S, config.reply_timeout_s * 2 / 3),
        wire=wire,
        way=way,
        tolerance=config.engine_tolerance,
    )


def _way_and_wire(config: TrainConfig) -> tuple[Way, Wire]:
    """Return how weights travel and what is asked. Raises ValueError for what does not exist."""
    from turnwise.agents.engines.vllm_weights import four_phases, hot_lora
    from turnwise.agents.engines.vllm_weights import reload_folder as reload
    from turnwise.agents.engines.vllm_wire import COMPLETIONS, GENERATE

    ways = {"reload": reload, "phases": four_phases, "lora": hot_lora}
    way = _named("engine_sync", config.engine_sync, ways)
    wire = _named(
        "engine_route", config.engine_route, {"completions": COMPLETIONS, "generate": GENERATE}
    )
    if way is hot_lora and not config.lora_rank:
        raise ValueError("engine_sync lora needs adapters to send: set lora_rank, or use reload")
    return way, wire


def _remote(
    config: TrainConfig, model: nn.Module, tokenizer: Any, servers: Sequence[str], folder: str
) -> Sampler:
    from turnwise.agents.engines.vllm_weights import SavedWeights, hot_lora

    _way_and_wire(config)  # what is wrong with it is said before a server is touched
    opened, key = list["VllmEngine"](), key_of_servers()
    ranks.on_main(lambda: rouse_servers(servers, key, config.reply_timeout_s))
    # All look at the servers before the first one changes what these hold.
    ranks.each(lambda: opened.append(connected(config, tokenizer, servers, key)))
    (engine,) = opened
    save = _save_adapter if engine.way is hot_lora else save_model
    causal: Any = base_model(model)
    vocab = causal.get_input_embeddings().weight.shape[0]

    def weights() -> SavedWeights:
        where = save(model, tokenizer, config.out / folder)
        return SavedWeights(where, lambda ids: own_logprobs(model, ids), vocab)

    if not config.engine_sleep:
        return Sampler(engine, partial(_bring, engine, weights))
    bring = partial(_bring_back, engine, weights)
    return Sampler(engine, bring, partial(_put_to_sleep, engine, config.engine_sleep))


def rouse_servers(servers: Sequence[str], key: str, deadline_s: float) -> None:
    """Wake servers that a run which was killed has left asleep or paused, all at once.

    Args:
        deadline_s: for each of their answers.

    Raises:
        EngineError: one cannot be reached, or cannot be woken.
    """
    from turnwise.agents.engines.background import Background
    from turnwise.agents.engines.client import Server
    from turnwise.agents.engines.vllm_sleep import rouse_left_asleep

    async def rouse(address: str) -> None:
        server = Server(address, api_key=key, deadline_s=deadline_s)
        try:
            await rouse_left_asleep(server)
        finally:
            await server.close()

    async def rouse_all() -> None:
        await asyncio.gather(*map(rouse, servers))

    background = Background()
    try:
        background.run(rouse_all())
    finally:
        background.close()


def _put_to_sleep(engine: VllmEngine, level: int) -> None:
    """Put the servers to sleep, once for all processes, of which none plays any more."""
    ranks.on_main(lambda: _asleep(engine, level))


def _asleep(engine: VllmEngine, level: int) -> None:
    try:
        engine.sleep(level)
    except EngineError as error:
        raise NotAsleep(str(error)) from error


def _bring_back(engine: VllmEngine, weights: Callable[[], SavedWeights], version: int) -> None:
    """Wake the servers with the learner's weights; before, all give back what is only reserved."""
    ranks.each(torch.cuda.empty_cache)  # where no GPU was touched it does nothing
    _bring(engine, weights, version)


def _bring(engine: VllmEngine, weights: Callable[[], SavedWeights], version: int) -> None:
    """Change what the servers hold, once for all processes; the others look that it is there."""
    ranks.on_main(lambda: _brought(engine, weights, version))
    held = ranks.tell(engine.held())
    for number, why in enumerate(ranks.each(lambda: _adopted(engine, held, version))):
        if why:
            raise WeightsNotTaken(f"rank {number}: {why}")


def _adopted(engine: VllmEngine, held: Held, version: int) -> str:
    """Take over what the first process brought; return why that cannot be, or an empty text."""
    try:
        if not ranks.is_main():
            engine.adopt(held, version)
    except EngineError as error:
        return str(error)
    return ""


def _brought(engine: VllmEngine, weights: Callable[[], SavedWeights], version: int) -> None:
    try:
        engine.update_weights(weights(), version)
    except EngineError as error:
        raise WeightsNotTaken(str(error)) from error


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
