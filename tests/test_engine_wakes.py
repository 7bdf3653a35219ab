"""Laws of servers that sleep: what is asked waits, and they wake with weights that are right."""

from __future__ import annotations

import asyncio
import threading

import contracts
import pytest
import torch
from contracts import LONG, WAYS, gap
from miniatures import naive_logprobs, nudge
from servers import PROMPT, draw, small, wait_for

from turnwise.agents.engines.base import EngineError, GenRequest, Sampling, ScoreRequest
from turnwise.agents.engines.client import Server, ServerRefused
from turnwise.agents.engines.vllm import VllmEngine
from turnwise.agents.engines.vllm_sleep import rouse_left_asleep
from turnwise.agents.engines.vllm_start import Needs
from turnwise.agents.engines.vllm_wire import COMPLETIONS

torch.set_num_threads(1)
place, engine = contracts.place, contracts.engine


# Sleep


def sleepy(engine) -> bool:
    """Whether the server of an engine says that it sleeps, or is paused."""
    return bare(engine, "get", "/is_sleeping")["is_sleeping"]


def bare(engine, method, path, *body):
    """The answer of an engine's server, past every guard."""
    server = engine.replicas.every[0].server
    return engine._background.run(getattr(server, method)(path, *body))


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_server_that_slept_answers_by_the_weights_that_woke_it(place, way, level):
    engine = place.engine(way=way)
    draw(engine, LONG)
    engine.sleep(level)
    assert engine.asleep and sleepy(engine)
    engine.submit(GenRequest("meanwhile", LONG, Sampling(8), 3))
    nudge(place.model)
    place.sync(engine, 2)
    assert not engine.asleep and not sleepy(engine)
    output = wait_for(engine, 1)["meanwhile"]
    assert output.versions == ((2, 0, 8),) and gap(place, LONG, output) < 1e-4
    engine.close()


class Far(Server):
    """Takes a while to be reached by a request for tokens."""

    async def post(self, path, body=None, **more):
        await asyncio.sleep(0.5 if path == COMPLETIONS.path else 0)
        return await super().post(path, body, **more)


def test_what_is_in_flight_ends_before_a_server_sleeps(place):
    engine = place.engine()
    engine.replicas.every[0].server.__class__ = Far
    engine.submit(GenRequest("a", PROMPT, Sampling(60), seed=2))
    engine.submit(GenRequest("b", PROMPT, Sampling(60), seed=3))
    engine.sleep(2)
    assert engine.fleet.asking == 0
    for output in wait_for(engine, 2).values():
        assert output.versions == ((1, 0, 60),) and gap(place, PROMPT, output) < 1e-4
    place.sync(engine, 2)
    engine.close()


def test_asleep_a_server_holds_back_what_it_is_asked_and_answers_by_its_new_weights(place):
    engine = place.engine()
    engine.sleep(2)
    server = engine.replicas.every[0].server
    body = COMPLETIONS.body(GenRequest("a", PROMPT, Sampling(8), 3), engine.model, 8, "x", {})
    answer = engine._background.start(server.post("/v1/completions", body))
    with pytest.raises(TimeoutError):
        answer.result(1.0)
    nudge(place.model)
    place.sync(engine, 2)
    choice = answer.result(60.0)["choices"][0]
    own = naive_logprobs(place.model, [*PROMPT, *choice["token_ids"]])[len(PROMPT) - 1 :]
    assert (own - torch.tensor(choice["logprobs"]["token_logprobs"])).abs().max() < 1e-4
    engine.close()


def test_a_server_sleeps_until_all_of_it_is_awake_and_is_then_paused_no_more(place, engine):
    assert not sleepy(engine)
    said = bare(engine, "post", "/sleep?level=1&mode=wait")
    assert said == {"status": "sleeping", "level": 1} and sleepy(engine)
    said = bare(engine, "post", "/wake_up?tags=weights")
    assert said == {"status": "sleeping", "tags": ["weights"]} and sleepy(engine)
    said = bare(engine, "post", "/wake_up?tags=kv_cache")
    assert said == {"status": "awake", "tags": ["kv_cache"]} and not sleepy(engine)
    bare(engine, "post", "/pause?mode=keep")
    assert sleepy(engine), "to vLLM a pause is a sleep"
    assert bare(engine, "post", "/wake_up") == {"status": "awake", "tags": None}
    assert not sleepy(engine) and gap(place, PROMPT, draw(engine)) < 1e-4


def test_a_server_refuses_a_level_that_is_none(engine):
    with pytest.raises(ServerRefused) as refused:
        bare(engine, "post", "/sleep?level=3&mode=wait")
    assert refused.value.status in (400, 422) and not sleepy(engine)


def test_scores_of_servers_that_sleep_are_refused_and_not_waited_for(place):
    engine, told = place.engine(), []

    def ask():
        with pytest.raises(EngineError, match="sleep until the next change of weights"):
            engine.score([ScoreRequest(PROMPT)])
        told.append("at once")

    engine.sleep(1)
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(20.0)
    assert told == ["at once"]
    place.sync(engine, 2)
    assert len(engine.score([ScoreRequest(PROMPT)])) == 1
    engine.close()


@pytest.mark.parametrize("level", [1, 2])
def test_an_engine_that_closes_wakes_its_servers_with_weights_that_are_some(place, level):
    engine = place.engine()
    nudge(place.model, rate=0.05)
    place.sync(engine, 2)
    engine.sleep(level)
    engine.close()
    again = VllmEngine([place.server()], needs=Needs(updates=True, sleep=True))
    assert not sleepy(again)
    held = place.model if level == 1 else small()[0]
    assert gap(place, PROMPT, draw(again), model=held) < 1e-4
    named = {1: "step-2", 2: "default"}[level]
    assert bare(again, "get", "/weight_info") == {"weight_version": named}
    again.close()


@pytest.mark.parametrize("how", ["/sleep?level=2&mode=wait", "/pause?mode=keep"])
def test_a_server_that_was_left_asleep_or_paused_is_woken_by_who_comes_next(place, how):
    engine = place.engine()
    bare(engine, "post", how)
    engine._background.run(rouse_left_asleep(engine.replicas.every[0].server))
    assert not sleepy(engine)
    assert gap(place, PROMPT, draw(engine), model=small()[0]) < 1e-4
    engine.close()
