"""Laws of direct losses: the gradient that each is named by, and what a missing score costs."""

import math
from dataclasses import replace

import pytest
import torch
from enumerated import V, gradient, kl_gradient, two_policies
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.trainers import divergences as div

# ------------------------------------------------------------ direct losses: named by gradient


def scores_of(student, teacher):
    """One row per token of the vocabulary, each as if it had been sampled."""
    logp = student.log_softmax(-1)
    ids = torch.arange(len(logp))
    rows = len(ids)
    return div.Scores(logp.expand(rows, -1), teacher.expand(rows, -1), ids, logp.detach()[ids])


def on_policy(direct, student, teacher):
    """The expected gradient of a sampled loss: E_{y ~ pi} grad D(y)."""
    p_V = student.detach().softmax(-1)
    return gradient((p_V * direct(scores_of(student, teacher))).sum(), student)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_an_estimator_gives_the_gradient_that_its_docstring_names(seed):
    student, teacher = two_policies(seed)
    reverse = kl_gradient(student, teacher)
    forward = gradient(div.fkl(student.log_softmax(-1), teacher).sum(), student)
    torch.testing.assert_close(on_policy(div.k2, student, teacher), reverse)
    torch.testing.assert_close(on_policy(div.rho_k3, student, teacher), reverse)

    def k1(scores):
        return scores.chosen_M - scores.taught_M

    def k3(scores):
        return torch.exp(-k1(scores)) - 1 + k1(scores)

    torch.testing.assert_close(on_policy(k1, student, teacher), torch.zeros_like(student))
    torch.testing.assert_close(on_policy(k3, student, teacher), forward)
    assert not torch.allclose(forward, reverse, atol=1e-3)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_jsd_tends_to_the_two_divergences_and_stays_below_log_two(seed):
    student, teacher = two_policies(seed)
    p = student.detach().log_softmax(-1)
    forward, reverse = div.fkl(p, teacher).sum(), div.rkl(p, teacher).sum()
    torch.testing.assert_close(div.jsd(1e-5)(p, teacher).sum() / 1e-5, forward, rtol=1e-3, atol=0)
    b = 1 - 1e-5
    torch.testing.assert_close(div.jsd(b)(p, teacher).sum() / 1e-5, reverse, rtol=1e-3, atol=0)
    assert 0 <= div.jsd(0.5)(p, teacher).sum() <= math.log(2)
    with pytest.raises(ValueError, match="take fkl or rkl"):
        div.jsd(0.0)


CLOSES = (div.tail_bucket, div.renormalised, div.stop_gradient)


@pytest.mark.parametrize("close", CLOSES)
@pytest.mark.parametrize("support", [div.of_student, div.of_teacher])
def test_with_the_whole_vocabulary_as_support_top_k_is_full(close, support):
    student, teacher = two_policies(3)
    whole = div.top_k(k=V, support=support, close=close)
    mine = gradient(whole(scores_of(student, teacher))[0], student)
    torch.testing.assert_close(mine, kl_gradient(student, teacher), atol=1e-6, rtol=1e-5)


def test_stopping_the_gradient_takes_out_the_gradient_of_the_mass_of_the_support():
    student, teacher = two_policies(5)
    scores = scores_of(student, teacher)
    ids = div.of_student(scores.student_MV, scores.teacher_MV, 3)[0]
    logp = student.log_softmax(-1)
    plain = gradient(div.rkl(logp[ids], teacher[ids]).sum(), student)
    mass = gradient(logp[ids].exp().sum(), student)
    mine = gradient(div.top_k(k=3, close=div.stop_gradient)(scores)[0], student)
    torch.testing.assert_close(mine, plain - mass)
    other_form = gradient((logp[ids].exp() * (logp - teacher)[ids].detach()).sum(), student)
    torch.testing.assert_close(mine, other_form)


def test_top_k_looks_at_the_likeliest_of_whom_it_says():
    student, teacher = two_policies(6)
    p, q = student.detach().log_softmax(-1)[None], teacher[None]
    assert set(div.of_student(p, q, 2)[0].tolist()) == set(p[0].topk(2).indices.tolist())
    assert set(div.of_teacher(p, q, 2)[0].tolist()) == set(q[0].topk(2).indices.tolist())


ALL_DIRECT = [
    *(div.full(e) for e in (div.rkl, div.fkl, div.jsd(0.3))),
    *(div.top_k(k=3, close=close) for close in CLOSES),
    *(div.k2, div.rho_k3),
]


@pytest.mark.parametrize("direct", ALL_DIRECT)
def test_a_direct_loss_pulls_nowhere_when_teacher_and_student_agree(direct):
    student, _ = two_policies(8)
    same = student.detach().log_softmax(-1)
    for row in scores_rows(direct, student, same):
        torch.testing.assert_close(row, torch.zeros_like(row), atol=1e-9, rtol=0)


def scores_rows(direct, student, teacher):
    losses = direct(scores_of(student, teacher))
    return [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in losses]


@pytest.mark.parametrize("direct", ALL_DIRECT)
def test_a_missing_score_gives_no_loss_and_no_gradient_and_spares_the_others(direct):
    student, teacher = two_policies(9)
    whole = scores_of(student, teacher)
    holed = whole.teacher_MV.clone()
    holed[2] = math.nan
    losses = direct(replace(whole, teacher_MV=holed))
    assert losses[2] == 0 and losses.isfinite().all()
    grad = gradient(losses.sum(), student)
    keep = torch.arange(V) != 2
    torch.testing.assert_close(
        grad, gradient(direct(scores_of(student, teacher))[keep].sum(), student)
    )


@pytest.mark.parametrize("direct", [d for d in ALL_DIRECT if d not in (div.k2, div.rho_k3)])
def test_a_score_that_lacks_one_word_of_the_vocabulary_is_missing(direct):
    student, teacher = two_policies(9)
    holed = scores_of(student, teacher).teacher_MV.clone()
    holed[2, 1] = math.nan
    losses = direct(replace(scores_of(student, teacher), teacher_MV=holed))
    assert losses[2] == 0 and losses.isfinite().all()
    assert gradient(losses.sum(), student).isfinite().all()


def test_entries_are_limited_one_by_one():
    student, teacher = two_policies(10)
    entries = div.rkl(student.log_softmax(-1), teacher)
    limited = div.full(entry_limit=0.05)(scores_of(student, teacher))[0]
    torch.testing.assert_close(limited, entries.clamp(max=0.05).sum())
    assert limited < entries.sum()


def test_a_token_that_the_teacher_gives_no_chance_costs_no_nan():
    student, teacher = two_policies(11)
    shut = teacher.clone()
    shut[0] = -math.inf
    for direct in (div.full(div.fkl), div.full(div.jsd(0.5))):
        loss = direct(scores_of(student, shut))[0]
        assert loss.isfinite() and gradient(loss, student).isfinite().all()
