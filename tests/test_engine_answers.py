"""Answers of a server that are not to what was asked: found out, and that request alone is lost."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
import torch
from servers import MAX_LEN, PROMPT, altered, draw, engine_on, inside, standin, wait_for

from turnwise.agents.engines.base import GenRequest, Sampling
from turnwise.agents.engines.client import ProtocolError, ServerRefused
from turnwise.agents.engines.vllm_wire import GENERATE

torch.set_num_threads(1)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


# Answers


def spoil(path, change):
    """Change the first choice of the answers of one route."""

    def changed(where, answer):
        if where == path:
            change(answer["choices"][0])
        return answer

    return changed


LIES = {
    "a token too few": lambda c: c["token_ids"].pop(),
    "a logprob too few": lambda c: c["logprobs"]["token_logprobs"].pop(),
    "another prompt": lambda c: c["prompt_token_ids"].reverse(),
    "other tokens": lambda c: c["token_ids"].reverse(),
    "a logprob above 0": lambda c: c["logprobs"]["token_logprobs"].__setitem__(0, 0.5),
    "no logprobs": lambda c: c.update(logprobs=None),
    "stopped for no reason": lambda c: c.update(finish_reason="stop"),
    "aborted": lambda c: c.update(finish_reason="abort"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_an_answer_that_is_not_to_what_was_asked_loses_that_request_alone(stack, lie):
    lying = False
    spoilt = spoil("/v1/completions", lie)

    def change(path, answer):
        return spoilt(path, answer) if lying else answer

    engine = engine_on(stack, inside(altered(standin(), change)))
    lying = True
    engine.submit(GenRequest("a", PROMPT, Sampling(8)))
    with pytest.raises(ProtocolError) as wrong:
        wait_for(engine, 1)
    assert wrong.value.sessions == {"a"}
    lying = False
    assert draw(engine, session="b").finish == "length"


@pytest.mark.parametrize("spans", [[], [("step-1", 0, 3)], [("step-1", 0, 3), ("step-2", 4, 8)]])
def test_version_spans_cover_the_tokens_without_a_gap(stack, spans):
    said = [{"version": v, "start": a, "end": b} for v, a, b in spans]
    lying = False

    def change(path, answer):
        if lying and path == GENERATE.path:
            answer["choices"][0]["weight_versions"] = said
        return answer

    engine = engine_on(stack, inside(altered(standin(), change)), wire=GENERATE)
    lying = True
    with pytest.raises(ProtocolError, match="version spans"):
        draw(engine)


def test_a_server_that_cuts_answers_shorter_than_it_said_is_found_out(stack):
    shorter = standin()

    def longer(path, answer):
        if path == "/v1/models":
            answer["data"][0]["max_model_len"] = 4 * MAX_LEN
        return answer

    engine = engine_on(stack, inside(altered(shorter, longer)))
    with pytest.raises(ProtocolError, match="cut the answer to 112 of 300 tokens"):
        draw(engine, [9] * (MAX_LEN - 112), count=300)


def test_an_error_answer_is_told_with_what_the_server_said():
    async def ask():
        server = inside(standin())
        return await server.post("/v1/completions", {"model": "who", "prompt": [5]})

    with pytest.raises(ServerRefused, match="answered 404: The model `who` does not exist"):
        asyncio.run(ask())
