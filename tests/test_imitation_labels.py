"""Laws of labels: who acts follows from seeds, and a label touches no world."""

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
from imitated import essence, jobs_of, played, renderer_of, scripted
from toys import Fault, Faulty, Walks, crash

from turnwise.agents.episode_json import episode_from_json, episode_to_json
from turnwise.agents.executors import ByChance, Either, StudentFirst
from turnwise.agents.labels import FAILED, own_turns
from turnwise.trainers.dagger import lessons
from turnwise.trainers.imitation import by_chance, student_first
from turnwise.trainers.mixes import Progress, constant, falling, through
from turnwise.trainers.recipes import recipe

torch.set_num_threads(1)


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


def test_the_student_plays_up_to_k_turns_first_in_the_last_round_and_none_in_the_first():
    def rounds(steps, **options):
        roll_in = recipe("dagger", **options).imitation.roll_in
        return [roll_in(Progress(i, steps)) for i in range(steps)]

    late = [StudentFirst(most) for most in (0, 2, 5, 8, 10)]
    assert rounds(5, handoff=10, always_handoff=True) == late
    assert rounds(1, handoff=10, always_handoff=True) == [StudentFirst(10)]
    betas = [ByChance(beta(Progress(i, 5))) for i in range(5) for beta in [falling()]]
    assert rounds(5) == betas
    pairs = zip(betas, late, strict=True)
    assert rounds(5, handoff=10) == [Either((by_beta, first)) for by_beta, first in pairs]
    assert [through(1, 3)(Progress(i, 3)) for i in range(4)] == [1, 2, 3, 3]


WRONG = [
    ({"first": 1.5}, "first is a share from 0 to 1, got 1.5"),
    ({"fall": 1.5}, "fall is a share from 0 to 1, got 1.5"),
    ({"least": 1.5}, "least is a share from 0 to 1, got 1.5"),
    ({"always_handoff": True}, "always_handoff has the student play .* got 0: name at least 1"),
]


@pytest.mark.parametrize(("options", "why"), WRONG)
def test_dagger_refuses_by_its_name_what_no_round_could_be_played_by(options, why):
    with pytest.raises(ValueError, match=f"recipe 'dagger' with .*: {why}"):
        recipe("dagger", **options)


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
