"""Laws of what hangs or breaks while a run plays ahead: it is given up, named, and left behind."""

from __future__ import annotations

import logging
import threading

import pytest
import torch
from toy_runs import config_of, episodes_of, fresh, run
from toys import Faulty, Walks

from turnwise.agents.engines.base import EngineError, ServerUnfit
from turnwise.cli.failures import INFRASTRUCTURE, describe
from turnwise.envs.types import Outcome, Stop
from turnwise.trainers import players
from turnwise.trainers.engines import WeightsNotTaken
from turnwise.trainers.flights import Batch
from turnwise.trainers.loop import train

torch.set_num_threads(1)


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
