"""Traps of vLLM, each set by a switch of the stand-in or by what is done to its answers.

What a guard holds off is seen here without it too, so that no trap is a mere story.
"""

from __future__ import annotations

import asyncio
import copy
import math
from contextlib import ExitStack
from dataclasses import replace

import httpx
import pytest
import torch
from miniatures import naive_logprobs, nudge
from servers import MAX_LEN, PROMPT, altered, draw, saved, small, standin, wait_for

from turnwise.agents.engines import vllm_change, vllm_fleet
from turnwise.agents.engines.base import GenRequest, Sampling, ScoreRequest
from turnwise.agents.engines.client import ProtocolError, Server
from turnwise.agents.engines.vllm import EngineBroken, VllmEngine
from turnwise.agents.engines.vllm_score import score
from turnwise.agents.engines.vllm_weights import (
    SavedWeights,
    four_phases,
    hot_lora,
    reload_folder,
)
from turnwise.agents.engines.vllm_wire import COMPLETIONS, GENERATE, output_of
from turnwise.trainers.engines import Sampler, own_logprobs
from turnwise.trainers.model import add_lora

torch.set_num_threads(1)
WIRES = {"completions": COMPLETIONS, "generate": GENERATE}
ASKED = GenRequest("a", PROMPT, Sampling(8, 1.0, (279,)), seed=3)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def inside(app, kind=Server) -> Server:
    return kind("http://standin", transport=httpx.ASGITransport(app=app))


def engine_on(stack, server, **more) -> VllmEngine:
    engine = VllmEngine([server], **more)
    stack.callback(engine.close)
    return engine


def answer_of(app, path, body):
    return asyncio.run(inside(app).post(path, body))


def largest_gap(ids, drawn, logprobs, model=None) -> float:
    own = naive_logprobs(model or small()[0], [*ids, *drawn])[len(ids) - 1 :]
    return (own - torch.tensor(logprobs)).abs().max().item()


# What shapes the distribution

DEFAULTS = [
    {"top_p": 0.3},
    {"top_k": 3},
    {"min_p": 0.4},
    {"repetition_penalty": 1.5},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 1.5},
]


@pytest.mark.parametrize("default", DEFAULTS, ids=lambda d: next(iter(d)))
def test_no_default_of_a_server_shapes_what_is_sampled(stack, default):
    app = standin(defaults=default)
    bare = {"prompt": PROMPT, "max_tokens": 30, "logprobs": 0, "return_token_ids": True, "seed": 3}
    (shaped,) = answer_of(app, "/v1/completions", bare | {"ignore_eos": True})["choices"]
    said = shaped["logprobs"]["token_logprobs"]
    assert largest_gap(PROMPT, shaped["token_ids"], said) > 0.1
    output = draw(engine_on(stack, inside(app)), count=30)
    assert largest_gap(PROMPT, output.token_ids, output.logprobs) < 1e-4


def test_an_engine_that_shapes_its_distribution_says_so_and_is_not_trained_on(stack):
    app = standin()
    plain = engine_on(stack, inside(app), shaping={"top_p": 1.0, "top_k": 0})
    assert plain.fleet.exact and draw(plain, count=2).exact
    for shaping in ({"top_k": 5}, {"repetition_penalty": 1.1}, {"allowed_token_ids": [5, 6]}):
        shaped = engine_on(stack, inside(app), shaping=shaping)
        assert not shaped.fleet.exact
        with pytest.raises(ValueError, match=f"samples with .*{next(iter(shaping))}"):
            Sampler(shaped, lambda: None)


# Answers to a request for tokens


@pytest.fixture(scope="module")
def answers():
    """What the stand-in says to `ASKED`, by wire."""
    app = standin()
    return {
        name: answer_of(app, wire.path, wire.body(ASKED, "policy", 8, "w1", {}))
        for name, wire in WIRES.items()
    }


def parts(answer):
    """The lists that pair up: token ids, and what is said of each."""
    (choice,) = answer["choices"]
    said = choice["logprobs"]
    if "content" in said:
        return [choice["token_ids"], said["content"]]
    return [choice["token_ids"], said["tokens"], said["token_logprobs"]]


def every(change):
    return lambda answer: [change(part) for part in parts(answer)]


def say(answer, logprob):
    last = parts(answer)[-1]
    last[0] = {**last[0], "logprob": logprob} if isinstance(last[0], dict) else logprob


def read_another_prompt(answer):
    answer["usage"]["prompt_tokens"] += 1
    answer["choices"][0]["prompt_token_ids"] = [*PROMPT, 5]


def shift(answer):
    parts(answer)[0].append(parts(answer)[0].pop(0))


LIES = {
    "two choices": (lambda a: a["choices"].extend(a["choices"]), "another shape"),
    "no choice": (lambda a: a["choices"].clear(), "another shape"),
    "another prompt": (read_another_prompt, "another prompt"),
    "other tokens": (shift, "of other tokens"),
    "a number that is none": (lambda a: say(a, math.nan), "--logprobs-mode processed_logprobs"),
    "minus infinity": (lambda a: say(a, -math.inf), "not a number of at most 0"),
    "a logit": (lambda a: say(a, 3.5), "not a number of at most 0"),
    "too long": (every(lambda part: part.append(part[-1])), "asked for 1 to 8 tokens and got 9"),
    "empty": (every(list.clear), "asked for 1 to 8 tokens and got 0"),
    "cut": (every(list.pop), "cut the answer to 7 of 8"),
    "aborted": (lambda a: a["choices"][0].update(finish_reason="abort"), "aborted"),
    "stopped": (lambda a: a["choices"][0].update(finish_reason="stop"), "ended by 'stop'"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("wire", WIRES)
def test_an_answer_is_taken_as_it_was_asked_for_or_not_at_all(answers, wire, lie):
    spoil, why = LIES[lie]
    honest, spoilt = answers[wire], copy.deepcopy(answers[wire])
    assert len(output_of(WIRES[wire], honest, ASKED, 8, 1, exact=True).token_ids) == 8
    spoil(spoilt)
    with pytest.raises(ProtocolError, match=why):
        output_of(WIRES[wire], spoilt, ASKED, 8, 1, exact=True)


@pytest.mark.parametrize("wire", WIRES)
def test_a_stop_token_is_the_last_one_whatever_the_server_calls_the_end(answers, wire):
    *others, last = parts(answers[wire])[0]
    assert last not in others

    def read(stop):
        request = replace(ASKED, sampling=Sampling(8, 1.0, (stop,)))
        return output_of(WIRES[wire], answers[wire], request, 8, 1, exact=True)

    assert read(last).finish == "stop"
    with pytest.raises(ProtocolError, match="went on after one of the stop tokens"):
        read(others[3])


# Scores


def row(change):
    return lambda choice: change(choice["prompt_logprobs"])


def own(logprob):
    return row(lambda rows: rows[4][str(PROMPT[4])].update(logprob=logprob))


FALSE_SCORES = {
    "of other tokens": (lambda choice: choice["prompt_token_ids"].reverse(), "scored other tokens"),
    "a row too few": (row(list.pop), "7 rows of scores for 8 tokens"),
    "of the first token": (row(lambda rows: rows.__setitem__(0, rows[1])), "8 rows of scores"),
    "a row without": (row(lambda rows: rows.__setitem__(4, None)), "a token has no score"),
    "not of the token": (row(lambda rows: rows[4].pop(str(PROMPT[4]))), "another shape"),
    "too few candidates": (row(lambda rows: rows[4].popitem() + rows[4].popitem()), "candidates"),
    "none at all": (lambda choice: choice.update(prompt_logprobs=None), "another shape"),
    "no number": (own(math.nan), "not a log-probability"),
    "minus infinity": (own(-math.inf), "not a log-probability"),
    "a logit": (own(2.5), "not a log-probability"),
}


@pytest.mark.parametrize("lie", FALSE_SCORES)
def test_scores_are_those_of_the_tokens_that_were_sent_or_none(lie):
    spoil, why = FALSE_SCORES[lie]

    def change(path, answer):
        spoil(answer["choices"][0])
        return answer

    with pytest.raises(ProtocolError, match=why):
        asyncio.run(
            score(inside(altered(standin(), change)), ScoreRequest(PROMPT, topk=3), "policy")
        )


# Weights


class Deaf(Server):
    """Passes on one of the two resets of the cache alone, in `hears`."""

    hears = ""

    async def post(self, path, body=None, **more):
        if path.startswith("/pause") and self.hears != "pause":
            path = path.replace("clear_cache=true", "clear_cache=false")
        if path == "/reset_prefix_cache" and self.hears != "reset":
            return {}
        return await super().post(path, body, **more)


@pytest.mark.parametrize("hears", ["pause", "reset", ""])
def test_each_reset_of_the_cache_is_enough_by_itself(stack, monkeypatch, tmp_path, hears):
    for module in (vllm_fleet, vllm_change):
        monkeypatch.setattr(module, "version_name", lambda version: "always the same")
    monkeypatch.setattr(Deaf, "hears", hears)
    model, tokenizer = small()
    engine = engine_on(stack, inside(standin(), Deaf))
    engine.update_weights(saved(model, tokenizer, tmp_path), 1)
    nudge(model, rate=0.05)
    if not hears:
        with pytest.raises(EngineBroken, match="a stale prefix cache"):
            engine.update_weights(saved(model, tokenizer, tmp_path), 2)
        return
    engine.update_weights(saved(model, tokenizer, tmp_path), 2)
    output = draw(engine)
    assert largest_gap(PROMPT, output.token_ids, output.logprobs, model) < 1e-4


WAYS = {
    reload_folder: ["/collective_rpc", "/update_weight_version"],
    four_phases: [
        "/init_weight_transfer_engine",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
    ],
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_new_weights_come_in_the_one_order_that_is_right(stack, tmp_path, way):
    asked = []

    async def app(scope, receive, send, whole=standin()):  # noqa: B008
        asked.append(scope["path"])
        await whole(scope, receive, send)

    engine = engine_on(stack, inside(app), way=way)
    asked.clear()
    engine.update_weights(saved(*small(), tmp_path), 1)
    probe = ["/v1/completions", "/v1/completions"]
    assert asked == ["/pause", *WAYS[way], "/reset_prefix_cache", "/resume", *probe]


AMID = {reload_folder: "FileNotFound", four_phases: "FileNotFound", hot_lora: "No adapter found"}


@pytest.mark.parametrize("way", AMID, ids=lambda way: way.__name__)
def test_a_change_of_weights_that_fails_amid_leaves_no_server_paused(stack, tmp_path, way):
    app = standin()
    engine = engine_on(stack, inside(app), way=way)
    good = adapted(tmp_path / "good") if way is hot_lora else saved(*small(), tmp_path / "good")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/model.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(EngineBroken, match=AMID[way]):
        engine.update_weights(replace(good, folder=tmp_path / "torn"), 1)
    assert app.served.resumed.is_set() and "step-1" not in app.served.versions
    engine.update_weights(good, 2)
    assert draw(engine).versions == ((2, 0, 8),)


def adapted(folder) -> SavedWeights:
    """An adapter that changes nothing, saved."""
    model = add_lora(small()[0], 2)
    model.save_pretrained(folder)
    return SavedWeights(folder, lambda ids: own_logprobs(model, ids), 280)


def test_an_update_that_an_earlier_run_left_open_is_in_the_way_once(stack, tmp_path):
    app = standin()
    engine = engine_on(stack, inside(app), way=four_phases)
    app.updating = True
    with pytest.raises(EngineBroken, match="already active"):
        engine.update_weights(saved(*small(), tmp_path), 1)
    engine.update_weights(saved(*small(), tmp_path), 1)


def test_what_comes_during_a_change_of_weights_asks_nothing_until_they_are_proved(stack, tmp_path):
    async def meanwhile(server, folder, version, model):
        engine.submit(GenRequest("late", PROMPT, Sampling(8)))
        await asyncio.sleep(0.05)
        return await reload_folder(server, folder, version, model)

    engine = engine_on(stack, inside(standin()), way=meanwhile)
    model, tokenizer = small(seed=4)
    engine.update_weights(saved(model, tokenizer, tmp_path), 1)
    output = wait_for(engine, 1)["late"]
    assert output.versions == ((1, 0, 8),)
    assert largest_gap(PROMPT, output.token_ids, output.logprobs, model) < 1e-4


def test_a_probe_without_a_number_has_not_passed(stack, tmp_path):
    engine = engine_on(stack, inside(standin()))
    weights = saved(*small(), tmp_path)
    with pytest.raises(EngineBroken, match="differ by nan"):
        engine.update_weights(replace(weights, score=lambda ids: [math.nan] * (len(ids) - 1)), 1)


def test_a_server_in_bfloat16_is_taken_by_a_tolerance_that_is_known_at_the_start(stack, tmp_path):
    from turnwise.agents.engines.standin import Settings, StandIn

    model, tokenizer = small()
    rounding = StandIn(copy.deepcopy(model).bfloat16(), tokenizer, Settings(max_model_len=MAX_LEN))
    engine = engine_on(stack, inside(rounding), tolerance=0.2)
    engine.update_weights(saved(model, tokenizer, tmp_path), 1)
    output = draw(engine, count=30)
    assert 1e-2 < largest_gap(PROMPT, output.token_ids, output.logprobs) < 1.0
