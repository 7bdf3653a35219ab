"""Laws of form: what `reset`, `step` and `tasks` return, how episodes end, what `close` does."""

from __future__ import annotations

import json
import random
import time
import warnings
from itertools import islice
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import env_checker

from turnwise.envs import fuzz
from turnwise.envs.base import is_mute
from turnwise.envs.playing import Broken, Skipped, Subject, advance, mixed, play, start
from turnwise.envs.types import Task


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
        _is_text(row)
    return "reset, step and last step"


def _has(info: dict[str, Any], where: str, **kinds: type) -> None:
    for name, kind in kinds.items():
        if not isinstance(info.get(name), kind):
            raise Broken(
                f"info[{name!r}] of {where} must be {kind.__name__}, got {info.get(name)!r:.60}",
                "derive from TextEnv or ToolEnv, which fill it in",
            )


def _is_text(row: dict[str, Any]) -> None:
    roles = {message["role"] for message in row["messages"]}
    if not row["messages"] or roles - {"system", "user", "tool"}:
        raise Broken(f"messages have the roles {sorted(roles)}", "use system, user and tool")
    try:
        json.dumps(row, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise Broken(
            f"a record cannot hold what it said: {error}",
            "return text that UTF-8 can hold, and plain JSON values in info",
        ) from error


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
