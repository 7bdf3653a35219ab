"""An engine whose weights travel as adapters, and what vLLM does with those: stand-in and real.

`make test-vllm` starts a real vLLM and runs the cases marked `vllm`.
"""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import LONG, WIRES, gap
from miniatures import naive_logprobs, nudge
from servers import PROMPT, Place, draw, places, standin, wait_for

from turnwise.agents.engines.base import EngineError, GenRequest, Sampling, ScoreRequest
from turnwise.agents.engines.client import ServerRefused
from turnwise.agents.engines.standin import served
from turnwise.agents.engines.vllm import EngineBroken, VllmEngine
from turnwise.agents.engines.vllm_start import Needs
from turnwise.agents.engines.vllm_weights import LORA_NAME, SavedWeights, hot_lora
from turnwise.agents.engines.vllm_wire import GENERATE
from turnwise.trainers.engines import own_logprobs
from turnwise.trainers.model import add_lora

torch.set_num_threads(1)
RANK = 2


@dataclass
class Adapted:
    """A server that holds a base model, and the trainer's adapter on that model."""

    place: Place
    model: Any
    folder: Path
    engines: list[VllmEngine] = field(default_factory=list)

    def engine(self, **more: Any) -> VllmEngine:
        """An engine that holds the adapter."""
        needs = Needs(updates=True, tokenizer=self.place.tokenizer)
        made = VllmEngine([self.place.server()], needs=needs, way=hot_lora, **more)
        self.engines.append(made)
        self.sync(made, 1)
        return made

    def sync(self, engine: VllmEngine, version: int) -> None:
        engine.update_weights(self.saved(), version)

    def saved(self) -> SavedWeights:
        self.model.save_pretrained(self.folder)
        return SavedWeights(self.folder, partial(own_logprobs, self.model), 280)

    def learn(self) -> Any:
        """Change the adapter, and return what the model was before."""
        before = copy.deepcopy(self.model)
        nudge(self.model, rate=0.05)
        return before


@pytest.fixture(scope="module", params=places())
def place(request, tmp_path_factory):
    name, start = request.param
    with start() as (server, (model, tokenizer)):
        made = Place(name, server, model, tokenizer, tmp_path_factory.mktemp("base"))
        made.engine().close()  # a server that was trained through before gets its base back
        yield made


@pytest.fixture
def adapted(place, tmp_path):
    made = Adapted(place, add_lora(copy.deepcopy(place.model), RANK), tmp_path)
    made.learn()
    yield made
    for engine in made.engines:
        engine.close()


def call(place: Place, path: str, body: Any) -> str:
    """The bare answer of a route that answers in words."""

    async def ask():
        server = place.server()
        try:
            return await server.post(path, body, text=True)
        finally:
            await server.close()

    return asyncio.run(ask())


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
def test_every_new_adapter_is_in_force_at_once_for_what_is_sampled_and_scored(adapted, wire):
    engine = adapted.engine(wire=wire)
    for version in (2, 3):
        before = adapted.learn()
        adapted.sync(engine, version)
        drawn = draw(engine, LONG, count=12)
        assert drawn.versions == ((version, 0, 12),)
        assert gap(adapted.place, LONG, drawn, model=adapted.model) < 1e-4
        assert gap(adapted.place, LONG, drawn, model=before) > 0.1
        assert gap(adapted.place, LONG, drawn) > 0.1
        (score,) = engine.score([ScoreRequest(LONG, start=1)])
        own = naive_logprobs(adapted.model, LONG)
        assert (own - torch.tensor(score.logprobs)).abs().max() < 1e-4


def test_what_the_trainer_writes_changes_nothing_until_it_is_loaded(adapted):
    engine = adapted.engine()
    before = adapted.learn()
    adapted.saved()
    assert gap(adapted.place, PROMPT, draw(engine), model=before) < 1e-4
    adapted.sync(engine, 2)
    assert gap(adapted.place, PROMPT, draw(engine), model=adapted.model) < 1e-4


def test_an_adapter_that_is_loaded_in_place_is_read_again_whenever_something_is_asked(adapted):
    engine, place = adapted.engine(), adapted.place
    where = {"lora_name": LORA_NAME, "lora_path": str(adapted.folder)}
    with pytest.raises(ServerRefused, match="already been loaded"):
        call(place, "/v1/load_lora_adapter", where)
    call(place, "/v1/load_lora_adapter", where | {"load_inplace": True})
    adapted.learn()
    adapted.saved()
    (score,) = engine.score([ScoreRequest(PROMPT, start=1)])
    own = naive_logprobs(adapted.model, PROMPT)
    assert (own - torch.tensor(score.logprobs)).abs().max() < 1e-4


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
def test_what_is_in_flight_is_waited_for_and_is_by_the_old_adapter(adapted, wire):
    engine = adapted.engine(wire=wire)
    engine.submit(GenRequest("long", PROMPT, Sampling(60), seed=2))
    draw(engine, session="short", count=2)
    before = adapted.learn()
    adapted.sync(engine, 2)
    output = wait_for(engine, 1)["long"]
    assert output.versions == ((1, 0, 60),)
    assert gap(adapted.place, PROMPT, output, model=before) < 1e-4


def test_what_the_server_is_drawing_when_its_adapter_is_unloaded_ends_by_that_adapter(adapted):
    engine, place = adapted.engine(wire=GENERATE), adapted.place
    engine.submit(GenRequest("long", PROMPT, Sampling(200), seed=2))
    draw(engine, session="short", count=2)
    before = adapted.learn()
    adapted.saved()
    call(place, "/v1/unload_lora_adapter", {"lora_name": LORA_NAME})
    call(place, "/v1/load_lora_adapter", {"lora_name": LORA_NAME, "lora_path": str(adapted.folder)})
    assert gap(place, PROMPT, draw(engine, session="new"), model=adapted.model) < 1e-4
    output = wait_for(engine, 1)["long"]
    assert gap(place, PROMPT, output, model=before) < 1e-4


def test_scores_and_draws_of_adapter_and_base_share_a_batch_and_are_each_their_own(adapted):
    engine, place = adapted.engine(), adapted.place
    if place.name == "in process":
        pytest.skip("two engines at once have two event loops, and an application takes one")
    base = VllmEngine([place.server()], needs=Needs())
    adapted.engines.append(base)
    rows = [LONG[: 40 + 30 * n] for n in range(8)]
    for either in (engine, base):
        either.submit(GenRequest("long", PROMPT, Sampling(200), seed=2))
    for either, model in ((engine, adapted.model), (base, place.model)):
        for ids, said in zip(rows, either.score([ScoreRequest(r) for r in rows]), strict=True):
            own = naive_logprobs(model, ids)
            assert (own - torch.tensor(said.logprobs)).abs().max() < 1e-4
        assert gap(place, PROMPT, wait_for(either, 1)["long"], model=model) < 1e-4


def test_a_base_model_is_served_as_before_beside_its_adapter(adapted):
    adapted.engine()
    models = asked_models(adapted.place)
    assert [entry["id"] for entry in models] == ["policy", LORA_NAME]
    assert [entry["max_model_len"] for entry in models] == [512, None]


def asked_models(place: Place) -> list[dict[str, Any]]:
    async def ask():
        server = place.server()
        try:
            return (await server.get("/v1/models"))["data"]
        finally:
            await server.close()

    return asyncio.run(ask())


def test_an_adapter_that_is_not_there_is_refused_and_breaks_the_engine_until_one_is_loaded(
    adapted, tmp_path
):
    engine = adapted.engine()
    missing = SavedWeights(tmp_path / "none", partial(own_logprobs, adapted.model), 280)
    with pytest.raises(EngineBroken, match="No adapter found"):
        engine.update_weights(missing, 2)
    with pytest.raises(EngineBroken, match="version 2 failed"):
        engine.poll()
    adapted.sync(engine, 3)
    assert draw(engine).versions == ((3, 0, 8),)


def test_a_server_that_takes_no_adapters_is_told_what_to_start(tmp_path):
    with served(standin(max_lora_rank=0)) as url:
        engine = VllmEngine([url], way=hot_lora)
        with pytest.raises(EngineError, match="serve-policy --lora-rank"):
            engine.update_weights(SavedWeights(tmp_path, list, 280), 1)
        engine.close()
