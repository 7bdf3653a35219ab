"""Laws of signals: the gradient that each gives, by enumeration, and what bounds it."""

import math

import numpy as np
import pytest
import torch
from enumerated import V, expected_gradient, kl_gradient, some_table, table_of, two_policies
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.trainers import divergences as div
from turnwise.trainers import signals

# ------------------------------------------------------------ signals: what gradient they give


def signal_of(signal, student, teacher, **columns):
    """The signal of each token of the vocabulary."""
    old = student.detach().log_softmax(-1).numpy()
    table = table_of(old, teacher.numpy(), **columns)
    return torch.from_numpy(signal(table))


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
