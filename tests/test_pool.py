"""The laws of the pool: every call has one answer, and a bad environment harms nobody."""

from __future__ import annotations

import threading
import time

import pytest
from boxes import wait_until
from toys import Fault, Faulty, crash

from turnwise.envs.pool import EnvPool, StepTimeout

TASKS = Faulty().tasks("train")


def pool_of(size=3, faults=None, made=None, **more) -> EnvPool:
    fast = more.pop("fast", True)
    return EnvPool(lambda: Faulty(faults or {}, fast=fast, made=made), size, **more)


def reset(pool, index):
    pool.send(index, "reset", seed=index, options={"task": TASKS[index]})


def receive(pool, count, patience_s=10.0):
    answers, end = [], time.monotonic() + patience_s
    while len(answers) < count and time.monotonic() < end:
        answers += pool.recv(0.05)
    return {answer.index: answer for answer in answers}


@pytest.fixture
def gate():
    """An event that a hanging call waits for; opened at the end, so that no thread stays."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("fast", [True, False])
def test_every_call_is_answered_once_with_what_the_environment_returned(fast):
    with pool_of(fast=fast) as pool:
        for index in (2, 0):
            reset(pool, index)
        opened = receive(pool, 2)
        assert set(opened) == {0, 2}
        for index in (0, 2):
            pool.send(index, "step", "a step")
        stepped = receive(pool, 2)
        for index in (0, 2):
            alone = Faulty()
            observation, _ = alone.reset(seed=index, options={"task": TASKS[index]})
            assert opened[index].value[0] == observation
            assert stepped[index].value == alone.step("a step")
        assert pool.recv() == [] and pool.in_flight == 0


def test_environments_are_made_when_they_are_first_used():
    made = []
    with pool_of(100, made=made) as pool:
        assert made == []
        reset(pool, 70)
        assert len(made) == 1
        assert pool.env(70) is made[0] and pool.env(3) is made[1]


@pytest.mark.parametrize("fast", [True, False])
def test_an_exception_is_an_answer(fast):
    with pool_of(faults={1: Fault(0, crash)}, fast=fast) as pool:
        for index in range(3):
            reset(pool, index)
        answers = receive(pool, 3)
        assert isinstance(answers[1].error, ZeroDivisionError)
        assert answers[0].error is answers[2].error is None


def test_an_environment_that_cannot_be_made_is_an_answer():
    with EnvPool(crash, 2) as pool:
        pool.send(1, "reset", seed=0)
        (answer,) = pool.recv()
        assert answer.index == 1 and isinstance(answer.error, ZeroDivisionError)


def test_blocking_environments_step_side_by_side(gate):
    met = threading.Barrier(4)
    faults = {i: Fault(0, lambda: met.wait(20)) for i in range(4)}
    with pool_of(4, faults, fast=False) as pool:
        for index in range(4):
            reset(pool, index)
        assert all(answer.error is None for answer in receive(pool, 4, 30).values())


def test_an_overdue_call_is_answered_by_a_timeout_and_its_environment_replaced(gate):
    made = []
    faults = {0: Fault(0, gate.wait)}
    with pool_of(2, faults, made, fast=False, step_timeout_s=0.3) as pool:
        reset(pool, 0)
        reset(pool, 1)
        answers = receive(pool, 2)
        assert isinstance(answers[0].error, StepTimeout) and answers[1].error is None
        assert pool.in_flight == 0
        assert pool.env(0) is not made[0] and pool.env(1) is made[1]


def test_the_late_answer_of_a_replaced_environment_is_never_delivered(gate):
    faults = {0: Fault(0, gate.wait, left=1)}
    with pool_of(1, faults, fast=False, step_timeout_s=0.3) as pool:
        reset(pool, 0)
        assert isinstance(receive(pool, 1)[0].error, StepTimeout)
        late = pool._workers[0]
        assert late is None
        reset(pool, 0)  # its successor
        gate.set()  # now the first call returns, too
        assert receive(pool, 1)[0].error is None
        pool.send(0, "step", "a step")
        answer = receive(pool, 1)[0]
        assert len(answer.value) == 5
        time.sleep(0.05)
        assert pool.recv() == []


@pytest.mark.parametrize("fast", [True, False])
def test_replacing_an_environment_drops_the_answers_that_wait(fast):
    with pool_of(2, fast=fast) as pool:
        reset(pool, 0)
        reset(pool, 1)
        pool.replace(0)
        assert set(receive(pool, 1)) == {1}
        time.sleep(0.05)
        assert pool.recv() == []


@pytest.mark.parametrize("fast", [True, False])
def test_closing_closes_each_environment_once_and_may_be_repeated(fast):
    made = []
    pool = pool_of(3, made=made, fast=fast)
    for index in range(3):
        reset(pool, index)
    receive(pool, 3)
    pool.replace(1)
    pool.close()
    pool.close()
    assert [env.closed for env in made] == [1, 1, 1]


def test_closing_does_not_wait_for_a_call_that_hangs(gate):
    class Stuck(Faulty):
        def close(self):
            gate.wait()
            super().close()

    made = []
    pool = EnvPool(lambda: Stuck({0: Fault(0, gate.wait)}, fast=False, made=made), 1)
    reset(pool, 0)
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 4
    gate.set()
    assert wait_until(lambda: made[0].closed == 1)


def test_an_environment_that_cannot_be_closed_harms_nobody():
    class Stuck(Faulty):
        def close(self):
            super().close()
            crash()

    made = []
    pool = EnvPool(lambda: Stuck(made=made), 2)
    reset(pool, 0)
    reset(pool, 1)
    pool.close()
    assert [env.closed for env in made] == [1, 1]
