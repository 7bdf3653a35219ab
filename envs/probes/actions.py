"""Laws of mistakes: whatever an agent writes is answered, shortly, and never run half-read."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

from turnwise.envs import fuzz
from turnwise.envs.actions import FORMATS
from turnwise.envs.base import Env
from turnwise.envs.calling import CODES
from turnwise.envs.names import UnknownName
from turnwise.envs.playing import Broken, Played, Skipped, Subject, advance, start

LONGEST = 400
"""Characters of an error observation, at most."""


def malformed_actions_are_answered(subject: Subject) -> str:
    """No text makes `step` raise, and an error observation stays short."""
    with subject.open() as env:
        sampled = [env.action_space.sample() for _ in range(20)]
        actions = [*fuzz.MALFORMED, *_of_its_tools(env, subject.seeds[0]), *sampled]
        count = _try(subject, env, actions, subject.seconds)
    return f"{count} actions"


def every_format_is_answered(subject: Subject) -> str:
    """In each format of calls that it takes, too: cut, garbled, mistyped, huge, with tags."""
    counts, names = {}, list(formats_of(subject))
    if not names:
        raise Skipped("its constructor takes no `actions`")
    for name in names:
        with subject.open(actions=name) as env:
            actions = list(_of_its_tools(env, subject.seeds[0]))
            counts[name] = _try(subject, env, actions, subject.seconds / len(names))
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def formats_of(subject: Subject) -> Iterator[str]:
    """Yield the names in `FORMATS` that the environment takes as `actions`."""
    for name in FORMATS:
        try:
            with subject.open(actions=name) as env:
                taken = fuzz.format_of(env).name == name
        except (TypeError, ValueError, UnknownName):
            continue
        if taken:
            yield name


def _of_its_tools(env: Env, seed: int) -> Iterator[str]:
    """Yield mistakes in calling the tools that the environment has."""
    rng = random.Random(seed)
    for schema in start(env, seed).info["tools"]:
        yield from fuzz.wrong_values(env, schema)
        yield from fuzz.mutations(fuzz.call_of(env, schema, fuzz.junk), rng)


def _try(subject: Subject, env: Env, actions: list[str], seconds: float) -> int:
    """Say each of `actions` while there is time; return how many were said."""
    random.Random(0).shuffle(actions)  # where time is short, some of every kind
    end = time.monotonic() + seconds
    played = start(env, subject.seeds[0])
    for count, action in enumerate(actions):
        if count and time.monotonic() > end:
            return count
        if played.ended:
            played = start(env, subject.seeds[0])
        played = _answered(env, played, action)
    return len(actions)


def _answered(env: Env, played: Played, action: str) -> Played:
    try:
        played = advance(env, played, fuzz.always(action), random.Random(0))
    except Exception as error:
        raise Broken(
            f"step({_excerpt(action)}) raised {type(error).__name__}: {error}",
            "answer what the agent did wrong with an observation; in a tool, raise ToolFailed",
        ) from error
    row = played.rows[-1]
    _is_utf8(action, row)
    _is_short(action, row["observation"])
    for call in row["calls"] or ():
        _is_an_error(action, call)
    return played


def _is_utf8(action: str, row: dict[str, Any]) -> None:
    try:
        "".join([row["observation"], *(said["content"] for said in row["messages"])]).encode()
    except UnicodeEncodeError as error:
        raise Broken(
            f"the answer to {_excerpt(action)} is no text that UTF-8 can hold: {error}",
            "replace lone surrogates: text.encode('utf-8', 'replace').decode()",
        ) from error


def _is_short(action: str, observation: str) -> None:
    for line in observation.split("\nToolError"):
        if line.startswith(("ToolError[", "[")) and len(line.partition("\n")[0]) > LONGEST:
            raise Broken(
                f"the error for {_excerpt(action)} has {len(line)} characters",
                f"keep error observations within {LONGEST} characters",
            )


def _is_an_error(action: str, call: dict[str, Any]) -> None:
    """Require of a call that could not be read a code that is known, and no arguments."""
    if (error := call.get("error")) is None:
        return
    code = str(error).partition(" ")[0]
    if code not in CODES:
        raise Broken(
            f"{_excerpt(action)} was answered with the code {code!r}",
            f"use one of {', '.join(CODES)}",
        )
    if code in ("bad_json", "bad_command", "no_call") and call.get("args") is not None:
        raise Broken(
            f"{_excerpt(action)} could not be read, and has the arguments {call['args']!r:.40}",
            "leave args None where a call could not be read: it must never run with {}",
        )


def _excerpt(action: str) -> str:
    return repr(action if len(action) <= 60 else action[:40] + "..." + action[-15:])
