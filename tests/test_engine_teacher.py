"""Laws of a teacher behind an engine: it says what a model in this process says, or refuses."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from miniatures import VOCAB, qwen3
from pupils import NOW, episodes_of, gradient_of, learner_of, parts
from test_vocabulary import Widest
from torch.utils._python_dispatch import _disable_current_modes

from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.trainers.batch import pack, totals_of
from turnwise.trainers.distillation import Distillation
from turnwise.trainers.divergences import (
    entries_read,
    fkl,
    full,
    k2,
    likelihood,
    of_student,
    of_teacher,
    rho_k3,
    rkl,
    top_k,
)
from turnwise.trainers.engine_teacher import EngineTeacher
from turnwise.trainers.model_teacher import frozen
from turnwise.trainers.recipes import NAMES, recipe
from turnwise.trainers.several import Several
from turnwise.trainers.signals import reverse_kl
from turnwise.trainers.surrogates import token_mean
from turnwise.trainers.teachers import TeacherMismatch, chosen_by
from turnwise.trainers.teaching import distil, score
from turnwise.trainers.tutor import Tutor

torch.set_num_threads(1)


def behind_engine(model, topk=0, max_len=256) -> EngineTeacher:
    return EngineTeacher(EmbeddedEngine(model, slots=1, max_len=max_len), VOCAB, topk)


def packed_rows(*, hint=(), temperatures=(1.0,)):
    """Rows whose tokens were sampled at these temperatures in turn; every other one has a hint."""
    rows, _, _ = parts(episodes_of(qwen3(0)))
    changed = []
    for n, row in enumerate(rows):
        degrees = [temperatures[i % len(temperatures)] for i in range(len(row.trained))]
        hinted = {"hint": hint, "hint_at": 2} if hint and n % 2 else {}
        changed.append(replace(row, temperature=degrees, **hinted))
    return pack(changed, aggregate=token_mean, totals=totals_of(changed))


@pytest.mark.parametrize("hint", [(), (7, 8, 9)])
@pytest.mark.parametrize("temperatures", [(1.0,), (0.6, 1.4)])
def test_an_engine_scores_tokens_as_the_model_does(hint, temperatures):
    packed = packed_rows(hint=hint, temperatures=temperatures)
    model = qwen3(1)
    mine = behind_engine(model).chosen(packed)
    theirs = chosen_by(frozen(model, 256), packed, VOCAB)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert float((mine - packed.tokens.old_M).abs().max()) > 0.1


def test_the_likeliest_tokens_and_the_sampled_one_are_where_they_belong():
    packed, model = packed_rows(), qwen3(1)
    whole_MV = frozen(model, 256).logprobs(packed)
    some_MV = behind_engine(model, topk=5).logprobs(packed)
    known_MV = some_MV > -torch.inf
    torch.testing.assert_close(some_MV[known_MV], whole_MV[known_MV], atol=1e-5, rtol=1e-5)
    assert known_MV.gather(-1, whole_MV.topk(5, -1).indices).all()
    assert known_MV.gather(-1, packed.target_M[:, None]).all()
    assert set(known_MV.sum(-1).tolist()) == {5, 6}


def test_a_row_that_does_not_fit_the_engine_has_no_score_and_others_do():
    packed, model = packed_rows(), qwen3(1)
    lengths = [row.start + row.trained[-1] + 1 for row in packed.rows]
    limit = max(lengths) - 1
    short = behind_engine(model, topk=2, max_len=limit)
    fits_M = torch.tensor(
        [n <= limit for n, row in zip(lengths, packed.rows, strict=True) for _ in row.trained]
    )
    assert 0 < fits_M.sum() < len(fits_M)
    assert torch.equal(short.chosen(packed).isfinite(), fits_M)
    missing_MV = short.logprobs(packed).isnan()
    assert torch.equal(~missing_MV.any(-1), fits_M)
    assert torch.equal(missing_MV.all(-1), ~fits_M), "a row of NaN"


@pytest.mark.parametrize("name", ["opd", "sod", "tcod_f2b", "exopd", "kdrl"])
def test_a_recipe_of_sampled_scores_learns_the_same_from_an_engine(name):
    student, model = qwen3(0), qwen3(1)
    groups = episodes_of(student)
    theirs, _ = gradient_of(name, student, frozen(model, 256), groups)
    mine, _ = gradient_of(name, student, behind_engine(model), groups)
    assert max(float(g.abs().max()) for g in mine.values()) > 1e-4
    for weight, gradient in theirs.items():
        torch.testing.assert_close(mine[weight], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("entries", [rkl, fkl])
def test_a_loss_on_the_teachers_likeliest_tokens_is_the_same_from_an_engine(entries):
    direct = top_k(entries, k=6, support=of_teacher)
    method = replace(recipe("gkd"), distillation=Distillation(direct=direct))
    student, model = qwen3(0), qwen3(1)
    rows, table, episodes = parts(episodes_of(student))
    losses = []
    for teacher in (frozen(model, 256), behind_engine(model, topk=6)):
        learner = learner_of(qwen3(0))
        none = np.zeros(len(table))
        how = {"how": method.distillation, "progress": NOW, "learner": learner}
        taught, _ = distil(rows, none, table, episodes, teacher=teacher, **how)
        losses.append(learner.improve(taught, none, method, teacher)["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0] > 1e-3


def test_columns_of_the_likeliest_tokens_are_the_same_from_an_engine():
    student, model = qwen3(0), qwen3(1)
    rows, _, _ = parts(episodes_of(student))
    asked = partial(score, rows, learner_of(student), needs=("top", "overlap", "entropy"))
    mine, theirs = asked(behind_engine(model, topk=16)), asked(frozen(model, 256))
    assert mine.keys() == theirs.keys()
    for name, column in theirs.items():
        np.testing.assert_allclose(mine[name], column, atol=1e-5)


class Counting(EngineTeacher):
    """Counts the tokens that the engine is asked for."""

    asked = 0

    def _outputs(self, packed, topk):
        self.asked += len(packed.target_M)
        return super()._outputs(packed, topk)


@pytest.mark.parametrize("needs", [("top",), ("top", "overlap", "entropy")])
@pytest.mark.parametrize("several", [False, True])
def test_an_engines_scores_are_the_same_by_parts_and_few_rows_are_made_at_once(needs, several):
    rows, _, _ = parts(episodes_of(qwen3(0)))
    tokens = sum(len(row.trained) for row in rows)
    longest = max(row.start + row.trained[-1] + 1 for row in rows)
    engine = EmbeddedEngine(qwen3(1), slots=1, max_len=longest - 1)
    own = Counting(engine, VOCAB, topk=16)
    teacher = Several([own], lambda row: 0 if row.traj % 3 else None) if several else own
    learner = learner_of(qwen3(0))
    whole, own.asked = score(rows, learner, teacher, needs), 0
    learner.scorer.logits_at_once = VOCAB * 5
    engine.score = narrow(engine.score)
    with Widest(VOCAB) as widest:
        found = score(rows, learner, teacher, needs)
    assert own.asked == tokens > 5 and widest.rows == 5
    assert 0 < np.isnan(whole["teacher_M"]).sum() < tokens
    for name, column in whole.items():
        np.testing.assert_allclose(found[name], column, atol=1e-6)


def narrow(asked):
    """The engine's own tables are not what is watched."""

    def scored(requests):
        with _disable_current_modes():
            return asked(requests)

    return scored


def test_an_engine_that_names_fewer_tokens_than_it_was_asked_for_is_taken():
    packed, teacher = packed_rows(), behind_engine(qwen3(1), topk=5)
    whole_MV, asked = teacher.logprobs(packed), teacher.engine.score
    teacher.engine.score = lambda requests: [
        replace(out, topk_ids=[some[:-2] for some in out.topk_ids],
                topk_logprobs=[some[:-2] for some in out.topk_logprobs])
        for out in asked(requests)
    ]  # fmt: skip
    fewer_MV = teacher.logprobs(packed)
    known_MV = fewer_MV > -torch.inf
    assert set(known_MV.sum(-1).tolist()) == {3, 4}
    assert torch.equal(fewer_MV[known_MV], whole_MV[known_MV])


# ------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    ("direct", "entries"),
    [
        (k2, 0),
        (rho_k3, 0),
        (likelihood, 0),
        (top_k(k=9, support=of_teacher), 9),
        (top_k(k=9, support=of_student), float("inf")),
        (full(), float("inf")),
        (lambda scores: scores.chosen_M, float("inf")),
    ],
)
def test_a_loss_says_how_many_of_the_teachers_tokens_it_reads(direct, entries):
    assert entries_read(direct) == entries


@pytest.mark.parametrize(
    ("how", "topk", "why"),
    [
        (recipe("gkd").distillation, 9, "its direct loss reads the whole vocabulary"),
        (recipe("vopd").distillation, 9, "column reverse_kl reads the whole vocabulary"),
        (Distillation(direct=top_k(k=9, support=of_teacher)), 8, "its direct loss reads 9"),
        (Distillation(signal=reverse_kl, needs=("top",)), 0, "column top reads 1"),
        (Distillation(signal=reverse_kl, needs=("overlap",)), 15, "column overlap reads 16"),
    ],
)
def test_what_an_engine_cannot_give_is_refused_by_its_name_before_a_run(how, topk, why):
    with pytest.raises(TeacherMismatch, match=why):
        Tutor(how, behind_engine(qwen3(1), topk), steps=3)


def test_what_an_engine_can_give_is_taken():
    for name in NAMES:
        how = recipe(name).distillation
        if how is not None and how.direct in (None, k2) and "reverse_kl" not in how.needs:
            Tutor(how, behind_engine(qwen3(1)), steps=3)
    Tutor(Distillation(direct=top_k(k=9, support=of_teacher)), behind_engine(qwen3(1), 9), steps=3)


def test_an_engine_without_temperature_or_likeliest_tokens_says_so():
    engine = EmbeddedEngine(qwen3(1), slots=1, max_len=256)
    engine.capabilities = frozenset()
    with pytest.raises(ValueError, match="scores given tokens alone: take 0"):
        EngineTeacher(engine, VOCAB, topk=2)
    teacher = EngineTeacher(engine, VOCAB)
    assert teacher.chosen(packed_rows()).isfinite().all()
    with pytest.raises(TeacherMismatch, match=r"temperature 0\.6.*sample at 1"):
        teacher.chosen(packed_rows(temperatures=(0.6,)))
