"""The law of replay: what is recorded of an environment is played again alike.

`turnwise.envs.check` holds all other laws. This one is here because records and replay are.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from turnwise.agents.jobs import jobs_for
from turnwise.agents.policy import ScriptedPolicy, Seat
from turnwise.agents.record import RecordWriter, read_records
from turnwise.agents.replay import execute
from turnwise.agents.rollout import Settings, play
from turnwise.envs.base import Env
from turnwise.envs.check import Check, maker_of
from turnwise.envs.fuzz import mixed_agent
from turnwise.envs.playing import Broken
from turnwise.envs.probes.blame import NOT_ITS_FAULT, lost_at, told
from turnwise.envs.probes.deadline import Overdue, limited
from turnwise.envs.seeds import derive
from turnwise.envs.types import Episode, Outcome, Stop
from turnwise.sandboxes.base import SandboxError

NAME = "records replay"
SECONDS = 5.0
"""So long further episodes are replayed; one always is."""
_MEND = (
    "let what a step returns follow from task, seed and actions alone; read what comes from "
    "outside through self.clock and self.taped, which a record keeps"
)


def check_replay(
    env: str | Env | Callable[..., Env],
    /,
    *,
    seeds: Sequence[int] = range(8),
    concurrency: int = 8,
    deadline_s: float = 120.0,
    **kwargs: Any,
) -> Check:
    """Return whether episodes that were played side by side and recorded replay exactly.

    Args:
        env: As `check_env` takes it.
        seeds: So many episodes are played.
        concurrency: How many of them at once.
        deadline_s: After which it is broken.
        kwargs: Arguments of the constructor.

    Raises:
        MissingExtra: it needs a package that is not installed.
    """
    _, make, _ = maker_of(env, kwargs)
    began = time.perf_counter()

    def check(status: Any, detail: str, mend: str = "") -> Check:
        return Check(NAME, status, detail, mend, round(time.perf_counter() - began, 3))

    try:
        wrong, replayed = limited(deadline_s, lambda: _replay(make, len(seeds), concurrency))
    except Overdue as where:
        return check("fail", f"not done after {deadline_s:g} s{where}", "a step must end by itself")
    except Broken as broken:
        return check("fail", str(broken), broken.mend)
    except SandboxError as error:
        return replace(check("skip", lost_at(error)), lost=True)
    except NOT_ITS_FAULT:
        raise
    except (Exception, SystemExit) as error:
        return check("fail", *told(error))
    return check("fail", wrong, _MEND) if wrong else check("pass", f"{replayed} episodes")


def _replay(make: Callable[..., Env], count: int, concurrency: int) -> tuple[str, int]:
    """Return what went wrong first, if anything did, and how many episodes were replayed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episodes.jsonl"
        with RecordWriter(path) as record:
            for episode in _episodes(make, count, concurrency):
                _append(record, episode)
        end, replayed = time.monotonic() + SECONDS, 0
        for row in read_records(path):
            if wrong := _wrong(row.episode, make):
                return wrong, replayed
            replayed += 1
            if time.monotonic() > end:
                break
    return "", replayed


def _append(record: RecordWriter, episode: Episode) -> None:
    try:
        record.append(episode)
    except ValueError as error:
        raise Broken(str(error), _MEND) from error


def _wrong(episode: Episode, make: Callable[..., Env]) -> str:
    if episode.outcome is Outcome.INFRA_ERROR and episode.stop is not Stop.DEADLINE:
        raise SandboxError(f"episode {episode.id}: {episode.error}")
    if episode.outcome in (Outcome.ENV_ERROR, Outcome.INFRA_ERROR):
        return f"episode {episode.id} could not be played: {episode.error}"
    divergence = execute(episode, make)
    return f"replayed, episode {episode.id} differs at {divergence}" if divergence else ""


def _episodes(make: Callable[..., Env], count: int, concurrency: int) -> list[Episode]:
    env = make()
    try:
        tasks = env.tasks(env.splits[0])[:count]
    finally:
        env.close()
    jobs = jobs_for(tasks, run_seed=0, split=env.splits[0])
    policy = ScriptedPolicy(_wander)
    return list(play(jobs, make, policy, Settings(concurrency=concurrency, retries=0)))


def _wander(seat: Seat) -> str:
    """Walk on and off the path, malformed actions included."""
    rng = random.Random(derive(seat.seed, "wander", seat.turn))
    agent = mixed_agent(seat.tools, expert=hasattr(seat.env, "expert"))
    return agent(seat.env, seat.messages[-1]["content"], rng)
