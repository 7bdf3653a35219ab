"""The laws of asynchrony: what is played when follows from the config, and nothing is lost."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from runs import config_of, fresh, history, run, same_weights
from toys import Fault, Faulty, Walks, crash

from turnwise.agents.engines.base import EngineError, ServerUnfit
from turnwise.agents.record import read_records
from turnwise.cli.failures import INFRASTRUCTURE, describe
from turnwise.envs.types import Outcome, Stop
from turnwise.trainers import players
from turnwise.trainers.batch import rows_of
from turnwise.trainers.engines import WeightsNotTaken
from turnwise.trainers.flights import Batch
from turnwise.trainers.learner import Learner, TrainingDiverged
from turnwise.trainers.loop import TooManyLost, train
from turnwise.trainers.off_policy import OnPolicyOnly
from turnwise.trainers.recipes import recipe
from turnwise.trainers.run_folder import RunFolder
from turnwise.trainers.trainee import Trainee

torch.set_num_threads(1)


def episodes_of(out):
    return [found.episode for found in read_records(Path(out) / "episodes.jsonl")]


def schedule(out) -> list[tuple[str, int, int]]:
    """Every episode with its seed and the version of the weights that sampled it."""
    return [(e.id, e.policy_seed, e.turns[0].policy_version) for e in episodes_of(out)]


def tokens(out) -> dict[str, list[tuple[int, ...]]]:
    return {e.id: [turn.action_ids for turn in e.turns] for e in episodes_of(out)}


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
    class Slower(Learner):
        pass

    improve = Learner.improve

    def slow(self, *args):
        threading.Event().wait(0.1)
        return improve(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "improve", slow)
        run(tmp_path / "run", pipeline_depth=depth)
    assert history(tmp_path / "run") == history(whole / str(depth))
    assert same_weights(tmp_path / "run", whole / str(depth))


def test_with_slow_environments_the_schedule_and_the_tokens_do_not_depend_on_the_threads(tmp_path):
    for name in ("a", "b"):
        run(
            tmp_path / name,
            env=lambda: Faulty(fast=False, pace_s=0.01, length=2),
            pipeline_depth=2,
            steps=4,
        )
    assert sorted(schedule(tmp_path / "a")) == sorted(schedule(tmp_path / "b"))
    assert tokens(tmp_path / "a") == tokens(tmp_path / "b")


def test_the_next_batch_is_played_while_one_is_learnt_from(tmp_path):
    """The update of step 1 waits for the second batch to begin: at depth 0 it never would."""
    begun = threading.Event()

    class Told(Walks):
        def setup(self, task, rng):
            if task.index >= 3:
                begun.set()
            return super().setup(task, rng)

    improve = Learner.improve

    def patient(self, *args):
        assert begun.wait(30)
        return improve(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "improve", patient)
        assert len(run(tmp_path / "run", env=Told, pipeline_depth=1, steps=2)) == 2


def test_an_update_changes_no_weights_that_anybody_plays_with(tmp_path):
    rows = run(tmp_path / "run", pipeline_depth=1, steps=4, checkpoint_every=0)
    # `engine_kl` compares the sampler with the trainer's weights at the step's beginning.
    assert rows[0]["engine_kl"] < 1e-6
    assert all(row["engine_kl"] > 1e-6 for row in rows[1:])
    model, tokenizer = fresh()
    again = Trainee.of(model, tokenizer, config_of(tmp_path / "again"))
    first = [e for e in episodes_of(tmp_path / "run") if e.id.startswith("s1-")]
    scored = again.learner.with_proximal(rows_of(first))  # batch 1, scored by the first weights
    for row in scored:
        assert row.prox == pytest.approx(row.old, abs=1e-4)


def test_it_still_learns(tmp_path):
    sizes = {"tasks_per_step": 4, "group_size": 8, "checkpoint_every": 0}
    rows = run(tmp_path / "run", steps=25, pipeline_depth=1, **sizes)
    success = [row["success"] for row in rows]
    assert sum(success[:4]) / 4 < 0.3 and sum(success[-4:]) / 4 > 0.9


class HalfSolved(Walks):
    """Walks of which a model that knows nothing solves about half."""

    wanted = frozenset("abcdefghijklm")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("dapo", {}),
        ("turn_rloo", {"prompt_replay": 0.5, "env": lambda: HalfSolved(length=1)}),
        ("rloo", {}),
        ("grpo", {"lora_rank": 2}),
    ],
)
def test_what_follows_from_earlier_batches_follows_from_those_that_were_taken(tmp_path, name, more):
    for out in ("a", "b"):
        rows = run(tmp_path / out, method=recipe(name), pipeline_depth=2, **more)
    assert "prompt_replay" not in more or sum(row["replayed"] for row in rows) > 0
    assert history(tmp_path / "a") == history(tmp_path / "b")
    run(tmp_path / "c", method=recipe(name), pipeline_depth=2, steps=3, **more)
    run(tmp_path / "c", method=recipe(name), pipeline_depth=2, resume=True, **more)
    assert history(tmp_path / "c") == history(tmp_path / "a")
    assert same_weights(tmp_path / "c", tmp_path / "a")


def test_a_recipe_that_plays_rounds_with_a_teacher_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(OnPolicyOnly, match=r"'dagger'.*set pipeline_depth to 0"):
        run(tmp_path / "run", method=recipe("dagger"), pipeline_depth=1)
    assert not (tmp_path / "run").exists()


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


# What hangs


def test_a_rollout_that_hangs_is_given_up_and_its_groups_finish_short(tmp_path, caplog):
    gate, hung, made = threading.Event(), [], []

    class Hanging(Faulty):
        """Fast by its own word, and then it never returns: no deadline of the pool applies."""

        def respond(self, action):
            if self.task.index == 5 and not hung:  # in the second batch
                hung.append(1)
                assert gate.wait(60)
            return super().respond(action)

    player_for = players.player_for
    try:
        with (
            caplog.at_level(logging.WARNING, logger="turnwise"),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(
                players, "player_for", lambda *args: (made.append(1), player_for(*args))[1]
            )
            rows = run(
                tmp_path / "run",
                env=lambda: Hanging(length=2),
                pipeline_depth=1,
                stall_timeout_s=1.0,
                max_failed=1.0,
                steps=5,
            )
    finally:
        gate.set()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["lost"] > 0 for row in rows] == [False, True, False, False, False]
    lost = [e for e in episodes_of(tmp_path / "run") if not e.outcome.trainable]
    assert {(e.outcome, e.stop) for e in lost} == {(Outcome.INFRA_ERROR, Stop.DEADLINE)}
    line = "waits for its environment's step: 1 s, and the whole rollout waits for that call"
    assert len(made) == 2, "the thread that hangs keeps its engine"
    assert "step 2 goes on without the rest" in caplog.text and line in caplog.text
    assert line in lost[0].error and "episode s1-2." in lost[0].error


@pytest.mark.parametrize(
    "why", [EngineError("no server answers"), ServerUnfit("the server has another tokenizer")]
)
def test_where_nobody_can_play_in_place_of_what_hangs_the_last_whole_step_is_saved(tmp_path, why):
    gate, played, made = threading.Event(), [], []

    class Hanging(Faulty):
        def respond(self, action):
            assert self.task.index != 8 or played.count(8) > 4 or gate.wait(60)
            return super().respond(action)

        def setup(self, task, rng):
            played.append(task.index)
            return super().setup(task, rng)

    def ill(*args):
        made.append(1)
        if len(made) == 2:
            raise why
        return player_for(*args)

    player_for = players.player_for
    settings = {"env": Hanging, "pipeline_depth": 1, "stall_timeout_s": 1.0, "max_failed": 1.0}
    settings |= {"steps": 5, "checkpoint_every": 0}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(players, "player_for", ill)
            with pytest.raises(WeightsNotTaken, match=f"{why}; go on with --resume") as raised:
                run(tmp_path / "run", **settings)
        assert describe(raised.value) == (INFRASTRUCTURE, str(raised.value))
        rows = run(tmp_path / "run", resume=True, **settings)
    finally:
        gate.set()
    assert [row["step"] for row in rows] == [3, 4, 5], "two whole steps were saved"
    assert rows[0]["lost"] > 0 and played.count(8) == 4, "what hung was learnt from as it was"
    found = [e.id for e in episodes_of(tmp_path / "run")]
    assert len(found) == len(set(found)) == 5 * 12


def test_what_plays_ahead_does_not_hold_the_policy_of_the_trainer(tmp_path, monkeypatch):
    made, begin = [], Batch.start
    monkeypatch.setattr(Batch, "start", lambda batch: (made.append(batch), begin(batch))[1])
    run(tmp_path / "run", pipeline_depth=1, steps=2)
    assert made and not any(hasattr(batch, "policy") for batch in made)


def test_a_bug_of_ours_in_the_rollout_comes_out_where_it_is_waited_for(tmp_path):
    class Bug(BaseException):
        pass

    class Buggy(Walks):
        def respond(self, action):
            if self.task.index == 4:
                raise Bug
            return super().respond(action)

    with pytest.raises(Bug):
        run(tmp_path / "run", env=Buggy, pipeline_depth=1)


def test_no_thread_of_a_rollout_outlives_its_run(tmp_path):
    class Slow(Walks):
        """Of which a batch but the first takes longer than a run waits for it in the end."""

        def respond(self, action):
            if self.task.index >= 3:
                threading.Event().wait(0.7)
            return super().respond(action)

    before = threading.active_count()
    rows = train(config_of(tmp_path / "run", pipeline_depth=2), model=fresh(), make_env=Slow)
    next(rows)
    rows.close()
    assert threading.active_count() <= before + 1  # the watchdog's own looks once more
