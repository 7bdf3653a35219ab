"""Where rounding and layout could move a log-probability of the embedded engine, and do not."""

from __future__ import annotations

import pytest
import torch
from miniatures import VOCAB, converse, largest_gap, naive_logprobs, qwen3
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from turnwise.agents.engines.base import GenRequest, Sampling, ScoreRequest
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.engines.recompute import Recompute
from turnwise.agents.engines.sampling import sample
from turnwise.agents.engines.slab import Slab
from turnwise.trainers.batch import Row, pack, totals_of
from turnwise.trainers.engines import own_logprobs
from turnwise.trainers.scorer import Scorer
from turnwise.trainers.surrogates import token_mean

torch.set_num_threads(1)
SHAPE = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48}
SHAPE |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE |= {"initializer_range": 0.3}
IDS = [(7 * i * i + 3) % 88 + 1 for i in range(40)]


def engine_of(model, **more) -> EmbeddedEngine:
    return EmbeddedEngine(model, **{"slots": 8, "max_len": 256, **more})


def rounded():
    return qwen3().bfloat16()


# The softmax is float32, whatever the weights are


@torch.no_grad()
def exact(model, ids, at: float = 1.0) -> torch.Tensor:
    """float64 log_softmax of the logits as the model gives them."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    return (logits / at).log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_of_bfloat16_weights_have_a_float32_softmax(temperature):
    model = rounded()
    (score,) = engine_of(model).score([ScoreRequest(IDS, temperature=temperature)])
    own = exact(model, IDS, temperature)
    assert (torch.tensor(score.logprobs).double() - own).abs().max() < 1e-5
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([IDS])).logits[0, :-1] / temperature
    coarse = logits.log_softmax(-1).gather(-1, torch.tensor(IDS[1:])[:, None])[:, 0]
    assert coarse.dtype == torch.bfloat16 and (coarse.double() - own).abs().max() > 1e-3


def test_the_probe_holds_a_server_against_a_float32_softmax():
    model = rounded()
    own = torch.tensor(own_logprobs(model, IDS)).double()
    assert (own - exact(model, IDS)).abs().max() < 1e-5


def test_draws_from_bfloat16_logits_have_a_float32_softmax():
    logits = (3 * torch.randn(64, 89, generator=torch.Generator().manual_seed(0))).bfloat16()
    tokens, logprobs = sample(logits, [0.7] * 64, range(64), [0] * 64)
    own = (logits.double() / 0.7).log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]
    assert (torch.tensor(logprobs).double() - own).abs().max() < 1e-5


def test_bfloat16_weights_move_what_is_sampled_by_rounding_alone():
    model = rounded()
    engine = engine_of(model)
    assert isinstance(engine.cache, Slab)
    gap = largest_gap(model, converse(engine, range(6), turns=3))
    assert 1e-4 < gap < 0.3, "rounding; a stale key or another temperature is 1 and more"


# What the functional forward does not know, and its short proof would not show


def falls_back(model) -> bool:
    engine = engine_of(model)
    assert largest_gap(model, converse(engine, range(6), turns=3)) < 1e-4
    return isinstance(engine.cache, Recompute)


def test_a_sliding_window_longer_than_the_proof_runs_on_the_model_itself():
    config = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=20, max_window_layers=0)
    assert falls_back(Qwen2ForCausalLM(config).eval())


def test_scaled_positions_run_on_the_model_itself():
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    config = LlamaConfig(**SHAPE, rope_parameters=rope)
    assert falls_back(LlamaForCausalLM(config).eval())


# Frequencies that depend on the longest sequence of a call

MOVING = {
    "dynamic": {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 30.0},
    "longrope": {
        "rope_type": "longrope", "factor": 8.0, "rope_theta": 30.0,
        "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


def moving(kind: str):
    """A model that reads up to 64 tokens in one way, and all of more than 64 in another."""
    most = 64 if kind == "dynamic" else 512
    config = LlamaConfig(**SHAPE, rope_parameters=MOVING[kind], max_position_embeddings=most)
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("kind", MOVING)
def test_positions_that_move_with_the_length_are_played_and_scored_as_long_as_they_stay(kind):
    model = moving(kind)
    engine = engine_of(model, max_len=64)
    assert largest_gap(model, converse(engine, range(6), turns=2)) < 1e-4
    rows = [
        Row(
            (*IDS[:9],),
            IDS[9:end],
            [*range(end - 9)],
            *([x] * (end - 9) for x in (-4.0, 0, 1.0)),
            0,
        )
        for end in (12, 40)
    ]
    packed = pack(rows, aggregate=token_mean, totals=totals_of(rows))
    own = torch.cat([naive_logprobs(model, row.ids)[8:] for row in rows])
    assert (Scorer(model, 64).logprobs(packed) - own).abs().max() < 1e-4


@pytest.mark.parametrize("kind", MOVING)
def test_positions_that_move_with_the_length_are_refused_where_they_do(kind):
    model, match = moving(kind), f"rope_type '{kind}' .* more than 64 tokens, and up to 65 may come"
    ids = [*IDS, *IDS]
    short, long = naive_logprobs(model, ids[:64]), naive_logprobs(model, ids)[:63]
    assert (short - long).abs().max() > 0.5, "what is said of the same tokens with more behind them"
    with pytest.raises(ValueError, match=match):
        engine_of(model, max_len=65)
    with pytest.raises(ValueError, match=match):
        Scorer(model, 65)
    with pytest.raises(ValueError, match=match):
        Scorer(model, 64).make_room(65)


# The layout of a batch


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_and_logprobs_are_the_same_with_and_without_kept_keys(temperature):
    model = qwen3()
    kept, recomputed = engine_of(model), engine_of(model)
    recomputed.cache = Recompute(model, 8)
    assert isinstance(kept.cache, Slab)
    ours, theirs = (converse(e, range(8), temperature=temperature) for e in (kept, recomputed))
    for a, b in zip(ours, theirs, strict=True):
        assert a.sampled == b.sampled
        for x, y in zip(a.outputs, b.outputs, strict=True):
            assert torch.allclose(torch.tensor(x.logprobs), torch.tensor(y.logprobs), atol=1e-4)


@pytest.mark.parametrize("grain", [4, 64])
@pytest.mark.parametrize("seeds", [range(1), range(7), (11, 3, 5, 2, 9)])
def test_round_shapes_move_nothing_and_are_few(grain, seeds):
    model = qwen3()
    free, round_ = engine_of(model), engine_of(model)
    assert isinstance(round_.cache, Slab) and round_.cache.grain == 1  # as on any CPU
    round_.cache.grain, shapes = grain, set()
    forward = round_.cache._forward

    def noted(rows, ids, positions, real, top):
        shapes.add((*ids.shape, top))
        return forward(rows, ids, positions, real, top)

    round_.cache._forward = noted
    ours, theirs = (converse(engine, seeds) for engine in (free, round_))
    for a, b in zip(ours, theirs, strict=True):
        assert a.sampled == b.sampled
        for x, y in zip(a.outputs, b.outputs, strict=True):
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-5)
    longest = round_.cache.max_len
    for rows, n, top in shapes:
        assert rows in (1, 2, 4, 8, round_.cache.slots) and n & (n - 1) == 0
        assert top % grain == 0 or top == longest


@pytest.mark.parametrize("cache", [Slab, Recompute])
def test_a_row_at_the_end_of_its_slot_is_padded_beside_a_longer_one_and_nothing_moves(cache):
    """Four new tokens beside seven: the last of the shorter row's padding is beyond its slot."""
    model = qwen3()
    long, short = IDS[:15], IDS[20:27]
    engine = engine_of(model, slots=2, max_len=16)
    if cache is Recompute:
        engine.cache = Recompute(model, 2)
    ask = lambda name, ids, n: GenRequest(name, ids, Sampling(n), seed=5)  # noqa: E731
    engine.generate([ask("long", long[:11], 1)])
    both = engine.generate([ask("long", long, 1), ask("short", short, 6)])
    assert engine.stats.prefill_steps == 2, "they were prefilled together"
    for ids, output in zip((long, short), both, strict=True):
        own = naive_logprobs(model, [*ids, *output.token_ids])[len(ids) - 1 :]
        assert (own - torch.tensor(output.logprobs)).abs().max() < 1e-4
