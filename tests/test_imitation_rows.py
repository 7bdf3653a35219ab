"""Laws of what is learnt from labels: packing, order and drawing change no sum."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from imitated import jobs_of, models, played, renderer_of, scripted
from pupils import Silent
from toy_runs import fresh
from toys import Walks

from turnwise.agents.executors import ByChance
from turnwise.agents.labels import FAILED, Label, labelled
from turnwise.agents.renderer import Renderer, remember
from turnwise.envs.types import Episode, Segment
from turnwise.trainers.batch import LedgerMismatch, Row
from turnwise.trainers.dagger import Lessons, lessons
from turnwise.trainers.divergences import fkl, full, top_k
from turnwise.trainers.imitation import last, union, window
from turnwise.trainers.learner import Learner
from turnwise.trainers.model_teacher import frozen
from turnwise.trainers.surrogates import token_mean, turn_mean

torch.set_num_threads(1)


def with_recall(turns):
    _, tokenizer = fresh()
    remember(tokenizer, turns)
    return Renderer(tokenizer)


def labelled_episodes(beta=0.5, tasks=6, recall=None, length=5) -> list[Episode]:
    renderer = renderer_of() if recall is None else with_recall(recall)
    words = ("a step", "now to the east", "up")

    def act(seat):
        return words[(seat.turn + len(seat.messages[0]["content"])) % 3]

    policy = scripted(ByChance(beta), act=act, renderer=renderer)
    episodes = played(jobs_of(tasks=tasks), partial(Walks, length=length), policy)
    bad = {1: Label("bad", (3, 4), "no_call"), 2: Label("", (), f"{FAILED}: x")}
    return [*episodes[:-1], labelled(episodes[-1], bad)]


def one_row_per_label(episodes, weights=None) -> list[Row]:
    """The naive way: each label behind its own copy of its history."""
    rows, n = [], 0
    for traj, episode in enumerate(episodes):
        for segment in episode.segments:
            history = list(segment.inherited_ids)
            for turn in segment.turns:
                history += turn.context_ids
                k = len(turn.label_ids)
                if turn.has_label:
                    w = 1.0 if weights is None else weights[traj].get(n, 0.0)
                    rows.append(
                        Row(tuple(history), list(turn.label_ids), list(range(k)), [0.0] * k,
                            [n] * k, [1.0] * k, traj, direct=[w] * k)
                    )  # fmt: skip
                history += turn.action_ids
                n += 1
    return rows


def gradient(rows, micro_tokens=8192, seed=0, **how):
    model = models()[0]
    learner = Learner(model, learning_rate=1e-3, micro_tokens=micro_tokens, max_len=128)
    seen = {}

    def look(loss):
        seen.update({n: p.grad.clone() for n, p in learner.model.named_parameters()})
        return {}

    learner._apply = look
    out = learner.imitate(rows, **how)
    return seen, out


def close(a, b, atol=1e-5):
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=1e-4)


KINDS = [(0.5, None), (0.0, None), (1.0, None), (0.5, 0), (0.5, 1)]


@pytest.mark.parametrize(("beta", "recall"), KINDS)
@pytest.mark.parametrize("aggregate", [token_mean, turn_mean])
def test_packed_labels_have_the_gradient_of_one_row_per_label(beta, recall, aggregate):
    episodes = labelled_episodes(beta, recall=recall)
    if recall is not None:
        assert max(len(e.segments) for e in episodes) > 2
    pool = lessons(episodes, distinct=False)
    packed, out = gradient(pool.rows(), aggregate=aggregate)
    naive, expected = gradient(one_row_per_label(episodes), aggregate=aggregate)
    assert out["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert out["trained_tokens"] == expected["trained_tokens"]
    close(packed, naive)
    assert max(float(g.abs().max()) for g in naive.values()) > 1e-3


@pytest.mark.parametrize("direct", [full(fkl), top_k(fkl, k=5)])
def test_packed_labels_have_the_gradient_of_one_row_per_label_under_a_divergence(direct):
    episodes = labelled_episodes()
    how = {"direct": direct, "teacher": frozen(models()[1], 128)}
    packed, _ = gradient(lessons(episodes, distinct=False).rows(), **how)
    naive, _ = gradient(one_row_per_label(episodes), **how)
    close(packed, naive)
    halves = [replace(row, direct=[0.5] * len(row)) for row in one_row_per_label(episodes)]
    close({name: g / 2 for name, g in naive.items()}, gradient(halves, **how)[0])
    same, _ = gradient(lessons(episodes).rows(), direct=full(fkl), teacher=frozen(models()[0], 128))
    assert max(float(g.abs().max()) for g in same.values()) < 1e-5


@pytest.mark.parametrize("direct", [full(fkl), top_k(fkl, k=5)])
def test_labels_without_a_teachers_score_leave_a_finite_loss_and_no_trace(direct):
    pool, teacher = lessons(labelled_episodes()), frozen(models()[1], 128)
    how = {"direct": direct, "totals": pool.denominators(range(len(pool)))}
    none, out = gradient(pool.rows(), teacher=Silent(teacher, lambda row: True), **how)
    assert math.isfinite(out["loss"]) and max(float(g.abs().max()) for g in none.values()) < 1e-7
    some, out = gradient(pool.rows(), teacher=Silent(teacher, lambda row: row.traj % 2), **how)
    scored, _ = gradient([r for r in pool.rows() if not r.traj % 2], teacher=teacher, **how)
    assert math.isfinite(out["loss"]) and max(float(g.abs().max()) for g in some.values()) > 1e-4
    close(some, scored, atol=1e-6)


def test_a_turn_of_the_expert_that_is_labelled_otherwise_teaches_its_label():
    """As where another teacher labels what was recorded."""
    (episode, *_) = labelled_episodes(1.0, tasks=2)
    other = labelled(episode, {0: Label("else", (5, 6, 7))})
    mine, _ = gradient(lessons([other], distinct=False).rows())
    close(mine, gradient(one_row_per_label([other]))[0])


def test_labels_of_one_episode_share_its_history():
    (episode,) = labelled_episodes(0.0, tasks=2, length=20)[:1]
    rows = lessons([episode]).rows()
    whole = len(episode.segments[0].ids)
    assert len({row.prompt for row in rows}) == 1 and len(rows) == 20
    held = len(rows[0].prompt) + sum(map(len, rows))
    assert held < 2 * whole < sum(len(row.ids) for row in rows) / 3


def test_neither_order_nor_micro_batches_change_the_gradient():
    episodes = labelled_episodes()
    pool = lessons(episodes, distinct=False)
    whole, _ = gradient(pool.rows())
    split, _ = gradient(pool.rows(), micro_tokens=60)
    turned, _ = gradient(lessons(episodes[::-1], distinct=False).rows())
    mixed, _ = gradient(pool.rows()[::-1])
    for other in (split, turned, mixed):
        close(whole, other, atol=1e-6)


def test_invalid_and_missing_labels_leave_no_trace():
    episodes = labelled_episodes()
    spoilt = episodes[-1]
    assert [t.has_label for t in spoilt.turns].count(False) == 2
    pool = lessons(episodes)
    assert set(pool.weights[-1]) == {0, 3, 4}
    for ids in ((), (5, 6, 7)):
        other = labelled(spoilt, {2: Label("else", ids, "cut")})
        close(gradient(pool.rows())[0], gradient(lessons([*episodes[:-1], other]).rows())[0], 0)
    nothing = [labelled(e, {i: Label("", (), "cut") for i in range(5)}) for e in episodes]
    assert gradient(lessons(nothing).rows())[1] == {"trained_tokens": 0.0}


def test_a_history_that_was_tampered_with_is_refused():
    (episode, *_) = labelled_episodes()
    turn = replace(episode.turns[0], context_ids=(9, *episode.turns[0].context_ids[1:]))
    segment = replace(episode.segments[0], turns=(turn, *episode.turns[1:]))
    with pytest.raises(LedgerMismatch, match="differs from the ledger"):
        lessons([replace(episode, segments=(segment,))]).rows()


def test_labels_that_are_drawn_stand_for_all_of_them_in_expectation():
    """Enumerated: the mean gradient over every choice of 2 of 5 labels is that of all 5."""
    (episode,) = labelled_episodes(0.4, tasks=2)[:1]
    whole = lessons([episode])
    for aggregate in (token_mean, turn_mean):
        expected, _ = gradient(whole.rows(), aggregate=aggregate)
        total = {name: torch.zeros_like(g) for name, g in expected.items()}
        choices = list(itertools.combinations(range(5), 2))
        for some in choices:
            drawn = Lessons([episode], [dict.fromkeys(some, 5 / 2)], whole.totals)
            how = {"aggregate": aggregate, "totals": drawn.denominators([0])}
            for name, g in gradient(drawn.rows(), **how)[0].items():
                total[name] += g / len(choices)
        close(total, expected)


def test_the_labels_of_a_cap_are_drawn_evenly_and_weighed_by_what_they_stand_for():
    (episode,) = labelled_episodes(0.4, tasks=2)[:1]
    drawn = [lessons([episode], cap=2, seed=seed) for seed in range(400)]
    assert {w for pool in drawn for w in pool.weights[0].values()} == {2.5}
    assert all(pool.denominators([0]) == lessons([episode]).denominators([0]) for pool in drawn)
    counts = Counter(tuple(pool.weights[0]) for pool in drawn)
    assert len(counts) == 10 and all(18 < n < 66 for n in counts.values())  # 40 +- 4 sigma
    assert lessons([episode], cap=5).weights == lessons([episode]).weights


def test_equal_labels_of_equal_histories_count_once():
    (episode, other, *_) = labelled_episodes()
    again = replace(episode, id="again")
    one, twice = lessons([episode, other]), lessons([episode, again, other])
    assert twice.labels == one.labels and twice.weights[1] == {}
    close(gradient(one.rows())[0], gradient(twice.rows())[0], 1e-7)
    first = replace(episode.turns[0], label_ids=(7, 1), label="another")
    changed = Segment(turns=(first, *episode.turns[1:]))
    assert set(lessons([episode, replace(again, segments=(changed,))]).weights[1]) == {0}
    assert lessons([episode, again], distinct=False).labels == 2 * lessons([episode]).labels


def test_what_is_kept_is_all_rounds_or_the_newest():
    rounds = [[n] for n in range(5)]
    assert union(rounds) == rounds and last(rounds) == [[4]]
    assert window(2)(rounds) == [[3], [4]] and window(9)(rounds) == rounds
    with pytest.raises(ValueError, match="at least 1 round, got 0"):
        window(0)
