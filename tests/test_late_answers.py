"""Laws of a text teacher's clock: it runs while a thread answers, not while a question waits."""

from __future__ import annotations

import threading
import time

import torch
from imitated import jobs_of, played, renderer_of, scripted
from toys import Walks

from turnwise.agents.executors import ByChance
from turnwise.agents.labels import FAILED
from turnwise.agents.ledger import Ledger
from turnwise.agents.policy import Seat
from turnwise.agents.teachers import TextTeacher

torch.set_num_threads(1)


def test_a_question_that_waits_for_a_thread_is_not_late(monkeypatch):
    """One thread, a clock that each answer moves by a second, and two seconds for an answer."""
    now = [0.0]
    monkeypatch.setattr("turnwise.agents.teachers.monotonic", lambda: now[0])

    def slow(seat):
        time.sleep(0.01)  # so that those who wait are looked at
        now[0] += 1.0
        return "e"

    policy = scripted(ByChance(0.0), act=slow, workers=1, timeout_s=2.0)
    episodes = played(jobs_of(tasks=8), Walks, policy)
    assert now[0] == 16 and all(t.has_label for e in episodes for t in e.turns)


def test_a_question_that_hangs_alone_is_late_and_those_beside_it_are_not(monkeypatch):
    """Two threads; the first question hangs, and each answer of the other moves the clock."""
    now, hang, stuck = [0.0], threading.Event(), threading.Lock()
    monkeypatch.setattr("turnwise.agents.teachers.monotonic", lambda: now[0])

    def act(seat):
        if stuck.acquire(blocking=False):
            return str(hang.wait(20))
        time.sleep(0.01)
        now[0] += 1.0
        return "e"

    policy = scripted(ByChance(0.0), act=act, workers=2, timeout_s=3.0)
    try:
        episodes = played(jobs_of(tasks=8), Walks, policy)
    finally:
        hang.set()
    errors = [turn.label_error for e in episodes for turn in e.turns]
    assert errors.count(f"{FAILED}: no answer in 3 s") == 1 and errors.count("") == 15


def test_a_question_that_was_just_asked_is_not_late_with_one_that_hangs(monkeypatch):
    now, hang, began = [100.0], threading.Event(), threading.Event()
    monkeypatch.setattr("turnwise.agents.teachers.monotonic", lambda: now[0])

    def act(seat):
        began.set()
        return str(hang.wait(20))

    teacher = TextTeacher(act, renderer=renderer_of(), workers=1, timeout_s=3.0)
    hangs, waits = (Seat(key, None, 0, Ledger(limit=96)) for key in ("hangs", "waits"))
    try:
        teacher.ask(hangs, [])
        assert began.wait(20)
        now[0] += 2.0
        teacher.ask(waits, [])
        now[0] += 1.5
        assert [answer.seat for answer in teacher.poll()] == [hangs]
        now[0] += 2.0
        assert [answer.seat for answer in teacher.poll()] == [waits], "no thread is free"
    finally:
        hang.set()


def test_a_teacher_and_a_scheduler_that_give_up_at_the_same_time_lose_episodes_and_no_more():
    hang, over = threading.Event(), []
    policy = scripted(ByChance(1.0), act=lambda seat: str(hang.wait(40)), workers=8, timeout_s=0.2)

    def play():
        over.extend(played(jobs_of(tasks=4), Walks, policy, reply_timeout_s=0.2, retries=0))

    alone = threading.Thread(target=play, daemon=True)
    alone.start()
    alone.join(20)
    hang.set()
    assert len(over) == 4, "the run waits for an answer that nobody will give"
