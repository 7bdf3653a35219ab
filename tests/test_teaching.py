"""Laws of teaching: one pass scores all, agreement moves nothing, a run learns and resumes."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from miniatures import VOCAB, naive_logprobs, qwen3
from runs import config_of, fresh, history, same_weights
from toys import Walks

from turnwise.agents.renderer import Renderer
from turnwise.envs.types import Episode, Group, Segment, Task, Turn
from turnwise.trainers.batch import Row, pack, rows_of, totals_of
from turnwise.trainers.contexts import message_ids, outcome_hint, with_context
from turnwise.trainers.distillation import Distillation
from turnwise.trainers.divergences import full
from turnwise.trainers.learner import Learner
from turnwise.trainers.loop import TooManyLost, train
from turnwise.trainers.mixes import Progress, added, convex, signal_alone
from turnwise.trainers.model import save_model
from turnwise.trainers.recipe import Recipe, no_credit
from turnwise.trainers.recipes import NAMES, recipe
from turnwise.trainers.sft import demonstrations, imitate
from turnwise.trainers.signals import contrast, reverse_kl
from turnwise.trainers.surrogates import ppo, token_mean
from turnwise.trainers.teachers import (
    ModelTeacher,
    Several,
    TeacherMismatch,
    ema,
    frozen,
    require_same_vocabulary,
    self_base,
    synced,
)
from turnwise.trainers.teaching import distil, score, token_table
from turnwise.trainers.turns import turn_table
from turnwise.trainers.tutor import NoTeacher

torch.set_num_threads(1)
TAUGHT = [name for name in NAMES if recipe(name).distillation is not None]
NOW = Progress(0, 10)
EVERY = ("reference", "reverse_kl", "entropy", "overlap", "top")


def learner_of(model, micro_tokens=8192) -> Learner:
    return Learner(model, learning_rate=1e-3, micro_tokens=micro_tokens, max_len=256)


def episodes_of(model, seed=0, groups=2, attempts=3) -> list[Group]:
    """Episodes of random tokens, with the log-probabilities that `model` gives them."""
    rng = np.random.default_rng(seed)
    made = []
    for g in range(groups):
        prompt = tuple(rng.integers(1, VOCAB, 5).tolist())
        made.append([_episode(model, prompt, rng, f"{g}.{i}") for i in range(attempts)])
    return [Group(task=Task(), episodes=tuple(some)) for some in made]


def _episode(model, prompt, rng, name) -> Episode:
    ids, turns = list(prompt), []
    for t in range(rng.integers(1, 4)):
        context = prompt if t == 0 else tuple(rng.integers(1, VOCAB, 3).tolist())
        action = tuple(rng.integers(1, VOCAB, rng.integers(1, 5)).tolist())
        ids += [*(context if t else ()), *action]
        logp = naive_logprobs(model, ids, 1.0)[-len(action) :]
        turns.append(
            Turn(
                context_ids=context,
                action_ids=action,
                logprobs=tuple(float(x) for x in logp),
                reward=float(rng.random()),
            )
        )
    success = bool(rng.random() < 0.5)
    return Episode(
        id=name, env_id="toy", task=Task(), segments=(Segment(turns=tuple(turns)),), success=success
    )


def parts(groups):
    episodes = [e for group in groups for e in group.trainable]
    return rows_of(episodes), turn_table(groups), episodes


def taught(name, student, teacher, groups, micro_tokens=8192):
    """Return (learner with its gradient step not yet taken, rows, advantages) of a recipe."""
    method = replace(recipe(name), keep_group=lambda group: True)
    learner = learner_of(student, micro_tokens)
    if method.needs_reference:
        learner.keep_reference()
    rows, table, episodes = parts(groups)
    credit = np.zeros(len(table))
    rows, said = distil(
        rows, credit, table, episodes,
        learner=learner, teacher=teacher, how=method.distillation, progress=NOW,
    )  # fmt: skip
    return learner, rows, credit, replace(method, kl_coefficient=0.0), said


def gradient_of(name, student, teacher, groups, micro_tokens=8192, order=None):
    """The gradient of one update, by a learner whose optimizer only looks."""
    learner, rows, credit, method, _ = taught(name, student, teacher, groups, micro_tokens)
    rows = rows if order is None else [rows[i] for i in order]
    seen = {}

    def look(loss):
        seen.update({n: p.grad.clone() for n, p in learner.model.named_parameters()})
        return {}

    learner._apply = look
    out = learner.improve(rows, credit, method, teacher)
    learner.optimizer.zero_grad()
    return seen, out


def biggest(gradients):
    return max(float(g.abs().max()) for g in gradients.values())


# ------------------------------------------------------------ scoring


def test_one_pass_over_an_episode_gives_the_scores_of_one_call_per_turn():
    student, teacher = qwen3(0), qwen3(1)
    groups = episodes_of(student)
    rows, _, _ = parts(groups)
    found = score(rows, learner_of(student), frozen(teacher, 256))["teacher_M"]
    naive = []
    for row in rows:
        whole = [*row.prompt, *row.rest]
        logp = naive_logprobs(teacher, whole, 1.0)
        at = [len(row.prompt) + i for i in row.trained]
        naive += [float(logp[i - len(whole)]) for i in at]
    np.testing.assert_allclose(found, naive, atol=1e-5)


def test_the_columns_are_what_they_are_called():
    student, teacher = qwen3(0), qwen3(1)
    learner = learner_of(student)
    learner.keep_reference()
    rows, _, _ = parts(episodes_of(student))
    found = score(rows, learner, frozen(teacher, 256), EVERY)
    old = np.array([o for row in rows for o in row.old])
    np.testing.assert_allclose(found["reference_M"], old, atol=1e-5)
    assert (found["reverse_kl_M"] > 0).all() and (found["entropy_M"] <= math.log(VOCAB)).all()
    assert ((found["overlap_M"] >= 0) & (found["overlap_M"] < 1)).all()
    assert (found["top_M"] >= np.exp(found["teacher_M"]) - 1e-6).all()
    same = score(rows, learner, frozen(copy.deepcopy(student), 256), EVERY)
    np.testing.assert_allclose(same["reverse_kl_M"], 0, atol=1e-6)
    assert (same["overlap_M"] == 1).all()


# ------------------------------------------------------------ laws of every recipe with a teacher


@pytest.mark.parametrize("name", TAUGHT)
def test_a_teacher_equal_to_the_student_moves_nothing(name):
    student = qwen3(0)
    groups = episodes_of(student)
    same, _ = gradient_of(name, student, frozen(copy.deepcopy(student), 256), groups)
    other, _ = gradient_of(name, student, frozen(qwen3(1), 256), groups)
    assert biggest(same) < 1e-5 < 1e-3 < biggest(other)


def test_a_teacher_who_has_no_say_is_not_asked_and_leaves_the_reward_as_it_is():
    class Unwilling:
        def logprobs(self, packed):
            raise AssertionError("asked")

    rows, table, episodes = parts(episodes_of(qwen3(0)))
    reward_N = np.linspace(-1, 1, len(table))
    method = recipe("opd_then_rl", switch=3)
    learner = learner_of(qwen3(0))
    for mix in (convex, added, signal_alone):
        how = replace(method.distillation, mix=mix)
        after = {"how": how, "progress": Progress(3, 10), "learner": learner}
        mine, said = distil(rows, reward_N, table, episodes, teacher=Unwilling(), **after)
        late, _ = distil(  # as it was scored: a direct loss keeps the teacher awake
            rows, reward_N, table, episodes, teacher=frozen(qwen3(1), 256),
            **{**after, "how": replace(how, direct=full())},
        )  # fmt: skip
        assert [row.advantage for row in mine] == [row.advantage for row in late]
        assert said == {"teacher_coefficient": 0.0}
        with pytest.raises(AssertionError, match="asked"):
            before = {**after, "progress": Progress(2, 10)}
            distil(rows, reward_N, table, episodes, teacher=Unwilling(), **before)
        trusting = replace(how, trust=0.5)
        with pytest.raises(AssertionError, match="asked"):
            distil(rows, reward_N, table, episodes, teacher=Unwilling(),
                   **{**after, "how": trusting})  # fmt: skip


class Silent:
    """A teacher who has no score for some rows, or none at all."""

    def __init__(self, teacher, quiet):
        self.teacher, self.quiet = teacher, quiet

    def logprobs(self, packed):
        found = self.teacher.logprobs(packed)
        mine = [bool(self.quiet(row)) for row in packed.rows for _ in row.trained]
        found[torch.tensor(mine)] = torch.nan
        return found


@pytest.mark.parametrize("name", TAUGHT)
def test_missing_scores_leave_a_finite_loss_and_no_trace(name):
    student, teacher = qwen3(0), frozen(qwen3(1), 256)
    groups = episodes_of(student)
    none, out = gradient_of(name, student, Silent(teacher, lambda row: True), groups)
    assert math.isfinite(out["loss"]) and biggest(none) < 1e-6
    some, out = gradient_of(name, student, Silent(teacher, lambda row: row.traj % 2), groups)
    assert math.isfinite(out["loss"]) and biggest(some) > 1e-4


@pytest.mark.parametrize("name", TAUGHT)
def test_the_gradient_does_not_depend_on_micro_batches_or_order(name):
    student, teacher = qwen3(0), frozen(qwen3(1), 256)
    groups = episodes_of(student)
    whole, _ = gradient_of(name, student, teacher, groups)
    split, _ = gradient_of(name, student, teacher, groups, micro_tokens=20)
    turned, _ = gradient_of(name, student, teacher, groups, order=[5, 4, 3, 2, 1, 0])
    for n, g in whole.items():
        torch.testing.assert_close(split[n], g, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(turned[n], g, atol=1e-6, rtol=1e-4)


def test_a_sampled_signal_and_a_trusted_teacher_work_off_policy_too():
    """Old log-probabilities that are not the student's: ratios differ from one."""
    student, teacher = qwen3(0), frozen(qwen3(1), 256)
    groups = episodes_of(qwen3(2))
    rows, table, episodes = parts(groups)
    learner = learner_of(student)
    how = Distillation(signal=reverse_kl, trust=0.5)
    method = Recipe(name="t", source="", status="", surrogate=ppo(9, 9), distillation=how)
    ready, _ = distil(
        rows, np.zeros(len(table)), table, episodes,
        learner=learner, teacher=teacher, how=how, progress=NOW,
    )  # fmt: skip
    old = np.array([o for row in rows for o in row.old])
    q = np.array([t for row in ready for t in row.teacher])
    now = score(rows, learner, frozen(copy.deepcopy(student), 256))["teacher_M"]
    ratio = np.exp(np.clip(now - (old + q) / 2, -20, 20)).clip(-8, 10)
    free = np.exp(np.clip(now - (old + q) / 2, -20, 20)) * (q - old)
    expected = -np.minimum(free, ratio * (q - old)).mean()
    out = learner.improve(ready, np.zeros(len(table)), method, teacher)
    assert out["loss"] == pytest.approx(expected, rel=1e-3)


# ------------------------------------------------------------ scores that do not fit


class Garbled:
    """A teacher whose table of scores comes out wrong."""

    def __init__(self, teacher, garble):
        self.teacher, self.garble = teacher, garble

    def logprobs(self, packed):
        return self.garble(self.teacher.logprobs(packed))


GARBLES = {
    "long": (lambda s: torch.cat([s, s[:1]]), r"scored \d+ tokens and \d+ are trained: one row"),
    "short": (lambda s: s[:-1], r"scored \d+ tokens and \d+ are trained: one row"),
    "narrow": (lambda s: s[:, :80], "scores 80 ids and the student has 89: resize"),
}


@pytest.mark.parametrize(("garble", "why"), GARBLES.values(), ids=GARBLES)
def test_scores_that_are_not_the_students_tokens_are_refused_where_they_enter(garble, why):
    student = qwen3(0)
    wrong = Garbled(frozen(qwen3(1), 256), garble)
    rows, table, _ = parts(episodes_of(student))
    learner, counted = learner_of(student), np.zeros(len(table))
    with pytest.raises(TeacherMismatch, match=why):
        score(rows, learner, wrong)
    with pytest.raises(TeacherMismatch, match=why):
        learner.improve(rows, counted, recipe("gkd"), wrong)
    with pytest.raises(TeacherMismatch, match=why):
        learner.imitate(rows, direct=full(), teacher=wrong)
    if "row" in why:
        with pytest.raises(TeacherMismatch, match=why):
            Several([wrong], lambda row: 0).logprobs(packed_of(rows))


def packed_of(rows):
    return pack(rows, aggregate=token_mean, totals=totals_of(rows))


@pytest.mark.parametrize("name", ["opd", "vopd", "gkd"])
def test_ids_that_only_the_teacher_has_are_cut_off_and_the_others_sum_to_one(name):
    student, wide = qwen3(0), qwen3(1, vocab=VOCAB + 8)
    narrow = copy.deepcopy(wide)
    narrow.resize_token_embeddings(VOCAB)
    groups = episodes_of(student)
    mine, out = gradient_of(name, student, frozen(wide, 256), groups)
    expected, other = gradient_of(name, student, frozen(narrow, 256), groups)
    assert out["loss"] == pytest.approx(other["loss"], abs=1e-6)
    for n, g in expected.items():
        torch.testing.assert_close(mine[n], g, atol=1e-6, rtol=1e-4)


# ------------------------------------------------------------ sources


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_an_average_follows_by_its_decay_and_a_copy_at_once():
    student = qwen3(0)
    slow, fast, base = (
        ema(student, 256, decay=0.9),
        synced(student, 256, every=2),
        self_base(student, 256),
    )
    first = parameters(student).clone()
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    for updates in (1, 2):
        for teacher in (slow, fast, base):
            teacher.after_update(student, updates)
        if updates == 1:
            torch.testing.assert_close(parameters(fast.model), first)
    torch.testing.assert_close(parameters(slow.model), first + 0.19)
    torch.testing.assert_close(parameters(fast.model), first + 1)
    torch.testing.assert_close(parameters(base.model), first)
    assert base.state_dict() == {} and slow.state_dict()


def test_a_teacher_carries_no_gradient_and_leaves_the_student_as_it_is():
    student = qwen3(0)
    before = parameters(student).clone()
    groups = episodes_of(student)
    gradients, _ = gradient_of("gkd", student, self_base(student, 256), groups)
    assert all(p.requires_grad for p in student.parameters()) and gradients
    torch.testing.assert_close(parameters(student), before)


def test_each_trajectory_is_scored_by_the_teacher_that_is_chosen_for_it():
    student = qwen3(0)
    one, two = frozen(qwen3(1), 256), frozen(qwen3(2), 256)
    rows, _, _ = parts(episodes_of(student))
    learner = learner_of(student)

    def choose(row):
        return {0: 0, 1: 1}.get(row.traj)

    mixed = score(rows, learner, Several([one, two], choose))["teacher_M"]
    first, second = (score(rows, learner, t)["teacher_M"] for t in (one, two))
    traj = np.array([row.traj for row in rows for _ in row.trained])
    np.testing.assert_array_equal(mixed[traj == 0], first[traj == 0])
    np.testing.assert_array_equal(mixed[traj == 1], second[traj == 1])
    assert np.isnan(mixed[traj > 1]).all()


def test_another_vocabulary_is_refused_by_its_first_difference():
    _, tokenizer = fresh()
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<zebra>"])
    require_same_vocabulary(tokenizer, tokenizer)
    with pytest.raises(TeacherMismatch, match=r"first difference is token '<zebra>' with id"):
        require_same_vocabulary(tokenizer, other)


# ------------------------------------------------------------ privileged context


def test_a_hint_is_one_more_user_message_before_the_agent_speaks():
    _, tokenizer = fresh()
    renderer = Renderer(tokenizer)
    prompt = renderer.open([{"role": "user", "content": "walk 7"}])
    ids, behind = message_ids(renderer, "it works")
    at = len(prompt) - len(behind)
    longer = [*prompt[:at], *ids, *prompt[at:]]
    both = [{"role": "user", "content": "walk 7"}, {"role": "user", "content": "it works"}]
    assert longer == renderer.open(both)


def test_the_teacher_reads_the_prompt_that_the_template_gives_of_both_messages():
    _, tokenizer = fresh()
    renderer, (whole,) = Renderer(tokenizer), episodes_of(qwen3(), groups=1, attempts=1)
    said = {"role": "user", "content": "walk 7"}
    row = Row(tuple(renderer.open([said])), [4, 5], [0], [0.0], [0], [1.0], 0)
    (told,) = with_context([row], whole.episodes, outcome_hint, renderer)
    hint = {"role": "user", "content": outcome_hint(whole.episodes[0])}
    assert list(told.hinted().prompt) == renderer.open([said, hint])


def test_the_hint_changes_the_scores_of_the_same_tokens_and_its_hits_are_counted():
    model, tokenizer = fresh()
    groups = episodes_of(model) if len(tokenizer) >= VOCAB else None
    groups = groups or [replace(g) for g in episodes_of(model)]
    rows, table, episodes = parts(groups)
    _, behind = message_ids(Renderer(tokenizer), "x")
    rows = [replace(row, prompt=(*row.prompt, *behind)) for row in rows]
    learner, teacher = learner_of(model), self_base(model, 256)
    hinted = with_context(rows, episodes, outcome_hint, Renderer(tokenizer))
    assert all(
        a.rest == b.rest and a.trained == b.trained for a, b in zip(rows, hinted, strict=True)
    )
    assert all(len(row.hinted().prompt) == len(row.prompt) + len(row.hint) for row in hinted)
    plain, told = (score(some, learner, teacher)["teacher_M"] for some in (rows, hinted))
    assert (np.abs(plain - told) > 1e-7).mean() > 0.9
    how = Distillation(signal=reverse_kl)
    for some, hits in ((rows, 0.0), (hinted, 1.0)):
        _, said = distil(
            some, np.zeros(len(table)), table, episodes,
            learner=learner, teacher=teacher, how=how, progress=NOW,
        )  # fmt: skip
        assert said["teacher_context"] == hits


def test_a_hint_inside_a_message_is_refused_and_so_is_one_that_says_nothing():
    _, tokenizer = fresh()
    renderer, (whole,) = Renderer(tokenizer), episodes_of(qwen3(), groups=1, attempts=1)
    prompt = tuple(renderer.open([{"role": "user", "content": "walk 7"}]))
    behind = message_ids(renderer, "x")[1]

    def told(ids, context=outcome_hint):
        row = Row(ids, [4, 5], [0], [0.0], [0], [1.0], 0)
        return with_context([row], whole.episodes, context, renderer)

    assert behind and told(prompt)[0].hint_at == len(prompt) - len(behind)
    for ids in (prompt[:-1], (*prompt, 5), (5,), ()):
        with pytest.raises(ValueError, match="would stand inside a message"):
            told(ids)
    for blank in (" ", "\n\t "):
        with pytest.raises(ValueError, match="told nothing, return ''"):
            told(prompt, lambda episode, blank=blank: blank)
    (nothing,) = told(prompt[:-1], lambda episode: "")
    assert nothing.hint == () and nothing.hinted() == nothing


@pytest.mark.parametrize("at", [-1, 4])
def test_a_hint_has_its_place_in_the_prompt(at):
    row = Row((1, 2, 3), [4], [0], [0.0], [0], [1.0], 0)
    with pytest.raises(ValueError, match=f"from 0 to 3 of its prompt, got {at}"):
        replace(row, hint=(7,), hint_at=at)
    for end in (0, 3):
        assert replace(row, hint=(7,), hint_at=end).hinted().prompt[end] == 7


def test_a_contrast_is_felt_exactly_where_there_is_a_hint():
    student = qwen3(0)
    rows, table, episodes = parts(episodes_of(student))
    some = [a if i % 2 else b for i, (a, b) in enumerate(zip(rows, hints_of(rows, 6), strict=True))]
    found = score(some, learner_of(student), frozen(qwen3(1), 256), ("against",))
    felt = contrast(token_table(some, table, episodes, found))
    told = np.array([bool(row.hint) for row in some for _ in row.trained])
    assert not felt[~told].any() and (np.abs(felt[told]) > 1e-6).all()


def hints_of(rows, length):
    return [replace(row, hint=tuple(range(1, length + 1)), hint_at=2) for row in rows]


def test_a_hint_finds_room_as_far_as_the_model_has_positions_and_what_is_longer_has_no_score():
    student = qwen3(0)
    rows, table, episodes = parts(episodes_of(student))
    hinted = hints_of(rows, 20)
    lengths = [len(row.hinted().ids) for row in hinted]
    positions = sorted(lengths)[3]
    longest = max(len(row.ids) for row in rows)
    assert longest < positions < max(lengths)
    learner, small = learner_of(student), frozen(qwen3(1, max_len=positions), longest)
    found = score(hinted, learner, small, ("top",))
    expected = score(hinted, learner, frozen(qwen3(1), 256), ("top",))
    fits = np.array([n <= positions for n, r in zip(lengths, rows, strict=True) for _ in r.trained])
    for name, column in found.items():
        np.testing.assert_allclose(column[fits], expected[name][fits], atol=1e-6)
        assert np.isnan(column[~fits]).all()
    _, said = distil(
        hinted, np.zeros(len(table)), table, episodes,
        learner=learner, teacher=small, how=Distillation(signal=reverse_kl), progress=NOW,
    )  # fmt: skip
    assert said["teacher_missing"] == pytest.approx(1 - fits.mean())
    assert np.isnan(score(hints_of(rows, 99), learner, small)["teacher_M"]).all()
    with pytest.raises(ValueError, match="longer than max_len"):
        frozen(qwen3(1), longest - 1).logprobs(packed_of(rows))


# ------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    """A folder with a model that walks well, and the tokenizer of every student here."""
    model, tokenizer = fresh()
    renderer = Renderer(tokenizer)
    learner = Learner(model, learning_rate=1e-2, max_len=96)
    shown = demonstrations(Walks, Walks().tasks("train")[:64], renderer, seed=0, noise=0.0)
    for _ in imitate(learner, shown, steps=30, batch=16, seed=0):
        pass
    place = tmp_path_factory.mktemp("master")
    save_model(learner.model, tokenizer, place)
    return place


def go(out, name, teacher, **more):
    more = {"recipe": name, "teacher": str(teacher), **more}
    return list(train(config_of(out, **more), model=fresh(), make_env=Walks))


@pytest.mark.parametrize("name", ["opd", "vopd", "gkd", "sod"])
def test_a_student_comes_to_walk_like_its_teacher(tmp_path, master, name):
    more = {"steps": 40, "group_size": 8, "tasks_per_step": 6, "learning_rate": 5e-3}
    rows = go(tmp_path / "run", name, master, checkpoint_every=0, **more)
    success = [row["success"] for row in rows]
    drift = [row["teacher_drift"] for row in rows]
    assert np.mean(success[:3]) < 0.1 and np.mean(success[-4:]) > 0.7
    assert np.mean(drift[-4:]) < np.mean(drift[:3]) / 2


@pytest.mark.parametrize("name", [name for name in TAUGHT if recipe(name).imitation is None])
def test_every_recipe_with_a_teacher_runs_and_logs_finite_numbers(tmp_path, master, name):
    rows = go(tmp_path / "run", name, master, steps=2)
    for row in rows:
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert all(map(math.isfinite, numbers))
        assert row["teacher_missing"] == 0 and row["teacher_drift"] > 0


def test_a_batch_of_which_every_episode_is_cut_short_is_taught_and_counted(tmp_path, master):
    for row in go(tmp_path / "run", "sod", master, steps=2, max_turns=1):
        assert row["truncated"] == 1 and row["success"] == 0 and row["teacher_missing"] == 0
        assert math.isfinite(row["loss"]) and row["grad_norm"] > 0


@pytest.mark.parametrize("name", ["sod", "dagger"])
def test_a_batch_that_is_full_before_its_first_turn_is_refused_by_name(tmp_path, master, name):
    class Wordy(Walks):
        def setup(self, task, rng):
            return 20 * super().setup(task, rng)

    how = {"white_box": True} if name == "dagger" else {}
    config = config_of(tmp_path, teacher=str(master), max_tokens=20)
    with pytest.raises(TooManyLost, match=r"no episode .* turn to train on: .*max_tokens 20 "):
        list(train(config, model=fresh(), make_env=Wordy, recipe=recipe(name, **how)))


def own_average() -> Recipe:
    from functools import partial

    how = Distillation(direct=full(), source=partial(ema, decay=0.5), context=outcome_hint)
    return Recipe(
        name="opd", source="", status="", credit=no_credit, surrogate=ppo(), distillation=how
    )


@pytest.mark.parametrize("kind", ["frozen", "average"])
def test_an_interrupted_lesson_resumes_bit_for_bit(tmp_path, master, kind):
    method = own_average() if kind == "average" else recipe("opd_then_rl", patience=2)

    def part(out, **more):
        named = str(master) if kind == "frozen" else ""
        config = config_of(out, teacher=named, **more)
        return list(train(config, model=fresh(), make_env=Walks, recipe=method))

    part(tmp_path / "whole")
    part(tmp_path / "cut", steps=4)
    saved = json.loads((tmp_path / "cut/checkpoints/step-000004/tutor.json").read_text())
    assert len(saved["success"]) == 4
    part(tmp_path / "cut", steps=6, resume=True)
    assert history(tmp_path / "whole") == history(tmp_path / "cut")
    assert same_weights(tmp_path / "whole", tmp_path / "cut")


def test_a_run_tells_its_teacher_what_the_recipe_says_and_the_teacher_listens(tmp_path):
    method = own_average()
    deaf = replace(method, distillation=replace(method.distillation, context=None))
    said = []
    for name, one in (("told", method), ("deaf", deaf)):
        config = config_of(tmp_path / name, steps=1)
        said += train(config, model=fresh(), make_env=Walks, recipe=one)
    assert [row["teacher_context"] for row in said] == [1, 0]
    assert said[1]["teacher_drift"] < 1e-4 < 1e-3 < said[0]["teacher_drift"]


def test_an_average_of_the_student_follows_it_through_a_run(tmp_path):
    model, tokenizer = fresh()
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = config_of(tmp_path / "run", steps=2, updates_per_step=1)
    list(train(config, model=(model, tokenizer), make_env=Walks, recipe=own_average()))
    saved = torch.load(tmp_path / "run/checkpoints/step-000002/teacher.pt", weights_only=True)
    moved = {n for n, p in first.items() if not torch.equal(saved[n], p)}
    assert moved == set(first)
    assert any(not torch.equal(saved[n], p) for n, p in model.named_parameters())


def test_a_hint_on_an_episode_of_full_length_does_not_end_the_run(tmp_path):
    def long_hint(episode):
        return "well " * (3 if episode.success else 60)

    method = replace(own_average(), distillation=replace(own_average().distillation,
                                                         context=long_hint))  # fmt: skip
    config = config_of(tmp_path / "run", steps=2)
    rows = list(train(config, model=fresh(), make_env=Walks, recipe=method))
    assert all(row["teacher_missing"] > 0 and math.isfinite(row["loss"]) for row in rows)


def test_steps_are_counted_and_all_attempts_too_where_no_group_is_kept(tmp_path, master):
    """Groups that tie in the third and fourth step are not kept: the schedule goes on."""

    class Tied(Walks):
        def respond(self, action):
            said = super().respond(action)
            index = self.task.index
            won = index % 3 == 0 if 6 <= index < 12 else self.rng.random() < 0.5
            return replace(said, reward=float(won), success=won)

    def mixed(group):
        return not 6 <= group.task.index < 12

    method = replace(recipe("opd_then_rl", switch=4), keep_group=mixed)
    config = config_of(tmp_path / "run", teacher=str(master), checkpoint_every=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("turnwise.trainers.attempts.ROUNDS", 1)
        rows = list(train(config, model=fresh(), make_env=Tied, recipe=method))
    assert [row["kept_groups"] for row in rows] == [3, 3, 0, 0, 3, 3]
    assert [row.get("teacher_coefficient") for row in rows] == [1, 1, None, None, 0, 0]
    (saved,) = (tmp_path / "run").glob("checkpoints/*6/tutor.json")
    seen = json.loads(saved.read_text())
    assert seen["success"] == [row["success"] for row in rows]
    assert seen["success"][2:4] == pytest.approx([1 / 3, 1 / 3])
    assert [math.isnan(drift) for drift in seen["drift"]] == [False] * 2 + [True] * 4


def test_a_recipe_without_its_teacher_says_how_to_name_one(tmp_path):
    with pytest.raises(NoTeacher, match="--teacher FOLDER"):
        go(tmp_path / "run", "opd", "")


def test_a_teacher_with_other_tokens_is_refused_before_anything_is_played(tmp_path, master):
    other, tokenizer = fresh()
    tokenizer.add_tokens(["<zebra>"])
    other.resize_token_embeddings(len(tokenizer))
    save_model(other, tokenizer, tmp_path / "other")
    with pytest.raises(TeacherMismatch, match="zebra"):
        go(tmp_path / "run", "opd", tmp_path / "other")
    assert not (tmp_path / "run" / "episodes.jsonl").exists()


def test_the_rows_of_a_model_teacher_keep_their_place():
    assert isinstance(frozen(qwen3(1), 64), ModelTeacher)
    row = Row((1, 2, 3), [4, 5], [0], [0.0], [0], [1.0], 0, hint=(7, 8), hint_at=2)
    assert row.hinted().prompt == (1, 2, 7, 8, 3) and row.hinted().rest == [4, 5]
