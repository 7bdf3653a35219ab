"""The contract over every registered environment, and proof that each law can be broken."""

import os
import random
import time

import numpy as np
import pytest
from fakes import Guess, Parrot, Secret

from turnwise.envs.base import TextEnv
from turnwise.envs.check import check_env
from turnwise.envs.extras import MissingExtra
from turnwise.envs.playing import Broken, Subject
from turnwise.envs.probes import fast_is_fast
from turnwise.envs.registry import list_envs
from turnwise.envs.tools import reward, tool
from turnwise.envs.types import Task
from turnwise.sandboxes.base import NoSafeSandbox

REGISTERED = [spec.id for spec in list_envs() if spec.id.startswith("turnwise/")]


def checked(id):
    other_level = "BabyAI" in id and "GoToLocal" not in id
    seeds = range(1 if other_level else 3)
    try:
        return check_env(id, seeds=seeds, concurrency=3)
    except (MissingExtra, NoSafeSandbox) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("id", REGISTERED)
def test_every_registered_environment_keeps_the_contract(id):
    report = checked(id)
    assert report.ok, str(report)


@pytest.mark.parametrize("make", [Guess, Parrot, lambda: Guess(actions="command")])
def test_the_small_environments_of_the_tests_keep_the_contract(make):
    report = check_env(make)
    assert report.ok, str(report)
    assert len(report.checks) == 17


class SeedsGlobally(Guess):
    def setup(self, task, rng):
        random.seed(5)
        return super().setup(task, rng)


class DrawsGlobally(Guess):
    def setup(self, task, rng):
        np.random.random()
        return super().setup(task, rng)


class ReliesOnGlobal(Guess):
    def setup(self, task, rng):
        state = random.getstate()
        rng = random.Random(random.random())
        random.setstate(state)
        return super().setup(task, rng)


class CountsEpisodes(Guess):
    def setup(self, task, rng):
        self.count = getattr(self, "count", 0) + 1
        return super().setup(task, rng) + f" Round {self.count}."


class SharesState(Guess):
    secrets: list = []  # noqa: RUF012  the defect under test

    def setup(self, task, rng):
        opening = super().setup(task, rng)
        self.secrets.append(self.secret)
        return opening

    @tool
    def look(self, number: int) -> str:
        """Compare with whatever secret came last, whoever drew it."""
        return "higher" if number < self.secrets[-1] else "lower"


class IgnoresSeed(Guess):
    def tasks(self, split):
        return [Secret(index=self.splits.index(split)), *super().tasks(split)]

    def begin(self, seed, options):
        options = dict(options or {})
        if "task" not in options:
            options["task"] = self.tasks("train")[0]
        return super().begin(seed, options)


class Raises(Guess):
    def respond(self, action):
        if action == '"':
            raise ValueError("unbalanced")
        return super().respond(action)


class Rambles(Guess):
    def _complaint(self, code, why, tool=None):
        return f"ToolError[{code}] " + "x" * 1000


class NeverEnds(Guess):
    max_errors = 10**9

    def __init__(self):
        super().__init__()
        self.max_turns = 10**9


class PaysForForm(Guess):
    @reward(weight=0.1)
    def polite(self, episode):
        return float(not episode.errors)


class PaysTooMuch(Guess):
    @reward(weight=3.0)
    def bonus(self, episode):
        return float(self.answer == self.secret)


class PaysNothingForRight(Guess):
    def expert(self):
        return self.call_text("submit", number=0)


class GradesWithNan(Guess):
    @reward()
    def broken(self, episode):
        return float("nan")


class Overlaps(Guess):
    def tasks(self, split):
        return [Secret(index=i) for i in range(5)]


class ShufflesTasks(Guess):
    def tasks(self, split):
        tasks = list(super().tasks(split))
        random.Random(id(self)).shuffle(tasks)
        return tasks


class TuplesInTask(Guess):
    def tasks(self, split):
        return [Odd(index=7 * self.splits.index(split))]

    Task = Secret


class Odd(Secret):
    """A task that forgets a field on its way to JSON."""

    def to_json(self):
        return {"index": self.index + 1}


class ForgetsTask(Guess):
    def begin(self, seed, options):
        return super().begin(seed, {})


class ClosesOnce(Guess):
    def close(self):
        del self.format


class ForgetsHalf(Guess):
    def snapshot(self):
        return f"{self.secret} {self.turn}".encode()

    def restore(self, saved):
        if not self._running:
            self.reset(seed=99)
        self.secret, self.turn = map(int, saved.split())


class SaysItIsFast(Guess):
    def respond(self, action):
        time.sleep(0.03)
        return super().respond(action)


class LacksInfo(Guess):
    def step(self, action):
        *head, info = super().step(action)
        info.pop("success", None)
        return *head, info


class SaysNothing(Guess):
    def setup(self, task, rng):
        super().setup(task, rng)
        return ""


class ReturnsTuples(Guess):
    def reset(self, **kwargs):
        super().reset(**kwargs)
        return ("not", "text"), {}


class PartsDoNotAddUp(TextEnv):
    def tasks(self, split):
        return [Task(hidden={"split": split})]

    def setup(self, task, rng):
        return "go"

    def respond(self, action):
        return "again"

    def step(self, action):
        observation, _, *flags, info = super().step(action)
        return observation, 0.01, *flags, info


@pytest.mark.parametrize(
    ("env", "law"),
    [
        (SeedsGlobally, "global randomness untouched"),
        (DrawsGlobally, "global randomness untouched"),
        (ReliesOnGlobal, "global randomness untouched"),
        (CountsEpisodes, "seeds are honoured"),
        (SharesState, "isolated from other environments"),
        (IgnoresSeed, "seeds differ"),
        (Raises, "malformed actions are answered"),
        (Rambles, "malformed actions are answered"),
        (NeverEnds, "episodes end"),
        (PaysForForm, "no reward without trying"),
        (PaysTooMuch, "rewards stay in range"),
        (PaysNothingForRight, "expert is accepted"),
        (GradesWithNan, "rewards stay in range"),
        (PartsDoNotAddUp, "rewards stay in range"),
        (Overlaps, "splits are disjoint"),
        (ShufflesTasks, "splits are disjoint"),
        (TuplesInTask, "tasks survive json"),
        (ForgetsTask, "tasks survive json"),
        (ClosesOnce, "closes twice"),
        (ForgetsHalf, "snapshots restore"),
        (LacksInfo, "info is complete"),
        (SaysNothing, "info is complete"),
        (ReturnsTuples, "gymnasium accepts"),
    ],
)
def test_a_broken_law_is_found_and_says_how_to_mend_it(env, law):
    report = check_env(env, seeds=range(4), concurrency=3)
    failed = {check.name: check for check in report.failures}
    assert not report.ok and law in failed, str(report)
    assert failed[law].detail and failed[law].mend


def test_an_environment_that_is_slow_must_not_say_that_it_is_fast():
    with pytest.raises(Broken, match="the quickest step took"):
        fast_is_fast(Subject("slow", SaysItIsFast, [0], 2))


def test_a_report_is_a_table_and_json():
    report = check_env(Overlaps, seeds=[0], concurrency=2)
    assert "fail  splits are disjoint" in str(report) and "mend: make splits" in str(report)
    value = report.to_json()
    assert value["env"] == "Overlaps" and value["ok"] is False
    assert {check["status"] for check in value["checks"]} == {"pass", "fail", "skip"}


def test_a_check_without_seeds_or_company_is_refused():
    with pytest.raises(ValueError, match="need a seed"):
        check_env(Guess, seeds=[])
    with pytest.raises(ValueError, match="concurrency >= 2"):
        check_env(Guess, concurrency=1)


def test_an_environment_that_was_made_can_be_checked_itself():
    assert check_env(Guess(), seeds=[0], concurrency=2).env == "Guess"
