"""Laws of prompt replay: what was lately half solved comes again, also in a resumed run."""

from __future__ import annotations

import json

import pytest
import torch
from long_walks import fresh_long, go
from toy_runs import config_of, history
from toys import Walks, crash

from turnwise.envs.types import Episode, Group, Segment, Task, Turn
from turnwise.trainers.loop import train
from turnwise.trainers.prompts import Prompts
from turnwise.trainers.recipes import recipe
from turnwise.trainers.watch import TooManyLost

torch.set_num_threads(1)
TASK = Task()


# ------------------------------------------------------------ prompt replay


def half(task, wins, attempts=4):
    turns = Segment(turns=(Turn(action_ids=(1,), logprobs=(0.0,)),))
    tried = [
        Episode(id=str(i), env_id="", task=task, segments=(turns,), success=i < wins)
        for i in range(attempts)
    ]
    return Group(task=task, episodes=tuple(tried))


def test_only_what_was_lately_half_solved_comes_again():
    prompts = Prompts(range(100), seed=0, replay=1.0)
    assert prompts.choose(0, 3) == [0, 1, 2]
    prompts.note([0, 1, 2], [half(TASK, wins) for wins in (0, 2, 4)])
    assert prompts.choose(3, 3) == [1, 4, 5]  # once in a batch
    prompts.note([1, 4, 5], [half(TASK, wins) for wins in (4, 1, 0)])
    assert prompts.choose(6, 2) == [4, 7]
    assert prompts.metrics() == {"replayed": 2 / 8}


def test_replay_draws_by_its_slot_and_delivers_its_share():
    def chosen(share):
        prompts = Prompts(range(10_000), seed=1, replay=share)
        prompts.half_solved = set(range(9000, 9100))
        return prompts.choose(0, 500)

    assert chosen(0.3) == chosen(0.3)
    assert chosen(0.0) == list(range(500))
    assert abs(sum(index >= 9000 for index in chosen(0.1)) / 500 - 0.1) < 0.04


class Coin(Walks):
    """About half of what an untrained model says is right; while it is `ill`, every other one dies.

    Args:
        ill: holds something while it is.
    """

    def __init__(self, ill=()) -> None:
        super().__init__(length=1)
        self.ill = ill

    def respond(self, action):
        if self.ill and len(action) % 4 < 2:
            crash()
        return super().respond("a" if len(action) % 2 else "z")


REPLAYED = {"steps": 6, "group_size": 4, "prompt_replay": 1.0, "learning_rate": 1e-5}


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """Runs that replay prompts and that nobody disturbed, by how far they play ahead."""
    folder = tmp_path_factory.mktemp("replayed")
    for depth in (0, 1):
        how = {**REPLAYED, "pipeline_depth": depth}
        rows = go(folder / str(depth), recipe("turn_rloo"), env=Coin, **how)
        assert rows[3]["replayed"] > 0  # or there would be nothing to lose
    return folder


def test_a_resumed_run_replays_the_same_tasks(tmp_path, replayed):
    go(tmp_path / "parts", recipe("turn_rloo"), env=Coin, **{**REPLAYED, "steps": 3})
    waiting = json.loads((tmp_path / "parts/checkpoints/step-000003/prompts.json").read_text())
    assert waiting
    go(tmp_path / "parts", recipe("turn_rloo"), env=Coin, **REPLAYED, resume=True)
    assert history(tmp_path / "parts") == history(replayed / "0")
    assert "replayed" not in go(tmp_path / "off", recipe("turn_rloo"), env=Coin, steps=1)[0]


@pytest.mark.parametrize("depth", [0, 1])
def test_a_step_that_was_lost_amid_leaves_no_mark_on_what_a_resumed_run_replays(
    tmp_path, replayed, depth
):
    out, ill, how = tmp_path / "run", [], {**REPLAYED, "pipeline_depth": depth, "retries": 0}
    config = config_of(out, **how, checkpoint_every=0, max_failed=0.0)
    rows = train(config, model=fresh_long(), make_env=lambda: Coin(ill), recipe=recipe("turn_rloo"))
    assert {next(rows)["step"] for _ in range(3 - depth)} == set(range(1, 4 - depth))
    ill.append("from now on")  # if batches are in flight, one of those is not
    with pytest.raises(TooManyLost):
        list(rows)
    ill.clear()
    go(out, recipe("turn_rloo"), env=Coin, **how, max_failed=0.0, checkpoint_every=0, resume=True)
    assert history(out) == history(replayed / str(depth))
