"""Laws of ratios, surrogates, corrections, KL estimators and aggregations; values and slopes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tensor

from turnwise.trainers.off_policy import held
from turnwise.trainers.surrogates import (
    Totals,
    both,
    dual_clip,
    k1,
    k2,
    k3,
    policy_gradient,
    ppo,
    seq_mean_token_mean,
    seq_sum,
    sequence_mask,
    sequence_ratio,
    token_mask,
    token_mean,
    token_ratio,
    truncated,
    turn_mask,
    turn_mean,
    turn_ratio,
    uncorrected,
    veto,
    weight_clip,
)

torch.set_num_threads(1)

TURN_M = tensor([7, 7, 7, 2, 2, 9, 9, 9, 9])
TRAJ_M = tensor([0, 0, 0, 0, 0, 5, 5, 5, 5])
F64 = torch.float64


def value_and_slope(surrogate, ratio: float, advantage: float) -> tuple[float, float, bool]:
    """S, dS/d log pi and whether a bound is active, for one token."""
    log_ratio = tensor([math.log(ratio)], dtype=F64, requires_grad=True)
    gain, bounded = surrogate(log_ratio, tensor([advantage], dtype=F64))
    gain.sum().backward()
    return gain.item(), log_ratio.grad.item(), bool(bounded)


# PPO: every corner that a swapped min/max or swapped bounds would change.


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.25, 1.0, 1.2, 0.0),  # up far enough: stop pushing
        (1.25, -1.0, -1.25, -1.25),  # up although bad: keep pushing down
        (0.75, 1.0, 0.75, 0.75),  # down although good: keep pushing up
        (0.75, -1.0, -0.85, 0.0),  # down far enough: stop pushing
        (1.19, 1.0, 1.19, 1.19),
        (0.86, -1.0, -0.86, -0.86),
        (1.18, -1.0, -1.18, -1.18),
    ],
)
def test_ppo_takes_the_worse_of_free_and_clipped(ratio, advantage, value, slope):
    got = value_and_slope(ppo(low=0.15, high=0.2), ratio, advantage)
    assert got[:2] == pytest.approx((value, slope))
    assert got[2] == (slope == 0.0)


def test_the_dual_clip_bounds_only_bad_actions_that_became_likely():
    surrogate = dual_clip(ppo(0.2, 0.2), bound=3.0)
    assert value_and_slope(surrogate, 5.0, -1.0) == (-3.0, 0.0, True)
    for case in ((5.0, 1.0), (2.5, -1.0), (0.5, -1.0), (0.5, 1.0)):
        assert value_and_slope(surrogate, *case) == value_and_slope(ppo(0.2, 0.2), *case)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(0.75, 1.0, 0.9), (11.0, 1.0, 4.0), (0.75, -2.0, -1.5), (11.0, -2.0, -14.0), (2.0, 1.0, 2.0)],
)
def test_a_weight_clip_bounds_the_weight_by_sign_and_never_kills_the_gradient(
    ratio, advantage, slope
):
    surrogate = weight_clip(positive=(0.9, 4.0), negative=(0.5, 7.0))
    got = value_and_slope(surrogate, ratio, advantage)
    assert got[:2] == pytest.approx((slope, slope))  # value: weight * A; gradient: of A log pi
    assert got[2] == (slope != pytest.approx(ratio * advantage))


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(0.5, 1.0, 0.8), (20.0, 1.0, 11.0), (0.5, -1.0, -0.5), (20.0, -1.0, -20.0),
     (200.0, -1.0, -101.0), (200.0, 1.0, 11.0)],
)  # fmt: skip
def test_dispo_lifts_good_actions_and_lets_bad_ones_fall(ratio, advantage, slope):
    """arXiv:2602.00983: (.8, 11) where A > 0, (0, 101) where A < 0."""
    got = value_and_slope(weight_clip((0.8, 11.0), (0.0, 101.0)), ratio, advantage)
    assert got[:2] == pytest.approx((slope, slope))


def test_the_weight_itself_carries_no_gradient():
    """Without the stop-gradient the second derivative would be weight * A instead of 0."""
    x = tensor([0.3], dtype=F64, requires_grad=True)
    gain, _ = weight_clip()(x, tensor([2.0], dtype=F64))
    (slope,) = torch.autograd.grad(gain, x, create_graph=True)
    assert slope.item() == pytest.approx(2.0 * math.exp(0.3))
    assert not slope.requires_grad or torch.autograd.grad(slope, x)[0].item() == 0.0


def test_policy_gradient_ignores_the_ratio():
    for ratio in (0.1, 1.0, 30.0):
        assert value_and_slope(policy_gradient, ratio, -2.0) == (-2.0, -2.0, False)


@pytest.mark.parametrize("ratio_of", [token_ratio, turn_ratio, sequence_ratio])
@pytest.mark.parametrize(
    "surrogate",
    [
        *(ppo(), ppo(3e-4, 4e-4), dual_clip(ppo()), weight_clip((0, 5), (0, 5))),
        *(weight_clip((0.8, 11), (0, 101)), policy_gradient, held(policy_gradient)),
    ],
    ids=["ppo", "tight", "dual", "cispo", "dispo", "pg", "held"],
)
def test_all_methods_have_the_same_gradient_on_policy(ratio_of, surrogate):
    logprobs_M = torch.randn(9, dtype=F64, generator=torch.manual_seed(0)).requires_grad_()
    advantages_M = torch.randn(9, dtype=F64, generator=torch.manual_seed(1))
    log_ratio_M = ratio_of(logprobs_M - logprobs_M.detach(), TURN_M, TRAJ_M)
    gain_M, bounded_M = surrogate(log_ratio_M, advantages_M)
    gain_M.sum().backward()
    torch.testing.assert_close(logprobs_M.grad, advantages_M)
    torch.testing.assert_close(gain_M.detach(), advantages_M)
    assert not bounded_M.any()


# Ratios


def log_ratios() -> Tensor:
    return torch.linspace(-0.4, 0.5, 9, dtype=F64).requires_grad_()


@pytest.mark.parametrize(("ratio_of", "labels"), [(turn_ratio, TURN_M), (sequence_ratio, TRAJ_M)])
def test_a_geometric_ratio_is_the_mean_log_and_each_token_keeps_its_own_gradient(ratio_of, labels):
    x_M = log_ratios()
    got_M = ratio_of(x_M, TURN_M, TRAJ_M)
    for label in labels.unique():
        inside = labels == label
        torch.testing.assert_close(
            got_M[inside], x_M[inside].mean().expand(inside.sum()), check_dtype=True
        )
    weight_M = torch.arange(1.0, 10.0, dtype=F64)
    (got_M * weight_M).sum().backward()
    torch.testing.assert_close(x_M.grad, weight_M)  # not spread over the turn


def test_gspo_in_token_form_has_the_gradient_of_the_sequence_form():
    """One sequence: d/dtheta s A = s A mean_j d log pi_j, and the token form averages to that."""
    x_M = log_ratios()
    one = torch.zeros(9, dtype=torch.int64)
    (token_form,) = torch.autograd.grad(sequence_ratio(x_M, one, one).exp().mean() * 1.5, x_M)
    (sequence_form,) = torch.autograd.grad(x_M.mean().exp() * 1.5, x_M)
    torch.testing.assert_close(token_form, sequence_form)


def test_labels_of_a_micro_batch_need_not_be_dense_or_sorted():
    shuffle = torch.randperm(9, generator=torch.manual_seed(3))
    x_M = log_ratios()
    for ratio_of in (turn_ratio, sequence_ratio):
        shuffled = ratio_of(x_M[shuffle], TURN_M[shuffle] * 1000, TRAJ_M[shuffle] - 50)
        torch.testing.assert_close(shuffled, ratio_of(x_M, TURN_M, TRAJ_M)[shuffle])


# Importance corrections

EVERY_CORRECTION = {
    "none": uncorrected,
    "tis": truncated(2.0),
    "token_mask": token_mask(0.5, 2.0),
    "turn_mask": turn_mask(0.5, 2.0),
    "sequence_mask": sequence_mask(0.5, 3.0),
    "veto": veto(1e-4),
    "both": both(truncated(2.0), veto(1e-4)),
}


@pytest.mark.parametrize("correction", EVERY_CORRECTION.values(), ids=EVERY_CORRECTION)
def test_a_correction_is_exactly_one_where_engine_and_trainer_agree(correction):
    assert correction(torch.zeros(9), TURN_M, TRAJ_M).tolist() == [1.0] * 9


def test_truncation_is_monotone_in_its_bound_and_keeps_small_weights():
    log_w_M = torch.tensor([0.1, 1.5, 3.0, 9.0]).log()
    got = [truncated(c)(log_w_M, TURN_M[:4], TRAJ_M[:4]) for c in (1.0, 2.0, 4.0)]
    torch.testing.assert_close(got[1], tensor([0.1, 1.5, 2.0, 2.0]))
    assert (got[0] <= got[1]).all() and (got[1] <= got[2]).all()


def test_each_mask_acts_at_its_own_level():
    log_w_M = torch.zeros(9)
    log_w_M[1] = math.log(4.0)  # turn 7 of trajectory 0: geometric mean 4^(1/3) = 1.59
    token = token_mask(0.5, 2.0)(log_w_M + math.log(1.5), TURN_M, TRAJ_M)
    assert token.tolist() == pytest.approx([1.5, 0, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5])
    assert turn_mask(0.5, 1.5)(log_w_M, TURN_M, TRAJ_M).tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert turn_mask(0.5, 1.6)(log_w_M, TURN_M, TRAJ_M).tolist() == [1.0] * 9
    sequence = sequence_mask(0.0, 3.0)(log_w_M, TURN_M, TRAJ_M)
    assert sequence.tolist() == [0] * 5 + [1] * 4
    assert sequence_mask(0.0, 5.0)(log_w_M, TURN_M, TRAJ_M).tolist() == [1.0] * 9


def test_a_veto_drops_the_whole_trajectory_and_only_that():
    log_w_M = torch.full((9,), math.log(1.9))
    log_w_M[6] = math.log(0.5e-4)
    assert veto(1e-4)(log_w_M, TURN_M, TRAJ_M).tolist() == [1] * 5 + [0] * 4
    got = both(truncated(1.5), veto(1e-4))(log_w_M, TURN_M, TRAJ_M)
    assert got.tolist() == [1.5] * 5 + [0] * 4
    assert both()(log_w_M, TURN_M, TRAJ_M).tolist() == [1] * 9  # of none: no correction


# KL estimators: exact expectations over a three-token vocabulary


def test_k1_and_k3_are_unbiased_and_k2_has_the_right_gradient():
    z = tensor([0.2, -0.5, 0.9], dtype=F64, requires_grad=True)
    log_p, log_q = z.log_softmax(0), tensor([0.5, 0.2, 0.3], dtype=F64).log()
    p, d = log_p.exp().detach(), log_p - log_q
    kl = (log_p.exp() * d).sum()
    for estimator in (k1, k3):
        torch.testing.assert_close((p * estimator(d)).sum(), kl)
    (true,) = torch.autograd.grad(kl, z, retain_graph=True)
    (of_k2,) = torch.autograd.grad((p * k2(d)).sum(), z, retain_graph=True)
    (of_k1,) = torch.autograd.grad((p * k1(d)).sum(), z)
    torch.testing.assert_close(of_k2, true)
    torch.testing.assert_close(of_k1, torch.zeros_like(z))


def test_k3_is_never_negative_and_finite_for_absurd_differences():
    d_M = tensor([-500.0, -1.0, -1e-4, 0.0, 1e-4, 1.0, 500.0])
    assert (k3(d_M) >= 0).all() and k3(d_M).isfinite().all()
    assert k3(tensor(0.5)).item() == pytest.approx(math.exp(-0.5) - 1 + 0.5)


# Aggregations

AGGREGATES = {
    "token_mean": token_mean,
    "seq_mean_token_mean": seq_mean_token_mean,
    "turn_mean": turn_mean,
    "seq_sum": seq_sum(8.0),
}


def test_aggregations_weigh_tokens_as_their_formulas_say():
    totals = Totals.of(TRAJ_M, TURN_M)
    assert totals == Totals(tokens=9, turns=3, trajs=2)
    expected = {
        "token_mean": [1 / 9] * 9,
        "seq_mean_token_mean": [1 / 10] * 5 + [1 / 8] * 4,
        "turn_mean": [1 / 9] * 3 + [1 / 6] * 2 + [1 / 12] * 4,
        "seq_sum": [1 / 16] * 9,
    }
    for name, aggregate in AGGREGATES.items():
        torch.testing.assert_close(aggregate(TRAJ_M, TURN_M, totals), tensor(expected[name]))


@pytest.mark.parametrize("aggregate", AGGREGATES.values(), ids=AGGREGATES)
def test_ranks_that_add_up_their_totals_weigh_tokens_as_one_process(aggregate):
    totals = Totals.of(TRAJ_M, TURN_M)
    parts = [slice(0, 5), slice(5, 9)]
    summed = sum((Totals.of(TRAJ_M[p], TURN_M[p]) for p in parts), Totals(0, 0, 0))
    assert summed == totals
    ranks = [aggregate(TRAJ_M[p], TURN_M[p], summed) for p in parts]
    torch.testing.assert_close(torch.cat(ranks), aggregate(TRAJ_M, TURN_M, totals))


@pytest.mark.parametrize("aggregate", AGGREGATES.values(), ids=AGGREGATES)
def test_a_micro_batch_without_tokens_is_allowed(aggregate):
    none = torch.zeros(0, dtype=torch.int64)
    assert aggregate(none, none, Totals(0, 0, 0)).shape == (0,)
