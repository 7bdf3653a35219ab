"""What a teacher has no say in, over every recipe with one: tool results, and where it is silent.

A teacher is asked about the tokens that the student sampled. What it would say of the tokens of
tool results is garbled here in every way, and nothing may come of it. Where it has no score for a
whole episode, that episode is left to the reward, and the others to the teacher as before.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from miniatures import qwen3
from pupils import (
    NOW,
    TAUGHT,
    Silent,
    biggest,
    episodes_of,
    learner_of,
    packed_of,
    parts,
)
from test_engine_teacher import behind_engine, packed_rows

from turnwise.trainers.model_teacher import frozen
from turnwise.trainers.recipe import no_credit
from turnwise.trainers.recipes import recipe
from turnwise.trainers.teachers import TeacherMismatch
from turnwise.trainers.teaching import distil

torch.set_num_threads(1)
RECIPES = {name: recipe(name) for name in TAUGHT}
RECIPES["sod by batch"] = recipe("sod", by_batch=True)
"""Every recipe with a teacher, and a variant in which episodes are compared with each other."""
SERVED = [name for name in RECIPES if name not in ("vopd", "gkd")]
"""Those that read the scores of sampled tokens alone, which is what a server gives."""


def batch_of():
    """Rows, turns and episodes of two groups of three; results of tools stand between turns."""
    return parts(episodes_of(qwen3(0)))


def credit_of(table):
    """What a reward might give to each turn. [N]"""
    return np.random.default_rng(5).normal(size=len(table))


def distilled(name, rows, table, episodes, teacher):
    """Return (learner, recipe, rows with what the teacher makes of them, metrics)."""
    method, learner = replace(RECIPES[name], kl_coefficient=0.0), learner_of(qwen3(0))
    learner.keep_reference()
    taught, said = distil(
        rows, credit_of(table), table, episodes,
        learner=learner, teacher=teacher, how=method.distillation, progress=NOW,
    )  # fmt: skip
    return learner, method, taught, said


def gradient_of(learner, method, rows, table, teacher):
    """Return (gradient by weight, metrics) of one update, which is not taken."""
    seen = {}

    def look(loss):
        seen.update({n: p.grad.clone() for n, p in learner.model.named_parameters()})
        return {}

    learner._apply = look
    return seen, learner.improve(rows, credit_of(table), method, teacher)


def learnt(name, rows, table, episodes, teacher):
    """Return all that comes of a batch: gradient, metrics of loss and teacher, columns of rows."""
    learner, method, taught, said = distilled(name, rows, table, episodes, teacher)
    return *gradient_of(learner, method, taught, table, teacher), said, taught


def assert_same(one, other):
    assert one[1:] == other[1:] and biggest(one[0]) > 1e-4
    assert all(torch.equal(one[0][weight], other[0][weight]) for weight in one[0])


# ------------------------------------------------------------ tokens of tool results


GARBLES = {
    "missing": lambda hidden: torch.full_like(hidden, torch.nan),
    "infinite": lambda hidden: torch.full_like(hidden, torch.inf),
    "other": lambda hidden: 9 * hidden.roll(1, -1) + 3,
}


def others_of(ids_N, at_M):
    """Which places precede a token that nobody trains: a tool result, or a prompt's. [N]"""
    others_N = torch.ones(len(ids_N), dtype=torch.bool)
    others_N[at_M] = False
    return others_N


def garbled(teacher, garble):
    """Have a model read all tokens as they are, and say something else of tool results."""
    scorer, decoder = teacher.scorer, teacher.scorer.decoder
    asked, seen = scorer.by_parts, []

    def by_parts(packed):
        seen.append(packed.at_M)
        return asked(packed)

    def hidden(ids_N, *rest):
        found_ND = decoder.hidden(ids_N, *rest)
        return torch.where(others_of(ids_N, seen[-1])[:, None], garble(found_ND), found_ND)

    scorer.by_parts = by_parts
    scorer.decoder = SimpleNamespace(hidden=hidden, logits=decoder.logits)
    return teacher


@pytest.mark.parametrize("garble", GARBLES.values(), ids=GARBLES)
@pytest.mark.parametrize("name", RECIPES)
def test_what_a_teacher_says_of_tool_results_changes_nothing(name, garble):
    plain = learnt(name, *batch_of(), frozen(qwen3(1), 256))
    assert_same(plain, learnt(name, *batch_of(), garbled(frozen(qwen3(1), 256), garble)))


def rewritten(teacher, rows, change):
    """Have an engine's scores pass through `change(row, logprob of each scored place)`."""
    asked = teacher.engine.score

    def row_of(request):
        ids = list(request.token_ids)
        return next(row for row in rows if row.ids[: len(ids)] == ids)

    def score(requests):
        pairs = zip(requests, asked(requests), strict=True)
        return [replace(out, logprobs=change(row_of(r), dict(enumerate(out.logprobs, r.start))))
                for r, out in pairs]  # fmt: skip

    teacher.engine.score = score
    return teacher


@pytest.mark.parametrize("value", [math.nan, -math.inf, 0.0, -99.0])
@pytest.mark.parametrize("name", SERVED)
def test_what_a_server_says_of_tool_results_changes_nothing(name, value):
    batch, changed = batch_of(), []

    def change(row, said):
        trained = {row.start + i for i in row.trained}
        changed.extend(place for place in said if place not in trained)
        return tuple(logp if at in trained else value for at, logp in said.items())

    plain = learnt(name, *batch, behind_engine(qwen3(1)))
    assert_same(plain, learnt(name, *batch, rewritten(behind_engine(qwen3(1)), batch[0], change)))
    assert changed


@pytest.mark.parametrize("name", RECIPES)
def test_no_gradient_comes_from_what_the_student_would_say_of_tool_results(name):
    """What its output layer reads before them is pulled at by nothing: by sampled tokens alone."""
    rows, table, episodes = batch_of()
    teacher = frozen(qwen3(1), 256)
    learner, method, taught, _ = distilled(name, rows, table, episodes, teacher)
    run, hidden_of = learner.scorer.of_decoder, learner.scorer.decoder.hidden
    pulled, others = [], []

    def forward(ids_N, positions_N, at_M, attend, find):
        others.append(others_of(ids_N, at_M))
        return run(ids_N, positions_N, at_M, attend, find)

    def hidden(*tokens):
        found_ND = hidden_of(*tokens)
        found_ND.register_hook(pulled.append)
        return found_ND

    learner.scorer.forward, learner.scorer.decoder.hidden = forward, hidden
    gradient_of(learner, method, taught, table, teacher)
    ((others_N,), (grad_ND,)) = others, pulled
    sampled = [i for e in episodes for turn in e.turns for i in turn.action_ids]
    between = sum(len(row.rest) for row in rows) - len(sampled)
    assert packed_of(rows).target_M.tolist() == sampled
    assert others_N.sum() >= between > 0
    assert not grad_ND[others_N].any() and grad_ND[~others_N].any(-1).float().mean() > 0.9


# ------------------------------------------------------------ an episode without scores


QUIET = 2
"""The trajectory of which the teacher says nothing."""


def is_quiet(row):
    return row.traj == QUIET


def short_of_one(left):
    """A server that leaves out all but `left` of its scores of one episode."""
    rows, _, _ = batch_of()

    def cut(row, said):
        return tuple(said.values())[: left if is_quiet(row) else None]

    return rewritten(behind_engine(qwen3(1)), rows, cut)


SILENCES = {
    "nan": lambda: Silent(frozen(qwen3(1), 256), is_quiet),
    "nan at a server": lambda: rewritten(
        behind_engine(qwen3(1)), batch_of()[0],
        lambda row, said: tuple(math.nan if is_quiet(row) else logp for logp in said.values()),
    ),
    "none": lambda: short_of_one(0),
    "short": lambda: short_of_one(-1),
}  # fmt: skip
BY_REWARD = ["sod", "sod by batch", "kdrl"]
"""Those in which the reward has its say at every step; in opd_then_rl it comes after the switch."""


def without_terms(row, credit_N, how):
    """The row as the reward alone has it: what the mix leaves of it, and no direct loss."""
    own_M, nothing = credit_N[row.turn], [0.0] * len(row.trained)
    reward_M = own_M if how.signal is None else how.mix(own_M, 0 * own_M, how.schedule(NOW))
    return replace(row, advantage=reward_M.tolist(), direct=nothing, teacher=nothing)


def left_out(name, rows, table, episodes, teacher):
    """Return gradient and rows where the quiet episode has no term of distillation.

    The others are taught as if they were alone; the denominators are those of all.
    """
    others = [row for row in rows if not is_quiet(row)]
    learner, method, taught, _ = distilled(name, others, table, episodes, teacher)
    credit_N, how = credit_of(table), method.distillation
    alone = [without_terms(row, credit_N, how) for row in rows if is_quiet(row)]
    joined = sorted([*taught, *alone], key=lambda row: row.traj)
    return gradient_of(learner, method, joined, table, teacher)[0], alone


@pytest.mark.parametrize(
    ("name", "silence"), [(n, s) for n in RECIPES for s in SILENCES if n in SERVED or s == "nan"]
)
def test_an_episode_without_scores_is_left_to_the_reward_and_counted(name, silence):
    rows, table, episodes = batch_of()
    mine, out, said, taught = learnt(name, rows, table, episodes, SILENCES[silence]())
    expected, alone = left_out(name, rows, table, episodes, frozen(qwen3(1), 256))
    quiet = [row for row in taught if is_quiet(row)]
    assert [row.advantage for row in quiet] == [row.advantage for row in alone]
    assert math.isfinite(out["loss"]) and biggest(mine) > 1e-4
    tokens = sum(len(row.trained) for row in rows)
    assert said["teacher_missing"] == pytest.approx(sum(len(r.trained) for r in quiet) / tokens)
    for weight, gradient in expected.items():
        torch.testing.assert_close(mine[weight], gradient, atol=1e-6, rtol=1e-4)


def test_the_recipes_with_a_reward_are_these():
    paid = {name for name, method in RECIPES.items() if method.credit is not no_credit}
    assert paid == {*BY_REWARD, "opd_then_rl"}


@pytest.mark.parametrize("name", BY_REWARD)
def test_the_reward_keeps_its_part_of_an_episode_without_scores(name):
    rows, table, episodes = batch_of()
    _, _, _, taught = learnt(name, rows, table, episodes, SILENCES["nan"]())
    for row in filter(is_quiet, taught):
        assert row.advantage == credit_of(table)[row.turn].tolist() and any(row.advantage)
        assert not any(row.direct)


def test_an_engine_that_leaves_a_whole_answer_out_is_refused_by_both_numbers():
    rows, table, episodes = batch_of()
    teacher = behind_engine(qwen3(1))
    asked = teacher.engine.score
    teacher.engine.score = lambda requests: asked(requests)[:-1]
    with pytest.raises(TeacherMismatch, match="to score 6 sequences and answered 5"):
        learnt("opd", rows, table, episodes, teacher)


@pytest.mark.parametrize("column", ["topk_ids", "topk_logprobs"])
def test_an_engine_that_cuts_its_likeliest_tokens_has_no_score_for_that_row(column):
    packed, teacher = packed_rows(), behind_engine(qwen3(1), topk=3)
    whole_MV, asked = teacher.logprobs(packed), teacher.engine.score

    def cut(requests):
        first, *rest = asked(requests)
        return [replace(first, **{column: getattr(first, column)[:-1]}), *rest]

    teacher.engine.score = cut
    found_MV, first = teacher.logprobs(packed), len(packed.rows[0].trained)
    assert found_MV[:first].isnan().all() and torch.equal(found_MV[first:], whole_MV[first:])
