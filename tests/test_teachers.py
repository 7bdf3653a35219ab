"""Laws of teachers: whom each follows, who scores what, and which scores are refused."""

import copy

import numpy as np
import pytest
import torch
from miniatures import VOCAB, qwen3
from pupils import episodes_of, gradient_of, learner_of, packed_of, parts
from toy_runs import fresh

from turnwise.trainers.divergences import full
from turnwise.trainers.model_teacher import ema, frozen, self_base, synced
from turnwise.trainers.recipes import recipe
from turnwise.trainers.several import Several
from turnwise.trainers.teachers import TeacherMismatch, require_same_vocabulary
from turnwise.trainers.teaching import score

torch.set_num_threads(1)


# ------------------------------------------------------------ scores that do not fit


class Garbled:
    """A teacher whose table of scores comes out wrong."""

    def __init__(self, teacher, garble):
        self.teacher, self.garble = teacher, garble

    def logprobs(self, packed):
        return self.garble(self.teacher.logprobs(packed))


GARBLES = {
    "long": (lambda s: torch.cat([s, s[:1]]), r"scored \d+ tokens and \d+ are trained: one row"),
    "short": (lambda s: s[:-1], r"scored \d+ tokens and \d+ are trained: one row"),
    "narrow": (lambda s: s[:, :80], "scores 80 ids and the student has 89: resize"),
}


@pytest.mark.parametrize(("garble", "why"), GARBLES.values(), ids=GARBLES)
def test_scores_that_are_not_the_students_tokens_are_refused_where_they_enter(garble, why):
    student = qwen3(0)
    wrong = Garbled(frozen(qwen3(1), 256), garble)
    rows, table, _ = parts(episodes_of(student))
    learner, counted = learner_of(student), np.zeros(len(table))
    with pytest.raises(TeacherMismatch, match=why):
        score(rows, learner, wrong)
    with pytest.raises(TeacherMismatch, match=why):
        learner.improve(rows, counted, recipe("gkd"), wrong)
    with pytest.raises(TeacherMismatch, match=why):
        learner.imitate(rows, direct=full(), teacher=wrong)
    if "row" in why:
        with pytest.raises(TeacherMismatch, match=why):
            Several([wrong], lambda row: 0).logprobs(packed_of(rows))


@pytest.mark.parametrize("name", ["opd", "vopd", "gkd"])
def test_ids_that_only_the_teacher_has_are_cut_off_and_the_others_sum_to_one(name):
    student, wide = qwen3(0), qwen3(1, vocab=VOCAB + 8)
    narrow = copy.deepcopy(wide)
    narrow.resize_token_embeddings(VOCAB)
    groups = episodes_of(student)
    mine, out = gradient_of(name, student, frozen(wide, 256), groups)
    expected, other = gradient_of(name, student, frozen(narrow, 256), groups)
    assert out["loss"] == pytest.approx(other["loss"], abs=1e-6)
    for n, g in expected.items():
        torch.testing.assert_close(mine[n], g, atol=1e-6, rtol=1e-4)


# ------------------------------------------------------------ sources


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_an_average_follows_by_its_decay_and_a_copy_at_once():
    student = qwen3(0)
    slow, fast, base = (
        ema(student, 256, decay=0.9),
        synced(student, 256, every=2),
        self_base(student, 256),
    )
    first = parameters(student).clone()
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    for updates in (1, 2):
        for teacher in (slow, fast, base):
            teacher.after_update(student, updates)
        if updates == 1:
            torch.testing.assert_close(parameters(fast.model), first)
    torch.testing.assert_close(parameters(slow.model), first + 0.19)
    torch.testing.assert_close(parameters(fast.model), first + 1)
    torch.testing.assert_close(parameters(base.model), first)
    assert base.state_dict() == {} and slow.state_dict()


def test_a_teacher_carries_no_gradient_and_leaves_the_student_as_it_is():
    student = qwen3(0)
    before = parameters(student).clone()
    groups = episodes_of(student)
    gradients, _ = gradient_of("gkd", student, self_base(student, 256), groups)
    assert all(p.requires_grad for p in student.parameters()) and gradients
    torch.testing.assert_close(parameters(student), before)


def test_each_trajectory_is_scored_by_the_teacher_that_is_chosen_for_it():
    student = qwen3(0)
    one, two = frozen(qwen3(1), 256), frozen(qwen3(2), 256)
    rows, _, _ = parts(episodes_of(student))
    learner = learner_of(student)

    def choose(row):
        return {0: 0, 1: 1}.get(row.traj)

    mixed = score(rows, learner, Several([one, two], choose))["teacher_M"]
    first, second = (score(rows, learner, t)["teacher_M"] for t in (one, two))
    traj = np.array([row.traj for row in rows for _ in row.trained])
    np.testing.assert_array_equal(mixed[traj == 0], first[traj == 0])
    np.testing.assert_array_equal(mixed[traj == 1], second[traj == 1])
    assert np.isnan(mixed[traj > 1]).all()


def test_another_vocabulary_is_refused_by_its_first_difference():
    _, tokenizer = fresh()
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<zebra>"])
    require_same_vocabulary(tokenizer, tokenizer)
    with pytest.raises(TeacherMismatch, match=r"first difference is token '<zebra>' with id"):
        require_same_vocabulary(tokenizer, other)
    with pytest.raises(TeacherMismatch, match="--recipe dagger --teacher openai:MODEL@URL"):
        require_same_vocabulary(tokenizer, other)
