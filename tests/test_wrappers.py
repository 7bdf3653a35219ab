"""Laws of wrappers: without luck they change nothing; their luck is the seed's and the turn's."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import pytest
from fakes import Guess, Parrot, Secret
from gymnasium.error import ResetNeeded
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Walks

from turnwise.agents.policy import ScriptedPolicy, expert, random_tool
from turnwise.agents.record import RecordWriter, read_records
from turnwise.agents.replay import branch, execute
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.cli.main import main
from turnwise.envs import registry, wrappers
from turnwise.envs.base import Env
from turnwise.envs.check import check_env
from turnwise.envs.names import UnknownName
from turnwise.envs.playing import Played, advance, mixed, start
from turnwise.envs.probes import LAWS, name_of
from turnwise.envs.registry import make
from turnwise.envs.tools import tool
from turnwise.envs.types import Task
from turnwise.envs.wrapper import Wrapper
from turnwise.envs.wrappers import ActionSlips, ObservationBudget, TimeLimit, ToolFailures
from turnwise.envs.wrappers_budget import shares, shortened

HARD = {
    "TimeLimit": {"turns": 25},
    "ToolFailures": {"p": 0.1, "code": "timeout"},
    "ActionSlips": {"p": 0.05},
    "ObservationBudget": {"chars": 200},
}
STACK = [[name, arguments] for name, arguments in HARD.items()]
HUNT = {"depth": 2, "slack": 20}


class Shouting(Wrapper):
    """A wrapper of somebody's own, which counts its turns."""

    def __init__(self, env, /, *, mark="!"):
        super().__init__(env, mark=mark)
        self.mark = mark

    def step(self, action):
        observation, *rest, info = super().step(action)
        self.memory["turns"] = self.memory.get("turns", 0) + 1
        return self.mark + observation[1:], *rest, info


class Talker(Guess):
    """Answers at length, in several messages."""

    @tool
    def talk(self, words: int) -> str:
        """Say much."""
        return "blah " * words


class Plain(Env):
    """No `TextEnv`: it keeps no books and knows no limit."""

    def tasks(self, split):
        return [Secret(index=i) for i in range(3)]

    Task = Secret

    def reset(self, *, seed=None, options=None):
        task = self.begin(seed, options)
        return "go", {"task": task, "messages": [{"role": "user", "content": "go"}]}

    def step(self, action):
        return "on", 0.5, False, False, {"rewards": {"reward": 0.5}, "calls": []}


def played(env: Env, seed: int) -> Played:
    episode, rng = start(env, seed), random.Random(seed)
    agent = mixed(env, episode)
    while not episode.ended:
        episode = advance(env, episode, agent, rng)
    return episode


def stack_of(make_env, *wrappers):
    def made():
        env = make_env()
        for cls, arguments in wrappers:
            env = cls(env, **arguments)
        return env

    return made


SLOW = ("nothing is left behind", "same in another process", "every format is answered")
QUICK = [name for law in LAWS if (name := name_of(law)) not in SLOW]


@pytest.mark.parametrize(("id", "kwargs"), [("turnwise/FileHunt-v1", HUNT), ("fakes:Guess", {})])
def test_an_environment_in_four_wrappers_keeps_the_contract(id, kwargs):
    report = check_env(id, seeds=range(2), concurrency=2, wrappers=STACK, **kwargs)
    assert report.ok, str(report)


@pytest.mark.parametrize("wrapper", STACK)
@pytest.mark.parametrize(("id", "kwargs"), [("turnwise/FileHunt-v1", HUNT), ("fakes:Guess", {})])
def test_a_wrapped_environment_keeps_the_laws_that_are_quick_to_try(id, kwargs, wrapper):
    chosen = {"laws": QUICK, "seeds": range(3), "concurrency": 3}
    report = check_env(id, **chosen, wrappers=[wrapper], **kwargs)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    "make_env",
    [
        lambda: TimeLimit(Walks(), turns=2),
        lambda: ObservationBudget(Parrot(), chars=60),
        lambda: ActionSlips(Walks(length=3), p=0.0, actions=["b"]),
        lambda: Shouting(TimeLimit(Guess(), turns=9)),
    ],
)
def test_a_wrapped_toy_keeps_the_contract(make_env):
    report = check_env(make_env, laws=QUICK, seeds=range(2), concurrency=2)
    assert report.ok, str(report)


NOTHING = [
    (TimeLimit, {"turns": 10_000}),
    (ToolFailures, {"p": 0}),
    (ActionSlips, {"p": 0}),
    (ObservationBudget, {"chars": 10**6}),
]


@pytest.mark.parametrize("wrappers", [*[[entry] for entry in NOTHING], NOTHING])
@pytest.mark.parametrize("make_env", [Guess, lambda: make("turnwise/FileHunt-v1", depth=2)])
def test_without_luck_and_within_its_limits_a_wrapper_changes_nothing(make_env, wrappers):
    for seed in range(8):
        bare, wrapped = make_env(), stack_of(make_env, *wrappers)()
        one, other = played(bare, seed), played(wrapped, seed)
        bare.close()
        wrapped.close()
        assert (one.rows, one.actions, one.info) == (other.rows, other.actions, other.info)


def test_where_every_call_fails_none_succeeds_and_the_world_stays_as_it_was():
    for code in ("timeout", "tool_raised"):
        env = ToolFailures(Guess(), p=1, code=code)
        _, info = env.reset(seed=3)
        before = info["state"]
        for _ in range(env.max_turns):
            observation, reward, terminated, truncated, info = env.step(env.expert())
            assert [call["error"].split()[0] for call in info["calls"]] == [code]
            assert observation.startswith(f"ToolError[{code}]") and reward == 0
            assert info["state"] == before and not terminated
        assert truncated
        assert not info["success"] and info["metrics"]["tool_failures"] == env.max_turns


def test_a_call_that_is_wrong_does_not_fail_by_chance_as_well():
    env = ToolFailures(Guess(actions="command"), p=1)
    env.reset(seed=0)
    assert env.step("look much")[4]["error"] == "bad_args"
    assert env.step("jump")[4]["error"] == "unknown_tool"


def turns_that_fail(env: Env, seed: int, choose) -> list[int]:
    env.reset(seed=seed)
    failed, ended = [], False
    while not ended:
        *_, terminated, truncated, info = env.step(choose(env))
        failed += [env.turn] if info.get("error") == "timeout" else []
        ended = terminated or truncated
    return failed


def test_luck_follows_from_the_seed_and_the_turn_whatever_was_done_before():
    make_env = stack_of(Guess, (ToolFailures, {"p": 0.5}))
    for seed in range(10):
        ways = [lambda env: env.call_text("look", number=3), lambda env: env.expert()]
        one, other = (turns_that_fail(make_env(), seed, way) for way in ways)
        last = max(other, default=0)
        assert [turn for turn in one if turn <= last] == other
    drawn = {str(turns_that_fail(make_env(), seed, ways[0])) for seed in range(10)}
    assert len(drawn) > 5


def test_two_wrappers_of_one_class_draw_apart_and_others_between_change_nothing():
    look = lambda env: env.call_text("look", number=3)  # noqa: E731
    once = stack_of(Guess, (ToolFailures, {"p": 0.5}))
    twice = stack_of(Guess, *[(ToolFailures, {"p": 0.5})] * 2)
    between = stack_of(Guess, (TimeLimit, {"turns": 99}), (ToolFailures, {"p": 0.5}))
    counts = [0, 0]
    for seed in range(20):
        alone = turns_that_fail(once(), seed, look)
        both = turns_that_fail(twice(), seed, look)
        assert set(alone) <= set(both)
        assert alone == turns_that_fail(between(), seed, look)
        counts = [counts[0] + len(alone), counts[1] + len(both)]
    assert 70 < counts[0] < 130 < counts[1] < 170  # of 200: half of them, and three quarters


def test_a_slip_plays_another_valid_action_and_never_ends_the_episode():
    env = ActionSlips(Guess(), p=1)
    for seed in range(5):
        env.reset(seed=seed)
        for _ in range(env.max_turns):
            *_, terminated, truncated, info = env.step(env.call_text("submit", number=1))
            (call,) = info["calls"]
            assert call["name"] == "look" and info["slipped"] == call["raw"]
            assert not terminated
        assert truncated and info["metrics"]["slips"] == env.max_turns


def test_slips_come_as_often_as_they_should_and_are_noted():
    env = ActionSlips(Walks(length=40), p=0.25, actions=["b"])
    env.max_turns = 40
    slips = right = 0
    for seed in range(20):
        env.reset(seed=seed)
        for _ in range(40):
            *_, info = env.step("a")
            slips += info.get("slipped") == "b"
        right += round(40 * 1.0) - info["metrics"]["slips"]
    assert right == 800 - slips and 160 < slips < 240


def test_slips_are_the_same_on_many_threads_at_once():
    make_env = stack_of(Guess, (ActionSlips, {"p": 0.3}), (ToolFailures, {"p": 0.3}))

    def episode(seed: int) -> list:
        env = make_env()
        env.reset(seed=seed)
        steps = [env.step(env.call_text("look", number=seed)) for _ in range(10)]
        return [(observation, info["calls"]) for observation, *_, info in steps]

    alone = [episode(seed) for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(episode, range(16))) == alone
    assert len({json.dumps(rows) for rows in alone}) == 16


@pytest.mark.parametrize("chars", [60, 75, 200])
def test_no_turn_says_more_than_its_budget_and_what_is_left_out_is_said(chars):
    env = ObservationBudget(Talker(), chars=chars)
    rng = random.Random(chars)
    env.reset(seed=0)
    for turn in range(9):
        words = [rng.randrange(100) for _ in range(1 + turn % 4)]
        action = "\n".join(env.call_text("talk", words=count) for count in words)
        observation, *_, info = env.step(action)
        said = [message["content"] for message in info["messages"]]
        assert len(said) == len(words) and observation == "\n".join(said)
        assert len(observation) <= chars
        cut = sum(5 * count for count in words) + len(words) - 1 > chars
        if len(words) == 1 and cut:
            assert "[output_truncated]" in observation


def test_a_long_opening_is_cut_and_the_system_prompt_is_not():
    class Wordy(Guess):
        def setup(self, task, rng):
            return super().setup(task, rng) + " blah" * 100

    env = ObservationBudget(Wordy(), chars=100)
    observation, info = env.reset(seed=0)
    system, user = info["messages"]
    assert system == Wordy().reset(seed=0)[1]["messages"][0]
    assert user["content"] == observation and len(observation) == 100
    assert observation.startswith("Café: guess")


@given(st.lists(st.integers(0, 300), max_size=9), st.integers(-5, 500))
@settings(deadline=None)
def test_shares_use_the_budget_up_and_spare_the_short(lengths, budget):
    granted = shares(lengths, budget)
    assert all(0 <= share <= length for share, length in zip(granted, lengths, strict=True))
    budget = max(budget, 0)
    assert sum(granted) <= budget
    if sum(lengths) <= budget:
        assert granted == lengths
    elif lengths:
        assert sum(granted) > budget - len(lengths)
        cut = [g for g, length in zip(granted, lengths, strict=True) if g < length]
        assert min(cut) >= max(granted) - len(lengths)


@given(st.text(max_size=400), st.integers(0, 300))
@settings(deadline=None)
def test_a_shortened_text_fits_and_tells_how_much_it_lacks(text, room):
    short = shortened(text, room)
    assert len(short) <= room or short == text
    if len(text) > room and "[output_truncated]" in short:
        head, _, rest = short.partition("\n[output_truncated] ")
        count, _, tail = rest.partition(" characters left out\n")
        assert text.startswith(head) and text.endswith(tail)
        assert int(count) == len(text) - len(head) - len(tail)


def test_a_time_limit_ends_the_episode_and_pays_what_the_end_pays():
    env = TimeLimit(Guess(), turns=3)
    assert env.max_turns == 3
    env.reset(seed=0)
    steps = [env.step(env.call_text("look", number=19)) for _ in range(3)]
    assert [(terminated, truncated) for _, _, terminated, truncated, _ in steps] == [
        (False, False),
        (False, False),
        (False, True),
    ]
    info = steps[-1][4]
    assert info["outcome"] == "truncated" and "width" in info["metrics"]
    assert info["rewards"] == {"solved": 0.0} and info["success"] is False
    with pytest.raises(ResetNeeded):
        env.step("")
    assert env.env.max_turns == 10


def test_the_lower_one_of_two_time_limits_holds():
    for turns in ((3, 5), (5, 3), (3, 99), (99, 3)):
        env = TimeLimit(TimeLimit(Guess(), turns=turns[0]), turns=turns[1])
        assert env.max_turns == 3
        assert len(played(env, 0).actions) <= 3
    assert TimeLimit(Guess(), turns=99).max_turns == 10


def test_an_environment_without_books_is_cut_as_well_and_takes_no_further_step():
    env = TimeLimit(Plain(), turns=2)
    for _ in range(2):
        env.reset(seed=0)
        assert env.step("a")[3] is False
        *_, terminated, truncated, info = env.step("a")
        assert (terminated, truncated, info["outcome"]) == (False, True, "truncated")
        assert info["success"] is False and info["metrics"] == {}
        with pytest.raises(ResetNeeded, match="ended after 2 turns"):
            env.step("a")


def test_wrapped_by_hand_and_by_name_are_the_same_and_are_made_again_from_what_they_say():
    by_name = make("fakes:Guess", actions="command", wrappers=STACK)
    by_hand = make("fakes:Guess", actions="command")
    for name, arguments in HARD.items():
        by_hand = getattr(wrappers, name)(by_hand, **arguments)
    kwargs = {"actions": "command", "wrappers": STACK}
    for env in (by_name, by_hand):
        assert (env.env_id, json.loads(json.dumps(env.env_kwargs))) == ("fakes:Guess", kwargs)
    again = make(by_name.env_id, **json.loads(json.dumps(by_name.env_kwargs)))
    for seed in range(5):
        rows = [played(env, seed).rows for env in (by_name, by_hand, again)]
        assert rows[0] == rows[1] == rows[2]


def test_wrappers_can_be_registered_and_overridden(monkeypatch):
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    kept = dict(gymnasium.registry)
    registry.register("mine/Hard-v1", "fakes:Guess", kwargs={"wrappers": STACK[:1]})
    try:
        assert isinstance(gymnasium.make("mine/Hard-v1").unwrapped, Guess)
        assert gymnasium.make("mine/Hard-v1").get_wrapper_attr("turns") == 25
    finally:
        gymnasium.registry.clear()
        gymnasium.registry.update(kept)
    hard, plain = make("mine/Hard-v1"), make("mine/Hard-v1", wrappers=[])
    assert isinstance(hard, TimeLimit) and isinstance(plain, Guess)
    for env in (hard, plain):
        assert type(make(env.env_id, **env.env_kwargs)) is type(env)


@pytest.mark.parametrize("wrappers", [STACK, [*STACK, ["test_wrappers:Shouting", {"mark": "?"}]]])
@pytest.mark.parametrize("act", [expert, random_tool])
def test_a_record_of_wrapped_episodes_replays(tmp_path, act, wrappers):
    def make_env():
        return make("turnwise/FileHunt-v1", depth=2, wrappers=wrappers)

    jobs = jobs_for(make_env().tasks("dev")[:6], 2, run_seed=1, split="dev")
    episodes = list(play(jobs, make_env, ScriptedPolicy(act), Settings(concurrency=4)))
    with RecordWriter(tmp_path / "episodes.jsonl") as record:
        record.extend(episodes)
    rows = [row.episode for row in read_records(tmp_path / "episodes.jsonl")]
    assert [execute(episode) for episode in rows] == [None] * len(jobs)
    assert any("slips" in episode.metrics for episode in rows)
    with branch(max(rows, key=lambda episode: len(episode.turns)), until=1) as fork:
        assert isinstance(fork.env, Wrapper) and fork.env.expert()


def test_the_command_checks_evaluates_and_replays_a_wrapped_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kwargs = ["--env-kwargs", json.dumps({"wrappers": STACK, **HUNT})]
    hunt, laws = "turnwise/FileHunt-v1", ["--seeds", "2", "--concurrency", "2"]
    assert main(["check", hunt, *kwargs, *laws]) == 0
    evaluation = ["eval", hunt, *kwargs, "--tasks", "5", "--record", "r.jsonl", "--skip-floors"]
    assert main(evaluation) == 0
    assert main(["replay", "r.jsonl"]) == 0
    text = Path("r.jsonl").read_text()
    Path("r.jsonl").unlink()
    assert '"ToolFailures"' in text
    assert main(["info", hunt, *kwargs]) == 0


def test_a_fork_goes_on_alike_and_leaves_the_original_alone():
    def going_on(env: Env) -> list:
        return [env.step(env.call_text("look", number=n))[0] for n in range(4)]

    env = make("fakes:Guess", wrappers=[["ToolFailures", {"p": 0.5}], *STACK[2:]])
    env = Shouting(env)
    env.reset(seed=5)
    env.step(env.expert())
    saved, fork = env.snapshot(), env.fork()
    assert going_on(env) == going_on(fork)
    fork.restore(saved)
    assert fork.memory == {"turns": 1} and fork.turn == 1 and env.turn == 5
    assert type(fork) is Shouting and fork.env_kwargs == env.env_kwargs


def test_what_offers_no_snapshot_offers_none_when_wrapped():
    class Unsaved(Guess):
        snapshot = restore = None

    assert TimeLimit(Unsaved(), turns=3).snapshot is None
    assert not hasattr(TimeLimit(Plain(), turns=3), "snapshot")
    assert not hasattr(TimeLimit(Plain(), turns=3), "expert")


def test_a_wrapper_copies_nothing_so_what_changes_within_is_seen_without():
    inner = Guess()
    env = ObservationBudget(ToolFailures(inner, p=0), chars=100)
    env.reset(seed=0)
    inner.max_turns, inner.sandbox, inner.low = 7, "nowhere", 4
    assert (env.max_turns, env.sandbox, env.low) == (7, "nowhere", 4)
    assert env.unwrapped is inner and env.task is inner.task and env.rng is inner.rng
    with pytest.raises(AttributeError, match="_mistakes"):
        env._mistakes  # noqa: B018


OWN = {"fast_forward", "get_wrapper_attr", "has_wrapper_attr", "set_wrapper_attr"}
"""Right as `Env` has them: they go through the wrapper's own methods."""


def test_no_part_of_the_contract_is_answered_by_the_wrapper_for_the_environment_within():
    public = {name for name in dir(Env) if not name.startswith("_")}
    assert public - set(vars(Wrapper)) == OWN


def test_a_wrapper_answers_for_tasks_splits_and_ranges_of_what_it_wraps():
    class Odd(Guess):
        splits = ("train", "odd")
        reward_range, chance_reward, step_timeout_s = (-1.0, 2.0), 0.25, 7.0

        def tasks(self, split):
            return [Secret(index=self.splits.index(split))]

    env = TimeLimit(Odd(), turns=3)
    assert (env.splits, env.reward_range, env.chance_reward) == (
        ("train", "odd"),
        (-1.0, 2.0),
        0.25,
    )
    assert env.tasks("odd") == [Secret(index=1)] and env.known_split("odd") == "odd"
    assert env.Task is Secret and env.fast and env.step_timeout_s == 7.0
    assert env.reset(seed=0, options={"split": "odd"})[1]["task"] == Secret(index=1)


MISTAKES = {
    "turns must be an integer of at least 1, got 0": lambda: TimeLimit(Guess(), turns=0),
    "turns must be an integer of at least 1, got True": lambda: TimeLimit(Guess(), turns=True),
    "chars must be an integer of at least 60, got 59": lambda: ObservationBudget(Guess(), chars=59),
    "p is a probability, from 0 to 1, got 1.5": lambda: ToolFailures(Guess(), p=1.5),
    "p is a probability, from 0 to 1, got nan": lambda: ActionSlips(Guess(), p=float("nan")),
    "code must be one of timeout, tool_raised": lambda: ToolFailures(Guess(), p=0.1, code="busy"),
    "needs an environment of tools, and Parrot has none": lambda: ToolFailures(Parrot(), p=0.1),
    "define random_action": lambda: ActionSlips(Parrot(), p=0.1),
    "actions is a list of texts": lambda: ActionSlips(Parrot(), p=0.1, actions=[]),
    "from_gymnasium makes one": lambda: TimeLimit(gymnasium.make("Taxi-v4"), turns=3),
    "no wrapper 'TimeLimits'; did you mean 'TimeLimit'": lambda: make(
        "fakes:Guess", wrappers=[["TimeLimits", {"turns": 3}]]
    ),
    "TimeLimit takes no argument 'turn'; did you mean 'turns'": lambda: make(
        "fakes:Guess", wrappers=[["TimeLimit", {"turn": 3}]]
    ),
    "a wrapper is \\[name, arguments\\], got 'TimeLimit'": lambda: make(
        "fakes:Guess", wrappers=["TimeLimit"]
    ),
    "fakes:Parrot is no wrapper": lambda: make("fakes:Guess", wrappers=[["fakes:Parrot", {}]]),
    "did you mean 'wrappers'": lambda: make("fakes:Guess", wrapers=[]),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_answered_with_what_would_be_right(message):
    with pytest.raises((ValueError, TypeError, UnknownName), match=message):
        MISTAKES[message]()


def test_a_task_given_by_hand_reaches_the_environment_within():
    env = TimeLimit(Guess(), turns=3)
    task: Task = Secret(index=7, limit=5)
    assert env.reset(seed=1, options={"task": task})[1]["task"] is task
