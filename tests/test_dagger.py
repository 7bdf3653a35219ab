"""Laws of imitation: who acts follows from seeds, labels touch no world, packing changes no sum."""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from fakes import Guess
from miniatures import naive_logprobs
from safetensors.torch import load_file
from test_loop import TINY, config_of, fresh, history, same_weights
from test_teaching import Silent
from toys import Fault, Faulty, Walks, crash

from turnwise.agents.engines.base import EngineError, GenRequest
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.episode_json import episode_from_json, episode_to_json
from turnwise.agents.executors import ByChance, Either, StudentFirst
from turnwise.agents.labels import FAILED, Label, Labelling, labelled, own_turns, play_labelled
from turnwise.agents.policy import LLMPolicy, ScriptedPolicy, expert
from turnwise.agents.record import read_records
from turnwise.agents.renderer import Renderer, remember
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.agents.teachers import LLMTeacher, TextTeacher
from turnwise.envs.seeds import derive
from turnwise.envs.types import Episode, Segment
from turnwise.trainers.batch import LedgerMismatch, Row, rows_of
from turnwise.trainers.curriculum import f2b, steadily
from turnwise.trainers.dagger import Lessons, lessons
from turnwise.trainers.dagger_loop import TeacherFailed
from turnwise.trainers.divergences import fkl, full, top_k
from turnwise.trainers.imitation import (
    Imitation,
    by_chance,
    last,
    student_first,
    union,
    window,
)
from turnwise.trainers.learner import Learner
from turnwise.trainers.loop import train
from turnwise.trainers.mixes import Progress, constant, falling
from turnwise.trainers.model import load_model, tiny_from_env
from turnwise.trainers.recipe import Recipe, mixed_rewards
from turnwise.trainers.recipes import recipe
from turnwise.trainers.recipes.dagger import dagger
from turnwise.trainers.surrogates import token_mean, turn_mean
from turnwise.trainers.teachers import frozen, synced
from turnwise.trainers.tutor import NoTeacher

torch.set_num_threads(1)


def wander(seat) -> str:
    """A student without a model."""
    return "xyz"[seat.turn % 3]


def renderer_of(env=Walks) -> Renderer:
    return Renderer(fresh(env)[1])


def jobs_of(env=Walks, tasks=6, replicas=1, seed=0):
    return jobs_for(env().tasks("train")[:tasks], replicas, run_seed=seed, split="train")


def played(jobs, make_env, policy, **settings) -> list[Episode]:
    order = {job.id: i for i, job in enumerate(jobs)}
    found = list(play_labelled(jobs, make_env, policy, Settings(**settings)))
    assert Counter(e.id for e in found) == Counter(list(order))
    return sorted(found, key=lambda e: order[e.id])


def scripted(roll_in, act=expert, student=wander, renderer=None, **more) -> Labelling:
    renderer = renderer or renderer_of()
    doer = ScriptedPolicy(student, renderer=renderer, executor="student")
    return Labelling(doer, TextTeacher(act, renderer=renderer, **more), roll_in)


def essence(episode) -> list[tuple]:
    """What must not depend on timing."""
    return [
        (t.context_ids, t.action_ids, t.observation, t.executor, t.label, t.label_ids,
         t.label_error, t.state_before, t.reward)
        for t in episode.turns
    ]  # fmt: skip


# ------------------------------------------------------------ who acts

RULES = [
    ByChance(0.6),
    StudentFirst(4),
    Either((ByChance(0.3), StudentFirst(9))),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_teacher_takes_the_share_of_turns_that_was_intended(rule):
    policy = scripted(rule)
    turns = [
        (i, t.executor == "expert")
        for e in played(jobs_of(tasks=120), partial(Walks, length=6), policy)
        for i, t in enumerate(e.turns)
    ]
    assert len(turns) == 720
    for n in range(6):
        took = [by_teacher for i, by_teacher in turns if i == n]
        odds = rule.odds(n)
        error = math.sqrt(max(odds * (1 - odds), 1e-9) / len(took))
        assert abs(np.mean(took) - odds) < 4 * error + 1e-9, (n, np.mean(took), odds)


def test_by_chance_who_takes_a_turn_says_nothing_of_the_next():
    """Shares by turn would be right, too, if a coin were tossed once for each episode."""
    episodes = played(jobs_of(tasks=100), partial(Walks, length=5), scripted(ByChance(0.5)))
    who = [[turn.executor for turn in episode.turns] for episode in episodes]
    pairs = Counter(pair for turns in who for pair in itertools.pairwise(turns))
    assert sum(pairs.values()) == 400 and len(pairs) == 4
    assert all(abs(n - 100) < 35 for n in pairs.values()), pairs  # 4 sigma


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("fast", [True, False])
def test_who_acts_and_what_is_labelled_is_the_same_under_any_concurrency(rule, fast):
    found = []
    for concurrency in (1, 3, 64):
        env = partial(Faulty, fast=fast, length=4)
        some = played(jobs_of(tasks=12), env, scripted(rule), concurrency=concurrency)
        found.append([essence(e) for e in some])
    assert found[0] == found[1] == found[2]
    other = played(jobs_of(tasks=12, seed=1), env, scripted(rule))
    bits = [[t[3] for t in turns] for turns in found[0]]
    assert bits != [[t.executor for t in e.turns] for e in other]


def test_a_second_attempt_has_the_executors_and_labels_of_the_first():
    calm = played(jobs_of(), partial(Faulty, length=4), scripted(ByChance(0.5)))
    fault = {2: Fault(3, crash, left=1)}
    again = played(jobs_of(), lambda: Faulty(fault, length=4), scripted(ByChance(0.5)))
    assert [e.attempts for e in again] == [1, 1, 2, 1, 1, 1]
    assert list(map(essence, again)) == list(map(essence, calm))


def test_the_student_goes_first_and_never_comes_back():
    for episode in played(jobs_of(tasks=40), partial(Walks, length=6), scripted(StudentFirst(6))):
        who = [t.executor for t in episode.turns]
        assert who == sorted(who, reverse=True)  # "student" before "expert"


@pytest.mark.parametrize(
    "bad", [lambda: ByChance(1.2), lambda: StudentFirst(-1), lambda: Either(())]
)
def test_an_impossible_rule_is_refused(bad):
    with pytest.raises(ValueError, match=r"probability|0 or more|at least one"):
        bad()


def test_beta_falls_by_steps_to_its_floor():
    betas = [falling(1.0, 0.2, 0.6)(Progress(i, 5)) for i in range(5)]
    assert betas == pytest.approx([1.0, 0.8, 0.6, 0.6, 0.6])
    assert by_chance(falling())(Progress(1, 5)) == ByChance(0.8)
    assert student_first(constant(3.0))(Progress(0, 5)) == StudentFirst(3)


# ------------------------------------------------------------ labels


def guess_policy(roll_in, **more):
    return scripted(roll_in, renderer=renderer_of(Guess), **more)


def test_an_executed_action_is_its_own_label_and_every_turn_of_the_student_has_one():
    renderer = renderer_of(Guess)

    def look(seat):
        return seat.env.call_text("look", number=seat.turn)

    policy = scripted(ByChance(0.5), student=look, renderer=renderer)
    episodes = played(jobs_of(Guess, tasks=20), Guess, policy)
    kinds = Counter()
    for episode in episodes:
        env = Guess()
        env.reset(seed=episode.env_seed, options={"task": episode.task})
        for turn in episode.turns:
            assert turn.has_label and turn.label == env.expert()
            assert turn.label_ids == tuple(renderer.action_ids(turn.label))
            assert turn.executor == "student" or turn.label_ids == turn.action_ids
            kinds[turn.executor] += 1
            env.step(turn.action)
    assert min(kinds.values()) > 20 and set(kinds) == {"student", "expert"}


class Counting(Walks):
    """Counts its steps."""

    steps = 0

    def respond(self, action):
        Counting.steps += 1
        return super().respond(action)


def test_a_label_never_steps_the_environment_nor_changes_what_is_played():
    Counting.steps = 0
    policy = scripted(ByChance(0.4))
    policy.wanted = own_turns
    plain = played(jobs_of(tasks=10), partial(Counting, length=5), policy)
    assert Counting.steps == 50
    with_labels = played(jobs_of(tasks=10), partial(Counting, length=5), scripted(ByChance(0.4)))
    assert Counting.steps == 100
    assert [[t[:4] for t in essence(e)] for e in plain] == [
        [t[:4] for t in essence(e)] for e in with_labels
    ]
    assert all(t.has_label for e in with_labels for t in e.turns)
    assert all(t.has_label == (t.executor == "expert") for e in plain for t in e.turns)


def test_a_slow_teacher_labels_while_the_environment_goes_on():
    done, stepped = threading.Event(), []

    class Walking(Walks):
        def respond(self, action):
            answer = super().respond(action)
            stepped.append(self.turn)
            if len(stepped) == 12:
                done.set()  # the worlds have ended, and nothing has been answered yet
            return answer

    def slow(seat):
        assert done.wait(20) and seat.env is None
        return f"answer {len(seat.messages)}"

    policy = scripted(ByChance(0.0), act=slow, workers=12)
    episodes = played(jobs_of(tasks=3), partial(Walking, length=4), policy)
    assert [[t.label for t in e.turns] for e in episodes] == [
        [f"answer {n}" for n in (1, 3, 5, 7)]
    ] * 3


def test_labels_of_threads_are_those_of_a_teacher_that_answers_at_once():
    def act(seat):
        return f"step {len(seat.messages)}"

    found = [
        played(jobs_of(tasks=8), partial(Walks, length=5), scripted(ByChance(0.5), act, workers=n))
        for n in (0, 4)
    ]
    assert [essence(e) for e in found[0]] == [essence(e) for e in found[1]]


def fails_now_and_then(seat) -> str:
    if seat.turn % 2:
        raise LookupError(f"no idea at turn {seat.turn}")
    return "a step"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_teacher_that_raises_loses_its_label_and_its_turn_and_says_why(workers):
    policy = scripted(ByChance(0.5), act=fails_now_and_then, workers=workers)
    episodes = played(jobs_of(tasks=10), partial(Walks, length=4), policy)
    calm = played(jobs_of(tasks=10), partial(Walks, length=4), scripted(ByChance(0.5)))
    assert all(e.outcome == "ok" for e in episodes)
    for episode, other in zip(episodes, calm, strict=True):
        for i, (turn, meant) in enumerate(zip(episode.turns, other.turns, strict=True)):
            assert turn.executor == ("student" if i % 2 else meant.executor)
            assert turn.has_label == (not i % 2)
            if i % 2:
                assert turn.label_error == f"{FAILED}: LookupError: no idea at turn {i}"


def test_a_teacher_that_answers_no_text_or_too_late_has_failed():
    hang = threading.Event()
    policy = scripted(ByChance(0.0), act=lambda seat: 7)
    (turn, *_) = played(jobs_of(tasks=1), Walks, policy)[0].turns
    assert turn.label_error == f"{FAILED}: an action is a str, got int"
    policy = scripted(ByChance(0.5), act=lambda seat: str(hang.wait(20)), workers=1, timeout_s=0.05)
    try:
        episodes = played(jobs_of(tasks=4), Walks, policy)
    finally:
        hang.set()
    assert {t.label_error for e in episodes for t in e.turns} == {f"{FAILED}: no answer in 0.05 s"}
    assert {t.executor for e in episodes for t in e.turns} == {"student"}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("let me think", "no_call"),
        ('<tool_call>{"name": "look"', "bad_json"),
        (Guess().call_text("look", number=3).replace("look", "peek"), "unknown_tool"),
        (Guess().call_text("look", number=3).replace("3", '"x"'), "bad_args"),
    ],
)
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_label_that_does_not_parse_is_kept_and_not_learnt_from(said, why, beta):
    policy = guess_policy(ByChance(beta), act=lambda seat: said)
    episodes = played(jobs_of(Guess, tasks=2), Guess, policy, max_turns=3)
    turns = [turn for e in episodes for turn in e.turns]
    assert turns and {(t.label, t.label_error, t.has_label) for t in turns} == {(said, why, False)}
    assert lessons(episodes).labels == 0 and lessons(episodes).rows() == []


def test_a_label_that_does_not_fit_is_kept_and_not_learnt_from():
    policy = scripted(ByChance(0.0), act=lambda seat: "a very long step " * 9)
    episodes = played(jobs_of(tasks=2), Walks, policy, max_tokens=40)
    assert {t.label_error for e in episodes for t in e.turns} == {"full"}


def test_labels_come_back_from_a_record_and_are_written_only_where_they_are():
    episode = played(jobs_of(tasks=1), Walks, scripted(ByChance(0.5)))[0]
    data = json.loads(json.dumps(episode_to_json(episode)))
    assert episode_from_json(data).segments == episode.segments
    bare = replace(episode, segments=tuple(
        replace(s, turns=tuple(replace(t, label="", label_ids=()) for t in s.turns))
        for s in episode.segments
    ))  # fmt: skip
    plain = episode_to_json(bare)
    assert not {"label", "label_ids", "label_error"} & plain["turns"][0].keys()
    old = episode_from_json(plain)
    assert old.turns[0].label_ids == () and not old.turns[0].has_label


# ------------------------------------------------------------ a language model as the teacher


def models(env=Walks, max_len=128):
    student, tokenizer = tiny_from_env(env, tasks=10, max_len=max_len, **TINY)
    teacher, _ = tiny_from_env(env, tasks=10, max_len=max_len, seed=7, **TINY)
    return student, teacher, Renderer(tokenizer)


def neural(roll_in, engine=None, teacher_tokens=3, scripted_student=False) -> Labelling:
    student, teacher, renderer = models()
    student = EmbeddedEngine(student, slots=16, max_len=96)
    engine = engine or EmbeddedEngine(teacher, slots=16, max_len=96)
    doer = LLMPolicy(student, renderer, max_new_tokens=3)
    if scripted_student:  # which writes what it does at once, before the label is drawn
        doer = ScriptedPolicy(wander, renderer=renderer, executor="student")
    other = LLMPolicy(engine, renderer, max_new_tokens=teacher_tokens, executor="teacher")
    return Labelling(doer, LLMTeacher(other), roll_in)


@pytest.mark.parametrize("scripted_student", [False, True])
def test_a_neural_teacher_labels_what_it_would_have_sampled_before_the_student_acts(
    scripted_student,
):
    policy = neural(ByChance(0.4), scripted_student=scripted_student)
    episodes = played(jobs_of(tasks=8), partial(Walks, length=4), policy, max_tokens=96)
    model = policy.teacher.policy.engine.model
    relabelled, cut = 0, 0
    for episode in episodes:
        ids = []
        for i, turn in enumerate(episode.turns):
            ids += turn.context_ids
            if turn.executor == "student":
                naive = EmbeddedEngine(model, slots=1, max_len=96)
                seed = derive(episode.policy_seed, "label", i)
                room = policy.teacher.policy.at_most(96 - len(ids))
                (out,) = naive.generate([GenRequest("x", ids, room, seed)])
                assert turn.label_ids == out.token_ids
                assert turn.label_error == ("cut" if out.finish == "length" else "")
                relabelled += 1
            else:
                assert turn.executor == "teacher" and turn.label_ids == turn.action_ids
                assert turn.label_error == ("cut" if turn.finish == "length" else "")
            cut += turn.label_error == "cut"
            ids += turn.action_ids
    assert relabelled > 8 and cut > 0


@pytest.mark.parametrize("teacher_tokens", [3, 9])  # as slow as the student, or slower
def test_the_teacher_reads_every_token_of_an_episode_at_most_once(teacher_tokens):
    policy = neural(ByChance(0.4), teacher_tokens=teacher_tokens)
    episodes = played(jobs_of(tasks=8), partial(Walks, length=4), policy, max_tokens=96)
    stats = policy.teacher.policy.engine.stats
    assert stats.evictions == 0
    assert stats.prefilled_tokens <= sum(len(s.ids) for e in episodes for s in e.segments)
    assert policy.teacher.policy.engine._sessions == {}  # and every cache is freed


def test_labels_of_a_model_are_the_same_under_any_concurrency():
    found = [
        [
            essence(e)
            for e in played(
                jobs_of(tasks=8),
                partial(Walks, length=4),
                neural(ByChance(0.5)),
                max_tokens=96,
                concurrency=n,
            )
        ]
        for n in (1, 16)
    ]
    assert found[0] == found[1]


def test_turns_of_a_neural_teacher_are_imitated_and_never_trained_by_policy_gradients():
    episodes = played(jobs_of(tasks=4), partial(Walks, length=4), neural(ByChance(0.5)))
    own = sum(len(t.action_ids) for e in episodes for t in e.turns if t.executor == "student")
    assert sum(len(row.trained) for row in rows_of(episodes)) == own > 0


class Breaking:
    """An engine that breaks down at one poll."""

    def __init__(self, engine, at):
        self.engine, self.left = engine, at

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def poll(self):
        self.left -= 1
        if self.left == 0:
            for session in list(self.engine._sessions):
                self.engine.end_session(session)
            raise EngineError("the engine is gone")
        return self.engine.poll()


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_an_engine_that_breaks_loses_labels_and_retries_episodes_that_wait_for_an_action(beta):
    _, teacher, _ = models()
    engine = Breaking(EmbeddedEngine(teacher, slots=16, max_len=96), 4)
    policy = neural(ByChance(beta), engine=engine)
    episodes = played(jobs_of(tasks=6), partial(Walks, length=4), policy, max_tokens=96)
    assert all(e.outcome == "ok" for e in episodes)
    lost = [t.label_error for e in episodes for t in e.turns if t.label_error.startswith(FAILED)]
    if beta == 0:
        assert set(lost) == {f"{FAILED}: EngineError: the engine is gone"}
        assert {e.attempts for e in episodes} == {1}
    else:
        assert max(e.attempts for e in episodes) == 2
    good = [t for e in episodes for t in e.turns if t.label_ids]
    assert len(good) + len(lost) == sum(len(e.turns) for e in episodes)


# ------------------------------------------------------------ rows


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


# ------------------------------------------------------------ recipes and whole runs


def go(out, name="dagger", model=None, env=Walks, method=None, **more):
    more = {"recipe": name, "updates_per_step": 8, **more}
    return list(train(config_of(out, **more), model=model or fresh(), make_env=env, recipe=method))


def student_success(out) -> float:
    model, tokenizer = load_model(str(out / "model"))
    engine = EmbeddedEngine(model, slots=32, max_len=96)
    policy = LLMPolicy(engine, Renderer(tokenizer), max_new_tokens=3)
    jobs = jobs_for(Walks().tasks("test")[:60], run_seed=0, split="test")
    return float(np.mean([e.success for e in play(jobs, Walks, policy)]))


class Brief(Walks):
    """Walks whose expert says little enough for three tokens."""

    def expert(self):
        return "a"


@pytest.mark.parametrize("name", ["dagger", "sft"])
def test_a_student_learns_to_walk_from_an_expert(tmp_path, name):
    rows = go(tmp_path / "run", name, env=Brief, steps=5, tasks_per_step=8, checkpoint_every=0)
    assert student_success(tmp_path / "run") > 0.9
    odds = [row["teacher_odds"] for row in rows]
    assert odds == pytest.approx([1, 0.8, 0.6, 0.6, 0.6] if name == "dagger" else [1] * 5)
    for row in rows:
        n = 2 * 8 * 4
        error = math.sqrt(max(row["teacher_odds"] * (1 - row["teacher_odds"]), 0) / n)
        assert abs(row["teacher_share"] - row["teacher_odds"]) <= 4 * error
        assert row["label_errors"] == 0 and row["labels"] == 1
    assert rows[-1]["nll"] < rows[0]["nll"] / 3


def test_a_run_that_is_resumed_goes_on_with_the_rounds_that_it_kept(tmp_path):
    more = {"env": Brief, "checkpoint_every": 2, "recipe_options": '{"cap": 1, "batch": 4}'}
    go(tmp_path / "whole", steps=4, **more)
    go(tmp_path / "parts", steps=2, **more)
    rows = go(tmp_path / "parts", steps=4, resume=True, **more)
    assert [row["step"] for row in rows] == [3, 4]
    assert same_weights(tmp_path / "parts", tmp_path / "whole")
    assert history(tmp_path / "parts") == history(tmp_path / "whole")


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    """A folder with a model that walks."""
    place = tmp_path_factory.mktemp("master")
    go(place / "run", "sft", env=Brief, steps=4, tasks_per_step=8, checkpoint_every=0)
    return place / "run" / "model"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dagger", "{}"),
        ("dagger", '{"white_box": true, "rounds": 2}'),
        ("dagger", '{"handoff": 2, "always_handoff": true, "by_turn": true, "cap": 1}'),
        ("guided_opd", "{}"),
        ("sft", "{}"),
    ],
)
def test_a_student_learns_from_a_model(tmp_path, master, name, options):
    more = {"steps": 6, "tasks_per_step": 8, "checkpoint_every": 0, "recipe_options": options}
    rows = go(tmp_path / "run", name, teacher=str(master), **more)
    assert student_success(tmp_path / "run") > 0.8
    for row in rows:
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float))
        assert 0 <= row["teacher_share"] <= 1
    found = [r.episode for r in read_records(tmp_path / "run" / "episodes.jsonl")]
    assert {t.executor for e in found for t in e.turns} <= {"student", "teacher"}
    if name == "guided_opd":
        assert rows[0]["teacher_share"] == 1 and rows[-1]["teacher_share"] < 0.4
        assert rows[-1]["teacher_drift"] > 0 and all("nll" in row for row in rows[:-1])


@pytest.mark.parametrize("options", ["{}", '{"white_box": true, "first": 1.0, "least": 1.0}'])
def test_a_teacher_whose_answers_do_not_end_is_not_learnt_from(tmp_path, master, options):
    more = {"teacher": str(master), "steps": 2, "recipe_options": options, "max_new_tokens": 1}
    with pytest.raises(TeacherFailed, match=r"was cut at .* raise max_new_tokens \(1\)"):
        go(tmp_path / "run", "dagger", **more)
    assert go(tmp_path / "more", "dagger", **{**more, "max_failed": 1.0})[0]["lessons"] == 0


def test_labels_of_episodes_that_are_all_cut_short_are_learnt_from(tmp_path, master):
    """A label is right whatever became of its episode; where the answers are cut, see above."""
    options = '{"white_box": true, "first": 0.5, "least": 0.5}'
    more = {"env": partial(Brief, length=5), "max_turns": 2, "recipe_options": options}
    for row in go(tmp_path / "run", teacher=str(master), steps=2, **more):
        assert row["truncated"] == 1 and row["success"] == 0 and row["lessons"] > 0
        assert math.isfinite(row["loss"]) and row["grad_norm"] > 0


def test_guided_opd_divides_by_the_tokens_of_both_kinds_of_turns():
    """One step on mixed episodes has the gradient of both sums over the count of all tokens."""
    student, _, _ = models()
    episodes = played(jobs_of(tasks=6), partial(Walks, length=4), neural(ByChance(0.5)))
    episodes = [
        replace(e, segments=tuple(
            replace(s, turns=tuple(replace(t, label_error="") for t in s.turns)) for s in e.segments
        )) for e in episodes
    ]  # fmt: skip
    pool = lessons(
        [labelled(e, {i: Label("", ()) for i, t in enumerate(e.turns) if t.executor == "student"})
         for e in episodes], distinct=False,
    )  # fmt: skip
    rows, shown = rows_of(episodes), pool.rows()
    n_turns = sum(len(e.turns) for e in episodes)
    advantages = np.linspace(-1, 1, n_turns)
    learner = Learner(student, learning_rate=1e-3, max_len=128)
    learner._apply = lambda loss: {}
    method = replace(recipe("guided_opd"), distillation=None, imitation=None)
    out = learner.improve(rows, advantages, method, None, shown)
    own = sum(len(row.trained) for row in rows)
    theirs = sum(len(row.trained) for row in shown)
    gain = sum(advantages[t] for row in rows for t in row.turn)
    nll = -sum(
        float(naive_logprobs(student, row.ids)[i + row.start - 1])
        for row in shown
        for i in row.trained
    )
    assert out["trained_tokens"] == own + theirs
    assert out["loss"] == pytest.approx((nll - gain) / (own + theirs), rel=1e-4)


def test_a_label_that_is_drawn_in_a_run_stands_for_those_that_are_not(tmp_path):
    found = []
    for cap in (None, 1):
        method = dagger(cap=cap, first=0.0, least=0.0)
        more = {"env": partial(Walks, length=4), "method": method, "learning_rate": 1e-6}
        (row,) = go(tmp_path / str(cap), steps=1, updates_per_step=1, **more)
        found.append(row)
    whole, drawn = found
    assert drawn["lessons"] < whole["lessons"] / 2
    assert drawn["trained_tokens"] == whole["trained_tokens"]
    assert drawn["loss"] == pytest.approx(whole["loss"], rel=0.2)


def test_a_teacher_that_fails_too_often_ends_the_run_with_its_reasons(tmp_path):
    class Moody(Brief):
        def expert(self):
            if self.turn:
                raise LookupError("lost")
            return "a"

    rows = go(tmp_path / "half", env=Moody, steps=2, max_failed=0.6)
    assert rows[1]["label_error_teacher_failed"] == pytest.approx(0.5, abs=0.1)
    assert rows[1]["teacher_share"] <= 0.55 < rows[1]["teacher_odds"]
    with pytest.raises(TeacherFailed, match=r"12 of 24 labels.*max_failed 0.4.*LookupError: lost"):
        go(tmp_path / "run", env=Moody, steps=2, max_failed=0.4)
    assert not TeacherFailed.retryable


def test_a_recipe_that_needs_a_teacher_says_so_before_it_starts(tmp_path):
    class Alone(Walks):
        expert = None

    with pytest.raises(NoTeacher, match="'dagger' needs a teacher, and Alone has no expert"):
        go(tmp_path / "run", env=Alone)
    with pytest.raises(NoTeacher, match="distributions, and a server gives none: name a model"):
        go(tmp_path / "run", recipe_options='{"white_box": true}')
    with pytest.raises(NoTeacher, match="'guided_opd' learns from a teacher: name one"):
        go(tmp_path / "run", "guided_opd")
    assert not (tmp_path / "run").exists()


def test_a_black_box_can_be_the_teacher(tmp_path):
    def told(renderer):
        return TextTeacher(lambda seat: "e", renderer=renderer, executor="teacher", workers=2)

    method = replace(dagger(), imitation=replace(dagger().imitation, teacher=told))
    go(tmp_path / "run", method=method, steps=3, tasks_per_step=8, checkpoint_every=0)
    assert student_success(tmp_path / "run") > 0.8


@pytest.mark.parametrize(
    ("change", "config", "why"),
    [
        ({"curriculum": f2b(steadily(1))}, {}, "do not use curriculum:"),
        ({"keep_group": mixed_rewards}, {}, "do not use keep_group:"),
        ({}, {"prompt_replay": 0.5}, "do not use prompt_replay:"),
        (
            {},
            {"prompt_replay": 0.5, "correct_mismatch": True},
            "prompt_replay and correct_mismatch:",
        ),
    ],
)
def test_what_rounds_of_imitation_do_not_use_is_refused_and_not_left_out(
    tmp_path, change, config, why
):
    with pytest.raises(ValueError, match=f"'dagger' imitates, and .*{why}"):
        go(tmp_path / "run", method=replace(dagger(), **change), **config)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_follows_the_student_follows_it_in_rounds_of_imitation_too(tmp_path):
    """A copy of the student is its teacher: before each round it acts and scores as the student."""
    how = replace(recipe("guided_opd").distillation, source=synced)
    chance = by_chance(constant(0.5))
    method = replace(
        recipe("guided_opd"),
        distillation=how,
        imitation=replace(recipe("guided_opd").imitation, roll_in=chance),
    )
    rows = go(tmp_path / "run", method=method, steps=3, updates_per_step=2, max_failed=1.0)
    assert [row["policy_version"] for row in rows] == [2, 4, 6]
    assert all(row["teacher_drift"] < 1e-4 for row in rows)
    student, _ = load_model(str(tmp_path / "run" / "model"))
    saved = torch.load(tmp_path / "run/checkpoints/step-000003/teacher.pt", weights_only=True)
    for name, p in student.named_parameters():
        torch.testing.assert_close(saved[name], p.detach())
    said = [t for e in episodes_in(tmp_path / "run") for t in _turns_with_history(e)]
    last = [(ids, t) for ids, t in said if t.executor == "teacher" and t.policy_version == 4]
    before = checkpointed(tmp_path / "run", 2)
    for ids, turn in last:
        naive = naive_logprobs(before, ids)[-len(turn.action_ids) :]
        np.testing.assert_allclose(turn.logprobs, naive, atol=1e-4)
    assert last


def episodes_in(out):
    return [row.episode for row in read_records(out / "episodes.jsonl")]


def _turns_with_history(episode):
    ids = []
    for turn in episode.turns:
        ids += [*turn.context_ids, *turn.action_ids]
        yield list(ids), turn


def checkpointed(out, step):
    """The student as it was saved after a step."""
    model, _ = fresh()
    (folder,) = out.glob(f"checkpoints/*{step}")
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model


def test_pieces_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="needs a surrogate, or an imitation"):
        Recipe(name="x", source="", status="")
    with pytest.raises(ValueError, match="keeps the last round"):
        replace(recipe("guided_opd"), imitation=Imitation())
    with pytest.raises(ValueError, match="cap must be at least 1, got 0"):
        dagger(cap=0)


def test_a_round_without_a_label_takes_no_step(tmp_path):
    class Verbose(Walks):
        def expert(self):
            return "xyz " * 200

    options = '{"first": 0.0, "least": 0.0}'
    rows = go(tmp_path / "run", env=Verbose, steps=2, recipe_options=options)
    for row in rows:
        assert (row["lessons"], row["policy_version"]) == (0, 0)
        assert row["label_errors"] == row["label_error_full"] == 1
