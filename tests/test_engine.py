"""The promises of an engine: one log-probability convention, and tokens that depend on the request
alone. Held against plain forward passes of the Hugging Face model.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from miniatures import VOCAB, converse, largest_gap, naive_logprobs, nudge, other, qwen3

from turnwise.agents.engines import functional
from turnwise.agents.engines.base import (
    Engine,
    EngineError,
    GenRequest,
    PromptTooLong,
    Sampling,
    ScoreRequest,
)
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.engines.recompute import Recompute
from turnwise.agents.engines.sampling import sample, uniforms
from turnwise.agents.engines.slab import Slab
from turnwise.trainers.model import add_lora

torch.set_num_threads(1)

SIX = range(6)


def engine_of(model=None, *, slots: int = 8, max_len: int = 256) -> EmbeddedEngine:
    return EmbeddedEngine(model or qwen3(), slots=slots, max_len=max_len)


def request(ids, session="a", seed=0, max_tokens=8, temperature=1.0, stop=()) -> GenRequest:
    return GenRequest(session, ids, Sampling(max_tokens, temperature, stop), seed)


def one(engine, ids, **more):
    (output,) = engine.generate([request(ids, **more)])
    return output


def finish_all(engine, count):
    done = []
    while len(done) < count:
        done += engine.poll()
    return {output.session: output for output in done}


# Log-probabilities


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama", "gpt2", "lora"])
def test_engine_logprobs_are_those_of_a_full_forward_pass_also_after_training(kind, temperature):
    models = {"qwen3": qwen3, "lora": lambda: add_lora(qwen3(), 2)}
    model = models.get(kind, partial(other, kind))()
    engine = engine_of(model)
    before = converse(engine, SIX, temperature=temperature)
    assert largest_gap(model, before, temperature) < 1e-4
    nudge(model)
    engine.update_weights(None, 3)
    after = converse(engine, SIX, temperature=temperature)
    assert largest_gap(model, after, temperature) < 1e-4
    assert [t.sampled for t in before] != [t.sampled for t in after]
    assert {o.versions[0][0] for t in after for o in t.outputs} == {3}


def test_dividing_logprobs_by_the_temperature_is_not_the_convention():
    model = qwen3()
    talks = converse(engine_of(model), SIX, temperature=0.7)
    for talk in talks:
        plain = naive_logprobs(model, talk.ids) / 0.7
        for i, ((start, end), output) in enumerate(zip(talk.spans, talk.outputs, strict=True)):
            talk.outputs[i] = replace(output, logprobs=tuple(plain[start - 1 : end - 1].tolist()))
    assert largest_gap(model, talks, 0.7) > 0.1


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_known_architectures_pass_their_proof_and_keep_a_cache(kind):
    model = other(kind)
    functional.prove(model, functional.Decoder(model, 64))
    assert isinstance(engine_of(model).cache, Slab)


@pytest.mark.parametrize("training", [True, False])
def test_the_proof_leaves_every_part_in_its_own_mode(training):
    model = qwen3().train(training)
    model.model.layers[0].train(not training)  # as a wrapper may hold a part fixed
    modes = [part.training for part in model.modules()]
    functional.prove(model, functional.Decoder(model, 64))
    assert [part.training for part in model.modules()] == modes


def test_a_forward_pass_that_differs_is_found_out_and_not_used(monkeypatch):
    honest = functional._rotate
    monkeypatch.setattr(functional, "_rotate", lambda x, cos, sin: honest(x, cos, -sin))
    model = qwen3()
    with pytest.raises(functional.NotEquivalent, match="logits differ"):
        functional.prove(model, functional.Decoder(model, 64))
    engine = engine_of(model)
    assert isinstance(engine.cache, Recompute)
    assert largest_gap(model, converse(engine, SIX, turns=2)) < 1e-4


def test_an_unknown_architecture_runs_without_a_cache_and_draws_the_same_as_alone():
    model = other("gpt2")
    engine = engine_of(model)
    assert isinstance(engine.cache, Recompute)
    together = converse(engine, SIX, turns=2)
    alone = [converse(engine_of(model), [n], turns=2)[0] for n in SIX]
    assert [t.sampled for t in together] == [t.sampled for t in alone]


def test_scores_are_the_logprobs_that_were_sampled_with():
    engine = engine_of()
    for temperature in (1.0, 0.7):
        (talk,) = converse(engine, [7], temperature=temperature)
        engine.end_session("7")
        for (start, end), output in zip(talk.spans, talk.outputs, strict=True):
            (score,) = engine.score(
                [ScoreRequest(talk.ids[:end], start, topk=3, temperature=temperature)]
            )
            np.testing.assert_allclose(score.logprobs, output.logprobs, atol=1e-4)
            assert all(a >= b >= c for a, b, c in score.topk_logprobs)
            assert len(score.topk_ids) == end - start


# What a token may depend on


def test_a_prompt_shared_by_a_group_is_prefilled_once_and_changes_no_token():
    model, prompt = qwen3(), list(range(1, 31))
    group = [request(prompt, session=str(i), seed=i) for i in range(6)]
    shared = engine_of(model)
    outputs = shared.generate(group)
    assert shared.stats.prefilled_tokens == len(prompt)
    assert shared.stats.shared_tokens == 5 * len(prompt)
    alone = [engine_of(model).generate([r])[0] for r in group]
    assert [o.token_ids for o in outputs] == [o.token_ids for o in alone]
    assert len({o.token_ids for o in outputs}) > 1


def test_a_history_is_never_prefilled_twice():
    engine = engine_of()
    talks = converse(engine, SIX)
    unique = sum(len(talk.ids) for talk in talks)
    assert engine.stats.prefilled_tokens + engine.stats.decoded_tokens <= unique


@pytest.mark.parametrize("names", [[5, 4, 3, 2, 1, 0], [3], [4, 9, 1]])
def test_batch_mates_change_no_token(names):
    model = qwen3()
    usual = {t.name: t.sampled for t in converse(engine_of(model), SIX)}
    others = {t.name: t.sampled for t in converse(engine_of(model), names)}
    common = usual.keys() & others.keys()
    assert common and all(usual[name] == others[name] for name in common)


@pytest.mark.parametrize("at_once", [64, 2])
def test_more_sessions_than_slots_are_evicted_and_draw_the_same(at_once):
    model = qwen3()
    usual = converse(engine_of(model), range(9))
    crowded = engine_of(model, slots=3)
    assert [t.sampled for t in converse(crowded, range(9), at_once=at_once)] == [
        t.sampled for t in usual
    ]
    assert crowded.stats.evictions > 0


@pytest.mark.parametrize("max_len", [4, 12])
def test_an_engine_of_few_positions_fills_them_all(max_len):
    engine = engine_of(max_len=max_len)
    assert isinstance(engine.cache, Slab)
    output = one(engine, [1, 2], max_tokens=max_len - 2)
    assert len(output.token_ids) == max_len - 2
    roomy = engine_of(engine.model)
    assert output.token_ids == one(roomy, [1, 2], max_tokens=max_len - 2).token_ids


@pytest.mark.parametrize("cache", [Slab, Recompute])
def test_a_rewritten_history_is_read_anew_from_the_first_token_that_differs(cache):
    engine, prompt = engine_of(), list(range(1, 21))
    if cache is Recompute:
        engine.cache = Recompute(engine.model, 8)
    assert isinstance(engine.cache, cache)
    one(engine, prompt, max_tokens=4)
    rewritten = [*prompt[:10], 77, *prompt[11:], 5, 6]
    before = engine.stats.prefilled_tokens
    output = one(engine, rewritten, seed=3)
    assert engine.stats.prefilled_tokens - before == len(rewritten) - 10
    assert output.token_ids == one(engine_of(engine.model), rewritten, seed=3).token_ids


def test_asking_again_for_the_same_history_still_has_a_token_to_feed():
    engine, prompt = engine_of(), [1, 2, 3, 4]
    first = one(engine, prompt, seed=5, max_tokens=1)
    again = one(engine, prompt, seed=5, max_tokens=1)
    assert first.token_ids == again.token_ids


def test_an_ended_session_frees_its_slot_and_takes_its_request_along():
    engine = engine_of(slots=2)
    for name in "abc":
        engine.submit(request([1, 2, 3], session=name, max_tokens=50))
    engine.poll()
    engine.end_session("a")  # decoding
    engine.end_session("c")  # waiting for a slot
    engine.end_session("nobody")
    assert set(finish_all(engine, 1)) == {"b"}
    engine.end_session("b")
    assert len(engine._free) == 2 and engine.poll() == []
    assert one(engine, [4, 5], session="a").session == "a"


# Draws


def test_the_same_seed_draws_the_same_tokens_and_another_one_does_not():
    engine, prompt = engine_of(), [1, 2, 3]
    runs = [one(engine, prompt, seed=s, max_tokens=20).token_ids for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_draws_follow_the_softmax():
    draws, logits = 50_000, torch.linspace(-3, 3, 40)[torch.randperm(40)] / 0.7
    tokens, logprobs = sample(logits.expand(draws, -1), [0.7] * draws, range(draws), [3] * draws)
    expected = torch.softmax(logits / 0.7, -1).numpy() * draws
    seen = np.bincount(tokens, minlength=40)
    kept = expected > 5
    chi2 = ((seen - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi2 < kept.sum() + 4.5 * np.sqrt(2 * kept.sum())
    np.testing.assert_allclose(np.exp(logprobs) * draws, expected[tokens], rtol=1e-4)


def test_draws_of_one_seed_and_of_neighbouring_seeds_are_independent():
    grid = np.stack([uniforms([seed] * 200, range(200)) for seed in range(200)])
    assert abs(grid.mean() - 0.5) < 0.01 and grid.min() >= 0 and grid.max() < 1
    seeds, counters = (grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])
    for a, b in (seeds, counters, (grid[1:, 1:], grid[:-1, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02
    assert len(np.unique(grid)) == grid.size


def test_greedy_takes_the_likeliest_token_and_reports_its_logprob_at_temperature_one():
    model, ids = qwen3(), [3, 1, 4]
    output = one(engine_of(model), ids, temperature=0.0, max_tokens=6, seed=9)
    for token, logprob in zip(output.token_ids, output.logprobs, strict=True):
        with torch.no_grad():
            logp = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1], -1)
        assert token == int(logp.argmax())
        assert logprob == pytest.approx(float(logp.max()), abs=1e-4)
        ids = [*ids, token]


def test_no_global_random_state_is_touched():
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    engine = engine_of()
    converse(engine, SIX, turns=2)
    assert states() == before


# How a request ends


def test_the_stop_token_ends_an_output_and_is_in_it_once_with_its_logprob():
    engine = engine_of()
    free = one(engine, [1, 2, 3], seed=4, max_tokens=30)
    stop = free.token_ids[10]
    first = free.token_ids.index(stop)
    stopped = one(engine, [1, 2, 3], seed=4, max_tokens=30, stop=(stop, VOCAB - 1))
    assert stopped.finish == "stop" and free.finish == "length"
    assert stopped.token_ids == free.token_ids[: first + 1]
    np.testing.assert_allclose(stopped.logprobs, free.logprobs[: first + 1], atol=1e-5)


def test_an_output_ends_at_its_own_limit_and_at_the_longest_history():
    engine = engine_of(max_len=16)
    short = one(engine, [1, 2, 3], max_tokens=5)
    assert (len(short.token_ids), short.finish) == (5, "length")
    clipped = one(engine, list(range(1, 14)), max_tokens=50)
    assert (len(clipped.token_ids), clipped.finish) == (3, "length")
    assert len(one(engine, list(range(1, 16)), max_tokens=50).token_ids) == 1


@pytest.mark.parametrize("length", [0, 16, 40])
def test_a_prompt_that_is_empty_or_too_long_is_refused_and_leaves_nothing(length):
    engine = engine_of(max_len=16)
    with pytest.raises(PromptTooLong, match=f"a prompt of {length} tokens.*1 to 15"):
        engine.submit(request([1] * length))
    assert engine.poll() == []
    assert len(one(engine, [1, 2], max_tokens=2).token_ids) == 2


def test_a_session_has_one_request_at_a_time():
    engine = engine_of()
    engine.submit(request([1, 2]))
    with pytest.raises(ValueError, match="in flight"):
        engine.submit(request([1, 2]))


def test_nothing_can_be_scored_from_no_predecessor():
    with pytest.raises(PromptTooLong, match=r"start must lie in 1\.\.2"):
        engine_of().score([ScoreRequest([1, 2, 3], start=0)])


@pytest.mark.parametrize("bad", [{"max_tokens": 0}, {"temperature": -0.1}])
def test_impossible_sampling_is_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)


def test_the_embedded_engine_is_an_engine_and_its_failure_is_no_prompt_error():
    assert isinstance(engine_of(), Engine)
    assert not issubclass(PromptTooLong, EngineError)


# New weights


def test_a_cache_that_outlives_its_weights_is_wrong_and_update_weights_forgets_it():
    gaps = {}
    for forget in (False, True):
        model = qwen3()
        engine = engine_of(model)
        (talk,) = converse(engine, [5], turns=2)
        nudge(model, rate=0.1)
        if forget:
            engine.update_weights(None, 1)
        talk.ids += [7, 8, 9]
        output = one(engine, talk.ids, session="5", max_tokens=10)
        naive = naive_logprobs(model, [*talk.ids, *output.token_ids])[-len(output.token_ids) :]
        gaps[forget] = (naive - torch.tensor(output.logprobs)).abs().max().item()
    assert gaps[False] > 0.1
    assert gaps[True] < 1e-4


def test_an_update_in_flight_gives_two_spans_that_match_the_old_and_the_new_weights():
    model, prompt = qwen3(), [1, 2, 3, 4, 5]
    engine = engine_of(model)
    group = [request(prompt, session=str(i), seed=i, max_tokens=20) for i in range(3)]
    for r in group:
        engine.submit(r)
    for _ in range(8):
        engine.poll()
    old = qwen3()
    nudge(model, rate=0.05)
    engine.update_weights(None, 7)
    for output in finish_all(engine, 3).values():
        (v0, start, cut), (v1, same_cut, end) = output.versions
        assert (v0, v1, start, end) == (0, 7, 0, 20)
        assert 0 < cut == same_cut < 20
        ids, said = [*prompt, *output.token_ids], torch.tensor(output.logprobs)
        before, after = (naive_logprobs(m, ids)[-20:] for m in (old, model))
        assert (said - before)[:cut].abs().max() < 1e-4
        assert (said - after)[cut:].abs().max() < 1e-4
        assert (said - before)[cut:].abs().max() > 0.1


def test_given_weights_are_loaded():
    engine = engine_of(qwen3(seed=0))
    engine.update_weights(qwen3(seed=1).state_dict(), 1)
    assert largest_gap(qwen3(seed=1), converse(engine, SIX, turns=1)) < 1e-4


def test_an_engine_is_made_and_used_where_gradients_are_off():
    with torch.no_grad():
        engine = engine_of(qwen3())
        assert isinstance(engine.cache, Slab)
        assert one(engine, [1, 2]).token_ids
