"""Packed rows are only a cheaper way to compute: the same numbers and gradients as one Hugging Face
forward pass per episode, whatever the layout.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from fakes import Guess
from miniatures import VOCAB, naive_logprobs, other, qwen3
from torch import Tensor

from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.engines.functional import causal_attention, grouped_attention
from turnwise.agents.ledger import Ledger
from turnwise.agents.policy import LLMPolicy, MixturePolicy, ScriptedPolicy, bernoulli, expert
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.envs.types import Episode, Segment, Task, Turn
from turnwise.trainers.batch import (
    LedgerMismatch,
    Row,
    micro_batches,
    pack,
    rows_of,
    student,
    taught,
    totals_of,
)
from turnwise.trainers.block_attention import CHUNK
from turnwise.trainers.learner import Learner
from turnwise.trainers.model import add_lora, tiny_from_env
from turnwise.trainers.objective import objective
from turnwise.trainers.recipes import recipe
from turnwise.trainers.scorer import Scorer
from turnwise.trainers.surrogates import token_mean

torch.set_num_threads(1)

RECIPE = recipe("turn_rloo")
MODELS = {
    "qwen3": qwen3,
    "llama": lambda: other("llama"),
    "gpt2": lambda: other("gpt2"),
    "lora": lambda: warmed(add_lora(qwen3(), 2)),
}


def warmed(model):
    """Adapters begin at zero, where half of them has no gradient."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def words(rng, least, most):
    return tuple(rng.randrange(1, VOCAB) for _ in range(rng.randint(least, most)))


def segment(rng, prompt, *, inherited=(), turns=None, temperature=1.0) -> Segment:
    """Ragged turns; every third one is somebody else's."""
    made = []
    for i in range(turns or rng.randint(1, 4)):
        action = words(rng, 1, 7)
        made.append(
            Turn(
                context_ids=prompt if i == 0 else words(rng, 0, 9),
                action_ids=action,
                logprobs=tuple(-4 + rng.random() for _ in action),
                executor="expert" if i % 3 == 2 else "student",
                temperature=temperature,
            )
        )
    return Segment(turns=tuple(made), inherited_ids=inherited)


def episode(*segments, name="e") -> Episode:
    return Episode(id=name, env_id="", task=Task(), segments=segments)


@cache
def episodes(groups=3, attempts=3, temperature=1.0) -> tuple[Episode, ...]:
    rng, made = random.Random(0), []
    for g in range(groups):
        prompt = words(rng, 5, 30)
        for a in range(attempts):
            segments = [segment(rng, prompt, temperature=temperature)]
            if a == 1:  # a history that was rewritten half-way
                inherited = words(rng, 3, 12)
                segments.append(segment(rng, words(rng, 1, 3), inherited=inherited))
            made.append(episode(*segments, name=f"{g}.{a}"))
    return tuple(made)


def packed_of(rows, **more):
    generator = np.random.default_rng(1)
    turns = max((t for row in rows for t in row.turn), default=0) + 1
    advantages = generator.normal(size=max(turns, 200))
    more = {"advantages": advantages, "aggregate": token_mean, "totals": totals_of(rows)} | more
    return pack(rows, **more)


def naive(model, rows) -> Tensor:
    """One forward pass of the model per row, with its graph. [M]"""
    parts = []
    for row in rows:
        ids = torch.tensor([row.ids])
        logits = model(input_ids=ids).logits[0].float()
        for i, temperature in zip(row.trained, row.temperature, strict=True):
            at = row.start + i
            parts.append(torch.log_softmax(logits[at - 1] / temperature, -1)[ids[0, at]])
    return torch.stack(parts)


def gradients(model, logprobs_M, packed) -> dict[str, Tensor]:
    loss, _ = objective(logprobs_M, packed.tokens, RECIPE)
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def relative_gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys() and found
    scale = max(float(g.norm()) for g in expected.values())
    return max(float((found[n] - expected[n]).norm()) for n in found) / scale


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


@pytest.mark.parametrize("budget", [1, 60, 150])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(budget):
    model, rows = qwen3(), rows_of(episodes())
    scorer, totals = Scorer(model, 256), totals_of(rows)
    whole = packed_of(rows)
    expected = gradients(model, scorer.logprobs(whole), whole)
    parts = list(micro_batches(rows, budget))
    assert len(parts) > 1 and [row for part in parts for row in part] == rows
    summed = dict.fromkeys(expected, 0.0)
    for part in parts:
        packed = packed_of(part, totals=totals)
        for name, gradient in gradients(model, scorer.logprobs(packed), packed).items():
            summed[name] = summed[name] + gradient
    assert relative_gap(summed, expected) < 1e-5


def test_micro_batches_keep_an_episode_in_one_piece_and_its_group_while_there_is_room():
    rows = rows_of(episodes())
    parts = list(micro_batches(rows, 1))
    seen = [traj for part in parts for traj in {row.traj for row in part}]
    assert len(parts) > 1 and len(seen) == len(set(seen))
    assert len(parts) == len(set(seen)), "a budget of one token leaves one episode in each"
    assert list(micro_batches(rows, 10**6)) == [rows]


def test_micro_batches_stay_within_the_budget_also_where_all_tasks_open_alike():
    rng = random.Random(3)
    opening = words(rng, 20, 20)
    alike = [episode(segment(rng, opening, turns=2)) for _ in range(30)]
    rows = rows_of(alike)
    assert len({row.prompt for row in rows}) == 1
    budget = 4 * max(map(len, rows)) + len(rows[0].prompt)
    parts = list(micro_batches(rows, budget))
    assert len(parts) > 5
    assert all(len(part[0].prompt) + sum(map(len, part)) <= budget for part in parts)


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


# What is trained on


def test_only_what_the_student_sampled_is_trained_on():
    rows = rows_of(episodes())
    packed = packed_of(rows)
    turns = [t for e in episodes() for t in e.turns if t.executor == "student"]
    assert packed.target_M.tolist() == [i for t in turns for i in t.action_ids]
    old = [x for t in turns for x in t.logprobs]
    torch.testing.assert_close(packed.tokens.old_M, torch.tensor(old))
    # The token that is predicted stands one behind the one that is looked from.
    for row in rows:
        assert all(row.rest[i] == t for i, t in zip(row.trained, targets(row), strict=True))


def targets(row):
    by_turn = [t for e in episodes() for t in e.turns]
    return [i for turn in dict.fromkeys(row.turn) for i in by_turn[turn].action_ids]


def test_student_and_teacher_share_the_turns_between_them():
    every = [i for e in episodes() for t in e.turns for i in t.action_ids]
    counts = [sum(len(r.trained) for r in rows_of(episodes(), who)) for who in (student, taught)]
    assert all(counts) and sum(counts) == len(every)


def test_turns_are_numbered_through_all_segments_and_carry_their_advantage():
    rows = rows_of(episodes())
    numbers = [t for row in rows for t in dict.fromkeys(row.turn)]
    students = [i for i, t in enumerate(t for e in episodes() for t in e.turns) if student(t)]
    assert numbers == students
    advantages = np.arange(200.0)
    packed = packed_of(rows, advantages=advantages)
    expected = [float(t) for row in rows for t in row.turn]
    assert packed.tokens.advantages_M.tolist() == expected


def test_a_segment_after_a_rewrite_is_a_row_that_starts_from_what_it_inherited():
    branched = next(e for e in episodes() if len(e.segments) == 2)
    first, second = rows_of([branched])
    inherited = branched.segments[1]
    assert second.prompt == (*inherited.inherited_ids, *inherited.turns[0].context_ids)
    assert first.traj == second.traj == 0
    assert totals_of([first, second]).trajs == 1
    model = qwen3()
    logprobs = Scorer(model, 256).logprobs(packed_of([first, second]))
    ids = [*second.prompt, *second.rest]
    expected = naive_logprobs(model, ids)[len(second.prompt) - 1 + second.trained[0]]
    assert logprobs[len(first.trained)].item() == pytest.approx(float(expected), abs=1e-5)


def test_totals_count_what_is_trained_on():
    totals = totals_of(rows_of(episodes()))
    turns = [t for e in episodes() for t in e.turns if student(t)]
    assert (totals.tokens, totals.turns) == (sum(len(t.action_ids) for t in turns), len(turns))
    assert totals.trajs == len(episodes())


def test_a_row_that_is_not_what_the_ledger_hashed_is_refused():
    rng = random.Random(0)
    true = segment(rng, words(rng, 5, 9), turns=2)
    hashed = type("Hashed", (Segment,), {"sha": true.sha})
    rows_of([episode(hashed(turns=true.turns))])
    first, second = true.turns
    other_token = (first.action_ids[0] % (VOCAB - 1) + 1, *first.action_ids[1:])
    altered = [
        (replace(first, action_ids=other_token), second),
        (replace(first, context_ids=first.context_ids[1:]), second),
        (second, first),
        # The same ids, another loss mask.
        (
            replace(
                first,
                context_ids=(*first.context_ids, first.action_ids[0]),
                action_ids=first.action_ids[1:] or (1,),
                logprobs=(first.logprobs[1:] or (0.0,)),
            ),
            second,
        ),
    ]
    for turns in altered:
        with pytest.raises(LedgerMismatch, match="differs from the ledger"):
            rows_of([episode(hashed(turns=turns))])


def test_tokens_that_were_altered_after_they_were_sampled_are_not_trained_on():
    ledger = Ledger()
    ledger.start([1, 2, 3])
    ledger.sampled([4, 5], [-0.5, -0.25], "stop", 0)
    ledger.turn()
    (sealed,) = ledger.segments
    assert rows_of([episode(sealed)])
    forged = replace(sealed, turns=(replace(sealed.turns[0], action_ids=(4, 6)),))
    with pytest.raises(LedgerMismatch, match="differs from the ledger"):
        rows_of([episode(forged)])


def test_a_segment_without_a_prompt_is_refused():
    bare = Segment(turns=(Turn(action_ids=(1, 2), logprobs=(-1.0, -1.0)),))
    with pytest.raises(LedgerMismatch, match="without a prompt"):
        rows_of([episode(bare)])


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_a_row_that_is_too_long_is_refused_with_both_lengths(kind):
    rows = rows_of(episodes())
    longest = max(len(row.prompt) + len(row) for row in rows)
    with pytest.raises(ValueError, match=f"a row of {longest} tokens.*max_len {longest - 1}"):
        Scorer(MODELS[kind](), longest - 1).logprobs(packed_of(rows))
    Scorer(MODELS[kind](), longest).logprobs(packed_of(rows))


# End to end


def sampled(model, tokenizer, temperature):
    engine = EmbeddedEngine(model, slots=16, max_len=512)
    renderer = Renderer(tokenizer)
    policy = MixturePolicy(
        LLMPolicy(engine, renderer, temperature=temperature, max_new_tokens=10),
        ScriptedPolicy(expert, renderer=renderer),
        bernoulli(0.6),
    )
    jobs = jobs_for(Guess().tasks("train")[:3], 4, run_seed=0, split="train")
    found = {e.id: e for e in play(jobs, Guess, policy, Settings(max_tokens=512))}
    return [found[job.id] for job in jobs]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_ratio_is_one_on_the_first_on_policy_step(temperature):
    shape = {"hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "ffn": 48}
    model, tokenizer = tiny_from_env(Guess, tasks=10, init_std=0.3, **shape)
    learner = Learner(model, learning_rate=1e-3, micro_tokens=600, max_len=512)
    found = sampled(learner.model, tokenizer, temperature)
    assert all(e.trainable for e in found) and len({len(e.turns) for e in found}) > 1
    rows = rows_of(found)
    advantages = np.random.default_rng(0).normal(size=sum(len(e.turns) for e in found))
    wrong = [replace(r, old=[x / 0.7 for x in r.old], temperature=[0.7] * len(r.old)) for r in rows]
    before = {n: p.clone() for n, p in learner.model.named_parameters()}
    metrics = learner.improve(rows, advantages, RECIPE)
    assert metrics["max_gap"] < 1e-4
    assert abs(metrics["max_ratio"] - 1) < 1e-3 and metrics["clip_fraction"] == 0
    assert any((p != before[n]).any() for n, p in learner.model.named_parameters())
    # One step later the old logprobs are those of another policy.
    assert learner.improve(rows, advantages, RECIPE)["max_gap"] > 1e-3
    # A sampler that divides logprobs by T does not pass for one that divides logits by T.
    assert learner.improve(wrong, advantages, RECIPE)["max_gap"] > 0.1


def test_a_model_with_dropout_is_sampled_and_trained_without_it():
    model = other("gpt2")
    assert model.transformer.drop.p > 0
    learner = Learner(model, learning_rate=1e-3, max_len=256)
    rows = rows_of(episodes())
    exact = naive(learner.model, rows).tolist()
    true = []
    for row in rows:
        true.append(replace(row, old=exact[: len(row.old)]))
        exact = exact[len(row.old) :]
    assert learner.improve(true, np.ones(200), RECIPE)["max_gap"] < 1e-4
