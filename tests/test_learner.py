"""Laws of a learner's step: micro-batches add up, the ratio begins at one, nothing drops out."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import Guess
from miniatures import other, qwen3
from ragged import (
    RECIPE,
    episode,
    episodes,
    gradients,
    naive,
    packed_of,
    relative_gap,
    segment,
    words,
)

from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.policy import LLMPolicy, MixturePolicy, ScriptedPolicy, bernoulli, expert
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.trainers.batch import micro_batches, rows_of, totals_of
from turnwise.trainers.learner import Learner
from turnwise.trainers.model import tiny_from_env
from turnwise.trainers.scorer import Scorer

torch.set_num_threads(1)


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
