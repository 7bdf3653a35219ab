"""Evaluate a policy: a success rate with its interval, and beside it what no skill reaches.

Every episode goes into a record as soon as it is over. Run the same evaluation again and only the
episodes that are missing are played: the record is the checkpoint. An episode that the machine or
the environment spoilt is counted and masked; it is never a failure of the agent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from turnwise.agents.policy import Policy, ScriptedPolicy, noop, random_tool
from turnwise.agents.record import Position, RecordError, RecordWriter, read_header, read_records
from turnwise.agents.rollout import Job, Settings, jobs_for, play
from turnwise.agents.score import Report, summarise
from turnwise.envs.base import Env
from turnwise.envs.types import Episode, Task, canonical_json

MakePolicy = Callable[[], Policy]
FLOORS: Mapping[str, MakePolicy] = {
    "noop": lambda: ScriptedPolicy(noop),
    "random": lambda: ScriptedPolicy(random_tool),
}
"""Policies without skill: an environment that they solve measures nothing."""


def evaluate(
    make_env: Callable[[], Env],
    tasks: Sequence[Task],
    policy: Policy,
    settings: Settings | None = None,
    *,
    record_path: str | os.PathLike[str],
    run_seed: int = 0,
    split: str = "test",
    replicas: int = 1,
    by: Sequence[str] = (),
    floors: Mapping[str, MakePolicy] | None = None,
    info: Mapping[str, Any] | None = None,
    level: float = 0.95,
    retry_masked: bool = False,
    watch: Callable[[Episode], None] = lambda episode: None,
) -> Report:
    """Play `replicas` attempts at each task that the record lacks, and summarise all of them.

    Args:
        make_env: returns a new environment.
        tasks: what to solve.
        policy: who acts; its answers must depend on the seat's seed alone for a resumed
            evaluation to equal an uninterrupted one.
        settings: how episodes are played.
        record_path: where the episodes go. Floors go beside it, as `<name>.<floor>.jsonl`.
        run_seed: every seed of the evaluation follows from it.
        split: name of the tasks' split; part of the seeds.
        replicas: attempts per task; pass@k is reported for k up to it.
        by: task fields to break success down by, as `("depth",)`.
        floors: name to policy; None takes `FLOORS`, `{}` none. They play each task once.
        info: what else to keep in the record's header, as the model and the sampling; an
            evaluation with other `info` does not resume this record.
        level: of the intervals.
        retry_masked: play episodes that were masked again; the last attempt counts.
        watch: called with each episode that is played, for progress.

    Raises:
        ValueError: there are no tasks, or they lack a field of `by`.
        RecordError: the record belongs to another evaluation, was changed, or cannot be written.
    """
    _require_fields(tasks, by)
    settings = settings or Settings()
    header = _header(run_seed, split, settings, info)

    def measure(path: Path, who: Policy, attempts: int) -> Report:
        jobs = jobs_for(tasks, attempts, run_seed=run_seed, split=split)
        run = _Recorded(path, header, retry_masked)
        episodes = run.play(jobs, make_env, who, settings, watch)
        report = summarise(episodes, by=by, replicas=attempts, level=level, seed=run_seed)
        return replace(report, record=os.fspath(path), end=run.end)

    path = Path(record_path)
    beside = {
        name: measure(path.with_name(f"{path.stem}.{name}{path.suffix}"), make(), 1)
        for name, make in (FLOORS if floors is None else floors).items()
    }
    return replace(measure(path, policy, replicas), floors=beside)


class _Recorded:
    """The episodes of one evaluation, some of them already in the record."""

    def __init__(self, path: Path, header: Mapping[str, Any], retry_masked: bool) -> None:
        self.path, self.header, self.retry_masked = path, header, retry_masked
        self.end: Position | None = None

    def play(
        self,
        jobs: Sequence[Job],
        make_env: Callable[[], Env],
        policy: Policy,
        settings: Settings,
        watch: Callable[[Episode], None],
    ) -> list[Episode]:
        """Play what is missing and return the episodes of all jobs, in the jobs' order."""
        with self._writer() as record:
            known = {_name(row.episode): row.episode for row in read_records(self.path)}
            wanted = [job for job in jobs if self._missing(known.get(_name(job)))]
            attempts = cast(Generator[Episode], play(wanted, make_env, policy, settings))
            with closing(attempts) as episodes:  # an interrupt closes the environments now
                for episode in episodes:
                    record.append(episode)
                    known[_name(episode)] = episode
                    watch(episode)
            self.end = record.position()
        return [known[_name(job)] for job in jobs]

    def _missing(self, episode: Episode | None) -> bool:
        return episode is None or (self.retry_masked and not episode.outcome.trainable)

    def _writer(self) -> RecordWriter:
        if not _begun(self.path):
            return RecordWriter(self.path, self.header)
        recorded = read_header(self.path)["run"]
        for name in {**recorded, **self.header}:
            if recorded.get(name) != self.header.get(name):
                raise RecordError(
                    self.path,
                    0,
                    f"another evaluation's: its {name} was {recorded.get(name)!r} and is now "
                    f"{self.header.get(name)!r}; choose another record path",
                )
        return RecordWriter.resume(self.path)


def _name(attempt: Job | Episode) -> tuple[str, int, int]:
    return attempt.id, attempt.env_seed, attempt.policy_seed


def _header(
    run_seed: int, split: str, settings: Settings, info: Mapping[str, Any] | None
) -> dict[str, Any]:
    header = {
        "kind": "evaluation",
        "run_seed": run_seed,
        "split": split,
        "max_turns": settings.max_turns,
        "max_tokens": settings.max_tokens,
        **(info or {}),
    }
    return json.loads(canonical_json(header))  # as it will be read: tuples have become lists


def _begun(path: Path) -> bool:
    """Return whether there is a record with at least its header line."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        return file.readline().endswith(b"\n")


def _require_fields(tasks: Sequence[Task], by: Sequence[str]) -> None:
    if not len(tasks):
        raise ValueError("there are no tasks to evaluate")
    fields = tasks[0].to_json()
    for name in by:
        if name not in fields:
            raise ValueError(f"tasks have no field {name!r} to break down by; {sorted(fields)}")
