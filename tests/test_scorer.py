"""Packed rows have the numbers and gradients of one forward pass per episode, in any layout."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from miniatures import other, qwen3
from ragged import (
    MODELS,
    episode,
    episodes,
    gradients,
    naive,
    packed_of,
    relative_gap,
    segment,
    words,
)

from turnwise.agents.engines.functional import causal_attention, grouped_attention
from turnwise.trainers.batch import Row, rows_of
from turnwise.trainers.block_attention import CHUNK
from turnwise.trainers.model import add_lora
from turnwise.trainers.scorer import Scorer

torch.set_num_threads(1)


def per_turn(rows) -> list[Row]:
    """The way without sharing: each turn a row of its own, the whole history before it."""
    made = []
    for row in rows:
        ids, columns = [*row.prompt, *row.rest], (row.trained, row.old, row.turn, row.temperature)
        tokens = list(zip(*columns, strict=True))
        for turn in dict.fromkeys(row.turn):
            mine = [token for token in tokens if token[2] == turn]
            start = len(row.prompt) + mine[0][0]
            made.append(
                Row(
                    prompt=tuple(ids[:start]),
                    rest=ids[start : start + len(mine)],
                    trained=list(range(len(mine))),
                    old=[token[1] for token in mine],
                    turn=[turn] * len(mine),
                    temperature=[token[3] for token in mine],
                    traj=row.traj,
                )
            )
    return made


# The same numbers


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", MODELS)
def test_packed_rows_have_the_logprobs_and_gradients_of_a_plain_forward_pass(kind, temperature):
    model = MODELS[kind]()
    rows = rows_of(episodes(temperature=temperature))
    packed, expected_M = packed_of(rows), naive(model, rows)
    found_M = Scorer(model, 256).logprobs(packed)
    torch.testing.assert_close(found_M, expected_M, rtol=1e-5, atol=1e-5)
    expected = gradients(model, expected_M, packed)
    assert relative_gap(gradients(model, found_M, packed), expected) < 1e-5


def branches(rng, trunk, places) -> list[Row]:
    """One row of some tokens behind each place of a shared history: labels of its turns."""
    made = []
    for i, seen in enumerate(places):
        rest = list(words(rng, 1, 6))
        n = len(rest)
        made.append(Row(trunk, rest, list(range(n)), [-4.0] * n, [i] * n, [1.0] * n, 0, seen=seen))
    return made


@pytest.mark.parametrize("kind", MODELS)
def test_rows_that_branch_off_one_history_have_the_numbers_of_rows_of_their_own(kind):
    model, rng = MODELS[kind](), random.Random(3)
    rows = branches(rng, words(rng, 60, 60), (1, 7, 30, 59, 60))
    rows += [replace(row, traj=1) for row in branches(rng, words(rng, 20, 20), (5, 5, 20))]
    packed, expected_M = packed_of(rows), naive(model, rows)
    assert len(packed.ids_N) == 80 + sum(map(len, rows)), "each history is there once"
    found_M = Scorer(model, 256).logprobs(packed)
    torch.testing.assert_close(found_M, expected_M, rtol=1e-5, atol=1e-5)
    expected = gradients(model, expected_M, packed)
    assert relative_gap(gradients(model, found_M, packed), expected) < 1e-5


def test_a_row_cannot_see_more_of_its_prompt_than_there_is():
    for seen in (0, 4):
        with pytest.raises(ValueError, match=f"1 to 3 ids of its prompt, got {seen}"):
            Row((1, 2, 3), [4], [0], [0.0], [0], [1.0], 0, seen=seen)


def test_rows_of_very_different_lengths_do_too():
    """Several blocks of rows, and rows longer than a chunk of queries."""
    rng, model = random.Random(1), qwen3()
    prompts, turns = (words(rng, 3, 9), words(rng, 200, 200)), (1, 60, 3, 40, 2, 59)
    made = [segment(rng, prompts[i % 2], turns=n) for i, n in enumerate(turns)]
    rows = rows_of(episode(one, name=str(i)) for i, one in enumerate(made))
    assert max(map(len, rows)) > 2 * CHUNK and min(map(len, rows)) < CHUNK
    packed, expected_M = packed_of(rows), naive(model, rows)
    found_M = Scorer(model, 1024).logprobs(packed)
    torch.testing.assert_close(found_M, expected_M, rtol=1e-5, atol=1e-5)
    expected = gradients(model, expected_M, packed)
    assert relative_gap(gradients(model, found_M, packed), expected) < 1e-5


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_plain_causal_attention_is_that_of_a_triangular_mask(kv_heads):
    generator, n = torch.Generator().manual_seed(0), 37
    q, k, v = (
        torch.randn(2, n, heads, 8, generator=generator, requires_grad=True)
        for heads in (4, kv_heads, kv_heads)
    )
    mask = torch.ones(n, n, dtype=torch.bool).tril().expand(2, n, n)
    found, expected = causal_attention(q, k, v), grouped_attention(q, k, v, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    along = torch.randn(found.shape, generator=generator)
    pairs = zip(*(torch.autograd.grad((x * along).sum(), (q, k, v)) for x in (found, expected)),
                strict=True)  # fmt: skip
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_rows_without_a_trained_token_and_prompts_without_a_rest_are_taken_too(kind):
    model = MODELS[kind]()
    shown = packed_of(rows_of(episodes()[:2], trained=lambda turn: False))
    bare = [Row((3, 4), [], [], [], [], [], 0), Row((9,), [5], [0], [-1.0], [0], [1.0], 1)]
    scorer = Scorer(model, 256)
    assert scorer.logprobs(shown).shape == (0,)
    found = scorer.logprobs(packed_of(bare))
    torch.testing.assert_close(found, naive(model, bare), rtol=1e-5, atol=1e-5)


def test_the_fast_forward_pass_is_what_these_tests_run():
    assert Scorer(qwen3(), 64).decoder is not None
    assert Scorer(add_lora(qwen3(), 2), 64).decoder is not None
    assert Scorer(other("gpt2"), 64).decoder is None


def test_a_row_per_turn_is_the_same_loss_and_gradient():
    model = qwen3()
    scorer, rows = Scorer(model, 256), rows_of(episodes())
    whole, parts = packed_of(rows), packed_of(per_turn(rows))
    assert len(parts.ids_N) > len(whole.ids_N)
    a, b = scorer.logprobs(whole), scorer.logprobs(parts)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert relative_gap(gradients(model, b, parts), gradients(model, a, whole)) < 1e-5


@pytest.mark.parametrize("share", [True, False])
def test_a_shared_prompt_is_held_once_and_changes_nothing(share):
    model = qwen3()
    rows = rows_of(episodes())
    packed = packed_of(rows, share_prompts=share)
    prompts = [row.prompt for row in rows]
    prompts = list(dict.fromkeys(prompts)) if share else prompts
    assert packed.prompt_lengths == list(map(len, prompts))
    assert len(packed.ids_N) == sum(map(len, prompts)) + sum(map(len, rows))
    torch.testing.assert_close(Scorer(model, 256).logprobs(packed), naive(model, rows))


def test_the_order_of_rows_changes_nothing():
    model, rows = qwen3(), rows_of(episodes())
    scorer, order = Scorer(model, 256), random.Random(3).sample(range(len(rows)), len(rows))
    usual, mixed = packed_of(rows), packed_of([rows[i] for i in order])
    ends = np.cumsum([0, *(len(row.trained) for row in rows)])
    where = np.concatenate([np.arange(ends[i], ends[i + 1]) for i in order])
    a, b = scorer.logprobs(usual), scorer.logprobs(mixed)
    torch.testing.assert_close(b, a[where], rtol=1e-5, atol=1e-5)
    assert relative_gap(gradients(model, b, mixed), gradients(model, a, usual)) < 1e-5


def test_long_neighbours_change_no_logprob():
    model, rows = qwen3(), rows_of(episodes())
    scorer, rng = Scorer(model, 256), random.Random(5)
    long = rows_of([episode(segment(rng, words(rng, 90, 90), turns=12))])
    alone = scorer.logprobs(packed_of(rows))
    beside = scorer.logprobs(packed_of([*rows, *long]))
    torch.testing.assert_close(beside[: len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_entropy_is_that_of_the_distribution_which_was_sampled_from():
    model, rows = qwen3(), rows_of(episodes(temperature=0.7))
    _, entropy_M = Scorer(model, 256).logprobs_and_entropy(packed_of(rows))
    row = rows[0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*row.prompt, *row.rest]])).logits[0]
    at = len(row.prompt) + row.trained[0] - 1
    expected = torch.distributions.Categorical(logits=logits[at] / 0.7).entropy()
    assert entropy_M[0] == pytest.approx(float(expected), abs=1e-4)
    assert not entropy_M.requires_grad


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_a_row_that_is_too_long_is_refused_with_both_lengths(kind):
    rows = rows_of(episodes())
    longest = max(len(row.prompt) + len(row) for row in rows)
    with pytest.raises(ValueError, match=f"a row of {longest} tokens.*max_len {longest - 1}"):
        Scorer(MODELS[kind](), longest - 1).logprobs(packed_of(rows))
    Scorer(MODELS[kind](), longest).logprobs(packed_of(rows))
