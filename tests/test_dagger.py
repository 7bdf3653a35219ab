"""Whole runs of imitation: students learn, runs go on, and what cannot work is refused."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from imitated import jobs_of, models, neural, played
from miniatures import naive_logprobs
from safetensors.torch import load_file
from toy_runs import config_of, fresh, history, same_weights
from toys import Walks

from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.executors import ByChance
from turnwise.agents.labels import Label, labelled
from turnwise.agents.policy import LLMPolicy
from turnwise.agents.record import read_records
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import jobs_for, play
from turnwise.agents.teachers import TextTeacher
from turnwise.trainers.batch import rows_of
from turnwise.trainers.curriculum import f2b, steadily
from turnwise.trainers.dagger import lessons
from turnwise.trainers.dagger_loop import TeacherFailed
from turnwise.trainers.imitation import Imitation, by_chance
from turnwise.trainers.learner import Learner
from turnwise.trainers.loop import train
from turnwise.trainers.mixes import constant
from turnwise.trainers.model import load_model, save_model
from turnwise.trainers.model_teacher import synced
from turnwise.trainers.recipe import Recipe, mixed_rewards
from turnwise.trainers.recipes import recipe
from turnwise.trainers.recipes.dagger import dagger
from turnwise.trainers.teachers import TeacherMismatch
from turnwise.trainers.tutor import NoTeacher

torch.set_num_threads(1)


def go(out, name="dagger", model=None, env=Walks, method=None, **more):
    more = {"recipe": name, "updates_per_step": 8, **more}
    return list(train(config_of(out, **more), model=model or fresh(), make_env=env, recipe=method))


def test_what_a_black_box_was_asked_may_wait_for_longer_than_it_may_take(tmp_path, monkeypatch):
    """One thread for eight episodes in which the teacher acts: answers are quick, the queue not."""

    def slow(seat):
        time.sleep(0.1)
        return "e"

    monkeypatch.setattr("turnwise.agents.openai_agent.text_of", lambda *_: slow)
    monkeypatch.setattr("turnwise.trainers.dagger_loop.AT_ONCE", 1)
    method = dagger(first=1.0, least=1.0)
    how = {"teacher": "openai:m@http://127.0.0.1:9", "reply_timeout_s": 0.4, "retries": 0}
    how |= {"tasks_per_step": 4, "group_size": 2, "steps": 1}
    (row,) = go(tmp_path / "run", method=method, **how)
    assert row["lost"] == 0 and row["teacher_share"] == 1 and row["label_errors"] == 0


def student_success(out) -> float:
    model, tokenizer = load_model(str(out / "model"))
    engine = EmbeddedEngine(model, slots=32, max_len=96)
    policy = LLMPolicy(engine, Renderer(tokenizer), max_new_tokens=3)
    jobs = jobs_for(Walks().tasks("test")[:60], run_seed=0, split="test")
    return float(np.mean([e.success for e in play(jobs, Walks, policy)]))


class Brief(Walks):
    """Walks whose expert says little enough for three tokens."""

    def expert(self):
        return "a"


@pytest.mark.parametrize("name", ["dagger", "sft"])
def test_a_student_learns_to_walk_from_an_expert(tmp_path, name):
    rows = go(tmp_path / "run", name, env=Brief, steps=5, tasks_per_step=8, checkpoint_every=0)
    assert student_success(tmp_path / "run") > 0.9
    odds = [row["teacher_odds"] for row in rows]
    assert odds == pytest.approx([1, 0.8, 0.6, 0.6, 0.6] if name == "dagger" else [1] * 5)
    for row in rows:
        n = 2 * 8 * 4
        error = math.sqrt(max(row["teacher_odds"] * (1 - row["teacher_odds"]), 0) / n)
        assert abs(row["teacher_share"] - row["teacher_odds"]) <= 4 * error
        assert row["label_errors"] == 0 and row["labels"] == 1
    assert rows[-1]["nll"] < rows[0]["nll"] / 3


def test_a_run_that_is_resumed_goes_on_with_the_rounds_that_it_kept(tmp_path):
    more = {"env": Brief, "checkpoint_every": 2, "recipe_options": '{"cap": 1, "batch": 4}'}
    go(tmp_path / "whole", steps=4, **more)
    go(tmp_path / "parts", steps=2, **more)
    rows = go(tmp_path / "parts", steps=4, resume=True, **more)
    assert [row["step"] for row in rows] == [3, 4]
    assert same_weights(tmp_path / "parts", tmp_path / "whole")
    assert history(tmp_path / "parts") == history(tmp_path / "whole")


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    """A folder with a model that walks."""
    place = tmp_path_factory.mktemp("master")
    go(place / "run", "sft", env=Brief, steps=4, tasks_per_step=8, checkpoint_every=0)
    return place / "run" / "model"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dagger", "{}"),
        ("dagger", '{"white_box": true, "rounds": 2}'),
        ("dagger", '{"handoff": 2, "always_handoff": true, "by_turn": true, "cap": 1}'),
        ("guided_opd", "{}"),
        ("sft", "{}"),
    ],
)
def test_a_student_learns_from_a_model(tmp_path, master, name, options):
    more = {"steps": 6, "tasks_per_step": 8, "checkpoint_every": 0, "recipe_options": options}
    rows = go(tmp_path / "run", name, teacher=str(master), **more)
    assert student_success(tmp_path / "run") > 0.8
    for row in rows:
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float))
        assert 0 <= row["teacher_share"] <= 1
    found = [r.episode for r in read_records(tmp_path / "run" / "episodes.jsonl")]
    assert {t.executor for e in found for t in e.turns} <= {"student", "teacher"}
    if name == "guided_opd":
        assert rows[0]["teacher_share"] == 1 and rows[-1]["teacher_share"] < 0.4
        assert rows[-1]["teacher_drift"] > 0 and all("nll" in row for row in rows[:-1])


@pytest.mark.parametrize("options", ["{}", '{"white_box": true, "first": 1.0, "least": 1.0}'])
def test_a_teacher_whose_answers_do_not_end_is_not_learnt_from(tmp_path, master, options):
    more = {"teacher": str(master), "steps": 2, "recipe_options": options, "max_new_tokens": 1}
    with pytest.raises(TeacherFailed, match=r"was cut at .* raise max_new_tokens \(1\)"):
        go(tmp_path / "run", "dagger", **more)
    assert go(tmp_path / "more", "dagger", **{**more, "max_failed": 1.0})[0]["lessons"] == 0


def test_labels_of_episodes_that_are_all_cut_short_are_learnt_from(tmp_path, master):
    """A label is right whatever became of its episode; where the answers are cut, see above."""
    options = '{"white_box": true, "first": 0.5, "least": 0.5}'
    more = {"env": partial(Brief, length=5), "max_turns": 2, "recipe_options": options}
    for row in go(tmp_path / "run", teacher=str(master), steps=2, **more):
        assert row["truncated"] == 1 and row["success"] == 0 and row["lessons"] > 0
        assert math.isfinite(row["loss"]) and row["grad_norm"] > 0


def test_guided_opd_divides_by_the_tokens_of_both_kinds_of_turns():
    """One step on mixed episodes has the gradient of both sums over the count of all tokens."""
    student, _, _ = models()
    episodes = played(jobs_of(tasks=6), partial(Walks, length=4), neural(ByChance(0.5)))
    episodes = [
        replace(e, segments=tuple(
            replace(s, turns=tuple(replace(t, label_error="") for t in s.turns)) for s in e.segments
        )) for e in episodes
    ]  # fmt: skip
    pool = lessons(
        [labelled(e, {i: Label("", ()) for i, t in enumerate(e.turns) if t.executor == "student"})
         for e in episodes], distinct=False,
    )  # fmt: skip
    rows, shown = rows_of(episodes), pool.rows()
    n_turns = sum(len(e.turns) for e in episodes)
    advantages = np.linspace(-1, 1, n_turns)
    learner = Learner(student, learning_rate=1e-3, max_len=128)
    learner._apply = lambda loss: {}
    method = replace(recipe("guided_opd"), distillation=None, imitation=None)
    out = learner.improve(rows, advantages, method, None, shown)
    own = sum(len(row.trained) for row in rows)
    theirs = sum(len(row.trained) for row in shown)
    gain = sum(advantages[t] for row in rows for t in row.turn)
    nll = -sum(
        float(naive_logprobs(student, row.ids)[i + row.start - 1])
        for row in shown
        for i in row.trained
    )
    assert out["trained_tokens"] == own + theirs
    assert out["loss"] == pytest.approx((nll - gain) / (own + theirs), rel=1e-4)


def test_a_label_that_is_drawn_in_a_run_stands_for_those_that_are_not(tmp_path):
    found = []
    for cap in (None, 1):
        method = dagger(cap=cap, first=0.0, least=0.0)
        more = {"env": partial(Walks, length=4), "method": method, "learning_rate": 1e-6}
        (row,) = go(tmp_path / str(cap), steps=1, updates_per_step=1, **more)
        found.append(row)
    whole, drawn = found
    assert drawn["lessons"] < whole["lessons"] / 2
    assert drawn["trained_tokens"] == whole["trained_tokens"]
    assert drawn["loss"] == pytest.approx(whole["loss"], rel=0.2)


def test_a_teacher_that_fails_too_often_ends_the_run_with_its_reasons(tmp_path):
    class Moody(Brief):
        def expert(self):
            if self.turn:
                raise LookupError("lost")
            return "a"

    rows = go(tmp_path / "half", env=Moody, steps=2, max_failed=0.6)
    assert rows[1]["label_error_teacher_failed"] == pytest.approx(0.5, abs=0.1)
    assert rows[1]["teacher_share"] <= 0.55 < rows[1]["teacher_odds"]
    with pytest.raises(TeacherFailed, match=r"12 of 24 labels.*max_failed 0.4.*LookupError: lost"):
        go(tmp_path / "run", env=Moody, steps=2, max_failed=0.4)
    assert not TeacherFailed.retryable


def test_a_recipe_that_needs_a_teacher_says_so_before_it_starts(tmp_path):
    class Alone(Walks):
        expert = None

    with pytest.raises(NoTeacher, match="'dagger' needs a teacher, and Alone has no expert"):
        go(tmp_path / "run", env=Alone)
    with pytest.raises(NoTeacher, match="and the environment's expert gives none: name a"):
        go(tmp_path / "run", recipe_options='{"white_box": true}')
    with pytest.raises(NoTeacher, match="'guided_opd' learns from a teacher: name one"):
        go(tmp_path / "run", "guided_opd")
    assert not (tmp_path / "run").exists()


def test_a_model_of_other_tokens_is_told_how_to_teach_by_its_text(tmp_path):
    other, tokenizer = fresh()
    tokenizer.add_tokens(["<zebra>"])
    other.resize_token_embeddings(len(tokenizer))
    where = save_model(other, tokenizer, tmp_path / "other")
    with pytest.raises(TeacherMismatch, match=r"zebra.* --teacher openai:MODEL@URL"):
        go(tmp_path / "run", "dagger", teacher=str(where))


def test_a_black_box_can_be_the_teacher(tmp_path):
    def told(renderer):
        return TextTeacher(lambda seat: "e", renderer=renderer, executor="teacher", workers=2)

    method = replace(dagger(), imitation=replace(dagger().imitation, teacher=told))
    go(tmp_path / "run", method=method, steps=3, tasks_per_step=8, checkpoint_every=0)
    assert student_success(tmp_path / "run") > 0.8


@pytest.mark.parametrize(
    ("change", "config", "why"),
    [
        ({"curriculum": f2b(steadily(1))}, {}, "do not use curriculum:"),
        ({"keep_group": mixed_rewards}, {}, "do not use keep_group:"),
        ({}, {"prompt_replay": 0.5}, "do not use prompt_replay:"),
        (
            {},
            {"prompt_replay": 0.5, "correct_mismatch": True},
            "prompt_replay and correct_mismatch:",
        ),
    ],
)
def test_what_rounds_of_imitation_do_not_use_is_refused_and_not_left_out(
    tmp_path, change, config, why
):
    with pytest.raises(ValueError, match=f"'dagger' imitates, and .*{why}"):
        go(tmp_path / "run", method=replace(dagger(), **change), **config)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_follows_the_student_follows_it_in_rounds_of_imitation_too(tmp_path):
    """A copy of the student is its teacher: before each round it acts and scores as the student."""
    how = replace(recipe("guided_opd").distillation, source=synced)
    chance = by_chance(constant(0.5))
    method = replace(
        recipe("guided_opd"),
        distillation=how,
        imitation=replace(recipe("guided_opd").imitation, roll_in=chance),
    )
    rows = go(tmp_path / "run", method=method, steps=3, updates_per_step=2, max_failed=1.0)
    assert [row["policy_version"] for row in rows] == [2, 4, 6]
    assert all(row["teacher_drift"] < 1e-4 for row in rows)
    student, _ = load_model(str(tmp_path / "run" / "model"))
    saved = torch.load(tmp_path / "run/checkpoints/step-000003/teacher.pt", weights_only=True)
    for name, p in student.named_parameters():
        torch.testing.assert_close(saved[name], p.detach())
    said = [t for e in episodes_in(tmp_path / "run") for t in _turns_with_history(e)]
    last = [(ids, t) for ids, t in said if t.executor == "teacher" and t.policy_version == 4]
    before = checkpointed(tmp_path / "run", 2)
    for ids, turn in last:
        naive = naive_logprobs(before, ids)[-len(turn.action_ids) :]
        np.testing.assert_allclose(turn.logprobs, naive, atol=1e-4)
    assert last


def episodes_in(out):
    return [row.episode for row in read_records(out / "episodes.jsonl")]


def _turns_with_history(episode):
    ids = []
    for turn in episode.turns:
        ids += [*turn.context_ids, *turn.action_ids]
        yield list(ids), turn


def checkpointed(out, step):
    """The student as it was saved after a step."""
    model, _ = fresh()
    (folder,) = out.glob(f"checkpoints/*{step}")
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model


def test_pieces_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="needs a surrogate, or an imitation"):
        Recipe(name="x", source="", status="")
    with pytest.raises(ValueError, match="keeps the last round"):
        replace(recipe("guided_opd"), imitation=Imitation())
    with pytest.raises(ValueError, match="cap must be at least 1, got 0"):
        dagger(cap=0)


def test_a_round_without_a_label_takes_no_step(tmp_path):
    class Verbose(Walks):
        def expert(self):
            return "xyz " * 200

    options = '{"first": 0.0, "least": 0.0}'
    rows = go(tmp_path / "run", env=Verbose, steps=2, recipe_options=options)
    for row in rows:
        assert (row["lessons"], row["policy_version"]) == (0, 0)
        assert row["label_errors"] == row["label_error_full"] == 1
