"""The laws that every environment must keep, one function each; `check_env` runs them all.

A probe returns what it looked at, or raises `Broken` with what failed, why, and how to mend it.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import env_checker

from turnwise.envs import fuzz
from turnwise.envs.base import Env, is_mute
from turnwise.envs.playing import (
    MAX_TURNS,
    Broken,
    Played,
    Skipped,
    Subject,
    advance,
    mixed,
    play,
    same,
    start,
)
from turnwise.envs.types import Task

_OWN_RNG = (
    "take every random choice from self.rng or self.np_random, which reset seeds, and keep no "
    "state on the class or in the module"
)


def gymnasium_accepts(subject: Subject) -> str:
    """gymnasium's own checker accepts it."""
    with subject.open() as env, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level, gymnasium.logger.min_level = gymnasium.logger.min_level, gymnasium.logger.ERROR
        env.spec = EnvSpec(id="turnwise/Checked-v0", entry_point=lambda **_: subject.make())
        try:
            env_checker.check_env(env, skip_render_check=True)
        except AssertionError as error:
            raise Broken(str(error), "see gymnasium's documentation of Env") from error
        finally:
            gymnasium.logger.min_level = level
    return "gymnasium.utils.env_checker.check_env"


def seeds_are_honoured(subject: Subject) -> str:
    """The same seed gives the same episode, after other episodes and in a fresh environment."""
    for seed in subject.seeds:
        with subject.open() as env, subject.open() as fresh:
            first = play(env, seed)
            play(env, seed + 1)
            again, elsewhere = play(env, seed), play(fresh, seed)
        same(first, again, f"seed {seed} played twice in one environment", _OWN_RNG)
        same(first, elsewhere, f"seed {seed} played in two environments", _OWN_RNG)
    return f"{len(subject.seeds)} seeds"


def seeds_differ(subject: Subject) -> str:
    """Different seeds do not all give the same episode."""
    with subject.open() as env:
        if len(env.tasks(env.splits[0])) < 2:
            raise Skipped("there is only one task")
        keys = {start(env, seed).rows[0]["task"] for seed in range(20)}
        if len(keys) == 1:
            mend = "let reset draw the task by seed; Env.begin does it"
            raise Broken("20 seeds gave one and the same task", mend)
    return f"{len(keys)} tasks from 20 seeds"


def isolated_from_other_environments(subject: Subject) -> str:
    """An episode is the same while other environments are stepped between its turns."""
    for seed in subject.seeds:
        with subject.open() as env:
            alone = play(env, seed)
        what = f"seed {seed} alone, then beside {subject.concurrency - 1} others"
        same(alone, _beside_others(subject, seed), what, _OWN_RNG)
    return f"{subject.concurrency} environments, interleaved"


def _beside_others(subject: Subject, seed: int) -> Played:
    """Play `seed` while environments that were started later are stepped between its turns."""
    with contextlib.ExitStack() as stack:
        env = stack.enter_context(subject.open())
        played, rng = start(env, seed), random.Random(seed)
        agent = mixed(env, played)
        others = [stack.enter_context(subject.open()) for _ in range(subject.concurrency - 1)]
        crowd = [start(other, seed + 1 + i) for i, other in enumerate(others)]
        while not played.ended and len(played.actions) < MAX_TURNS:
            played = advance(env, played, agent, rng)
            for i, other in enumerate(others):
                if not crowd[i].ended:
                    crowd[i] = advance(other, crowd[i], agent, random.Random(i))
    return played


def isolated_across_threads(subject: Subject) -> str:
    """Episodes played at once on threads are those that are played alone."""
    seeds = [subject.seeds[i % len(subject.seeds)] for i in range(subject.concurrency)]

    def one(seed: int) -> Played:
        with subject.open() as env:
            return play(env, seed)

    alone = {seed: one(seed) for seed in set(seeds)}
    with ThreadPoolExecutor(subject.concurrency) as pool:
        for seed, played in zip(seeds, pool.map(one, seeds), strict=True):
            same(alone[seed], played, f"seed {seed} alone, then among threads", _OWN_RNG)
    return f"{subject.concurrency} threads"


def global_randomness_untouched(subject: Subject) -> str:
    """Neither `random` nor `numpy.random` is seeded, drawn from or relied on."""
    kept = random.getstate(), np.random.get_state()
    try:
        episodes = [_under_global_seed(subject, seed) for seed in (1, 2)]
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
    same(
        episodes[0], episodes[1], "the global generators were seeded with 1, then with 2", _OWN_RNG
    )
    return "random and numpy.random"


def _under_global_seed(subject: Subject, seed: int) -> Played:
    random.seed(seed)
    np.random.seed(seed)
    before = _global_states()
    with subject.open() as env:
        played = play(env, subject.seeds[0])
    for name, state in _global_states().items():
        if state != before[name]:
            raise Broken(f"the global generator {name} was seeded or drawn from", _OWN_RNG)
    return played


def _global_states() -> dict[str, str]:
    return {"random": repr(random.getstate()), "numpy.random": _numpy_state()}


def _numpy_state() -> str:
    state = dict(np.random.get_state(legacy=False))
    return repr(
        {**state, "state": {k: np.asarray(part).tolist() for k, part in state["state"].items()}}
    )


def malformed_actions_are_answered(subject: Subject) -> str:
    """No text makes `step` raise, and an error observation stays short."""
    rng = random.Random(0)
    with subject.open() as env:
        sampled = [env.action_space.sample() for _ in range(20)]
        for action in (*fuzz.MALFORMED, *sampled):
            played = start(env, subject.seeds[0])
            played = _answered(env, played, action, rng)
            for line in played.rows[-1]["observation"].split("\nToolError"):
                if line.startswith(("ToolError[", "[")) and len(line) > 400:
                    raise Broken(
                        f"the error for {action[:40]!r} has {len(line)} characters",
                        "keep error observations within 400 characters",
                    )
    return f"{len(fuzz.MALFORMED) + len(sampled)} actions"


def _answered(env: Env, played: Played, action: str, rng: random.Random) -> Played:
    try:
        return advance(env, played, lambda *_: action, rng)
    except Exception as error:
        raise Broken(
            f"step({action[:60]!r}) raised {type(error).__name__}: {error}",
            "answer what the agent did wrong with an observation; in a tool, raise ToolFailed",
        ) from error


def info_is_complete(subject: Subject) -> str:
    """`info` holds what rollouts read, and the observation is among the new messages."""
    with subject.open() as env:
        played = start(env, subject.seeds[0])
        _has(played.info, "reset", task=Task, messages=list, tools=list, state=str)
        if is_mute(played.info["messages"]):
            raise Broken("the opening is empty", "return from setup what the agent reads first")
        played = play(env, subject.seeds[0])
        _has(played.info, "step", messages=list, state=str, rewards=dict, calls=list)
        _has(played.info, "the last step", success=bool)
    for row in played.rows:
        roles = {message["role"] for message in row["messages"]}
        if not row["messages"] or roles - {"system", "user", "tool"}:
            raise Broken(f"messages have the roles {sorted(roles)}", "use system, user and tool")
        json.dumps(row, allow_nan=False).encode()
    return "reset, step and last step"


def _has(info: dict[str, Any], where: str, **kinds: type) -> None:
    for name, kind in kinds.items():
        if not isinstance(info.get(name), kind):
            raise Broken(
                f"info[{name!r}] of {where} must be {kind.__name__}, got {info.get(name)!r:.60}",
                "derive from TextEnv or ToolEnv, which fill it in",
            )


def episodes_end(subject: Subject) -> str:
    """Within `max_turns`, and not again: a step after the end is refused."""
    with subject.open() as env:
        played = play(env, subject.seeds[0], fuzz.empty_agent)
        if not played.ended or len(played.actions) > env.max_turns:
            raise Broken(
                f"an agent that says nothing played {len(played.actions)} turns, "
                f"and max_turns is {env.max_turns}",
                "truncate at max_turns",
            )
        try:
            env.step("")
        except Exception:
            return f"after {len(played.actions)} turns"
        raise Broken("a step after the end was played", "raise gymnasium.error.ResetNeeded")


def rewards_stay_in_range(subject: Subject) -> str:
    """Rewards are finite, add up from their parts, and their sum stays in `reward_range`."""
    totals = []
    with subject.open() as env:
        low, high = env.reward_range
        for seed in subject.seeds:
            for agent in (None, *([fuzz.expert_agent] if hasattr(env, "expert") else [])):
                played = play(env, seed, agent)
                _refuse_judge_error(played)
                _adds_up(played)
                totals.append(played.reward)
        if (worst := max(totals, key=lambda t: max(low - t, t - high))) > high + 1e-9 or (
            worst < low - 1e-9
        ):
            raise Broken(
                f"an episode earned {worst:g}, outside reward_range [{low:g}, {high:g}]",
                "correct the reward or declare the range",
            )
    return f"{min(totals):g} to {max(totals):g}"


def _refuse_judge_error(played: Played) -> None:
    if played.info.get("outcome") == "judge_error":
        raise Broken(
            f"the grader failed: {played.info.get('detail', '')}",
            "a @reward method must return a finite float in every state",
        )


def _adds_up(played: Played) -> None:
    for turn, row in enumerate(played.rows[1:], 1):
        if abs(sum(row["rewards"].values()) - row["reward"]) > 1e-9:
            raise Broken(
                f"turn {turn}: the parts {row['rewards']} do not add up to {row['reward']}",
                "put every part, with its weight, into info['rewards']",
            )


def expert_is_accepted(subject: Subject) -> str:
    """The grader accepts what the environment's own expert does."""
    with subject.open() as env:
        if not hasattr(env, "expert"):
            raise Skipped("no expert() is offered")
        for seed in subject.seeds:
            played = play(env, seed, fuzz.expert_agent)
            if not played.info.get("success"):
                raise Broken(
                    f"seed {seed}: the expert failed after {len(played.actions)} turns with "
                    f"reward {played.reward:g}; it last did {played.actions[-1][:60]!r} and read "
                    f"{played.rows[-1]['observation'][:80]!r}",
                    "correct expert(), the grader or max_turns",
                )
    return f"{len(subject.seeds)} episodes"


def no_reward_without_trying(subject: Subject) -> str:
    """Agents that say nothing, echo, or only get the format right earn at most chance."""
    means = {}
    with subject.open() as env:
        tools = start(env, subject.seeds[0]).info["tools"]
        agents = {"empty": fuzz.empty_agent, "echo": fuzz.echo_agent, **fuzz.format_agents(tools)}
        for name, agent in agents.items():
            earned = [play(env, seed, agent).reward for seed in subject.seeds]
            means[name] = statistics.fmean(earned)
        name = max(means, key=lambda agent: means[agent])
        if means[name] > env.chance_reward + 1e-9:
            raise Broken(
                f"the {name} agent earns {means[name]:g} on average, more than chance_reward "
                f"{env.chance_reward:g}",
                "pay for the result and not for its form, or declare chance_reward",
            )
    return f"{len(means)} agents, at most {means[name]:g}"


def splits_are_disjoint(subject: Subject) -> str:
    """Splits share no task, no task occurs twice, and their order is fixed."""
    seen: dict[str, str] = {}
    with subject.open() as env, subject.open() as other:
        for split in env.splits:
            tasks, again = env.tasks(split), other.tasks(split)
            if len(tasks) == 0:
                raise Broken(f"split {split!r} is empty", "give every split at least one task")
            for i, task in enumerate(islice(tasks, 200)):
                if task.key != again[i].key:
                    raise Broken(f"{split}[{i}] differs between two calls", "fix the order")
                if task.key in seen:
                    raise Broken(
                        f"{split}[{i}] is also in {seen[task.key]}: {task}",
                        "make splits from disjoint seeds or rows",
                    )
                seen[task.key] = f"{split}[{i}]"
    return f"{len(seen)} tasks"


def tasks_survive_json(subject: Subject) -> str:
    """A task comes back equal from its JSON, and `reset` plays the task that it was given."""
    with subject.open() as env:
        for split in env.splits:
            task = env.tasks(split)[0]
            back = type(task)(**json.loads(json.dumps(task.to_json(), allow_nan=False)))
            if back.key != task.key or type(back) is not env.Task:
                raise Broken(
                    f"{task} came back from JSON as {back}",
                    "use fields that JSON holds: str, int, float, bool, lists and dicts of them",
                )
            given = start(env, subject.seeds[0], {"task": back})
            if given.rows[0]["task"] != task.key:
                raise Broken(
                    f"reset was given {task.key} and played {given.rows[0]['task']}",
                    'play options["task"]; Env.begin does it',
                )
    return f"{len(env.splits)} splits"


def snapshots_restore(subject: Subject) -> str:
    """From a snapshot, in the same and in a fresh environment, the episode goes on alike."""
    with subject.open() as env, subject.open() as fresh:
        if not (hasattr(env, "snapshot") and hasattr(env, "restore")):
            raise Skipped("no snapshot() and restore() are offered")
        played = _underway(env, subject.seeds)
        agent = mixed(env, played)
        saved: bytes = env.snapshot()
        endings = [_to_the_end(env, played, agent)]
        for restored in (env, fresh):
            restored.restore(saved)  # type: ignore[attr-defined]
            endings.append(_to_the_end(restored, played, agent))
    mend = "save everything that the next step reads, the random generators included"
    same(endings[0], endings[1], "after restore in the same environment", mend)
    same(endings[0], endings[2], "after restore in a fresh environment", mend)
    return f"{len(saved)} bytes"


def _underway(env: Env, seeds: Sequence[int]) -> Played:
    """Return an episode of some turns that goes on, or else one that has just begun."""
    for seed in seeds:
        played = start(env, seed)
        played = advance(env, played, mixed(env, played), random.Random(seed))
        if not played.ended:
            return played
    return start(env, seeds[0])


def _to_the_end(env: Env, played: Played, agent: fuzz.Agent) -> Played:
    rng = random.Random(7)
    while not played.ended and len(played.actions) < MAX_TURNS:
        played = advance(env, played, agent, rng)
    return played


def closes_twice(subject: Subject) -> str:
    """`close` may be called before a reset, in an episode, and again."""
    mend = "make close() idempotent: free what is there, then forget it"
    for started in (False, True):
        env = subject.make()
        if started:
            start(env, subject.seeds[0])
        for count in (1, 2):
            try:
                env.close()
            except Exception as error:
                when = "after reset" if started else "before reset"
                what = f"close number {count} {when} raised {type(error).__name__}: {error}"
                raise Broken(what, mend) from error
    return "before and after reset"


def fast_is_fast(subject: Subject) -> str:
    """An environment that says it is fast answers within milliseconds."""
    with subject.open() as env:
        if not env.fast:
            raise Skipped("fast is False: steps run on threads")
        played, rng, seconds = start(env, subject.seeds[0]), random.Random(0), list[float]()
        agent = mixed(env, played)
        while not played.ended and len(seconds) < 20:
            began = time.perf_counter()
            played = advance(env, played, agent, rng)
            seconds.append(time.perf_counter() - began)
        best = min(seconds) * 1e3  # the median would measure what else the machine is doing
        if best > 20:
            raise Broken(f"the quickest step took {best:.1f} ms", "set fast = False")
    return f"quickest step {best:.2f} ms"


PROBES: tuple[Callable[[Subject], str], ...] = (
    gymnasium_accepts,
    info_is_complete,
    seeds_are_honoured,
    seeds_differ,
    isolated_from_other_environments,
    isolated_across_threads,
    global_randomness_untouched,
    malformed_actions_are_answered,
    episodes_end,
    rewards_stay_in_range,
    expert_is_accepted,
    no_reward_without_trying,
    splits_are_disjoint,
    tasks_survive_json,
    snapshots_restore,
    closes_twice,
    fast_is_fast,
)
"""In the order in which they are reported."""
