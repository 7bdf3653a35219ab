"""Two policies over seven tokens, gradients by enumeration, and tables of tokens to teach on."""

import numpy as np
import torch

from turnwise.trainers import divergences as div
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


def expected_gradient(student, signal_V):
    """E_{y ~ pi} of the policy gradient of A = signal(y), by enumeration."""
    logp_V = student.log_softmax(-1)
    gain_V, _ = policy_gradient(logp_V - logp_V.detach(), signal_V)
    return gradient(-(logp_V.detach().exp() * gain_V).sum(), student)


def kl_gradient(student, target):
    return gradient(div.rkl(student.log_softmax(-1), target).sum(), student)


def replace_column(table, **columns):
    names = [n for n in vars(table) if n != "valid_M"]
    return TokenTable(**{**{n: getattr(table, n) for n in names}, **columns})
