"""Logits a few tokens at a time are the same loss and the same gradient, in less memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from miniatures import qwen3
from test_scorer import episodes, relative_gap

from turnwise.trainers.batch import rows_of
from turnwise.trainers.divergences import full, jsd, top_k
from turnwise.trainers.learner import Learner
from turnwise.trainers.recipes import recipe
from turnwise.trainers.teachers import Several, frozen
from turnwise.trainers.vocabulary import by_parts

torch.set_num_threads(1)


def stepped(method, at_once, teacher=None, show=False):
    """Metrics and gradient of one step that holds so many logits at once."""
    learner = Learner(qwen3(), learning_rate=1e-3, max_len=256)
    learner.scorer.logits_at_once = at_once
    seen = {}

    def look(loss):
        seen.update({n: p.grad.clone() for n, p in learner.model.named_parameters()})
        return {}

    learner._apply = look
    rows = [replace(row, direct=[0.5] * len(row.trained)) for row in rows_of(episodes())]
    if show:
        direct = method.distillation.direct
        return learner.imitate(rows, direct=direct, teacher=teacher), seen
    advantages = torch.randn(200, generator=torch.Generator().manual_seed(0)).double().numpy()
    return learner.improve(rows, advantages, method, teacher), seen


def direct(loss):
    method = recipe("gkd")
    return replace(method, distillation=replace(method.distillation, direct=loss, signal=None))


METHODS = {
    "reinforcement": recipe("turn_rloo"),
    "whole vocabulary": direct(full(jsd(0.5))),
    "top tokens": direct(top_k(k=8)),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("at_once", [89, 89 * 7])
def test_parts_add_up_to_the_step_of_the_whole(name, at_once):
    teacher = frozen(qwen3(1), 256) if METHODS[name].distillation else None
    for show in (False, True) if teacher else (False,):
        whole, gradient = stepped(METHODS[name], 10**9, teacher, show)
        parts, found = stepped(METHODS[name], at_once, teacher, show)
        assert whole.keys() == parts.keys() and float(whole["loss"]) != 0
        for key, value in whole.items():
            assert parts[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
        assert relative_gap(found, gradient) < 1e-5


def test_a_teacher_that_scores_all_at_once_is_taken_too():
    teacher = Several([frozen(qwen3(1), 256)], lambda row: 0)
    whole, gradient = stepped(METHODS["whole vocabulary"], 10**9, teacher)
    parts, found = stepped(METHODS["whole vocabulary"], 89 * 5, teacher)
    assert parts["direct_loss"] == pytest.approx(whole["direct_loss"], rel=1e-5)
    assert relative_gap(found, gradient) < 1e-5


def test_no_more_logits_are_made_than_may_be_there_at_once():
    made = []

    def head(hidden):
        made.append(len(hidden))
        return hidden @ torch.ones(4, 11)

    hidden = torch.ones(10, 4, requires_grad=True)
    (sums,) = by_parts(head, hidden, lambda logits, part: (logits.sum(-1),), rows=3)
    assert made == [3, 3, 3, 1]
    sums.sum().backward()
    assert sorted(made) == sorted([3, 3, 3, 1] * 2), "and again in the backward pass"
    assert torch.equal(hidden.grad, torch.full((10, 4), 11.0))
