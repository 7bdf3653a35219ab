"""Habits of vLLM that guards rely on, so that the stand-in cannot drift from them."""

from __future__ import annotations

import contracts
import pytest
import torch
from contracts import LONG, asked
from miniatures import naive_logprobs, nudge
from servers import MAX_LEN, PROMPT

from turnwise.agents.engines.client import ServerRefused

torch.set_num_threads(1)
place, engine = contracts.place, contracts.engine


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


def test_an_update_that_was_not_started_is_refused_by_the_server(place):
    with pytest.raises(ServerRefused) as refused:
        asked(place, "/update_weights", {"update_info": {"files": ["model.safetensors"]}})
    assert refused.value.status == 500


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
