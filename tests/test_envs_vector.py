"""Laws of `make_vec`: gymnasium's interface, and one environment never costs another its step."""

from __future__ import annotations

import time

import gymnasium
import numpy as np
import pytest
from fakes import Guess
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from toys import Fault, Faulty, Walks, crash

from turnwise.envs import UnknownEnv, make, make_vec
from turnwise.envs.pool import StepTimeout
from turnwise.sandboxes.base import SandboxDied

SAME, NEXT = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP


def walks(n=4, **kwargs):
    return make_vec(lambda: Faulty(**kwargs), n)


def lose():
    raise SandboxDied("gone")


def alone(seed, actions, make_env=Guess):
    """What one environment says to `actions`, first its opening."""
    env = make_env()
    told = [env.reset(seed=seed)[0]]
    return told + [env.step(action)[0] for action in actions]


@pytest.mark.parametrize("fast", [True, False])
def test_each_environment_plays_the_episode_of_its_own_seed(fast):
    class Paced(Guess):
        pass

    Paced.fast = fast
    looks = [Guess().call_text("look", number=n) for n in (3, 9, 15)]
    with_vec = make_vec(Paced, 5)
    observations, infos = with_vec.reset(seed=7)
    told = [[observation] for observation in observations]
    for action in looks:
        observations, rewards, terminations, truncations, infos = with_vec.step([action] * 5)
        for row, observation in zip(told, observations, strict=True):
            row.append(observation)
    assert told == [alone(7 + index, looks) for index in range(5)]
    assert all("Café" in row[0] for row in told)
    assert rewards.dtype == np.float64 and rewards.shape == terminations.shape == (5,)
    assert not terminations.any() and not truncations.any()
    assert infos["calls"][4][0]["args"] == {"number": 15}
    with_vec.close()


def test_same_step_autoreset_keeps_the_final_observation_and_info():
    vec = make_vec(Walks, 2)
    assert vec.metadata["autoreset_mode"] is SAME
    first, _ = vec.reset(seed=3)
    vec.step(["a", "b"])
    observations, rewards, terminations, _, infos = vec.step(["a", "b"])
    assert terminations.all() and list(rewards) == [0.5, 0.0]
    assert list(infos["final_obs"]) == [
        f"{o.split()[1]} is at mile 2{ok}" for o, ok in zip(first, (" ok", ""), strict=True)
    ]
    assert list(infos["final_info"]["success"]) == [True, False]
    assert all(o.startswith("walk") for o in observations)
    assert [task.key for task in infos["task"]] == [vec.env(i).task.key for i in (0, 1)]
    vec.close()


def test_next_step_autoreset_returns_the_end_and_then_ignores_one_action():
    vec = make_vec(Walks, 2, autoreset_mode=NEXT)
    assert vec.metadata["autoreset_mode"] is NEXT
    vec.reset(seed=3)
    vec.step(["a", "a"])
    observations, _, terminations, _, infos = vec.step(["a", "a"])
    assert terminations.all() and "final_obs" not in infos
    assert all("mile 2" in observation for observation in observations)
    observations, rewards, terminations, _, _ = vec.step(["a", "a"])
    assert all(o.startswith("walk") for o in observations)
    assert not terminations.any() and not rewards.any()
    vec.close()


def test_later_episodes_follow_from_the_first_seed_alone_and_keep_the_split():
    def keys(vec, steps=12):
        _, infos = vec.reset(seed=5, options={"split": "dev"})
        found = [[task.key] for task in infos["task"]]
        for _ in range(steps):
            *_, infos = vec.step(["a"] * 3)
            for index, task in enumerate(infos.get("task", ())):
                if task is not None:
                    found[index].append(task.key)
                    assert task.split == "dev"
        return found

    assert (once := keys(make_vec(Walks, 3))) == keys(make_vec(Walks, 3))
    assert len(once[0]) == 7 and len({key for row in once for key in row}) > 12
    crashing = make_vec(lambda: Faulty({i: Fault(1, crash, 1) for i in range(200)}, length=2), 3)
    assert [row[:4] for row in keys(crashing)] == [row[:4] for row in once]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("act", "outcome"),
    [(crash, "env_error"), (lose, "infra_error")],
)
def test_one_that_raises_costs_the_others_nothing_and_the_vector_goes_on(fast, act, outcome):
    vec = walks(fast=fast)
    _, infos = vec.reset(seed=0)
    bad = infos["task"][2].index
    assert [task.index for task in infos["task"]].count(bad) == 1
    for index in range(4):
        vec.env(index).faults = {bad: Fault(2, act)}
    vec.step(["a"] * 4)
    observations, rewards, terminations, truncations, infos = vec.step(["a"] * 4)
    assert [o.split(" mile ")[-1] for o in np.delete(observations, 2)] == ["2 ok"] * 3
    assert list(np.isnan(rewards)) == [False, False, True, False]
    assert list(truncations) == [False, False, True, False] and not terminations.any()
    assert infos["final_info"]["outcome"][2] == outcome and "final_info" in infos
    assert infos["final_info"]["detail"][2] in ("ZeroDivisionError: a bug", "SandboxDied: gone")
    assert observations[2].startswith("walk")
    for _ in range(4):
        _, rewards, *_ = vec.step(["a"] * 4)
        assert not np.isnan(rewards).any()
    vec.close()


def test_one_that_hangs_is_replaced_after_its_deadline_and_the_others_keep_their_steps():
    vec = make_vec(lambda: Faulty(fast=False), 3, step_timeout_s=0.2)
    _, infos = vec.reset(seed=0)
    vec.env(1).faults = {infos["task"][1].index: Fault(1, lambda: time.sleep(1.0))}
    observations, rewards, _, truncations, infos = vec.step(["a"] * 3)
    assert list(truncations) == [False, True, False] and np.isnan(rewards[1])
    assert infos["final_info"]["outcome"][1] == "infra_error"
    assert StepTimeout.__name__ in infos["final_info"]["detail"][1]
    observations, *_ = vec.step(["a"] * 3)
    assert [o.split(" mile ")[1] for o in observations] == ["2 ok", "1 ok", "2 ok"]
    vec.close()


def test_one_that_cannot_be_reset_is_tried_again_and_never_silently_paid_zero():
    faults = {}
    vec = make_vec(lambda: Faulty(faults, length=1), 2)
    vec.reset(seed=0)
    faults.update({i: Fault(0, crash) for i in range(200)})
    observations, rewards, terminations, _, infos = vec.step(["a", "b"])
    assert list(rewards) == [1.0, 0.0] and terminations.all(), "the steps themselves were played"
    assert list(observations) == ["", ""] and infos["outcome"][0] == "env_error"
    _, rewards, _, truncations, infos = vec.step(["a", "b"])
    assert np.isnan(rewards).all() and truncations.all()
    faults.clear()
    observations, rewards, *_ = vec.step(["a", "b"])
    assert all(o.startswith("walk") for o in observations) and list(rewards) == [0.0, 0.0]
    faults.update({i: Fault(0, crash, 1) for i in range(200)})
    observations, rewards, *_ = vec.step(["a", "b"])
    assert all(o.startswith("walk") for o in observations) and list(rewards) == [1.0, 0.0]
    faults.update({i: Fault(0, crash) for i in range(200)})
    with pytest.raises(ZeroDivisionError):
        vec.reset(seed=0)


def test_a_straggler_holds_nobody_back_without_a_barrier():
    paces = iter([0.4] + [0.005] * 7)

    class Pace(Walks):
        fast = False

        def respond(self, action):
            time.sleep(self.pace)
            return super().respond(action)

    def made():
        env = Pace(length=10_000)
        env.pace, env.max_turns = next(paces), 10_000
        return env

    vec = make_vec(made, 8)
    vec.reset(seed=0)
    began, steps = time.perf_counter(), [0] * 8
    for index in range(8):
        vec.send(index, "a")
    assert time.perf_counter() - began < 0.2, "sending does not wait"
    while time.perf_counter() - began < 1.0:
        for arrival in vec.recv(0.1):
            steps[arrival.index] += 1
            vec.send(arrival.index, "a")
    assert steps[0] <= 3 and min(steps[1:]) > 20
    vec.close()


def test_send_and_receive_play_the_same_episodes_as_steps_together():
    together = make_vec(Walks, 3)
    openings, _ = together.reset(seed=1)
    expected = [[o] for o in openings]
    for _ in range(5):
        observations, *_ = together.step(["a"] * 3)
        for row, observation in zip(expected, observations, strict=True):
            row.append(observation)
    apart = make_vec(Walks, 3)
    openings, _ = apart.reset(seed=1)
    told = [[o] for o in openings]
    for index in (2, 0, 1):
        for _ in range(5):
            apart.send(index, "a")
            (arrival,) = apart.recv()
            told[arrival.index].append(arrival.observation)
            if arrival.terminated:
                assert "mile 2" in arrival.info["final_obs"]
    assert told == expected
    assert apart.recv() == []


def test_wrong_uses_are_refused_with_the_way_out():
    vec = make_vec(lambda: Faulty(fast=False), 2)
    for act in (lambda: vec.step(["a", "a"]), lambda: vec.send(0, "a")):
        with pytest.raises(ResetNeeded, match="call reset"):
            act()
    vec.reset(seed=0)
    with pytest.raises(ValueError, match="need 2 actions, got 1"):
        vec.step(["a"])
    for index in (2, -1, 10):
        with pytest.raises(IndexError, match=f"{index}; the environments are 0 to 1"):
            vec.send(index, "a")
    for index in ([0, 1], "0", True, None):
        with pytest.raises(TypeError, match="send one action to one environment"):
            vec.send(index, "a")
    vec.send(0, "a")
    with pytest.raises(ValueError, match="environment 0 has not answered"):
        vec.send(0, "a")
    with pytest.raises(ValueError, match=r"environments \[0\] were sent to"):
        vec.step(["a", "a"])
    vec.reset(seed=0)
    vec.step(["a", "a"])
    with pytest.raises(ValueError, match="need 2 seeds, got 3"):
        vec.reset(seed=[1, 2, 3])
    vec.close()
    with pytest.raises(ValueError, match="n must be at least 1"):
        make_vec(Walks, 0)
    with pytest.raises(ValueError, match="SAME_STEP or NEXT_STEP"):
        make_vec(Walks, 1, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(UnknownEnv):
        make_vec("turnwise/FileHint-v1", 2)


def test_a_task_in_the_options_is_that_of_the_first_episodes():
    vec = make_vec("fakes:Guess", 3, max_turns=1)
    task = make("fakes:Guess").tasks("test")[4]
    _, infos = vec.reset(seed=0, options={"task": task, "split": "test"})
    assert [t.key for t in infos["task"]] == [task.key] * 3
    *_, infos = vec.step(["x"] * 3)
    assert any(t.key != task.key for t in infos["task"])
    assert all(t.index >= 200 for t in infos["task"]), "later ones are of the same split"


@pytest.mark.parametrize("mode", [SAME, NEXT])
def test_gymnasiums_own_wrappers_work_on_it(mode):
    vec = RecordEpisodeStatistics(make_vec(Walks, 3, autoreset_mode=mode))
    assert isinstance(vec, gymnasium.vector.VectorEnv)
    vec.reset(seed=0)
    assert vec.action_space.contains(vec.action_space.sample())
    vec.step(["a"] * 3)
    *_, infos = vec.step(["a", "b", "a"])
    assert list(infos["episode"]["r"]) == [1.0, 0.5, 1.0]
    vec.close()
    vec.close()
