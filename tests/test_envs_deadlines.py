"""Laws of slow tools: a call that runs out of time says so, and no later call hears of it."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from boxes import wait_until
from fakes import Guess

from turnwise.agents.policy import ScriptedPolicy
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.envs.pool import StepTimeout
from turnwise.envs.signatures import ToolSchemaError
from turnwise.envs.tools import ToolFailed, tool
from turnwise.envs.types import Outcome
from turnwise.sandboxes.base import SandboxDied

TOO_SLOW = "ToolError[timeout] {} took longer than 0.05 s"


class Slow(Guess):
    """Tools that take as long as they are told, in either way of writing."""

    fast = False
    max_turns = 50
    step_timeout_s = 5.0

    def setup(self, task, rng):
        self.log, self.refused = [], []
        return super().setup(task, rng)

    @tool(timeout_s=0.05)
    async def later(self, name: str, seconds: float) -> str:
        """Wait, then say the name."""
        self.log.append(f"+{name}")
        try:
            await asyncio.sleep(seconds)
        finally:
            self.log.append(f"-{name}")
        return name

    @tool(timeout_s=0.05)
    async def tidy(self) -> None:
        """Wait for ever, and take a while to clean up."""
        try:
            await asyncio.sleep(99.0)
        finally:
            await asyncio.sleep(0.05)
            self.log.append("cleaned up")

    @tool(timeout_s=0.05)
    def block(self, name: str, seconds: float) -> str:
        """Wait, then say the name."""
        time.sleep(seconds)
        self.log.append(f"-{name}")
        return name

    @tool
    async def patient(self, name: str, seconds: float) -> str:
        """Wait without a deadline of its own, then say the name."""
        await asyncio.sleep(seconds)
        return name

    @tool
    async def fail(self, how: str) -> str:
        """Fail."""
        errors = {"agent": ToolFailed("no such file"), "machine": SandboxDied("gone")}
        raise errors.get(how) or TimeoutError("a bug")

    @tool(timeout_s=0.05)
    def meddle(self) -> str:
        """Wait, then read the time and end the episode, both too late."""
        time.sleep(0.15)
        for act in (self.clock.now, self.finish):
            try:
                act()
            except RuntimeError as error:
                self.refused.append(str(error))
        return "meddled"

    @tool(timeout_s=0.05, final=True)
    def last(self) -> str:
        """Wait, then end the episode."""
        time.sleep(0.1)
        return "over"


def started(**changes):
    env = Slow()
    env.reset(seed=0)
    for name, value in changes.items():
        setattr(env, name, value)
    return env


@pytest.mark.parametrize("name", ["later", "block", "patient"])
def test_a_tool_in_time_is_answered_like_any_other(name):
    env = started()
    observation, *_, info = env.step(env.call_text(name, name="a", seconds=0.0))
    assert observation == "a" and "error" not in info and "nondet" not in info


@pytest.mark.parametrize("name", ["later", "block"])
def test_after_a_timeout_every_answer_is_that_of_its_own_call(name):
    env = started()
    for i in range(4):
        observation, *_, info = env.step(env.call_text(name, name=f"slow{i}", seconds=0.12))
        assert observation == TOO_SLOW.format(name) and info["error"] == "timeout"
        for _ in range(3):
            assert env.step(env.call_text(name, name=f"quick{i}", seconds=0.0))[0] == f"quick{i}"
    time.sleep(0.2)
    assert env.step(env.call_text(name, name="end", seconds=0.0))[0] == "end"
    assert not any("slow" in text for text in env.episode.observations if "ToolError" not in text)


def test_a_coroutine_that_runs_out_of_time_is_cancelled_and_cleans_up_before_the_next_call():
    env = started()
    env.step(env.call_text("tidy"))
    assert env.log == ["cleaned up"]


def test_the_calls_of_one_action_run_one_after_another():
    env = started()
    action = "".join(
        env.call_text("later", name=name, seconds=s) for name, s in (("a", 0.03), ("b", 0.0))
    )
    assert env.step(action)[0] == "a\nb"
    assert env.log == ["+a", "-a", "+b", "-b"]


def test_what_a_late_call_still_does_to_the_tape_or_the_end_is_refused():
    env = started()
    assert env.step(env.call_text("meddle"))[0] == TOO_SLOW.format("meddle")
    assert wait_until(lambda: len(env.refused) == 2)
    assert all("deadline has passed" in text for text in env.refused)
    *_, terminated, truncated, info = env.step(env.call_text("look", number=3))
    assert (terminated, truncated) == (False, False) and "nondet" not in info


def test_a_final_tool_that_runs_out_of_time_does_not_end_the_episode():
    env = started()
    assert env.step(env.call_text("last"))[2:4] == (False, False)
    time.sleep(0.1)
    assert env.step(env.call_text("look", number=3))[2:4] == (False, False)


def test_a_timeout_is_no_malformed_turn():
    env = started()
    for _ in range(env.max_errors + 1):
        assert env.step(env.call_text("later", name="a", seconds=9.0))[2:4] == (False, False)


def test_failures_of_a_coroutine_are_told_apart_like_those_of_any_tool():
    env = started()
    observation = env.step(env.call_text("fail", how="agent"))[0]
    assert observation == "ToolError[tool_raised] no such file"
    for how, error in (("machine", SandboxDied), ("bug", TimeoutError)):
        with pytest.raises(error):
            env.step(env.call_text("fail", how=how))


def test_a_coroutine_without_a_deadline_of_its_own_that_hangs_is_the_machines_failure():
    env = started(step_timeout_s=0.05)
    with pytest.raises(StepTimeout, match=r"patient took longer than step_timeout_s, 0\.05 s"):
        env.step(env.call_text("patient", name="a", seconds=9.0))
    jobs = jobs_for(env.tasks("train")[:1], run_seed=0, split="train")
    hang = ScriptedPolicy(lambda seat: seat.env.call_text("patient", name="a", seconds=9.0))

    def hasty():
        env = Slow()
        env.step_timeout_s = 0.05
        return env

    (episode,) = play(jobs, hasty, hang, Settings(step_timeout_s=1.0, retries=0))
    assert episode.outcome is Outcome.INFRA_ERROR and "patient took longer" in episode.error


class Rude(Slow):
    @tool(timeout_s=0.05)
    async def hog(self) -> str:
        """Block the loop, which no coroutine may."""
        time.sleep(3.0)
        return "late"


def test_a_coroutine_that_blocks_the_loop_does_not_take_the_others_with_it(monkeypatch):
    monkeypatch.setattr("turnwise.envs.deadlines.CANCEL_S", 0.05)
    env, began = Rude(), time.perf_counter()
    env.reset(seed=0)
    assert env.step(env.call_text("hog"))[0] == TOO_SLOW.format("hog")
    assert env.step(env.call_text("patient", name="on", seconds=0.0))[0] == "on"
    assert time.perf_counter() - began < 2.0


class Nested(Slow):
    @tool
    async def inside(self) -> str:
        """Step another environment from within the loop."""
        return started().step(self.call_text("later", name="a", seconds=0.0))[0]


def test_a_coroutine_that_would_wait_for_its_own_loop_is_refused():
    env = Nested()
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="async tool stepped an environment"):
        env.step(env.call_text("inside"))


def test_environments_on_many_threads_share_one_loop():
    envs = [started() for _ in range(8)]
    env = envs[0]
    env.step(env.call_text("patient", name="a", seconds=0.0))
    before = threading.active_count()
    began = time.perf_counter()
    threads = [
        threading.Thread(target=e.step, args=(e.call_text("patient", name="a", seconds=0.2),))
        for e in envs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.perf_counter() - began < 8 * 0.2 / 2
    assert threading.active_count() <= before


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_deadline_that_is_none_is_refused_where_it_is_written(seconds):
    with pytest.raises(ToolSchemaError, match="wait: timeout_s must be above 0"):

        @tool(timeout_s=seconds)
        def wait(self) -> None:
            """Wait."""
