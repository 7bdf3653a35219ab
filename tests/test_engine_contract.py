"""What an engine over vLLM promises, and what vLLM itself does: against the stand-in and the real.

`make test-vllm` starts a real vLLM and runs the cases marked `vllm`. A habit of vLLM that a guard
relies on is a law here too, so that the stand-in cannot drift from it.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading

import pytest
import torch
from miniatures import naive_logprobs, nudge
from servers import MAX_LEN, PROMPT, Place, draw, places, small, wait_for

from turnwise.agents.engines import vllm_change, vllm_fleet, vllm_weights
from turnwise.agents.engines.base import (
    Engine,
    EngineError,
    GenRequest,
    PromptTooLong,
    Sampling,
    ScoreRequest,
)
from turnwise.agents.engines.client import Server, ServerRefused
from turnwise.agents.engines.vllm import EngineBroken, VllmEngine
from turnwise.agents.engines.vllm_score import CannotScore, tail_mass
from turnwise.agents.engines.vllm_sleep import rouse_left_asleep
from turnwise.agents.engines.vllm_start import Needs
from turnwise.agents.engines.vllm_weights import four_phases, reload_folder
from turnwise.agents.engines.vllm_wire import COMPLETIONS, GENERATE
from turnwise.trainers.model import save_model

torch.set_num_threads(1)
LONG = [random.Random(4).randrange(6, 280) for _ in range(400)]
WIRES = {"completions": COMPLETIONS, "generate": GENERATE}
WAYS = {"reload": reload_folder, "phases": four_phases}


@pytest.fixture(scope="module", params=places())
def place(request, tmp_path_factory):
    name, start = request.param
    with start() as (server, (model, tokenizer)):
        yield Place(name, server, model, tokenizer, tmp_path_factory.mktemp("served"))


@pytest.fixture
def engine(place):
    engine = place.engine()
    yield engine
    engine.close()


def asked(place: Place, path: str, body=None):
    """The server's bare answer, past every guard."""

    async def ask():
        server = place.server()
        try:
            return await server.post(path, body)
        finally:
            await server.close()

    return asyncio.run(ask())


def gap(place: Place, ids, output, at: float = 1.0, model=None) -> float:
    """Largest difference from a plain forward pass of the trainer's model, in nats."""
    own = naive_logprobs(model or place.model, [*ids, *output.token_ids], at)[len(ids) - 1 :]
    return (own - torch.tensor(output.logprobs)).abs().max().item()


# Sampling


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
def test_sampled_logprobs_are_those_of_the_trainers_forward_pass(place, wire):
    engine = place.engine(wire=wire)
    assert isinstance(engine, Engine)
    for at in (1.0, 0.7, 0.0):
        output = draw(engine, at=at, count=12)
        assert len(output.token_ids) == len(output.logprobs) == 12
        assert output.finish == "length" and output.exact
        assert output.versions == ((1, 0, 12),)
        assert gap(place, PROMPT, output, at or 1.0) < 1e-4
    engine.close()


def test_a_request_depends_on_its_seed_and_its_tokens_alone(engine):
    alone = draw(engine, count=12)
    requests = [GenRequest(str(n), PROMPT, Sampling(12), seed=n) for n in range(8)]
    for request in requests:
        engine.submit(request)
    together = wait_for(engine, 8)
    assert together["3"].token_ids == alone.token_ids
    assert len({output.token_ids for output in together.values()}) == 8


def test_a_turn_goes_on_from_the_very_tokens_of_the_last_one(place, engine):
    first = draw(engine)
    ids = [*PROMPT, *first.token_ids, 11, 12]
    assert gap(place, ids, draw(engine, ids)) < 1e-4


def test_a_stop_token_ends_the_output_once_and_has_a_logprob(place, engine):
    free = draw(engine, count=12)
    stop = free.token_ids[4]
    output = draw(engine, count=12, stop=(stop, 2))
    assert output.finish == "stop"
    assert output.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert gap(place, PROMPT, output) < 1e-4


def test_the_end_of_sequence_token_ends_an_output_only_where_it_is_a_stop_token(place, engine):
    eos = place.model.config.eos_token_id
    for seed in range(40):
        engine.submit(GenRequest(str(seed), PROMPT, Sampling(60), seed))
    seed, free = next((s, o) for s, o in wait_for(engine, 40).items() if eos in o.token_ids[:-1])
    assert len(free.token_ids) == 60 and free.finish == "length"
    stopped = draw(engine, count=60, seed=int(seed), stop=(eos,))
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(eos) + 1]
    assert stopped.finish == "stop"


def test_an_output_ends_where_the_context_does_and_says_so(engine):
    output = draw(engine, LONG, count=1000)
    assert len(output.token_ids) == MAX_LEN - len(LONG)
    assert output.finish == "length"


@pytest.mark.parametrize("length", [0, MAX_LEN, MAX_LEN + 1])
def test_a_prompt_that_leaves_no_room_is_refused_before_anything_is_sampled(engine, length):
    with pytest.raises(PromptTooLong):
        engine.submit(GenRequest("long", [5] * length, Sampling(4)))
    assert engine.poll() == []


def test_a_session_has_one_request_in_flight_and_may_be_ended_with_it(engine):
    engine.submit(GenRequest("a", PROMPT, Sampling(8)))
    with pytest.raises(ValueError, match="in flight"):
        engine.submit(GenRequest("a", PROMPT, Sampling(8)))
    engine.end_session("a")
    assert draw(engine, session="a", count=3).finish == "length"
    engine.end_session("never seen")


def test_top_p_inflates_logprobs_and_the_output_says_that_it_is_not_exact(place):
    engine = place.engine(shaping={"top_p": 0.5})
    outputs = [draw(engine, seed=seed) for seed in range(4)]
    assert not any(output.exact for output in outputs)
    assert max(gap(place, PROMPT, output) for output in outputs) > 0.1
    engine.close()


# Scores


def test_scores_are_those_of_the_trainers_forward_pass(place, engine):
    ids = [*PROMPT, *draw(engine).token_ids]
    (score,) = engine.score([ScoreRequest(ids, start=3)])
    own = naive_logprobs(place.model, ids)[2:]
    assert (own - torch.tensor(score.logprobs)).abs().max() < 1e-4
    assert score.topk_ids == ()


def test_the_likeliest_tokens_come_in_order_whether_or_not_the_own_one_is_among_them(place, engine):
    ids = [*LONG[:30], *draw(engine, LONG[:30], at=0.0, count=30).token_ids]
    (score,) = engine.score([ScoreRequest(ids, start=2, topk=5)])
    logits = place.model(input_ids=torch.tensor([ids])).logits[0, 1:-1]
    best = logits.log_softmax(-1).topk(5, -1)
    assert [list(row) for row in score.topk_ids] == best.indices.tolist()
    assert (torch.tensor(score.topk_logprobs) - best.values).abs().max() < 1e-4
    own = [token in row for token, row in zip(ids[2:], score.topk_ids, strict=True)]
    assert any(own) and not all(own)
    tail = 1 - best.values.exp().sum(-1)
    assert torch.allclose(torch.tensor(list(map(tail_mass, score.topk_logprobs))), tail, atol=1e-4)


def test_scores_at_another_temperature_are_refused_since_the_server_gives_those_of_one(
    place, engine
):
    with pytest.raises(CannotScore, match="temperature 1 only"):
        engine.score([ScoreRequest(PROMPT, temperature=0.7)])
    body = {"model": engine.model, "prompt": PROMPT, "max_tokens": 1}
    answer = asked(place, "/v1/completions", body | {"temperature": 0.7, "prompt_logprobs": 0})
    rows = answer["choices"][0]["prompt_logprobs"]
    said = [row[str(token)]["logprob"] for row, token in zip(rows[1:], PROMPT[1:], strict=True)]
    assert rows[0] is None
    assert (naive_logprobs(place.model, PROMPT) - torch.tensor(said)).abs().max() < 1e-4
    assert (naive_logprobs(place.model, PROMPT, 0.7) - torch.tensor(said)).abs().max() > 0.1


def test_more_candidates_than_the_server_gives_are_refused_with_what_to_change(engine):
    with pytest.raises(CannotScore, match="--max-logprobs 65"):
        engine.score([ScoreRequest(PROMPT, topk=65)])


def test_what_cannot_be_scored_is_refused(engine):
    for request in (ScoreRequest([5] * MAX_LEN), ScoreRequest(PROMPT, start=len(PROMPT))):
        with pytest.raises(PromptTooLong):
            engine.score([request])


# Weights


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_after_a_change_of_weights_everything_is_by_the_new_ones(place, way, wire):
    engine = place.engine(way=way, wire=wire)
    old = draw(engine, LONG)
    nudge(place.model)
    place.sync(engine, 5)
    new = draw(engine, LONG)
    assert new.versions == ((5, 0, 8),)
    assert gap(place, LONG, new) < 1e-4
    assert gap(place, LONG, old) > 0.1
    engine.close()


def test_a_reload_leaves_stale_keys_behind_until_the_cache_is_reset_or_the_salt_changes(place):
    engine = place.engine()
    shared = {"model": engine.model, "prompt": LONG, "max_tokens": 1, "logprobs": 0}
    shared |= {"return_token_ids": True, "temperature": 0, "top_p": 1.0, "top_k": 0}

    def far(salt):
        choice = asked(place, "/v1/completions", shared | {"cache_salt": salt})["choices"][0]
        own = naive_logprobs(place.model, [*LONG, *choice["token_ids"]])[-1]
        return abs(own.item() - choice["logprobs"]["token_logprobs"][0])

    assert far("x") < 1e-4
    nudge(place.model)
    where = {"weights_path": str(place.saved().folder)}
    asked(place, "/collective_rpc", {"method": "reload_weights", "kwargs": where})
    assert far("x") > 0.01
    assert far("y") < 1e-4
    asked(place, "/reset_prefix_cache")
    assert far("x") < 1e-4
    engine.close()


class Forgetful(Server):
    """Does not pass on what would reset the cache."""

    async def post(self, path, body=None, **more):
        if path.startswith(("/pause", "/resume", "/reset_prefix_cache")):
            return {}
        return await super().post(path, body, **more)


@pytest.mark.parametrize("salted", [True, False])
def test_the_probe_finds_a_stale_cache_and_a_salt_prevents_one(place, monkeypatch, salted):
    if not salted:
        for module in (vllm_fleet, vllm_change):
            monkeypatch.setattr(module, "version_name", lambda version: "always the same")
    monkeypatch.setattr(place, "server", _forgetful(place.server))
    engine = place.engine()
    assert gap(place, LONG, draw(engine, LONG)) < 1e-4
    nudge(place.model, rate=0.05)
    if salted:
        place.sync(engine, 2)
        assert gap(place, LONG, draw(engine, LONG)) < 1e-4
    else:
        with pytest.raises(EngineBroken, match="a stale prefix cache"):
            place.sync(engine, 2)
    engine.close()


def _forgetful(make):
    def made():
        server = make()
        server.__class__ = Forgetful
        return server

    return made


def test_a_sync_that_answers_well_and_leaves_other_weights_breaks_the_engine_until_one_succeeds(
    place, tmp_path
):
    async def wrong(server, folder, version, model):
        return await reload_folder(server, tmp_path, version, model)

    save_model(small(seed=9)[0], place.tokenizer, tmp_path)
    engine = place.engine()
    engine.submit(GenRequest("lost", PROMPT, Sampling(4)))
    engine.way = wrong
    with pytest.raises(EngineBroken, match="its weights are not those that were saved"):
        place.sync(engine, 2)
    with pytest.raises(EngineBroken, match="version 2 failed"):
        engine.poll()
    engine.way = reload_folder
    place.sync(engine, 3)
    assert engine.poll() == []
    assert draw(engine).versions == ((3, 0, 8),)
    engine.close()


def test_an_update_that_was_not_started_is_refused_by_the_server(place):
    with pytest.raises(ServerRefused) as refused:
        asked(place, "/update_weights", {"update_info": {"files": ["model.safetensors"]}})
    assert refused.value.status == 500


def test_what_is_in_flight_during_an_update_says_which_version_drew_which_token(place):
    engine = place.engine(wire=GENERATE)
    old = small()[0]
    old.load_state_dict(place.model.state_dict())
    engine.submit(GenRequest("long", PROMPT, Sampling(MAX_LEN - 20), seed=2))
    for session in ("a", "b"):  # while these are drawn the long one is well under way
        draw(engine, session=session, count=20)
    nudge(place.model)
    place.sync(engine, 2)
    output = wait_for(engine, 1)["long"]
    (first, second) = output.versions
    assert (first[0], second[0]) == (1, 2)
    assert 0 == first[1] < first[2] == second[1] < second[2] == len(output.token_ids)
    ids = [*PROMPT, *output.token_ids]
    said, cut = torch.tensor(output.logprobs), first[2]
    by_old, by_new = (naive_logprobs(m, ids)[len(PROMPT) - 1 :] for m in (old, place.model))
    assert (by_old[:cut] - said[:cut]).abs().max() < 1e-4
    # The one token after the cut may have been drawn before the server took note of the name.
    assert (by_new[cut + 1 :] - said[cut + 1 :]).abs().max() < 1e-4
    engine.close()


def test_what_is_in_flight_over_completions_is_waited_for_and_is_by_the_old_weights(place):
    engine = place.engine()
    old = small()[0]
    old.load_state_dict(place.model.state_dict())
    engine.submit(GenRequest("a", PROMPT, Sampling(60), seed=2))
    draw(engine, session="b", count=2)
    nudge(place.model)
    place.sync(engine, 2)
    output = wait_for(engine, 1)["a"]
    assert output.versions == ((1, 0, 60),)
    assert gap(place, PROMPT, output, model=old) < 1e-4
    engine.close()


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


# Habits


def test_the_server_cuts_an_answer_to_its_context_without_a_word(place, engine):
    body = {"model": engine.model, "prompt": LONG, "max_tokens": 400, "return_token_ids": True}
    choice = asked(place, "/v1/completions", body | {"ignore_eos": True})["choices"][0]
    assert choice["finish_reason"] == "length"
    assert len(choice["token_ids"]) == MAX_LEN - len(LONG)


def test_the_server_refuses_ids_that_it_has_no_embedding_for(place, engine):
    with pytest.raises(ServerRefused) as refused:
        body = {"model": engine.model, "prompt": [5, 99_999], "max_tokens": 1}
        asked(place, "/v1/completions", body)
    assert refused.value.status == 400


@pytest.mark.parametrize("temperature", [-0.1, 2.01])
def test_the_server_refuses_temperatures_outside_of_0_to_2(place, engine, temperature):
    with pytest.raises(ServerRefused) as refused:
        body = {"model": engine.model, "prompt": list(PROMPT), "temperature": temperature}
        asked(place, "/v1/completions", body)
    assert refused.value.status == 400


def test_the_candidates_of_a_draw_are_counted_at_its_temperature(place, engine):
    body = {"model": engine.model, "prompt": list(PROMPT), "max_tokens": 4, "logprobs": 2}
    body |= {"temperature": 0.25, "seed": 3, "ignore_eos": True, "return_token_ids": True}
    choice = asked(place, "/v1/completions", body)["choices"][0]
    ids = [*PROMPT, *choice["token_ids"]]
    with torch.no_grad():
        logits = place.model(input_ids=torch.tensor([ids])).logits[0, len(PROMPT) - 1 : -1]
    own = (logits.float() / 0.25).log_softmax(-1).topk(2).values
    told = [sorted(row.values(), reverse=True)[:2] for row in choice["logprobs"]["top_logprobs"]]
    torch.testing.assert_close(torch.tensor(told), own, atol=1e-3, rtol=0)


def test_the_tail_is_what_the_candidates_leave():
    assert tail_mass([math.log(0.5), math.log(0.25)]) == pytest.approx(0.25)
    assert tail_mass([0.0, 0.0]) == 0.0


def test_the_probe_asks_for_the_same_ids_at_every_change_of_weights():
    ids = vllm_weights.probe_ids(100, 50)
    assert ids == vllm_weights.probe_ids(100, 50)
    assert min(ids) >= 0 and max(ids) < 100 and len(set(ids)) > 30
