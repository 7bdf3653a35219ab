"""What an engine over vLLM promises of samples and scores: against the stand-in and the real."""

from __future__ import annotations

import math

import contracts
import pytest
import torch
from contracts import LONG, WIRES, asked, gap
from miniatures import naive_logprobs
from servers import MAX_LEN, PROMPT, draw, wait_for

from turnwise.agents.engines.base import Engine, GenRequest, PromptTooLong, Sampling, ScoreRequest
from turnwise.agents.engines.vllm_score import CannotScore, tail_mass

torch.set_num_threads(1)
place, engine = contracts.place, contracts.engine


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


def test_the_tail_is_what_the_candidates_leave():
    assert tail_mass([math.log(0.5), math.log(0.25)]) == pytest.approx(0.25)
    assert tail_mass([0.0, 0.0]) == 0.0
