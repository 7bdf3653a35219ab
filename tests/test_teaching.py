"""Laws of teaching: one pass scores all, agreement moves nothing, silence leaves no trace."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from miniatures import VOCAB, naive_logprobs, qwen3
from pupils import NOW, TAUGHT, Silent, biggest, episodes_of, gradient_of, learner_of, parts

from turnwise.trainers.distillation import Distillation
from turnwise.trainers.divergences import full
from turnwise.trainers.mixes import Progress, added, convex, signal_alone
from turnwise.trainers.model_teacher import frozen
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.recipes import recipe
from turnwise.trainers.signals import reverse_kl
from turnwise.trainers.surrogates import ppo
from turnwise.trainers.teaching import distil, score

torch.set_num_threads(1)
EVERY = ("reference", "reverse_kl", "entropy", "overlap", "top")


# ------------------------------------------------------------ scoring


def test_one_pass_over_an_episode_gives_the_scores_of_one_call_per_turn():
    student, teacher = qwen3(0), qwen3(1)
    groups = episodes_of(student)
    rows, _, _ = parts(groups)
    found = score(rows, learner_of(student), frozen(teacher, 256))["teacher_M"]
    naive = []
    for row in rows:
        whole = [*row.prompt, *row.rest]
        logp = naive_logprobs(teacher, whole, 1.0)
        at = [len(row.prompt) + i for i in row.trained]
        naive += [float(logp[i - len(whole)]) for i in at]
    np.testing.assert_allclose(found, naive, atol=1e-5)


def test_the_columns_are_what_they_are_called():
    student, teacher = qwen3(0), qwen3(1)
    learner = learner_of(student)
    learner.keep_reference()
    rows, _, _ = parts(episodes_of(student))
    found = score(rows, learner, frozen(teacher, 256), EVERY)
    old = np.array([o for row in rows for o in row.old])
    np.testing.assert_allclose(found["reference_M"], old, atol=1e-5)
    assert (found["reverse_kl_M"] > 0).all() and (found["entropy_M"] <= math.log(VOCAB)).all()
    assert ((found["overlap_M"] >= 0) & (found["overlap_M"] < 1)).all()
    assert (found["top_M"] >= np.exp(found["teacher_M"]) - 1e-6).all()
    same = score(rows, learner, frozen(copy.deepcopy(student), 256), EVERY)
    np.testing.assert_allclose(same["reverse_kl_M"], 0, atol=1e-6)
    assert (same["overlap_M"] == 1).all()


# ------------------------------------------------------------ laws of every recipe with a teacher


@pytest.mark.parametrize("name", TAUGHT)
def test_a_teacher_equal_to_the_student_moves_nothing(name):
    student = qwen3(0)
    groups = episodes_of(student)
    same, _ = gradient_of(name, student, frozen(copy.deepcopy(student), 256), groups)
    other, _ = gradient_of(name, student, frozen(qwen3(1), 256), groups)
    assert biggest(same) < 1e-5 < 1e-3 < biggest(other)


def test_a_teacher_who_has_no_say_is_not_asked_and_leaves_the_reward_as_it_is():
    class Unwilling:
        def logprobs(self, packed):
            raise AssertionError("asked")

    rows, table, episodes = parts(episodes_of(qwen3(0)))
    reward_N = np.linspace(-1, 1, len(table))
    method = recipe("opd_then_rl", switch=3)
    learner = learner_of(qwen3(0))
    for mix in (convex, added, signal_alone):
        how = replace(method.distillation, mix=mix)
        after = {"how": how, "progress": Progress(3, 10), "learner": learner}
        mine, said = distil(rows, reward_N, table, episodes, teacher=Unwilling(), **after)
        late, _ = distil(  # as it was scored: a direct loss keeps the teacher awake
            rows, reward_N, table, episodes, teacher=frozen(qwen3(1), 256),
            **{**after, "how": replace(how, direct=full())},
        )  # fmt: skip
        assert [row.advantage for row in mine] == [row.advantage for row in late]
        assert said == {"teacher_coefficient": 0.0}
        with pytest.raises(AssertionError, match="asked"):
            before = {**after, "progress": Progress(2, 10)}
            distil(rows, reward_N, table, episodes, teacher=Unwilling(), **before)
        trusting = replace(how, trust=0.5)
        with pytest.raises(AssertionError, match="asked"):
            distil(rows, reward_N, table, episodes, teacher=Unwilling(),
                   **{**after, "how": trusting})  # fmt: skip


@pytest.mark.parametrize("name", TAUGHT)
def test_missing_scores_leave_a_finite_loss_and_no_trace(name):
    student, teacher = qwen3(0), frozen(qwen3(1), 256)
    groups = episodes_of(student)
    none, out = gradient_of(name, student, Silent(teacher, lambda row: True), groups)
    assert math.isfinite(out["loss"]) and biggest(none) < 1e-6
    some, out = gradient_of(name, student, Silent(teacher, lambda row: row.traj % 2), groups)
    assert math.isfinite(out["loss"]) and biggest(some) > 1e-4


@pytest.mark.parametrize("name", TAUGHT)
def test_the_gradient_does_not_depend_on_micro_batches_or_order(name):
    student, teacher = qwen3(0), frozen(qwen3(1), 256)
    groups = episodes_of(student)
    whole, _ = gradient_of(name, student, teacher, groups)
    split, _ = gradient_of(name, student, teacher, groups, micro_tokens=20)
    turned, _ = gradient_of(name, student, teacher, groups, order=[5, 4, 3, 2, 1, 0])
    for n, g in whole.items():
        torch.testing.assert_close(split[n], g, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(turned[n], g, atol=1e-6, rtol=1e-4)


def test_a_sampled_signal_and_a_trusted_teacher_work_off_policy_too():
    """Old log-probabilities that are not the student's: ratios differ from one."""
    student, teacher = qwen3(0), frozen(qwen3(1), 256)
    groups = episodes_of(qwen3(2))
    rows, table, episodes = parts(groups)
    learner = learner_of(student)
    how = Distillation(signal=reverse_kl, trust=0.5)
    method = Recipe(name="t", source="", status="", surrogate=ppo(9, 9), distillation=how)
    ready, _ = distil(
        rows, np.zeros(len(table)), table, episodes,
        learner=learner, teacher=teacher, how=how, progress=NOW,
    )  # fmt: skip
    old = np.array([o for row in rows for o in row.old])
    q = np.array([t for row in ready for t in row.teacher])
    now = score(rows, learner, frozen(copy.deepcopy(student), 256))["teacher_M"]
    ratio = np.exp(np.clip(now - (old + q) / 2, -20, 20)).clip(-8, 10)
    free = np.exp(np.clip(now - (old + q) / 2, -20, 20)) * (q - old)
    expected = -np.minimum(free, ratio * (q - old)).mean()
    out = learner.improve(ready, np.zeros(len(table)), method, teacher)
    assert out["loss"] == pytest.approx(expected, rel=1e-3)
