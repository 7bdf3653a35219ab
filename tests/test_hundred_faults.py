"""A hundred injected faults and some kills: every episode is trained on once, as without them."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from toy_runs import run
from toys import Walks, crash

from turnwise.agents.engines.base import EngineError
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.record import read_records

torch.set_num_threads(1)

STEPS = 6
KILLED_AT = (25, 50, 75)
"""Faults after which the process is killed."""


class Slow(Walks):
    """Stepped on threads, with a deadline."""

    fast = False
    step_timeout_s = 1.0


def train_with_faults(out: str, depth: int) -> None:
    """Train where every fourth step of an environment crashes or hangs, and the engine breaks now
    and then, with requests in flight; runs in a process of its own. Faults are written to a file.
    """
    log, steps, polls = open(f"{out}.faults", "a"), itertools.count(1), itertools.count(1)  # noqa: SIM115

    def note(what: str) -> None:
        print(what, file=log, flush=True)

    class Broken(Slow):
        def respond(self, action):
            number = next(steps)
            if number % 8 == 0:
                note("hang")
                time.sleep(3.0)
            if number % 8 == 4:
                note("crash")
                crash()
            return super().respond(action)

    poll = EmbeddedEngine.poll

    def poll_or_break(self):
        if self._decoding and next(polls) % 60 == 0:
            note("engine")
            raise EngineError("the engine broke")
        return poll(self)

    EmbeddedEngine.poll = poll_or_break
    train_once(out, Broken, depth)


def train_once(out, env, depth):
    return run(
        out, env=lambda: env(length=3), pipeline_depth=depth, steps=STEPS, checkpoint_every=1,
        retries=100, resume=True,
    )  # fmt: skip


def faults_in(out) -> Counter:
    path = Path(f"{out}.faults")
    return Counter(path.read_text().split()) if path.exists() else Counter()


def trained(out) -> Counter:
    """How often each attempt was trained on, with its seed and the version that played it."""
    found = [recorded.episode for recorded in read_records(Path(out) / "episodes.jsonl")]
    assert all(e.trainable for e in found)
    return Counter((e.task.key, e.id, e.replica, e.turns[0].policy_version) for e in found)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("depth", [1])
def test_after_a_hundred_faults_each_episode_was_trained_on_once_as_without_them(tmp_path, depth):
    out, kills = tmp_path / "run", 0
    code = f"import test_hundred_faults as t; t.train_with_faults({str(out)!r}, {depth})"
    for until in (*KILLED_AT, 10**9):
        child = subprocess.Popen(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, stderr=subprocess.PIPE
        )
        while child.poll() is None and faults_in(out).total() < until:
            time.sleep(0.02)
        if child.poll() is None:
            child.kill()
            kills += 1
        _, said = child.communicate()
        assert child.returncode in (0, -9), said.decode()[-2000:]
    assert child.returncode == 0
    faults = faults_in(out)
    print(f"\n{dict(faults)}, {kills} kills")
    assert kills == len(KILLED_AT)
    assert min(faults["hang"], faults["crash"]) > 30 and faults["engine"] > 3
    assert faults.total() + kills >= 100
    train_once(tmp_path / "undisturbed", Slow, depth)
    assert trained(out) == trained(tmp_path / "undisturbed")
    assert set(trained(out).values()) == {1} and len(trained(out)) == STEPS * 12
    for name in (out, tmp_path / "undisturbed"):
        rows = [json.loads(x) for x in (name / "metrics.jsonl").read_text().splitlines()]
        assert [row["policy_version"] for row in rows] == [2 * n for n in range(1, STEPS + 1)]
