"""The laws of asynchrony: what is played when follows from the config, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from toy_runs import config_of, episodes_of, fresh, history, run, same_weights, schedule
from toys import Fault, Faulty, Walks, crash

from turnwise.trainers.learner import Learner, TrainingDiverged
from turnwise.trainers.loop import TooManyLost, train
from turnwise.trainers.run_folder import RunFolder

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs at depth 1 and 2 that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    for depth in (1, 2):
        run(out / str(depth), pipeline_depth=depth)
    return out


# The schedule


@pytest.mark.parametrize("depth", [1, 2])
def test_a_batch_is_played_under_the_weights_of_depth_steps_ago(whole, depth):
    found = {
        (int(id[1 : id.index("-")]), version) for id, _, version in schedule(whole / f"{depth}")
    }
    assert found == {(n, 2 * max(0, n - depth)) for n in range(6)}
    rows = [json.loads(x) for x in (whole / f"{depth}/metrics.jsonl").read_text().splitlines()]
    for n, row in enumerate(rows):
        assert row["max_staleness"] == row["staleness"] == 2 * min(n, depth)


@pytest.mark.parametrize("depth", [1, 2])
def test_two_runs_are_equal_to_the_last_bit_whoever_was_faster(tmp_path, whole, depth):
    improve = Learner.improve

    def slow(self, *args):
        threading.Event().wait(0.1)
        return improve(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "improve", slow)
        run(tmp_path / "run", pipeline_depth=depth)
    assert history(tmp_path / "run") == history(whole / str(depth))
    assert same_weights(tmp_path / "run", whole / str(depth))


# Stopping and going on


def die_in_training(out: str, place: str, depth: int) -> None:
    """Train and be killed at `place`; runs in a process of its own."""

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    calls: list[int] = []
    if place == "update":
        improve = Learner.improve

        def count(self, *args):
            calls.append(1)
            metrics = improve(self, *args)
            return die() if len(calls) == 7 else metrics

        Learner.improve = count
    if place == "checkpoint":
        write = RunFolder.checkpoint

        def then_die(self, step, save):
            write(self, step, save)
            die()

        RunFolder.checkpoint = then_die

    class Mortal(Walks):
        def setup(self, task, rng):
            if place == "rollout" and task.index >= 3 * 4:
                die()
            return super().setup(task, rng)

    run(out, env=Mortal, pipeline_depth=depth)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("place", ["rollout", "update", "checkpoint"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, whole, place, depth):
    out = tmp_path / "run"
    code = f"import test_pacing; test_pacing.die_in_training({str(out)!r}, {place!r}, {depth})"
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, timeout=280
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()[-2000:]
    rows = run(out, resume=True, pipeline_depth=depth)
    assert rows[-1]["step"] == 6
    assert history(out) == history(whole / str(depth))
    assert same_weights(out, whole / str(depth))


def test_a_finished_run_can_be_lengthened(tmp_path, whole):
    for steps in (1, 2, 6):
        run(tmp_path / "run", pipeline_depth=2, steps=steps, resume=True)
    assert history(tmp_path / "run") == history(whole / "2")
    assert same_weights(tmp_path / "run", whole / "2")


@pytest.mark.parametrize("waits", [None, 5])
def test_what_was_played_and_not_learnt_from_is_not_played_again(tmp_path, waits):
    """The second batch is over before the run is left, but for the task that waits; a resumed one
    takes it from the frontier."""
    played: list[int] = []
    gate = threading.Event()

    class Counted(Faulty):
        def setup(self, task, rng):
            played.append(task.index)
            return super().setup(task, rng)

        def respond(self, action):
            assert self.task.index != waits or gate.wait(60)
            return super().respond(action)

    def slow():
        return Counted(fast=False, length=2)

    def until_all_is_played():
        while len(played) < 2 * 12:
            threading.Event().wait(0.02)
        threading.Event().wait(0.5)  # the last of them are still walking

    config = config_of(tmp_path / "run", pipeline_depth=1, steps=2, checkpoint_every=1)
    rows = train(config, model=fresh(), make_env=slow)
    with pytest.MonkeyPatch.context() as patch:
        improve = Learner.improve
        patch.setattr(
            Learner, "improve", lambda self, *args: (until_all_is_played(), improve(self, *args))[1]
        )
        next(rows)
    rows.close()
    gate.set()
    assert sorted(set(played)) == [0, 1, 2, 3, 4, 5]
    played.clear()
    assert run(
        tmp_path / "run", env=slow, pipeline_depth=1, steps=2, checkpoint_every=1, resume=True
    )
    assert sorted(played) == ([] if waits is None else [waits] * 4)
    found = [e.id for e in episodes_of(tmp_path / "run")]
    assert len(found) == len(set(found)) == 2 * 12


@pytest.mark.parametrize("saved", ["when it is taken", "while another is learnt from"])
def test_what_a_batch_lost_is_played_again_with_its_own_weights(tmp_path, whole, saved):
    improve, early = Learner.improve, saved != "when it is taken"

    def slow(self, *args):
        threading.Event().wait(0.5 * early)
        return improve(self, *args)

    faults = {i: Fault(1, crash) for i in range(9, 12)}  # the fourth step
    more = {"checkpoint_every": 1} if early else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "improve", slow)
        with pytest.raises(TooManyLost, match=r"12 of 12 episodes"):
            run(tmp_path / "run", env=lambda: Faulty(faults, length=2), pipeline_depth=1, **more)
    rows = run(tmp_path / "run", resume=True, pipeline_depth=1, **more)
    assert rows[0]["step"] == 4
    assert history(tmp_path / "run") == history(whole / "1")
    assert same_weights(tmp_path / "run", whole / "1")


def test_a_batch_on_which_training_diverged_is_learnt_from_again_and_not_played_again(
    tmp_path, whole
):
    improve, calls = Learner.improve, []

    def diverge(self, *args):
        calls.append(1)
        if len(calls) == 7:
            raise TrainingDiverged("made up")
        return improve(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "improve", diverge)
        with pytest.raises(TrainingDiverged):
            run(tmp_path / "run", pipeline_depth=1)
    run(tmp_path / "run", resume=True, pipeline_depth=1)
    assert history(tmp_path / "run") == history(whole / "1")
    assert same_weights(tmp_path / "run", whole / "1")
