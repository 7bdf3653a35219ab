"""Laws of the distillation pieces: the gradient each gives, and what each weight may depend on."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.trainers import divergences as div
from turnwise.trainers import mixes, routes, signals, weights
from turnwise.trainers.distillation import Distillation, teach
from turnwise.trainers.mixes import Progress
from turnwise.trainers.surrogates import policy_gradient
from turnwise.trainers.tokens import TokenTable

V = 7
NOW = Progress(3, 10)


def two_policies(seed, v=V):
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(v, generator=g, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(v, generator=g, dtype=torch.float64).log_softmax(-1)
    return student, teacher


def gradient(loss, student):
    return torch.autograd.grad(loss, student, retain_graph=True)[0]


def table_of(old, teacher, **columns):
    """A table whose tokens are turns of trajectories of their own, unless columns say otherwise."""
    n = len(old)
    filled = {
        "old_M": np.asarray(old, float),
        "teacher_M": np.asarray(teacher, float),
        "step_M": np.zeros(n, int),
        "traj_M": np.arange(n),
        "group_M": np.zeros(n, int),
        "success_M": np.zeros(n, bool),
        "reward_M": np.zeros(n),
        **columns,
    }
    return TokenTable(**filled)


def some_table(seed, trajs=5, missing=0.0, **more):
    """Trajectories of up to 4 turns of up to 3 tokens, in two groups."""
    rng = np.random.default_rng(seed)
    rows = [
        (t, s)
        for t in range(trajs)
        for s in range(rng.integers(1, 5))
        for _ in range(rng.integers(1, 4))
    ]
    traj, step = np.array(rows).T
    n = len(rows)
    won = rng.random(trajs) < 0.5
    teacher = -rng.random(n) * 3
    teacher[rng.random(n) < missing] = np.nan
    columns = {
        "step_M": step,
        "traj_M": traj,
        "group_M": traj % 2,
        "success_M": won[traj],
        "reward_M": won[traj].astype(float),
        "reference_M": -rng.random(n),
        "reverse_kl_M": rng.random(n),
        "entropy_M": rng.random(n),
        "overlap_M": rng.random(n),
        "against_M": -rng.random(n),
        **more,
    }
    return table_of(-rng.random(n) * 3, teacher, **columns)


def reordered(table, order):
    names = [n for n in vars(table) if n != "valid_M" and getattr(table, n) is not None]
    return TokenTable(**{n: getattr(table, n)[order] for n in names})


# ------------------------------------------------------------ signals: what gradient they give


def expected_gradient(student, signal_V):
    """E_{y ~ pi} of the policy gradient of A = signal(y), by enumeration."""
    logp_V = student.log_softmax(-1)
    gain_V, _ = policy_gradient(logp_V - logp_V.detach(), signal_V)
    return gradient(-(logp_V.detach().exp() * gain_V).sum(), student)


def signal_of(signal, student, teacher, **columns):
    """The signal of each token of the vocabulary."""
    old = student.detach().log_softmax(-1).numpy()
    table = table_of(old, teacher.numpy(), **columns)
    return torch.from_numpy(signal(table))


def kl_gradient(student, target):
    return gradient(div.rkl(student.log_softmax(-1), target).sum(), student)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_sampled_signal_gives_the_gradient_of_the_full_reverse_kl(seed):
    student, teacher = two_policies(seed)
    mine = expected_gradient(student, signal_of(signals.reverse_kl, student, teacher))
    torch.testing.assert_close(mine, kl_gradient(student, teacher))


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_control_variate_keeps_the_gradient(seed):
    student, teacher = two_policies(seed)
    logp = student.detach().log_softmax(-1)
    kl = float(div.rkl(logp, teacher).sum())
    plain = signal_of(signals.reverse_kl, student, teacher)
    better = signal_of(signals.with_control_variate, student, teacher, reverse_kl_M=np.full(V, kl))
    torch.testing.assert_close(
        expected_gradient(student, better), expected_gradient(student, plain)
    )
    assert abs(float((logp.exp() * better).sum())) < 1e-12, "it is centred"


def test_the_control_variate_lowers_the_variance_more_the_farther_the_teacher():
    ratios = []
    for scale in (1.0, 2.0, 3.0):
        total = np.zeros(2)
        for seed in range(30):
            student, teacher = two_policies(seed, v=30)
            logp = (scale * student.detach()).log_softmax(-1)
            far = (scale * teacher).log_softmax(-1)
            plain = far - logp
            total += [spread(logp, plain), spread(logp, plain + div.rkl(logp, far).sum())]
        ratios.append(total[1] / total[0])
    assert ratios == sorted(ratios, reverse=True) and ratios[-1] < 0.6


def spread(logp_V, signal_V):
    """E |A grad log pi|^2, by enumeration; the mean is the same for all baselines."""
    score_VV = torch.eye(len(logp_V), dtype=torch.float64) - logp_V.exp()
    return float((logp_V.exp() * signal_V**2 * score_VV.square().sum(-1)).sum())


@given(st.integers(0, 10_000), st.floats(0.0, 2.0))
@settings(max_examples=20, deadline=None)
def test_the_tilted_signal_gives_the_gradient_towards_the_tilted_target(seed, factor):
    student, teacher = two_policies(seed)
    reference = two_policies(seed + 1)[1]
    mine = signal_of(signals.tilted(factor), student, teacher, reference_M=reference.numpy())
    target = ((1 - factor) * reference + factor * teacher).log_softmax(-1)
    torch.testing.assert_close(expected_gradient(student, mine), kl_gradient(student, target))


def test_a_tilt_of_one_is_plain_distillation_whatever_the_reference():
    table = some_table(1)
    np.testing.assert_allclose(signals.tilted(1.0)(table), signals.reverse_kl(table))
    assert not np.allclose(signals.tilted(1.2)(table), signals.reverse_kl(table))


def test_clips_and_floors_bound_a_signal_and_leave_the_rest():
    table = table_of([0.0, 0.0, 0.0], [-50.0, -1.0, 2.0])
    assert signals.clipped(signals.reverse_kl, 10)(table).tolist() == [-10, -1, 2]
    least = math.log(0.1) / 0.9
    assert signals.floored(signals.reverse_kl, 0.1)(table).tolist() == [least, -1, 2]
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        signals.floored(signals.reverse_kl, 1)


# ------------------------------------------------------------ direct losses: named by gradient


def scores_of(student, teacher, target=None):
    """One row per token of the vocabulary, each as if it had been sampled."""
    logp = student.log_softmax(-1)
    ids = torch.arange(len(logp)) if target is None else target
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


# ------------------------------------------------------------ weights


def product_form(drifts, eps, delta):
    """SOD eq. 7 as published: a running product, capped on output."""
    found, running = [1.0], 1.0
    for before, here in itertools.pairwise(drifts):
        running *= (before + eps) / (here + eps)
        found.append(min(running, 1 + delta))
    return found


@given(st.lists(st.floats(0.001, 5), min_size=1, max_size=6), st.floats(0, 1))
@settings(deadline=None)
def test_the_closed_form_of_sod_is_the_published_product(drifts, delta):
    steps = np.arange(len(drifts))
    table = table_of(
        np.zeros(len(drifts)), -np.array(drifts), step_M=steps, traj_M=np.zeros(len(drifts), int)
    )
    mine = weights.sod(eps=1e-6, delta=delta, floor=0)(table)
    np.testing.assert_allclose(mine, product_form(drifts, 1e-6, delta), rtol=1e-6)


@pytest.mark.parametrize("weight", [weights.sod(), weights.sod(floor=0), weights.batch_sod()])
@given(st.floats(0, 50), st.lists(st.floats(0.1, 50), min_size=2, max_size=5))
@settings(max_examples=20, deadline=None)
def test_an_episode_of_one_turn_weighs_one_whatever_its_drift(weight, alone, others):
    """Nor does the floor, which comes from the others, change it."""
    drift = np.array([alone, *others])
    columns = {"step_M": np.arange(len(drift)) - 1, "traj_M": np.array([0] + [1] * len(others))}
    columns["step_M"][0] = 0
    assert weight(table_of(np.zeros(len(drift)), -drift, **columns))[0] == 1.0


TURN_WEIGHTS = [weights.sod(), weights.batch_sod(), weights.first_turns(2),
                weights.permuted(weights.sod()), weights.uniform_like(weights.sod())]  # fmt: skip


@pytest.mark.parametrize("weight", TURN_WEIGHTS)
@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_a_step_weight_is_constant_inside_a_turn(weight, seed):
    table = some_table(seed, missing=0.2)
    found = weight(table)
    for turn in np.unique(table.turn_M):
        assert np.ptp(found[table.turn_M == turn]) < 1e-12
    assert (found >= 0).all()


def test_a_first_turn_that_agrees_by_chance_does_not_silence_the_rest():
    drift = np.array([0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    columns = {"step_M": np.array([0, 1, 0, 1, 0, 1]), "traj_M": np.array([0, 0, 1, 1, 2, 2])}
    table = table_of(np.zeros(6), -drift, **columns)
    assert weights.sod(floor=0)(table)[1] < 1e-5
    assert weights.sod(floor=0.25)(table)[1] == pytest.approx(0.25, rel=1e-4)
    np.testing.assert_allclose(weights.sod(floor=0.25)(table)[2:], 1.0, rtol=1e-5)


def test_a_batch_level_reference_tells_a_bad_trajectory_from_a_good_one():
    drift = np.array([0.1, 0.1, 2.0, 2.0])
    columns = {"step_M": np.array([0, 1, 0, 1]), "traj_M": np.array([0, 0, 1, 1])}
    table = table_of(np.zeros(4), -drift, **columns)
    np.testing.assert_allclose(weights.sod(floor=0)(table), 1.0, rtol=1e-4)
    assert weights.batch_sod()(table)[3] < 0.6 < weights.batch_sod()(table)[1]


@pytest.mark.parametrize("control", [weights.permuted, weights.uniform_like])
def test_the_controls_keep_the_mean_weight_of_a_turn_or_token(control):
    table = some_table(3, trajs=40)
    plain, dealt = weights.sod()(table), control(weights.sod())(table)
    if control is weights.uniform_like:
        assert dealt.mean() == pytest.approx(plain.mean()) and np.ptp(dealt) == 0
        return
    first = np.unique(table.turn_M, return_index=True)[1]
    np.testing.assert_allclose(np.sort(dealt[first]), np.sort(plain[first]))
    assert not np.allclose(dealt, plain)


def test_weights_by_place_rise_or_fall_along_a_trajectory():
    table = some_table(7, trajs=12)
    for weight, sign in ((weights.from_the_front(), -1), (weights.towards_the_end(), 1),
                         (weights.pruned(), -1)):  # fmt: skip
        found = weight(table)
        for traj in np.unique(table.traj_M):
            assert (sign * np.diff(found[table.traj_M == traj]) >= -1e-12).all()


def test_nothing_is_pruned_where_no_overlap_is_asked_for():
    table = some_table(2)
    np.testing.assert_allclose(weights.pruned(threshold=0.0, base=0.0)(table), 1.0)
    assert weights.pruned(threshold=2.0, drop=1.0, base=0.0)(table).max() == 0


@given(st.integers(0, 10_000), st.integers(0, V - 1))
@settings(max_examples=20, deadline=None)
def test_pruning_at_a_threshold_of_zero_gives_the_gradient_of_distillation(seed, never):
    """Also where student and teacher share none of their likeliest tokens: 0 is not below 0."""
    student, teacher = two_policies(seed)
    overlap = np.random.default_rng(seed).random(V)
    overlap[never] = 0.0
    old = student.detach().log_softmax(-1).numpy()
    one = np.zeros(V, int)
    table = table_of(old, teacher.numpy(), overlap_M=overlap, traj_M=one)
    for threshold, same in ((0.0, True), (0.9, False)):
        weight = weights.pruned(threshold=threshold, drop=0.3, base=0.0)
        how = Distillation(signal=signals.reverse_kl, weight=weight)
        mine = torch.from_numpy(teach(table, np.zeros(V), how, NOW).advantage_M)
        close = torch.allclose(expected_gradient(student, mine), kl_gradient(student, teacher))
        assert close == same


def test_the_informative_tokens_are_a_share_of_each_trajectory_and_the_highest():
    table = some_table(4, trajs=30)
    kept = weights.informative(0.5)(table)
    for traj in np.unique(table.traj_M):
        here = table.traj_M == traj
        assert kept[here].sum() == math.ceil(0.5 * here.sum())


ALL_WEIGHTS = [*TURN_WEIGHTS, weights.ones, weights.from_the_front(), weights.towards_the_end(),
               weights.pruned(), weights.informative()]  # fmt: skip


@pytest.mark.parametrize("piece", [w for w in ALL_WEIGHTS if w is not TURN_WEIGHTS[3]])
@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_a_weight_does_not_depend_on_the_order_of_trajectories(piece, seed):
    table = some_table(seed)
    shift = (table.traj_M + 2) % (table.traj_M.max() + 1)
    order = np.argsort(shift, kind="stable")
    np.testing.assert_allclose(piece(reordered(table, order)), piece(table)[order])


def without(table, traj):
    """The table without one trajectory, and which tokens those are that stay."""
    stay = table.traj_M != traj
    left = reordered(table, np.flatnonzero(stay))
    return replace_column(left, traj_M=np.unique(left.traj_M, return_inverse=True)[1]), stay


def unscored(table, gone):
    """The table where the tokens `gone` have no score; what else the teacher said is nonsense."""
    nonsense = {name: np.where(gone, 1e6, getattr(table, name)) for name in OF_TEACHER}
    return replace_column(table, teacher_M=np.where(gone, np.nan, table.teacher_M), **nonsense)


OF_TEACHER = ("reverse_kl_M", "entropy_M", "overlap_M", "against_M")
# Whether a group holds a success does not hang on the teacher: `where_all_failed` is not here.
ALL_ROUTES = [routes.everywhere, routes.on_failure, routes.on_success, routes.margin(0.4),
              routes.failures_by_perplexity(), routes.successes_by_perplexity()]  # fmt: skip


@pytest.mark.parametrize("piece", [*ALL_WEIGHTS, *ALL_ROUTES])
@given(seed=st.integers(0, 1000), missing=st.sampled_from([0.0, 0.5]))
@settings(max_examples=15, deadline=None)
def test_a_trajectory_without_scores_is_to_the_others_as_if_it_were_not_there(piece, seed, missing):
    table = some_table(seed, trajs=6, missing=missing)
    fewer, stay = without(table, 2)
    masked, plain = piece(unscored(table, ~stay)), piece(fewer)
    pairs = zip(masked, plain, strict=True) if isinstance(plain, tuple) else [(masked, plain)]
    for mine, expected in pairs:
        assert np.isfinite(mine).all()
        np.testing.assert_allclose(mine[stay], expected)


def test_the_drift_of_later_turns_is_held_against_the_first_turn_that_has_a_score():
    drift = np.array([np.nan, 1.0, 4.0, np.nan, np.nan, 2.0, 0.5])
    columns = {"step_M": np.array([0, 1, 2, 3, 0, 1, 2]), "traj_M": np.array([0] * 4 + [1] * 3)}
    table = table_of(np.zeros(7), -drift, **columns)
    found = weights.sod(floor=0, delta=0.2)(table)
    np.testing.assert_allclose(found, [1, 1, 0.25, 1, 1, 1, 1.2], rtol=1e-5)
    found = weights.batch_sod(delta=0.2)(table)
    np.testing.assert_allclose(found, [1, 1, 1.5 / 4, 1, 1, 1, 1.2], rtol=1e-5)


@pytest.mark.parametrize("weight", [weights.sod(floor=0), weights.batch_sod()])
def test_where_an_attempt_begins_in_the_middle_its_first_own_turn_counts_in_full(weight):
    """A backward curriculum replays turns 0 to 2: turn 3 is the first that is trained."""
    drift = np.array([1.0, 2.0, 1.0, 4.0])
    columns = {"step_M": np.array([3, 4, 0, 1]), "traj_M": np.array([0, 0, 1, 1])}
    found = weight(table_of(np.zeros(4), -drift, **columns))
    np.testing.assert_allclose(found, [1, 0.5, 1, 0.25], rtol=1e-5)


def test_the_floor_is_a_share_of_the_middle_first_drift_and_not_of_the_largest():
    drift = np.array([0.0, 1.0, 1.0, 1.0, 8.0, 8.0])
    columns = {"step_M": np.array([0, 1] * 3), "traj_M": np.array([0, 0, 1, 1, 2, 2])}
    table = table_of(np.zeros(6), -drift, **columns)
    found = weights.sod(floor=0.25)(table)
    np.testing.assert_allclose(found, [1, 0.25, 1, 1, 1, 1], rtol=1e-5)


@pytest.mark.parametrize(("weight", "share"), [(weights.ones, 1.0), (lambda t: one_hot(t), 1 / 9)])
def test_the_effective_share_of_tokens_is_one_for_equal_weights_and_one_token_for_one(
    weight, share
):
    table = table_of(np.zeros(9), -np.ones(9))
    how = Distillation(signal=signals.reverse_kl, weight=weight)
    said = teach(table, np.zeros(9), how, NOW).metrics
    assert said["teacher_ess"] == pytest.approx(share)


def one_hot(table):
    return (np.arange(len(table)) == 4).astype(float)


# ------------------------------------------------------------ routes


@pytest.mark.parametrize(
    "route, counts",
    [(routes.failures_by_perplexity(), False), (routes.successes_by_perplexity(), True)],
)
@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_scope_weights_sum_to_one_in_each_group_and_outcome(route, counts, seed):
    table = some_table(seed, trajs=8)
    factor, shift = route(table)
    first = np.unique(table.traj_M, return_index=True)[1]
    for group in np.unique(table.group_M):
        here = [i for i in first if table.group_M[i] == group]
        right = [i for i in here if table.success_M[i] == counts]
        assert sum(factor[i] for i in right) == pytest.approx(float(bool(right)))
        assert all(factor[i] == 0 for i in here if i not in right)
    assert not shift.any()


@given(st.integers(0, 1000), st.floats(0, 3))
@settings(max_examples=25, deadline=None)
def test_after_the_margin_shift_the_gap_is_at_least_what_was_asked_for(seed, least):
    table = some_table(seed, trajs=8)
    factor, shift = routes.margin(least)(table)
    assert (factor == 1).all()
    signal = signals.reverse_kl(table)
    for group in np.unique(table.group_M):
        means = {True: [], False: []}
        shifts = []
        for traj in np.unique(table.traj_M[table.group_M == group]):
            here = table.traj_M == traj
            means[bool(table.success_M[here][0])].append((signal[here].mean(), shift[here][0]))
            shifts.append(shift[here][0])
        if not means[True] or not means[False]:
            assert not np.any(shifts)
            continue
        before = np.mean([m for m, _ in means[True]]) - np.mean([m for m, _ in means[False]])
        after = (
            before + np.mean([s for _, s in means[True]]) - np.mean([s for _, s in means[False]])
        )
        assert after == pytest.approx(max(before, least))
        assert np.any(shifts) == (before < least), "a gap that is wide enough is left alone"


def test_routes_by_outcome_take_what_they_say():
    table = some_table(5, trajs=9)
    assert (routes.on_failure(table)[0] == ~table.success_M).all()
    assert (routes.on_success(table)[0] == table.success_M).all()
    hopeless = table_of([0.0, 0, 0], [0.0, 0, 0], group_M=np.array([4, 4, 9]),
                        success_M=np.array([True, False, False]))  # fmt: skip
    assert routes.where_all_failed(hopeless)[0].tolist() == [0, 0, 1]


# ------------------------------------------------------------ mixes and schedules


def test_the_mixes_are_what_their_formulas_say_at_the_ends():
    rl, b = np.array([1.0, -2.0, 0.0]), np.array([0.3, 0.3, -0.3])
    assert (mixes.added(rl, b, 0) == rl).all() and (mixes.convex(rl, b, 0) == rl).all()
    assert (mixes.convex(rl, b, 1) == b).all() and (mixes.signal_alone(rl, b, 2) == 2 * b).all()
    assert (mixes.modulated()(rl, b, 0) == rl).all()


def test_modulation_strengthens_what_the_teacher_agrees_with_and_weakens_the_rest():
    rl, b = np.array([1.0, 1.0, -1.0, -1.0]), np.array([0.1, -0.1, 0.1, -0.1])
    expected = [math.exp(0.1), math.exp(-0.1), -math.exp(-0.1), -math.exp(0.1)]
    np.testing.assert_allclose(mixes.modulated()(rl, b, 1), expected)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-9, 9)), min_size=1), st.floats(0, 1))
@settings(deadline=None)
def test_modulation_never_flips_the_sign_of_the_reward(pairs, c):
    rl, b = np.array(pairs).T
    mixed = mixes.modulated()(rl, b, c)
    assert (np.sign(mixed) == np.sign(rl)).all()
    assert (np.abs(mixed) <= 1.2 * np.abs(rl) + 1e-12).all()


def test_schedules_start_end_and_switch_where_they_say():
    at = [Progress(step, 10) for step in range(12)]
    assert [mixes.linear(1, 0, 0.5)(p) for p in (at[0], at[5], at[11])] == [1, 0, 0]
    cos = [mixes.cosine(1, 0.1)(p) for p in at]
    assert cos[0] == 1 and cos[10] == pytest.approx(0.1) and all(np.diff(cos) <= 0)
    assert [mixes.until(3)(p) for p in (at[2], at[3])] == [1, 0]


def test_a_plateau_is_left_once_and_for_all():
    rising = tuple(i / 20 for i in range(20))
    flat = rising[:8] + (0.4,) * 6
    schedule = mixes.until_plateau(patience=3, gain=0.01)
    assert schedule(Progress(20, 40, rising)) == 1
    assert schedule(Progress(14, 40, flat)) == 0
    assert schedule(Progress(20, 40, (*flat, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0))) == 0, "never back"
    assert schedule(Progress(2, 40, (0.0, 0.0))) == 1


# ------------------------------------------------------------ all together


METHODS = {
    "opd": Distillation(signal=signals.reverse_kl),
    "vopd": Distillation(signal=signals.with_control_variate),
    "sod": Distillation(signal=signals.reverse_kl, weight=weights.sod(), mix=mixes.added),
    "prune": Distillation(signal=signals.reverse_kl, weight=weights.pruned()),
    "scope": Distillation(signal=signals.reverse_kl, route=routes.failures_by_perplexity()),
    "uni": Distillation(signal=signals.reverse_kl, route=routes.margin()),
    "direct": Distillation(direct=div.full(), weight=weights.sod()),
}


@pytest.mark.parametrize("how", METHODS.values(), ids=METHODS)
def test_a_missing_score_is_a_mask_and_never_a_zero(how):
    table = some_table(3, missing=0.4)
    rl = np.linspace(-1, 1, len(table))
    out = teach(table, rl, how, NOW)
    assert np.isfinite(out.advantage_M).all() and np.isfinite(out.direct_M).all()
    missing = ~table.valid_M
    assert missing.any() and not out.direct_M[missing].any()
    expected = rl if how.signal is None else how.mix(rl, np.zeros(len(table)), 1.0)
    np.testing.assert_allclose(out.advantage_M[missing], expected[missing])
    assert out.metrics["teacher_missing"] == pytest.approx(missing.mean())


def test_scores_that_are_all_missing_leave_the_reward_alone():
    table = some_table(3, missing=1.1)
    rl = np.linspace(-1, 1, len(table))
    out = teach(table, rl, METHODS["sod"], NOW)
    np.testing.assert_array_equal(out.advantage_M, rl)
    assert all(math.isfinite(value) for value in out.metrics.values())


@pytest.mark.parametrize("name", ["opd", "sod", "prune", "scope"])
def test_a_teacher_who_says_what_the_student_says_moves_nothing(name):
    table = some_table(6)
    same = replace_column(table, teacher_M=table.old_M)
    rl = np.zeros(len(table))
    np.testing.assert_allclose(teach(same, rl, METHODS[name], NOW).advantage_M, 0.0)
    assert teach(table, rl, METHODS[name], NOW).advantage_M.any()


def replace_column(table, **columns):
    names = [n for n in vars(table) if n != "valid_M"]
    return TokenTable(**{**{n: getattr(table, n) for n in names}, **columns})


def test_weights_multiply_and_are_not_normalised_away():
    table = some_table(6)
    half = Distillation(signal=signals.reverse_kl, weight=lambda t: np.full(len(t), 0.5))
    twice = Distillation(signal=signals.reverse_kl, weight=weights.times(half.weight, half.weight))
    whole = teach(table, np.zeros(len(table)), METHODS["opd"], NOW).advantage_M
    np.testing.assert_allclose(teach(table, 0 * whole, half, NOW).advantage_M, whole / 2)
    np.testing.assert_allclose(teach(table, 0 * whole, twice, NOW).advantage_M, whole / 4)


def test_a_piece_that_lacks_its_column_says_which_and_who():
    table = table_of([0.0], [0.0])
    with pytest.raises(ValueError, match="with_control_variate needs the column reverse_kl_M"):
        signals.with_control_variate(table)
    with pytest.raises(ValueError, match="column step_M has 2 tokens and old_M 1"):
        table_of([0.0], [0.0], step_M=np.zeros(2, int))
    with pytest.raises(ValueError, match="a signal, a direct loss or trust"):
        Distillation()


def test_an_empty_batch_is_no_error():
    empty = table_of([], [], **{k: np.zeros(0) for k in ("reverse_kl_M", "entropy_M", "overlap_M")})
    for how in METHODS.values():
        assert len(teach(empty, np.zeros(0), how, NOW).advantage_M) == 0
