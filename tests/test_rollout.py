"""The laws of the scheduler: every job becomes one episode, and the job alone decides which."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from boxes import wait_until
from fakes import Guess
from toys import Fault, Faulty, Walks, crash

from turnwise.agents.engines.base import EngineError
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.policy import (
    LLMPolicy,
    MixturePolicy,
    ScriptedPolicy,
    bernoulli,
    expert,
    noop,
    random_tool,
)
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.envs.formats.hermes import HERMES
from turnwise.envs.types import Outcome, Stop
from turnwise.sandboxes.base import NoSafeSandbox, SandboxDied
from turnwise.trainers.model import tiny_from_env

torch.set_num_threads(1)


def lose() -> None:
    raise SandboxDied("the box is gone")


def forbid() -> None:
    raise NoSafeSandbox("install bubblewrap")


@cache
def model_and_renderer():
    shape = {"hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "ffn": 48}
    model, tokenizer = tiny_from_env(Guess, tasks=10, **shape)
    return model, Renderer(tokenizer)


def llm(*, slots=8, max_len=512, engine=None, temperature=1.0, max_new_tokens=6) -> LLMPolicy:
    model, renderer = model_and_renderer()
    engine = engine or EmbeddedEngine(model, slots=slots, max_len=max_len)
    return LLMPolicy(engine, renderer, temperature=temperature, max_new_tokens=max_new_tokens)


def jobs_of(env=Walks, tasks=6, replicas=1, seed=0):
    return jobs_for(env().tasks("train")[:tasks], replicas, run_seed=seed, split="train")


def played(jobs, make_env=Walks, policy=None, **settings):
    """Episodes by id; exactly one per job."""
    episodes = list(play(jobs, make_env, policy or ScriptedPolicy(expert), Settings(**settings)))
    assert Counter(e.id for e in episodes) == Counter(job.id for job in jobs)
    return {e.id: e for e in episodes}


def essence(episode):
    """What must not depend on timing; logprobs only up to rounding."""
    turns = [
        (t.context_ids, t.action_ids, t.action, t.observation, t.reward, t.state_after, t.executor)
        for t in episode.turns
    ]
    return (episode.id, turns, episode.outcome, episode.stop, episode.success, episode.attempts)


def essences(episodes):
    return sorted(map(essence, episodes.values()), key=lambda e: e[0])


# Failures


@pytest.mark.parametrize("turn", [0, 1, 3])
@pytest.mark.parametrize(
    ("act", "outcome"), [(crash, Outcome.ENV_ERROR), (lose, Outcome.INFRA_ERROR)]
)
@pytest.mark.parametrize("fast", [True, False])
def test_a_failure_at_any_turn_is_retried_once_and_masked_and_harms_no_other(
    act, outcome, turn, fast
):
    fault = Fault(turn, act)
    episodes = played(jobs_of(), lambda: Faulty({2: fault}, fast=fast), concurrency=4)
    bad = episodes.pop("2.0")
    assert (bad.outcome, bad.stop, bad.attempts) == (outcome, Stop.ERROR, 2)
    assert not bad.trainable and not bad.success
    assert len(bad.turns) == max(turn - 1, 0)
    assert bad.error.startswith(("ZeroDivisionError: a bug", "SandboxDied: the box is gone"))
    assert fault.left == 97
    assert all(e.success and e.attempts == 1 for e in episodes.values())


@pytest.mark.parametrize("fast", [True, False])
def test_a_second_attempt_that_works_is_the_episode_of_a_job_that_never_failed(fast):
    calm = played(jobs_of(), Faulty)
    faults = {1: Fault(2, crash, left=1), 4: Fault(0, lose, left=1)}
    episodes = played(jobs_of(), lambda: Faulty(faults, fast=fast), concurrency=3)
    assert {e.id: e.attempts for e in episodes.values() if e.attempts > 1} == {"1.0": 2, "4.0": 2}
    once = {name: replace(e, attempts=1) for name, e in episodes.items()}
    assert essences(once) == essences(calm)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("turn", [0, 2])
def test_a_bug_of_an_environment_is_told_in_one_line_with_its_place_and_logged_whole(
    fast, turn, caplog
):
    caplog.set_level("DEBUG", "turnwise")
    bad = played(jobs_of(), lambda: Faulty({2: Fault(turn, crash)}, fast=fast))["2.0"]
    line = crash.__code__.co_firstlineno + 2
    assert bad.error == f"ZeroDivisionError: a bug (toys.py:{line} in crash)"
    tries = [record for record in caplog.records if record.name == "turnwise"]
    assert [record.exc_info[0] for record in tries] == [ZeroDivisionError] * 2
    said = caplog.text
    assert all(f"in {name}\n" in said for name in ("crash", "_go_wrong"))
    assert f"episode 2.0 failed (attempt 2, turn {max(turn - 1, 0)})" in said


def test_a_message_of_many_lines_stays_one_line_and_one_without_a_message_has_its_name():
    def fail(message):
        raise ValueError(message)

    for message, text in (("a\nb", "ValueError: a ("), ("", "ValueError ("), ("x" * 999, "x (")):
        env = partial(Faulty, {0: Fault(1, partial(fail, message))})
        error = played(jobs_of(tasks=1), env)["0.0"].error
        assert text in error and "\n" not in error and len(error) < 400
        assert error.endswith("in fail)")


def test_what_the_machine_did_is_told_without_a_place_in_the_code():
    bad = played(jobs_of(), lambda: Faulty({2: Fault(1, lose)}))["2.0"]
    assert bad.error == "SandboxDied: the box is gone"


def test_an_error_that_no_retry_can_help_is_not_retried():
    fault = Fault(1, forbid)
    episodes = played(jobs_of(), lambda: Faulty({0: fault}))
    assert (episodes["0.0"].outcome, episodes["0.0"].attempts) == (Outcome.INFRA_ERROR, 1)
    assert "install bubblewrap" in episodes["0.0"].error


def test_a_hanging_environment_meets_its_deadline_and_harms_no_other():
    gate = threading.Event()
    try:
        env = partial(Faulty, {3: Fault(2, gate.wait)}, fast=False)
        episodes = played(jobs_of(), env, concurrency=6, step_timeout_s=0.5)
    finally:
        gate.set()
    bad = episodes.pop("3.0")
    assert (bad.outcome, bad.stop, bad.attempts) == (Outcome.INFRA_ERROR, Stop.DEADLINE, 2)
    assert bad.error.startswith("StepTimeout")
    assert all(e.success for e in episodes.values())


def test_an_episode_has_a_deadline_of_its_own():
    env = partial(Faulty, fast=False, pace_s=0.2, length=1000)
    start = time.monotonic()
    episodes = played(jobs_of(tasks=2), env, episode_timeout_s=0.4, retries=0, concurrency=2)
    assert time.monotonic() - start < 20
    assert {(e.outcome, e.stop) for e in episodes.values()} == {
        (Outcome.INFRA_ERROR, Stop.DEADLINE)
    }
    assert all(e.turns for e in episodes.values())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((1, 0.0, False, False, {}), "an observation is a str, got int"),
        (("", 0.0, False, {}), "expected 5 values, got 4"),
        (("", "much", False, False, {}), "could not convert"),
        (("", 0.0, True, False, {"outcome": "fine"}), "fine"),
        (("", 0.0, True, False, None), "NoneType"),
        (None, "NoneType"),
    ],
)
def test_an_answer_of_the_wrong_shape_is_a_bug_of_the_environment(answer, why):
    class Odd(Walks):
        def step(self, action):
            return answer

    episodes = played(jobs_of(tasks=2), Odd)
    for episode in episodes.values():
        assert episode.outcome is Outcome.ENV_ERROR and why in episode.error
        assert "rollout.py" not in episode.error  # where we noticed is not where the bug is


@pytest.mark.parametrize("opening", ["", " \n", [{"role": "system", "content": "Be brief."}]])
def test_an_opening_that_says_nothing_is_a_bug_of_the_environment(opening):
    class Mute(Walks):
        def setup(self, task, rng):
            super().setup(task, rng)
            return opening

    (episode,) = played(jobs_of(tasks=1), Mute).values()
    assert (episode.outcome, episode.turns) == (Outcome.ENV_ERROR, ())
    assert "the opening is empty; reset must return what" in episode.error


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_masks_its_episode_alone(reward):
    class Greedy(Walks):
        def step(self, action):
            observation, paid, *rest = super().step(action)
            return observation, reward if self.task.index == 1 else paid, *rest

    episodes = played(jobs_of(), Greedy, llm())
    bad = episodes.pop("1.0")
    assert (bad.outcome, bad.attempts) == (Outcome.JUDGE_ERROR, 1) and not bad.trainable
    assert f"turn 0 is {reward!r}" in bad.error
    assert all(e.trainable for e in episodes.values())


class Tripping:
    """An engine that fails at some polls and loses what was in flight."""

    def __init__(self, engine, trips):
        self.engine, self.trips, self.polls, self.max_len = engine, trips, 0, engine.max_len
        self.submit, self.end_session = engine.submit, engine.end_session

    def poll(self):
        self.polls += 1
        if self.polls in self.trips:
            for session in list(self.engine._sessions):
                self.end_session(session)
            raise EngineError("the server is gone")
        return self.engine.poll()


@pytest.mark.parametrize("fast", [True, False])
def test_a_failed_engine_costs_those_in_flight_one_attempt(fast):
    model, _ = model_and_renderer()
    calm = played(jobs_of(), Faulty, llm())
    engine = Tripping(EmbeddedEngine(model, slots=8, max_len=512), {4})
    episodes = played(jobs_of(), partial(Faulty, fast=fast), llm(engine=engine))
    assert any(e.attempts == 2 for e in episodes.values())
    once = {name: replace(e, attempts=1) for name, e in episodes.items()}
    assert essences(once) == essences(calm)


def test_an_engine_that_stays_broken_masks_every_episode_and_ends():
    model, _ = model_and_renderer()
    engine = Tripping(EmbeddedEngine(model, slots=8, max_len=512), range(1000))
    for episode in played(jobs_of(), Faulty, llm(engine=engine), concurrency=2).values():
        assert (episode.outcome, episode.attempts) == (Outcome.INFRA_ERROR, 2)
        assert "the server is gone" in episode.error


def test_an_engine_failure_leaves_alone_the_environment_that_is_still_opening():
    gate, model = threading.Event(), model_and_renderer()[0]
    engine = Tripping(EmbeddedEngine(model, slots=8, max_len=512), {1})

    class Slow(Faulty):
        def setup(self, task, rng):
            if task.index == 1:
                gate.wait(20)
            return super().setup(task, rng)

    threading.Timer(0.5, gate.set).start()
    episodes = played(jobs_of(tasks=2), partial(Slow, fast=False), llm(engine=engine))
    assert (episodes["0.0"].attempts, episodes["1.0"].attempts) == (2, 1)


def test_what_a_policy_raises_is_not_swallowed_and_everything_is_closed():
    made = []

    def fail(seat):
        raise KeyError("a bug of the policy")

    with pytest.raises(KeyError, match="a bug of the policy"):
        list(play(jobs_of(), partial(Faulty, made=made), ScriptedPolicy(fail)))
    assert made and all(env.closed == 1 for env in made)


@pytest.mark.parametrize("fast", [True, False])
def test_environments_are_closed_however_it_ends(fast):
    made = []
    env = partial(Faulty, {1: Fault(1, crash)}, fast=fast, made=made)
    played(jobs_of(), env, concurrency=3)
    assert len(made) > 3 and all(env.closed == 1 for env in made)
    made.clear()
    policy = llm()
    for _ in play(jobs_of(), env, policy, Settings(concurrency=3)):
        break  # the caller has enough
    assert made and wait_until(lambda: all(env.closed == 1 for env in made))
    assert policy.engine._sessions == {}


# What an episode may depend on


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("concurrency", [1, 7, 64])
def test_the_same_jobs_give_the_same_episodes_at_any_concurrency(concurrency, fast):
    jobs = jobs_of(tasks=5, replicas=2)
    usual = played(jobs, Walks, llm(slots=10), concurrency=10)
    env = partial(Faulty, fast=fast, pace_s=0.01, length=2)
    assert essences(played(jobs, env, llm(slots=3), concurrency=concurrency)) == essences(usual)


def test_with_fast_environments_the_order_is_the_same_too():
    orders = [[e.id for e in play(jobs_of(Guess), Guess, llm())] for _ in range(2)]
    assert orders[0] == orders[1]


def test_attempts_of_a_group_start_alike_and_are_sampled_apart():
    jobs = jobs_of(tasks=2, replicas=3)
    assert len({(job.group, job.env_seed) for job in jobs}) == 2
    assert len({job.policy_seed for job in jobs}) == 6
    assert jobs_of(tasks=2, replicas=3) == jobs != jobs_of(tasks=2, replicas=3, seed=1)
    episodes = played(jobs, Walks, llm())
    for group in "01":
        attempts = [e for e in episodes.values() if e.group == group]
        assert len({(e.turns[0].observation, e.turns[0].state_before) for e in attempts}) == 1
        assert len({e.turns[0].action_ids for e in attempts}) == 3


def test_a_seat_is_asked_in_order_and_sees_all_that_was_said():
    seen = []

    def act(seat):
        seen.append((seat.key, seat.turn, [m["role"] for m in seat.messages], seat.env.task.index))
        return f"a{seat.turn}"

    played(jobs_of(tasks=2), partial(Walks, length=3), ScriptedPolicy(act))
    for name in "01":
        mine = [row for row in seen if row[0] == f"{name}.0"]
        assert [turn for _, turn, _, _ in mine] == [0, 1, 2]
        assert mine[0][2] == ["user"]
        assert mine[2][2] == ["user", "assistant", "user", "assistant", "user"]
        assert {index for *_, index in mine} == {int(name)}


# Limits


def test_a_cap_on_turns_truncates():
    episodes = played(jobs_of(), partial(Walks, length=5), max_turns=2)
    for episode in episodes.values():
        assert (len(episode.turns), episode.outcome) == (2, Outcome.TRUNCATED)
        assert episode.stop is Stop.MAX_TURNS and episode.trainable is False  # no tokens
        assert "mile 2" in episode.final_observation


@pytest.mark.parametrize("where", ["settings", "engine"])
def test_an_episode_ends_truncated_when_its_tokens_are_used_up(where):
    opening = len(played(jobs_of(tasks=1), Walks, llm())["0.0"].turns[0].context_ids)
    room = opening + 40
    limits = {"max_tokens": room} if where == "settings" else {}
    policy = llm(max_len=512 if where == "settings" else room)
    episodes = played(jobs_of(), partial(Walks, length=50), policy, **limits)
    for episode in episodes.values():
        assert (episode.outcome, episode.stop) == (Outcome.TRUNCATED, Stop.MAX_TOKENS)
        (segment,) = episode.segments
        assert opening < len(segment.ids) <= room
        assert episode.trainable and len(episode.turns) > 1


@pytest.mark.parametrize("teacher", [False, True])
def test_an_opening_that_does_not_fit_ends_an_episode_before_its_first_turn(teacher):
    scripted = ScriptedPolicy(expert, renderer=model_and_renderer()[1])
    policy = scripted if teacher else llm()
    for episode in played(jobs_of(), Walks, policy, max_tokens=5).values():
        assert episode.turns == () and episode.stop is Stop.MAX_TOKENS
        assert not episode.trainable


@pytest.mark.parametrize("bad", [{"concurrency": 0}, {"max_turns": 0}])
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Settings(**bad)


# Tokens


def test_a_later_context_continues_exactly_what_was_read_and_sampled():
    requests = []
    policy = llm(max_new_tokens=4)
    submit = policy.engine.submit
    policy.engine.submit = lambda r: (requests.append((r.session, list(r.token_ids))), submit(r))
    episodes = played(jobs_of(Guess), Guess, policy)
    for episode in episodes.values():
        asked = [ids for session, ids in requests if session == episode.id]
        (segment,) = episode.segments
        so_far = []
        for turn, ids in zip(episode.turns, asked, strict=True):
            assert ids == so_far + list(turn.context_ids)
            so_far = ids + list(turn.action_ids)
        assert segment.ids == so_far and len(episode.turns) > 1


def test_observations_reach_the_model_and_actions_the_environment_as_they_are():
    _, renderer = model_and_renderer()
    for episode in played(jobs_of(Guess), Guess, llm()).values():
        for turn in episode.turns:
            assert turn.action == renderer.action_text(turn.action_ids)
            assert turn.observation in renderer.codec.decode(turn.context_ids)


def test_a_policy_without_tokens_leaves_none():
    for episode in played(jobs_of(Guess), Guess, ScriptedPolicy(noop)).values():
        assert episode.turns and not episode.trainable
        assert all(t.context_ids == t.action_ids == () for t in episode.turns)


def test_an_expert_with_a_renderer_writes_what_a_sampled_episode_would_hold():
    _, renderer = model_and_renderer()
    texts = played(jobs_of(Guess), Guess, ScriptedPolicy(expert))
    tokens = played(jobs_of(Guess), Guess, ScriptedPolicy(expert, renderer=renderer))
    for name, episode in tokens.items():
        assert episode.success and episode.trainable
        assert [t.action for t in episode.turns] == [t.action for t in texts[name].turns]
        for turn in episode.turns:
            assert turn.executor == "expert" and set(turn.logprobs) == {0.0}
            assert renderer.action_text(turn.action_ids) == turn.action
            assert turn.action_ids[-1] == renderer.stop_ids[0]


# Mixtures


def mixture(beta):
    _, renderer = model_and_renderer()
    teacher = ScriptedPolicy(expert, renderer=renderer, executor="teacher")
    return MixturePolicy(llm(), teacher, bernoulli(beta))


def test_a_mixture_is_the_same_at_any_concurrency():
    jobs = jobs_of(tasks=8)
    runs = [played(jobs, Walks, mixture(0.5), concurrency=n) for n in (1, 64)]
    assert essences(runs[0]) == essences(runs[1])
    executors = {t.executor for e in runs[0].values() for t in e.turns}
    assert executors == {"student", "teacher"}


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_mixture_delivers_its_share(beta):
    student, teacher = ScriptedPolicy(noop, executor="student"), ScriptedPolicy(expert)
    policy = MixturePolicy(student, teacher, bernoulli(beta))
    episodes = played(jobs_of(tasks=150, replicas=4), partial(Walks, length=4), policy)
    acted = Counter(t.executor for e in episodes.values() for t in e.turns)
    share = acted["expert"] / acted.total()
    assert abs(share - beta) < (0.03 if 0 < beta < 1 else 1e-9)


def test_a_probability_is_one():
    with pytest.raises(ValueError, match="beta"):
        bernoulli(1.5)


def test_chance_knows_the_tools_and_is_reproducible():
    runs = [played(jobs_of(Guess), Guess, ScriptedPolicy(random_tool)) for _ in range(2)]
    assert essences(runs[0]) == essences(runs[1])
    names = {c["name"] for e in runs[0].values() for t in e.turns for c in t.calls}
    assert names == {"look", "submit"}


def test_chance_calls_the_tools_of_an_environment_that_parses_calls_itself():
    class Own(Walks):
        def tool_schemas(self):
            return Guess().tool_schemas()

    for episode in played(jobs_of(), Own, ScriptedPolicy(random_tool)).values():
        for turn in episode.turns:
            (call,) = HERMES.parse(turn.action).calls
            assert call.name in ("look", "submit") and isinstance(call.args["number"], int)


def test_chance_is_reproducible_where_there_are_no_tools():
    runs = [played(jobs_of(), Walks, ScriptedPolicy(random_tool)) for _ in range(2)]
    assert essences(runs[0]) == essences(runs[1])
