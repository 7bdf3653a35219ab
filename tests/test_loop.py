"""The laws of a training run: it learns, never from errors, and can be stopped anywhere."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import naive_logprobs
from ragged import episode
from toy_runs import config_of, fresh, history, run, same_weights, weights
from toys import Fault, Faulty, Walks, crash

from turnwise.agents.record import read_records, verify
from turnwise.agents.renderer import Renderer
from turnwise.envs.types import Outcome
from turnwise.trainers.batch import rows_of, taught
from turnwise.trainers.learner import Learner, TrainingDiverged
from turnwise.trainers.loop import TooManyLost, train
from turnwise.trainers.model import (
    load_model,
)
from turnwise.trainers.recipes import recipe
from turnwise.trainers.run_folder import KEEP
from turnwise.trainers.sft import demonstrations
from turnwise.trainers.watch import losses

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out)
    return out


# Learning


def test_it_learns(tmp_path):
    rows = run(tmp_path / "run", steps=25, tasks_per_step=4, group_size=8, checkpoint_every=0)
    success = [row["success"] for row in rows]
    assert np.mean(success[:4]) < 0.2
    assert np.mean(success[-4:]) > 0.9
    assert max(row["engine_gap"] for row in rows) < 1e-4


def test_a_run_leaves_finite_metrics_whole_records_and_a_model_that_loads(whole):
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for name in (
        "loss",
        "grad_norm",
        "reward",
        "success",
        "entropy",
        "kl_early",
        "kl_late",
        "engine_gap",
        "rollout_cpu_s",
    ):
        assert all(np.isfinite(row[name]) for row in rows), name
    assert all(
        row["engine_gap"] < 1e-4 and row["policy_version"] == 2 * row["step"] for row in rows
    )
    episodes = [found.episode for found in read_records(whole / "episodes.jsonl")]
    assert verify(whole / "episodes.jsonl").lines == 1 + len(episodes)
    assert len({e.id for e in episodes}) == len(episodes) == 6 * 3 * 4
    assert {e.turns[0].policy_version for e in episodes} == {0, 2, 4, 6, 8, 10}
    assert json.loads((whole / "config.json").read_text())["group_size"] == 4
    model, tokenizer = load_model(str(whole / "model"))
    assert len(tokenizer) <= model.get_input_embeddings().weight.shape[0]
    assert len(list((whole / "checkpoints").iterdir())) == KEEP


@pytest.mark.parametrize("name", ["grpo", "gspo", "reinforce_pp", "hgpo"])
def test_methods_run_and_a_divergence_from_the_start_begins_at_zero(tmp_path, name):
    rows = run(tmp_path / "run", steps=2, method=recipe(name), updates_per_step=1)
    assert all(np.isfinite(row["loss"]) for row in rows)
    if recipe(name).kl_coefficient:
        assert rows[0]["reference_kl"] == pytest.approx(0, abs=1e-6)
        assert rows[1]["reference_kl"] > 1e-6
    else:
        assert "reference_kl" not in rows[0]


def test_adapters_are_trained_alone_and_saved_merged(tmp_path):
    model, tokenizer = fresh()
    before = {name: p.clone() for name, p in model.named_parameters()}
    rows = run(tmp_path / "run", model=(model, tokenizer), steps=3, lora_rank=2)
    assert max(row["engine_gap"] for row in rows) < 1e-4
    base = {
        n.replace(".base_layer", ""): p for n, p in model.named_parameters() if "lora_" not in n
    }
    assert base.keys() == before.keys()
    assert all(torch.equal(base[name], before[name]) for name in before)
    merged, _ = load_model(str(tmp_path / "run" / "model"))
    ids = list(range(10, 30))
    torch.testing.assert_close(naive_logprobs(merged, ids), naive_logprobs(model, ids))
    assert not torch.equal(naive_logprobs(merged, ids), naive_logprobs(fresh()[0], ids))


def test_adapters_resume_too(tmp_path):
    run(tmp_path / "whole", lora_rank=2, steps=3)
    run(tmp_path / "parts", lora_rank=2, steps=2)
    run(tmp_path / "parts", lora_rank=2, steps=3, resume=True)
    assert same_weights(tmp_path / "parts", tmp_path / "whole")


def test_micro_batches_change_no_step():
    found = []
    for budget in (100_000, 50):
        model, tokenizer = fresh()
        demos = demonstrations(Walks, Walks().tasks("train")[:8], Renderer(tokenizer), seed=0)
        learner = Learner(model, learning_rate=1e-3, micro_tokens=budget)
        metrics = learner.imitate(rows_of(demos, taught))
        found.append((metrics["loss"], metrics["grad_norm"]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


# Stopping and going on


def die_in_training(out: str, place: str) -> None:
    """Train and be killed at `place`; runs in a process of its own."""

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    class Mortal(Walks):
        steps = 0

        def respond(self, action):
            Mortal.steps += 1
            if place == "rollout" and Mortal.steps == 3 * 24 + 7:
                die()
            return super().respond(action)

    if place == "update":
        improve, calls = Learner.improve, []

        def count(self, *args):
            calls.append(1)
            metrics = improve(self, *args)
            return die() if len(calls) == 7 else metrics

        Learner.improve = count
    if place == "checkpoint":
        save = Learner.save

        def half(self, folder):
            if folder.name != ".writing-000004":
                return save(self, folder)
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(b"half of i")
            die()

        Learner.save = half
    run(out, env=Mortal)


@pytest.mark.parametrize("place", ["rollout", "update", "checkpoint"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, whole, place):
    out = tmp_path / "run"
    code = f"import test_loop; test_loop.die_in_training({str(out)!r}, {place!r})"
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, timeout=280
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()[-2000:]
    rows = run(out, resume=True)
    assert rows[0]["step"] == 3 and rows[-1]["step"] == 6
    assert same_weights(out, whole)
    assert history(out) == history(whole)
    assert verify(out / "episodes.jsonl").lines == 1 + 72


def test_an_interrupt_ends_the_run_after_its_step_saved(tmp_path, whole):
    class Interrupted(Walks):
        def respond(self, action):
            if self.task.index == 7:  # the third step plays tasks 6 to 8
                Interrupted.respond = Walks.respond
                signal.raise_signal(signal.SIGINT)
            return super().respond(action)

    before = signal.getsignal(signal.SIGINT)
    rows = run(tmp_path / "run", env=Interrupted)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert signal.getsignal(signal.SIGINT) is before
    load_model(str(tmp_path / "run" / "model"))
    assert run(tmp_path / "run", resume=True)[0]["step"] == 4
    assert same_weights(tmp_path / "run", whole)
    assert history(tmp_path / "run") == history(whole)


def test_a_second_interrupt_ends_the_run_at_once(tmp_path):
    class Impatient(Walks):
        def respond(self, action):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", env=Impatient)
    assert run(tmp_path / "run", resume=True, steps=1)[0]["step"] == 1


def test_a_finished_run_that_is_resumed_does_nothing(tmp_path):
    run(tmp_path / "run", steps=2)
    before = history(tmp_path / "run")
    assert run(tmp_path / "run", steps=2, resume=True) == []
    assert history(tmp_path / "run") == before


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path, whole):
    for _ in train(config_of(tmp_path / "run"), model=fresh(), make_env=Walks):
        break
    run(tmp_path / "run", resume=True)
    assert history(tmp_path / "run") == history(whole)


# What must not be learnt from


def poisoned(when):
    """A recipe whose advantages are not numbers in the batches for which `when(n)` holds."""
    usual, count = recipe("turn_rloo"), []

    def credit(table):
        count.append(1)
        return usual.credit(table) * (float("nan") if when(len(count)) else 1.0)

    return replace(usual, credit=credit)


def test_a_loss_that_is_not_finite_is_skipped_once(tmp_path):
    rows = run(tmp_path / "run", steps=3, method=poisoned(lambda n: n == 2), updates_per_step=1)
    assert [row["skipped"] for row in rows] == [0, 1, 0]
    assert [row["policy_version"] for row in rows] == [1, 1, 2]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in lines and json.loads(lines.splitlines()[1])["loss"] is None
    assert all(p.isfinite().all() for p in weights(tmp_path / "run").values())


def test_losses_that_stay_so_end_the_run_with_the_last_good_weights_saved(tmp_path):
    model, tokenizer = fresh()
    before = copy.deepcopy(model)
    with pytest.raises(TrainingDiverged, match=r"3 times in a row.*lower the learning rate"):
        run(tmp_path / "run", model=(model, tokenizer), method=poisoned(lambda n: True))
    for a, b in zip(before.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert run(tmp_path / "run", resume=True, steps=3)[-1]["step"] == 3


def test_a_batch_of_lost_episodes_stops_the_run_before_it_learns(tmp_path, whole):
    out = tmp_path / "run"
    faults = {i: Fault(1, crash) for i in range(9, 12)}  # the fourth step
    with pytest.raises(
        TooManyLost, match=r"12 of 12 episodes.*12x ZeroDivisionError: a bug"
    ) as error:
        run(out, env=lambda: Faulty(faults, length=2), checkpoint_every=0)
    assert not error.value.retryable
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3
    rows = run(out, resume=True, checkpoint_every=0)
    assert rows[0]["step"] == 4
    assert same_weights(out, whole)
    assert history(out) == history(whole)


def test_a_few_lost_episodes_only_make_a_batch_smaller(tmp_path):
    faults = {1: Fault(1, crash)}
    rows = run(tmp_path / "run", env=lambda: Faulty(faults, length=2), steps=1)
    assert rows[0]["lost"] == pytest.approx(1 / 3)
    found = [r.episode for r in read_records(tmp_path / "run" / "episodes.jsonl")]
    ((why, count),) = losses(found).items()
    assert (count, why[:26]) == (4, "ZeroDivisionError: a bug (")
    kept = {e.task.to_json()["index"] for e in found if e.trainable}
    assert len(kept) == 2 and 1 not in kept, "one group lost all of its attempts"
    assert math.isfinite(rows[0]["loss"]) and rows[0]["skipped"] == 0


def test_losses_of_one_kind_are_counted_together_whatever_each_has_met():
    said = [*(f"PreludeDiverged: mile {i}" for i in range(3)), "KeyError: 'x'", ""]
    lost = [
        replace(episode(name=str(i)), error=e, outcome=Outcome.ENV_ERROR)
        for i, e in enumerate(said)
    ]
    found = losses([*lost, episode(name="kept")])
    assert found == {"PreludeDiverged: mile 0, and the like": 3, "KeyError: 'x'": 1, "env_error": 1}


# Options of a run


class Coin(Walks):
    """About half of what an untrained model says is right; tasks of an even index always tie."""

    def respond(self, action):
        tied = self.task.index % 2 == 0
        return super().respond("a" if tied or len(action) % 2 else "z")


def test_dapo_plays_on_until_enough_groups_differ_and_learns_from_those_alone(tmp_path):
    (row,) = run(
        tmp_path / "run", env=Coin, method=recipe("dapo"), steps=1, tasks_per_step=4, group_size=8
    )
    rewards = {}
    for found in read_records(tmp_path / "run" / "episodes.jsonl"):
        rewards.setdefault(found.episode.group, set()).add(found.episode.reward)
    assert row["kept_groups"] == 4 < len(rewards)
    assert row["tied_groups"] == sum(len(r) < 2 for r in rewards.values()) / len(rewards) >= 0.5
    assert row["policy_version"] == 2 and np.isfinite(row["loss"])


@pytest.mark.parametrize("correct", [True, False])
def test_a_mismatch_between_engine_and_trainer_is_measured_and_corrected_if_asked_for(
    tmp_path, correct
):
    """The weights move between play and update, as if the engine had been wrong."""
    model, tokenizer = fresh()
    usual, seen = recipe("turn_rloo"), []

    def credit(table):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.manual_seed(1)))
        return usual.credit(table)

    def importance(log_w_M, turn_M, traj_M):
        seen.append(log_w_M)
        return usual.importance(log_w_M, turn_M, traj_M)

    method = replace(usual, credit=credit, importance=importance)
    how = {"steps": 1, "updates_per_step": 1, "correct_mismatch": correct, "method": method}
    (row,) = run(tmp_path / "run", model=(model, tokenizer), **how)
    assert row["engine_gap"] > 1e-2
    assert (max(float(w.abs().max()) for w in seen) > 1e-2) == correct
    assert (row["approx_kl"] < 1e-9) == correct  # the ratio is taken to the trainer's own policy
    assert (row["engine_kl"] > 1e-6) == correct


@pytest.mark.parametrize("name", ["turn_rloo", "grpo", "gigpo"])
def test_a_batch_of_which_every_episode_is_cut_short_is_learnt_from(tmp_path, name):
    def env():
        return Coin(length=5)

    rows = run(tmp_path / "run", env=env, method=recipe(name), steps=2, max_turns=2)
    for row in rows:
        assert row["truncated"] == 1 and row["success"] == 0
        assert np.isfinite(row["loss"]) and row["grad_norm"] > 0
