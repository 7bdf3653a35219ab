"""Laws of playing ahead: the next batch is played while one is learnt from, and it still learns."""

from __future__ import annotations

import threading

import pytest
import torch
from toy_runs import config_of, episodes_of, fresh, history, run, same_weights, schedule
from toys import Faulty, Walks

from turnwise.trainers.batch import rows_of
from turnwise.trainers.learner import Learner
from turnwise.trainers.off_policy import OnPolicyOnly
from turnwise.trainers.recipes import recipe
from turnwise.trainers.trainee import Trainee

torch.set_num_threads(1)


def tokens(out) -> dict[str, list[tuple[int, ...]]]:
    return {e.id: [turn.action_ids for turn in e.turns] for e in episodes_of(out)}


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
