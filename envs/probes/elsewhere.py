"""Play or measure an environment in another process, whose hashes and clock may be others.

A process of its own shows what one process hides: the order of a set, the hash of a str, an id, the
date. It also counts what environments leave behind without counting what else goes on here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from turnwise.envs.base import Env
from turnwise.envs.extras import MissingExtra
from turnwise.envs.playing import WORLD, Broken, Named, Played, Skipped, Subject, play
from turnwise.envs.probes.calendar import put_ahead
from turnwise.envs.registry import UnknownEnv, make

DEADLINE_S = 90.0
DAY_S = 86_400


def played_elsewhere(
    subject: Subject, seeds: Sequence[int], *, hash_seed: int, days: int
) -> list[Played]:
    """Return the episodes of `seeds` as another process plays them.

    Args:
        hash_seed: Its PYTHONHASHSEED.
        days: How far its clock is ahead of ours.

    Raises:
        Skipped: no other process can make the environment.
        Broken: it fails there.
    """
    order = {"do": "play", "seeds": list(seeds), "shift_s": days * DAY_S}
    told = ask(subject, order, PYTHONHASHSEED=str(hash_seed))
    return [Played(rows, [], {}, True) for rows in told["episodes"]]


def ask(subject: Subject, order: dict[str, Any], **environ: str) -> dict[str, Any]:
    """Return what another process answers to `order`.

    Raises:
        Skipped: no other process can make the environment.
        Broken: it fails there, or does not answer.
    """
    named = _named(subject)
    order |= {"id": named.id, "where": named.where, "world": WORLD}
    order |= {"kwargs": dict(named.kwargs), "registered": dict(named.registered)}
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"from {__name__} import main; main()"],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            env={**os.environ, "PYTHONPATH": path, **environ},
        )
    except subprocess.TimeoutExpired:
        what = f"another process was not done after {DEADLINE_S:g} s"
        raise Broken(what, "see what it waits for; a step must end by itself") from None
    return _read(done)


def _named(subject: Subject) -> Named:
    named = subject.named
    if named is None:
        raise Skipped("give an id, or a class of a module, for another process to make it")
    try:
        json.dumps([named.kwargs, named.registered])
    except TypeError:
        raise Skipped("its arguments are not JSON, so no other process can be told them") from None
    return named


def _read(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1][:200]
        raise Broken(
            f"another process failed with exit code {done.returncode}; it said: {said}",
            "let it be made and played anywhere: no state of this process, no relative path",
        )
    told: dict[str, Any] = json.loads(lines[-1])
    if why := told.get("missing"):
        raise Skipped(f"another process cannot make it: {why}")
    return told


def through_json(played: Played) -> Played:
    """Return the episode as it comes back from another process."""
    return Played(json.loads(json.dumps(played.rows)), played.actions, {}, played.ended)


def main() -> None:
    """Answer one order from stdin by one line on stdout; what an environment prints goes astray."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    order = json.load(sys.stdin)
    if order.get("shift_s"):
        put_ahead(order["shift_s"])
    WORLD.update(order["world"])
    try:
        told = _obey(order)
    except (UnknownEnv, MissingExtra, ImportError) as error:
        told = {"missing": f"{type(error).__name__}: {error}"}
    answer.write(json.dumps(told) + "\n")
    answer.flush()
    sys.stderr.flush()
    os._exit(0)  # whatever threads it left behind


def _obey(order: dict[str, Any]) -> dict[str, Any]:
    maker = _maker(order)
    if order["do"] == "leaks":
        from turnwise.envs.probes.leaks import measure, watch_temporary_files

        watch_temporary_files()
        return measure(maker, order["seeds"], order["seconds"])
    return {"episodes": [_episode(maker, seed) for seed in order["seeds"]]}


def _maker(order: dict[str, Any]) -> Callable[[], Env]:
    try:
        make(order["id"] or order["where"], **order["kwargs"]).close()
    except UnknownEnv:  # registered in a module that this process has not imported
        return lambda: make(order["where"], **{**order["registered"], **order["kwargs"]})
    return lambda: make(order["id"] or order["where"], **order["kwargs"])


def _episode(maker: Callable[[], Env], seed: int) -> list[dict[str, Any]]:
    env = maker()
    try:
        return play(env, seed).rows
    finally:
        env.close()
