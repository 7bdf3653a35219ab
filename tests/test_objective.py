"""Laws of the objective: splits add up, absent corrections do nothing, KL and metrics are exact."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from turnwise.trainers.distillation import Distillation
from turnwise.trainers.objective import TokenBatch, cross_entropy, kl_by_turn, merge, objective
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.recipes import recipe, recipes
from turnwise.trainers.signals import reverse_kl
from turnwise.trainers.surrogates import (
    Totals,
    policy_gradient,
    ppo,
    seq_mean_token_mean,
    seq_sum,
    sequence_mask,
    token_mask,
    token_mean,
    truncated,
    turn_mask,
    turn_mean,
    veto,
)

torch.set_num_threads(1)

F64 = torch.float64
TRAJ_M = torch.tensor([0] * 5 + [1] * 4 + [2] * 1 + [3] * 6)
TURN_M = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 5, 5, 5, 6, 6])
AGGREGATES = {
    "token_mean": token_mean,
    "seq_mean_token_mean": seq_mean_token_mean,
    "turn_mean": turn_mean,
    "seq_sum": seq_sum(7.0),
}


def normal(seed: int, scale: float = 1.0) -> Tensor:
    noise_M = torch.randn(len(TRAJ_M), dtype=F64, generator=torch.manual_seed(seed))
    return scale * noise_M


def batch(aggregate=token_mean, **changes) -> tuple[Tensor, TokenBatch]:
    """Off-policy tokens: sampler, proximal and present policies all differ a little."""
    logprobs_M = (normal(0) - 2).requires_grad_()
    tokens = TokenBatch(
        old_M=logprobs_M.detach() + normal(1, 0.3),
        prox_M=logprobs_M.detach() + normal(2, 0.3),
        ref_M=logprobs_M.detach() + normal(3, 0.5),
        advantages_M=normal(4)[TURN_M],
        weight_M=aggregate(TRAJ_M, TURN_M, Totals.of(TRAJ_M, TURN_M)).double(),
        turn_M=TURN_M,
        traj_M=TRAJ_M,
    )
    return logprobs_M, replace(tokens, **changes)


def part(tokens: TokenBatch, rows: Tensor) -> TokenBatch:
    return TokenBatch(**{k: v if v is None else v[rows] for k, v in vars(tokens).items()})


@pytest.mark.parametrize("method", recipes(), ids=lambda r: r.name)
@pytest.mark.parametrize("aggregate", AGGREGATES.values(), ids=AGGREGATES)
def test_any_split_into_whole_trajectories_gives_the_same_loss_gradient_and_metrics(
    method, aggregate
):
    logprobs_M, tokens = batch(aggregate)
    loss, metrics = objective(logprobs_M, tokens, method)
    (whole,) = torch.autograd.grad(loss, logprobs_M)
    for trajs in ([[0], [1], [2], [3]], [[0, 3], [2, 1]], [[3], [0, 1, 2], []]):
        rows = [torch.isin(TRAJ_M, torch.tensor(t, dtype=torch.int64)) for t in trajs]
        parts = [objective(logprobs_M[r], part(tokens, r), method) for r in rows]
        total = sum(loss for loss, _ in parts)
        torch.testing.assert_close(total, loss)
        torch.testing.assert_close(torch.autograd.grad(total, logprobs_M)[0], whole)
        assert merge(m for _, m in parts) == pytest.approx(merge([metrics]))


@pytest.mark.parametrize("method", recipes(), ids=lambda r: r.name)
def test_tokens_of_weight_zero_are_not_there(method):
    """Padding, had there been any: a row that weighs nothing cannot change loss or gradient."""
    logprobs_M, tokens = batch()
    keep = TRAJ_M != 3
    masked = replace(tokens, weight_M=tokens.weight_M * keep)
    loss, _ = objective(logprobs_M, masked, method)
    short, _ = objective(logprobs_M[keep], part(tokens, keep), method)
    torch.testing.assert_close(loss, short)
    assert (torch.autograd.grad(loss, logprobs_M)[0][~keep] == 0).all()


def test_a_policy_that_agrees_with_the_sampler_needs_no_correction():
    logprobs_M, tokens = batch()
    agreeing = replace(tokens, prox_M=tokens.old_M)
    corrected, bare = recipe("turn_rloo"), replace(recipe("turn_rloo"), importance=truncated(1e9))
    for method in (corrected, bare):
        with_prox, _ = objective(logprobs_M, agreeing, method)
        without, _ = objective(logprobs_M, replace(tokens, prox_M=None), method)
        assert with_prox.item() == without.item()


def test_the_ratio_is_to_the_proximal_policy_and_the_weight_is_proximal_over_sampler():
    """L = -mean_j sg[min(pi_prox/pi_old, C)] (pi/pi_prox) A, written out."""
    logprobs_M, tokens = batch()
    method = replace(recipe("turn_rloo"), surrogate=ppo(1.0, 1e9), importance=truncated(1.1))
    w_M = (tokens.prox_M - tokens.old_M).exp().clamp(max=1.1)
    ratio_M = (logprobs_M.detach() - tokens.prox_M).exp()
    loss, _ = objective(logprobs_M, tokens, method)
    torch.testing.assert_close(loss, -(w_M * ratio_M * tokens.advantages_M).mean())
    (slope_M,) = torch.autograd.grad(loss, logprobs_M)
    torch.testing.assert_close(slope_M, -w_M * ratio_M * tokens.advantages_M / len(TRAJ_M))


CORRECTIONS = {
    "tis": truncated(1.1),
    "token_mask": token_mask(0.8, 1.25),
    "turn_mask": turn_mask(0.8, 1.25),
    "sequence_mask": sequence_mask(0.5, 1.5),
    "veto": veto(0.7),
}


@pytest.mark.parametrize("correction", CORRECTIONS.values(), ids=CORRECTIONS)
def test_no_gradient_passes_through_a_correction(correction):
    """d L / d log pi_j is -c_j rho_j A_j / M, with c_j a number, and some c_j is not 1."""
    logprobs_M, tokens = batch()
    method = replace(recipe("turn_rloo"), surrogate=ppo(1.0, 1e9), importance=correction)
    c_M = correction(tokens.prox_M - tokens.old_M, TURN_M, TRAJ_M)
    ratio_M = (logprobs_M.detach() - tokens.prox_M).exp()
    (slope_M,) = torch.autograd.grad(objective(logprobs_M, tokens, method)[0], logprobs_M)
    torch.testing.assert_close(slope_M, -c_M * ratio_M * tokens.advantages_M / len(TRAJ_M))
    assert (c_M != 1).any() and (c_M != 0).any()


def trusting(a):
    """GRPO whose ratio is taken to pi_old^a T^(1 - a)."""
    how = Distillation(signal=reverse_kl, trust=a)
    return replace(recipe("grpo"), kl_coefficient=0.0, surrogate=ppo(1, 1e9), distillation=how)


@pytest.mark.parametrize("a", [0.0, 0.25, 0.9])
def test_a_trusted_teacher_moves_the_centre_of_the_ratio_by_its_share(a):
    """ratio = pi / (pi_old^a T^(1 - a)), and pi / pi_old where the teacher has no score."""
    logprobs_M, tokens = batch(prox_M=None)
    teacher_M = (normal(6) - 2).masked_fill(TURN_M == 1, math.nan)
    tokens = replace(tokens, teacher_M=teacher_M)
    centre_M = a * tokens.old_M + (1 - a) * teacher_M.nan_to_num()
    centre_M[TURN_M == 1] = tokens.old_M[TURN_M == 1]
    ratio_M = (logprobs_M.detach() - centre_M).exp()
    loss, _ = objective(logprobs_M, tokens, trusting(a))
    torch.testing.assert_close(loss, -(tokens.weight_M * ratio_M * tokens.advantages_M).sum())


def test_trust_of_one_is_grpo_whatever_the_teacher_says():
    logprobs_M, tokens = batch()
    plain = replace(recipe("grpo"), kl_coefficient=0.0, surrogate=ppo(1, 1e9))
    taught = replace(tokens, teacher_M=normal(6) - 2)
    loss, _ = objective(logprobs_M, taught, trusting(1.0))
    assert loss == objective(logprobs_M, tokens, plain)[0]


def test_the_gradient_pushes_good_tokens_up():
    logprobs_M, tokens = batch(prox_M=None)
    tokens = replace(tokens, old_M=logprobs_M.detach())
    for method in (found for found in recipes() if found.learns_by_doing):
        on_policy = replace(method, kl_coefficient=0.0)
        (slope_M,) = torch.autograd.grad(objective(logprobs_M, tokens, on_policy)[0], logprobs_M)
        expected_M = -tokens.advantages_M * tokens.weight_M
        torch.testing.assert_close(slope_M, expected_M, msg=method.name)


def test_the_kl_term_adds_beta_times_the_weighted_estimate():
    logprobs_M, tokens = batch()
    bare = replace(recipe("grpo"), kl_coefficient=0.0)
    d_M = logprobs_M.detach() - tokens.ref_M
    k3_M = (-d_M).exp() - 1 + d_M
    difference = (
        objective(logprobs_M, tokens, replace(bare, kl_coefficient=0.3))[0]
        - objective(logprobs_M, tokens, bare)[0]
    )
    torch.testing.assert_close(difference.detach(), 0.3 * (tokens.weight_M * k3_M).sum())


def test_a_kl_term_without_reference_logprobs_is_refused_with_the_way_out():
    logprobs_M, tokens = batch(ref_M=None)
    with pytest.raises(ValueError, match=r"'grpo'.*kl_coefficient=0.04.*give TokenBatch ref_M"):
        objective(logprobs_M, tokens, recipe("grpo"))
    objective(logprobs_M, tokens, replace(recipe("grpo"), kl_coefficient=0.0))


def test_metrics_say_what_happened():
    logprobs_M, tokens = batch(prox_M=None)
    log_ratio_M = torch.tensor([0.0, 0.5, -0.5, 0.1] * 4, dtype=F64)
    tokens = replace(
        tokens,
        old_M=logprobs_M.detach() - log_ratio_M,
        advantages_M=torch.tensor([1.0, 1.0, -1.0, 1.0] * 4, dtype=F64),
    )
    _, metrics = objective(logprobs_M, tokens, recipe("turn_rloo"), entropy_M=normal(5) * 0 + 0.7)
    got = merge([metrics])
    assert got["clip_fraction"] == 0.5
    assert got["max_ratio"] == pytest.approx(1.6487212707)
    assert got["approx_kl"] == pytest.approx((log_ratio_M.exp() - 1 - log_ratio_M).mean().item())
    assert got["entropy"] == pytest.approx(0.7)
    assert got["importance"] == 1.0 and got["engine_kl"] == 0.0


@pytest.mark.parametrize("turns", range(1, 10))
def test_the_turns_of_an_episode_fall_into_three_parts_alike_in_size_and_order(turns):
    """The numerators are told apart by powers of two, so each sum names its tokens."""
    labels = torch.arange(turns)
    kl_M, turn_M = 2.0 ** torch.arange(2 * turns), torch.cat([7 + labels, 90 + labels])
    parts = kl_by_turn(kl_M, turn_M, turn_M // 50)  # two episodes of as many turns
    assert list(parts) == ["kl_early", "kl_middle", "kl_late"]
    early, middle, late = (count / 2 for _, count in parts.values())
    assert (early, early + middle + late) == (late, turns)
    assert abs(middle - early) <= 1
    thirds = [0] * int(early) + [1] * int(middle) + [2] * int(late)
    for third, (total, _) in enumerate(parts.values()):
        chosen = [third == other for other in thirds] * 2
        assert total == kl_M[chosen].sum().item()


def test_kl_by_turn_is_to_the_sampler_and_moves_only_where_the_policy_moved():
    logprobs_M, tokens = batch()
    still = replace(tokens, old_M=logprobs_M.detach())
    late_M = (TURN_M == 1) | (TURN_M == 3) | (TURN_M == 6)
    moved = replace(still, old_M=still.old_M - 0.5 * late_M)
    quiet, loud = (
        merge([objective(logprobs_M, t, recipe("turn_rloo"))[1]]) for t in (still, moved)
    )
    names = ("kl_early", "kl_middle", "kl_late")
    assert [quiet[name] for name in names] == [0, 0, 0]
    k3 = math.exp(0.5) - 1 - 0.5
    assert [loud[name] for name in names] == pytest.approx([0, 0, k3])


def test_an_extreme_ratio_gives_a_finite_loss_and_gradient():
    logprobs_M, tokens = batch(prox_M=None)
    for shift in (-2000.0, 2000.0):  # e^2000 is inf
        for method in recipes():
            far = replace(tokens, old_M=logprobs_M.detach() + shift)
            loss, _ = objective(logprobs_M, far, method)
            (slope_M,) = torch.autograd.grad(loss, logprobs_M)
            assert loss.isfinite() and slope_M.isfinite().all(), method.name


def test_cross_entropy_is_the_weighted_negative_log_likelihood():
    logprobs_M, tokens = batch()
    loss, metrics = cross_entropy(logprobs_M, tokens.weight_M)
    torch.testing.assert_close(loss, -logprobs_M.mean())
    torch.testing.assert_close(torch.autograd.grad(loss, logprobs_M)[0], -tokens.weight_M)
    assert merge([metrics])["nll"] == pytest.approx(-logprobs_M.mean().item())


def test_a_user_writes_a_recipe_from_functions():
    mine = Recipe(
        name="mine",
        source="-",
        status="-",
        credit=lambda table: table.reward_N,
        surrogate=policy_gradient,
    )
    logprobs_M, tokens = batch()
    loss, _ = objective(logprobs_M, tokens, mine)
    torch.testing.assert_close(loss, -(tokens.weight_M * tokens.advantages_M).sum())
