"""Laws of the guard: when a run is left, which weights stay, and that a kill changes neither."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from turnwise.agents.renderer import Renderer
from turnwise.envs.base import Response, TextEnv
from turnwise.envs.types import Episode, Segment, Task, Turn
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.guard import (
    Best,
    Guard,
    best_of,
    forget_unprobed,
    leave_on_success,
    score_of,
)
from turnwise.trainers.loop import train
from turnwise.trainers.model import fingerprint, load_model, save_model, tiny_from_env
from turnwise.trainers.pipeline import WarmUp, success_rate, warm_up

torch.set_num_threads(1)
WORDS = ("owl", "fox", "elk", "bee")
RATES = st.lists(st.integers(0, 10).map(lambda n: n / 10), min_size=1, max_size=12)


def climbing(successes, stop=None):
    """A run that writes its step into the model's one weight, and the probe that reads it."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    closed = []

    def rows():
        try:
            for step in range(1, stop or len(successes)):
                nn.init.constant_(model.weight, step)
                yield {"step": step}
        finally:
            closed.append(True)

    return rows(), model, lambda: successes[round(model.weight.item())], closed


def left(successes, guard, **more):
    """Run to the end: (why, the step whose weights stay, steps taken, probes)."""
    rows, model, probe, closed = climbing(successes, **more)
    best = Best(model, probe)
    seen = list(leave_on_success(rows, best, guard, until=len(successes) - 1))
    assert closed or not seen, "the run was not closed"
    return best.left, round(model.weight.item()), len(seen), len(best.seen)


@pytest.mark.parametrize(
    ("successes", "guard", "expected"),
    [
        # fell: at once, back to the start
        ((0.5, 0.4, 0.9), Guard(every=1, fall=0.05), ("fell", 0, 1, 2)),
        # a fall of just the margin is noise
        ((0.5, 0.45, 0.9), Guard(every=1, fall=0.05), ("ended", 2, 2, 3)),
        # stalled: the best stays, not the last
        ((0.1, 0.6, 0.5, 0.5, 0.9), Guard(every=1, patience=2), ("stalled", 1, 3, 4)),
        # of equals the earliest
        ((0.5, 0.5, 0.5), Guard(every=1, patience=2), ("stalled", 0, 2, 3)),
        # what comes before `settle` does not count
        ((0.3, 0.3, 0.3, 0.9), Guard(every=1, patience=2, settle=2), ("ended", 3, 3, 4)),
        ((0.3, 0.3, 0.3, 0.3, 0.3), Guard(every=1, patience=2, settle=2), ("stalled", 0, 4, 5)),
        # and does not excuse a fall
        ((0.3, 0.1, 0.9), Guard(every=1, settle=9), ("fell", 0, 1, 2)),
        # probed every few steps and at the end
        ((0.0, 9.0, 0.2, 9.0, 0.3, 0.4), Guard(every=2), ("ended", 5, 5, 4)),
    ],
)
def test_a_run_is_left_on_its_success_with_its_best_weights(successes, guard, expected):
    assert left(successes, guard) == expected


@settings(deadline=None)
@given(RATES, st.integers(1, 3), st.sampled_from([0.0, 0.05, 0.3]))
def test_what_stays_is_never_worse_than_the_start_nor_than_any_probe(successes, patience, fall):
    guard = Guard(every=1, patience=patience, fall=fall)
    why, kept, steps, probes = left(successes, guard)
    assert successes[kept] == max(successes[: steps + 1]) >= successes[0]
    assert probes == steps + 1
    assert why or steps == len(successes) - 1


@settings(deadline=None)
@given(RATES)
def test_a_run_that_keeps_rising_is_never_left(successes):
    rising = sorted(set(successes))
    assert left(rising, Guard(every=1, patience=1, fall=0.0))[:2] == ("ended", len(rising) - 1)


def test_an_interrupted_run_is_neither_probed_nor_rolled_back():
    assert left((0.9, 0.9, 0.9, 0.9), Guard(every=3), stop=3) == ("", 2, 2, 1)


def test_who_reads_the_rows_may_stop_and_the_run_is_closed():
    rows, model, probe, closed = climbing((0.1,) * 9)
    reading = leave_on_success(rows, Best(model, probe), Guard(every=9), until=8)
    next(reading)
    reading.close()
    assert closed


def test_how_far_a_run_is_may_be_counted_in_what_it_cost():
    rows, model, probe, _ = climbing((0.1, 0.2, 0.3, 0.4, 0.5))
    best = Best(model, probe)
    cost = partial(leave_on_success, rows, best, Guard(every=20), until=35)
    assert len(list(cost(at=lambda row: 10.0 * row["step"]))) == 4
    assert best.seen == {0.0: 0.1, 20.0: 0.3, 40.0: 0.5}


@pytest.mark.parametrize("wrong", [{"every": 0}, {"patience": 0}, {"fall": -0.1}])
def test_a_guard_that_cannot_guard_is_refused(wrong):
    with pytest.raises(ValueError, match="every must be above 0, patience at least 1"):
        Guard(**wrong)


# ------------------------------------------------------------ with a teacher


class Naming(TextEnv):
    """Answer a word by the word `shift` places on."""

    fast = True

    def __init__(self, shift: int = 1) -> None:
        super().__init__()
        self.shift = shift

    def tasks(self, split):
        return [Task(hidden={"split": self.known_split(split), "i": i}) for i in range(64)]

    def setup(self, task, rng):
        self.at = rng.randrange(len(WORDS))
        return f"After {WORDS[self.at]}?"

    def respond(self, action):
        right = action == self.expert()
        return Response("", float(right), terminated=True, success=right)

    def expert(self):
        return WORDS[(self.at + self.shift) % len(WORDS)]


LIMITS = {"max_tokens": 48, "max_new_tokens": 6}
SFT = WarmUp(
    demos=64, noise=0.0, steps=150, learning_rate=4e-3, check_every=3, check_tasks=32, **LIMITS
)
PLAN = TrainConfig(
    recipe="gkd",
    steps=10,
    tasks_per_step=8,
    group_size=2,
    updates_per_step=1,
    warmup_steps=1,
    learning_rate=4e-3,
    checkpoint_every=2,
    **LIMITS,
)


@cache
def taught(shift: int, target: float):
    """A model that knows the answers of one world, and its tokenizer."""
    make_env = partial(Naming, shift)
    model, tokenizer = tiny_from_env(Naming, tasks=40, hidden=32, layers=1, head_dim=8, ffn=48)
    plan = WarmUp(**{**vars(SFT), "target": target})
    assert warm_up(model, tokenizer, make_env, plan, seed=0)["success"] >= target
    return model, tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A student that is right now and then, a teacher that is right and one that is wrong."""
    base = tmp_path_factory.mktemp("models")
    pupils = {"student": (1, 0.4), "right": (1, 0.9), "wrong": (2, 0.9)}
    return {name: save_model(*taught(*how), base / name) for name, how in pupils.items()}


def distilled(folders, teacher, out, guard, die_at=None):
    """Learn from a teacher under the guard; `die_at` is the probe in which the process ends."""
    model, tokenizer = load_model(str(folders["student"]))
    tasks, count = Naming().tasks("dev")[-32:], []

    def probe():
        count.append(1)
        if len(count) == die_at:
            raise KeyboardInterrupt
        return success_rate(model, Renderer(tokenizer), Naming, tasks, SFT, 0)

    best = Best(model, probe, out)
    forget_unprobed(out, best, guard)
    config = TrainConfig(
        **{**vars(PLAN), "teacher": str(folders[teacher]), "out": out, "resume": out.exists()}
    )
    rows = train(config, model=(model, tokenizer), make_env=Naming)
    list(leave_on_success(rows, best, guard, until=config.steps))
    return best


def test_a_harmful_teacher_leaves_the_start_in_place(folders, tmp_path):
    start = fingerprint(load_model(str(folders["student"]))[0])
    best = distilled(folders, "wrong", tmp_path / "run", Guard(every=2, patience=2))
    assert best.left == "fell" and best_of(best.seen) == 0
    assert fingerprint(best.model) == start


def test_a_good_teacher_is_followed(folders, tmp_path):
    best = distilled(folders, "right", tmp_path / "run", Guard(every=2, patience=3))
    assert best.seen[best_of(best.seen)] > best.seen[0]
    assert fingerprint(best.model) != fingerprint(load_model(str(folders["student"]))[0])


@pytest.mark.parametrize("die_at", [1, 2, 4])
def test_a_run_that_is_killed_in_a_probe_and_begun_again_ends_the_same(folders, tmp_path, die_at):
    guard = Guard(every=2, patience=3)
    whole = distilled(folders, "right", tmp_path / "whole", guard)
    with pytest.raises(KeyboardInterrupt):
        distilled(folders, "right", tmp_path / "run", guard, die_at)
    again = distilled(folders, "right", tmp_path / "run", guard)
    assert (again.seen, again.left) == (whole.seen, whole.left)
    assert fingerprint(again.model) == fingerprint(whole.model)


def attempt(success: bool, reward: float) -> Episode:
    turn = Turn(action_ids=(1,), logprobs=(0.0,), reward=reward)
    segments = (Segment(turns=(turn,)),)
    return Episode(id="e", env_id="toy", task=Task(), segments=segments, success=success)


def test_a_score_sees_what_is_lost_where_success_is_rare_and_keeps_within_0_and_1():
    rare = [attempt(n < 2, 1.0 if n < 2 else 0.5) for n in range(50)]
    ruined = [attempt(n < 1, 1.0 if n < 1 else 0.1) for n in range(50)]
    seen = {0.0: score_of(rare), 1.0: score_of(ruined)}
    assert Guard(fall=0.05).reason(seen) == "fell"
    blind = {0.0: 2 / 50, 1.0: 1 / 50}
    assert Guard(fall=0.05).reason(blind) == ""
    assert score_of([attempt(True, 7.0)]) == 1.0 and score_of([attempt(False, -7.0)]) == 0.0
    assert score_of([attempt(True, 1.0), attempt(False, 0.5)]) == 0.625 and score_of([]) == 0.0
