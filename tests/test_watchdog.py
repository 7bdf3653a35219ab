"""The laws of waiting: every wait is named, and every wait ends."""

from __future__ import annotations

import logging
import threading
import time

import pytest
import torch
from test_rollout import jobs_of, llm
from toys import Fault, Faulty, Walks

from turnwise.agents.policy import ScriptedPolicy, noop
from turnwise.agents.rollout import Settings, play
from turnwise.agents.watchdog import RolloutStopped, Wait, Watchdog
from turnwise.envs.types import Outcome, Stop

torch.set_num_threads(1)


class Forgetful(ScriptedPolicy):
    """An engine that loses the requests of some episodes: it neither answers nor fails."""

    def __init__(self, lost):
        super().__init__(noop)
        self.lost = lost

    def submit(self, seat, news):
        if seat.key.split("#")[0] not in self.lost:
            super().submit(seat, news)


def test_a_request_that_is_never_answered_ends_as_an_outcome_that_says_who_waited():
    settings = Settings(reply_timeout_s=0.3)
    found = {e.id: e for e in play(jobs_of(), Walks, Forgetful({"2.0"}), settings)}
    assert len(found) == 6
    lost = found.pop("2.0")
    assert (lost.outcome, lost.stop, lost.attempts) == (Outcome.INFRA_ERROR, Stop.DEADLINE, 2)
    assert "over 0.3 s for a reply; episode 2.0#2 (turn 0) waits for the engine" in lost.error
    assert all(e.outcome.trainable for e in found.values())


def test_an_episode_over_its_time_says_what_it_was_waiting_for():
    gate = threading.Event()
    env = {3: Fault(1, lambda: gate.wait(20))}
    settings = Settings(episode_timeout_s=0.5, retries=0)
    policy = ScriptedPolicy(noop)
    found = {e.id: e for e in play(jobs_of(), lambda: Faulty(env, fast=False), policy, settings)}
    gate.set()
    assert "for the episode; episode 3.0 (turn 0) waits for its environment's step" in (
        found["3.0"].error
    )
    assert found["3.0"].stop is Stop.DEADLINE


def test_a_long_wait_is_said_while_it_lasts(caplog):
    gate = threading.Event()
    threading.Timer(3.0, gate.set).start()
    env = {3: Fault(1, lambda: gate.wait(20))}
    with caplog.at_level(logging.WARNING, logger="turnwise"):
        policy, dog = ScriptedPolicy(noop), Watchdog(report_after_s=0.5)
        list(play(jobs_of(), lambda: Faulty(env, fast=False), policy, None, dog))
    lines = [record.getMessage() for record in caplog.records]
    assert lines
    assert all(x.startswith("episode 3.0 (turn 0) waits for its environment's st") for x in lines)


def test_a_rollout_that_is_stuck_in_a_call_is_said_from_beside_it(caplog):
    env = {3: Fault(1, lambda: time.sleep(1.0), left=1)}
    dog = Watchdog(report_after_s=0.3)
    with caplog.at_level(logging.WARNING, logger="turnwise"), dog.beside():
        list(play(jobs_of(), lambda: Faulty(env), ScriptedPolicy(noop), None, dog))
    (line, *_) = [record.getMessage() for record in caplog.records]
    assert line.startswith("episode 3.0 (turn 0) waits for its environment's step:")
    assert line.endswith("and the whole rollout waits for that call")


def test_a_wait_is_said_again_when_it_has_doubled_and_a_new_one_from_its_beginning(caplog):
    dog = Watchdog(report_after_s=10)
    with caplog.at_level(logging.WARNING, logger="turnwise"):
        for seconds in (5, 9, 11, 15, 21, 22, 30, 45, 2, 9, 12):
            waits = [Wait("a", 0, "the engine", 1), Wait("b", 7, "the engine", seconds)]
            dog.look(waits)
    said = [record.getMessage() for record in caplog.records]
    line = "episode b (turn 7) waits for the engine: {} s; so do 1 others"
    assert said == [line.format(n) for n in (11, 22, 45, 12)]


def test_a_rollout_that_is_stopped_ends_itself_and_closes_its_environments():
    made, dog = [], Watchdog()
    episodes = play(jobs_of(), lambda: Faulty(made=made), llm(), Settings(concurrency=2), dog)
    next(episodes)
    dog.stop()
    with pytest.raises(RolloutStopped):
        list(episodes)
    assert made and all(env.closed for env in made)


@pytest.mark.parametrize("name", ["reply_timeout_s", "episode_timeout_s"])
def test_a_deadline_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match="must be above 0"):
        Settings(**{name: 0.0})
