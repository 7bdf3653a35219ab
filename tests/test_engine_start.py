"""A server that cannot be trained with is refused before anything is played: what to change."""

from __future__ import annotations

import asyncio
import copy
import math
from contextlib import ExitStack

import pytest
import torch
from fakes import Guess
from servers import MAX_LEN, altered, draw, engine_on, inside, small, standin

from turnwise.agents.engines.base import ServerUnfit
from turnwise.agents.engines.standin import Settings, StandIn
from turnwise.agents.engines.vllm import VllmEngine
from turnwise.agents.engines.vllm_start import Needs, _margins
from turnwise.agents.engines.vllm_wire import GENERATE
from turnwise.trainers.model import tiny_from_env

torch.set_num_threads(1)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def refusal(*apps, key="", wire=None, **needs) -> str:
    more = {} if wire is None else {"wire": wire}
    with pytest.raises(ServerUnfit) as unfit:
        VllmEngine([inside(app, api_key=key) for app in apps], needs=Needs(**needs), **more)
    return str(unfit.value)


def test_an_unfit_server_is_refused_at_the_start_with_what_to_change():
    assert "--enable-scale-out" in refusal(standin(scale_out=False), wire=GENERATE)
    assert "VLLM_SERVER_DEV_MODE=1" in refusal(standin(dev_mode=False), updates=True)
    assert "serves ['policy'], not 'other'" in refusal(standin(), model="other")
    assert "different models: ['a', 'b']" in refusal(standin(served="a"), standin(served="b"))


def test_a_client_without_the_right_key_is_told_where_it_belongs(stack):
    app = standin(api_key="secret")
    for key in ("", "Secret"):
        assert "TURNWISE_VLLM_API_KEY" in refusal(app, key=key)
    assert draw(engine_on(stack, inside(app, api_key="secret"))).finish == "length"


@pytest.mark.parametrize("version", ["0.20.9", "0.34.0", "0.99.1", "1.21.0", "dev", ""])
def test_a_version_outside_the_range_is_refused_by_its_name(version):
    said = refusal(standin(version=version))
    assert "0.21 to 0.33" in said and (version or "no version") in said


@pytest.mark.parametrize("version", ["0.21.0", "0.32.1.dev3+g1f2e", "0.33.9rc1"])
def test_a_version_in_the_range_is_taken(stack, version):
    engine_on(stack, inside(standin(version=version)))


def test_room_for_the_longest_episode_is_asked_for_to_the_token(stack):
    assert f"--max-model-len {MAX_LEN + 1}" in refusal(standin(), max_len=MAX_LEN + 1)
    assert engine_on(stack, inside(standin()), needs=Needs(max_len=MAX_LEN)).max_len == MAX_LEN


def test_of_several_servers_the_shortest_counts(stack):
    longer = StandIn(*small(), Settings(max_model_len=2 * MAX_LEN))
    assert engine_on(stack, inside(longer), inside(standin())).max_len == MAX_LEN


# Tokenizers


def test_a_server_with_another_tokenizer_is_refused():
    other = tiny_from_env(Guess, tasks=20, hidden=16, layers=1, heads=1, kv_heads=1, head_dim=16)[1]
    assert "another tokenizer" in refusal(standin(), tokenizer=other)


def test_a_tokenizer_that_knows_one_special_token_more_is_another_one(stack):
    mine = small()[1]
    engine_on(stack, inside(standin()), needs=Needs(tokenizer=mine))
    mine.add_special_tokens({"additional_special_tokens": ["<|observed|>"]})
    assert "another tokenizer" in refusal(standin(), tokenizer=mine)


# Log-probabilities


def bfloat16(**settings) -> StandIn:
    model, tokenizer = small()
    return StandIn(copy.deepcopy(model).bfloat16(), tokenizer, Settings(**settings))


@pytest.mark.parametrize("mode", [{"processed": False}, {"logits": True}])
@pytest.mark.parametrize("make", [standin, bfloat16])
def test_another_mode_of_logprobs_is_refused_with_the_flag_that_sets_it(mode, make):
    assert "--logprobs-mode processed_logprobs" in refusal(make(**mode))


def test_a_server_that_shapes_the_distribution_whatever_it_is_asked_is_refused():
    def narrowed(path, body):
        return body | {"top_p": 0.3} if path == "/v1/completions" else body

    assert "shapes the distribution" in refusal(altered(standin(), narrowed, asked=True))


def scaled(scale: float, **settings) -> StandIn:
    """A policy that is sure, or knows next to nothing."""
    model, tokenizer = small()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    return StandIn(model, tokenizer, Settings(max_model_len=MAX_LEN, max_logprobs=64, **settings))


SCALES = [1e-5, 0.03, 0.2, 40.0, 400.0]


@pytest.mark.parametrize("scale", SCALES)
def test_a_policy_that_knows_nothing_or_is_sure_is_no_reason_to_refuse_a_server(stack, scale):
    engine_on(stack, inside(scaled(scale)), needs=Needs())


@pytest.mark.parametrize("scale", SCALES)
def test_a_tenth_of_the_temperature_is_ten_times_the_lead_and_raw_logprobs_have_the_same(scale):
    for processed, times in ((True, 10.0), (False, 1.0)):
        server = inside(scaled(scale, processed=processed))
        cold, warm = asyncio.run(_margins(server, "policy", 0.1))
        assert math.isfinite(cold) and warm > 0
        assert cold == pytest.approx(times * warm, rel=0.05)


def test_a_server_that_gives_one_candidate_is_told_to_give_two():
    assert "--max-logprobs 2 or more" in refusal(StandIn(*small(), Settings(max_logprobs=1)))


@pytest.mark.parametrize("scale", SCALES)
def test_nor_does_it_hide_logprobs_before_the_temperature(scale):
    assert "before the temperature" in refusal(scaled(scale, processed=False))


def test_a_server_that_tells_no_candidates_is_refused_as_no_vllm():
    def bare(path, answer):
        for choice in answer.get("choices", ()) if path == "/v1/completions" else ():
            if choice["logprobs"]:
                choice["logprobs"]["top_logprobs"] = [{} for _ in choice["token_ids"]]
        return answer

    assert "does not answer as vLLM" in refusal(altered(standin(), bare))
