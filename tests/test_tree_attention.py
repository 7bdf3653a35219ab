"""Attention of a forest in one call is that of its padded blocks: numbers and gradients.

No GPU is needed: `flex_attention` runs uncompiled here, with every score in memory. What its
compiled kernel gives on a GPU is compared there, when a `Scorer` is made.
"""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from miniatures import VOCAB, qwen3
from ragged import MODELS, episodes, gradients, packed_of, relative_gap, words
from torch.nn.attention import flex_attention as torchs

from turnwise.agents.engines.functional import Decoder
from turnwise.trainers.batch import Row, rows_of
from turnwise.trainers.block_attention import in_blocks
from turnwise.trainers.precision import fp32
from turnwise.trainers.scorer import Scorer
from turnwise.trainers.tree_attention import ancestors, fastest, in_one_row, proved

torch.set_num_threads(1)


@pytest.fixture
def with_gradients(monkeypatch):
    """PyTorch has a dense gradient of it for any device, and lets none but a GPU ask for it."""
    monkeypatch.setattr(torchs, "_validate_device", lambda *tensors: None)


def forest(seed: int) -> list[Row]:
    """Prompts of any length; rows that follow them, or branch off them at any place."""
    rng, rows = random.Random(seed), []
    for _ in range(rng.randint(1, 4)):
        prompt = words(rng, 1, 90)
        for _ in range(rng.randint(1, 4)):
            n, seen = rng.choice((1, 5, 40, 150)), rng.choice((None, rng.randint(1, len(prompt))))
            rest, trained = [rng.randrange(1, VOCAB) for _ in range(n)], list(range(0, n, 2))
            old, turn, warm = ([x] * len(trained) for x in (-4.0, len(rows), 1.0))
            rows.append(Row(prompt, rest, trained, old, turn, warm, len(rows), seen=seen))
    return rows


@pytest.mark.parametrize(("kind", "seed"), [("qwen3", 0), ("qwen3", 1), ("llama", 3)])
def test_one_row_has_the_logprobs_and_gradients_of_padded_blocks(kind, seed, with_gradients):
    model, packed = MODELS[kind](), packed_of(forest(seed))
    found_M, expected_M = (
        Scorer(model, 256, attention=way).logprobs(packed) for way in (in_one_row, in_blocks)
    )
    torch.testing.assert_close(found_M, expected_M, rtol=1e-5, atol=1e-5)
    expected = gradients(model, expected_M, packed)
    assert relative_gap(gradients(model, found_M, packed), expected) < 1e-5


@torch.no_grad()
def test_one_row_has_the_logprobs_of_padded_blocks_in_a_torch_that_nothing_was_done_to():
    model, packed = qwen3(), packed_of(rows_of(episodes()))
    found_M, expected_M = (
        Scorer(model, 256, attention=way).logprobs(packed) for way in (in_one_row, in_blocks)
    )
    torch.testing.assert_close(found_M, expected_M, rtol=1e-5, atol=1e-5)


def test_recomputed_activations_give_the_very_same_gradient(with_gradients):
    model, packed = qwen3(), packed_of(forest(0))
    found = []
    for recompute in (False, True):
        scorer = Scorer(model, 256, recompute=recompute, attention=in_one_row)
        found.append(gradients(model, scorer.logprobs(packed), packed))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def siblings(packed):
    """Every row sees what lies before it, other attempts at its task too."""
    return lambda b, h, q, k: k <= q


def ahead(packed):
    """A token sees the one that it is to predict."""
    right, n = ancestors(packed), len(packed.ids_N)
    return lambda b, h, q, k: right(b, h, q, k) | (k == (q + 1) % n)


def orphans(packed):
    """A row sees no prompt."""
    right, prompts = ancestors(packed), sum(packed.prompt_lengths)
    return lambda b, h, q, k: right(b, h, q, k) & ((q < prompts) | (k >= prompts))


def whole_prompts(packed):
    """A row sees its prompt also behind the place where it branched off."""
    rows = packed.rows
    seen = [len(row.prompt) for row in rows]
    return ancestors(type(packed)(**{**vars(packed), "seen_of_B": seen}))


@torch.no_grad()
@pytest.mark.parametrize("wrong", [siblings, ahead, orphans, whole_prompts])
def test_who_sees_another_place_gets_other_numbers(wrong):
    model, packed = qwen3(), packed_of(forest(0))
    found_M, expected_M = (
        Scorer(model, 256, attention=way).logprobs(packed)
        for way in (partial(in_one_row, sees=wrong), in_blocks)
    )
    assert (found_M - expected_M).abs().max() > 1e-2


def test_it_is_taken_where_it_gives_the_same(with_gradients):
    assert proved(in_one_row, in_blocks, Decoder(qwen3(), 64)) is in_one_row


def test_it_is_left_where_it_gives_anything_else(with_gradients, caplog):
    decoder = Decoder(qwen3().to(torch.bfloat16), 64)
    assert proved(partial(in_one_row, sees=orphans), in_blocks, decoder) is in_blocks
    assert "attention in one row is off by" in caplog.text


def test_it_is_left_where_its_gradient_is_not_there(caplog):
    """As on this CPU: PyTorch says no."""
    assert proved(in_one_row, in_blocks, Decoder(qwen3(), 64)) is in_blocks
    assert "does not support backward on CPU" in caplog.text


def test_kernels_are_given_one_precision_that_of_the_values():
    packed, seen = packed_of(forest(0)), []

    def flex(q, k, v, **more):
        seen.append((q.dtype, k.dtype, v.dtype))
        return q

    q, k = (torch.zeros(len(packed.ids_N), heads, 8) for heads in (4, 2))
    in_one_row(packed, flex=flex)(0, q, k, k.bfloat16())
    assert seen == [(torch.bfloat16,) * 3]


def test_it_takes_the_half_precision_of_projections_beside_rotated_float32(with_gradients):
    with torch.autocast("cpu", torch.bfloat16):
        assert proved(in_one_row, in_blocks, Decoder(qwen3(), 64)) is in_one_row


def test_a_cpu_keeps_its_padded_blocks_and_tries_nothing(caplog):
    model = qwen3()
    assert all(Scorer(model, 64, flex=flex).attention is in_blocks for flex in (False, True))
    assert fastest(Decoder(model, 64), fp32, in_blocks) is in_blocks
    assert not caplog.text
