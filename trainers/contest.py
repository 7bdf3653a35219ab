"""One run of a comparison, from a student that begins where all begin to its scores on test tasks.

An `Experiment` is a regime (an environment, where students begin, how many environment steps they
have) with its `Arm`s; a `Job` is one arm at one seed and learning rate. Its result is JSON in a
file whose name is the hash of everything that the run depends on, so that a comparison goes on
where it was stopped. Whatever the environments play in training is charged: an expert's turns
before the student's, too, and the validation with which a pipeline decides.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from turnwise.agents.policy import ScriptedPolicy, noop, random_tool
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.envs.base import Env
from turnwise.envs.registry import make
from turnwise.envs.types import Episode, Task
from turnwise.trainers.comparison import area, key_of, thirds
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.equal_start import StartPlan, equal_start
from turnwise.trainers.guard import Best, Guard
from turnwise.trainers.loop import train
from turnwise.trainers.model import load_model, save_model, tiny_from_env
from turnwise.trainers.pipeline import policy_of
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.recipes import recipe
from turnwise.trainers.sft import demonstrations
from turnwise.trainers.watch import shares_of_kinds

LEAVE = Guard(every=1 / 8, patience=3, settle=0.4)
"""By default; with 48,000 steps F2B shows whole tasks after a fourth of them."""
VALIDATED = 64
"""Dev tasks by which a pipeline decides; their turns are charged."""
WHOLE = 100_000
"""Steps of a run that its budget ends."""
WATCHED = ("turns", "teacher_weight", "teacher_kl", "teacher_drift", "success", "entropy")
"""What a result keeps of a run's metrics, by the beginning of the name."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """Shapes, made from nothing; all share one tokenizer."""

    student: Mapping[str, int] = field(default_factory=dict)
    teacher: Mapping[str, int] = field(default_factory=dict)
    max_tokens: int = 320
    max_new_tokens: int = 2


@dataclass(frozen=True, kw_only=True)
class School:
    """How a model is taught by the environment's expert: a teacher, or a student's beginning."""

    env: Mapping[str, Any] = field(default_factory=dict)
    """Where the expert demonstrates, and where progress is measured."""
    start: StartPlan
    demos: int = 1500
    noise: float = 0.0
    """Probability per turn of a random action instead, which is not taught."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One method, or a control."""

    name: str
    method: str
    """A recipe's name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[Recipe], Recipe] | None = None
    """Makes a control of it; its `__name__` is part of the run's key."""
    teacher: str = ""
    """One of the experiment's schools of teachers."""
    env: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the experiment's environment in training."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the experiment's plan."""
    rate_of: str = ""
    """The arm whose learning rate it takes; by default its own is tuned."""
    then: Arm | None = None
    """What follows once success on validation tasks has stopped rising."""
    guard: Guard = LEAVE
    """When that is; its units are shares of the budget."""

    def recipe(self) -> Recipe:
        """Return the recipe."""
        made = recipe(self.method, **self.options)
        return self.change(made) if self.change else made

    def to_json(self) -> dict[str, Any]:
        """Return what the run depends on; what it is called and whose rate it takes is not."""
        changed = self.change.__name__ if self.change else ""
        kept = {"method": self.method, "options": dict(self.options), "change": changed}
        kept |= {"env": dict(self.env), "plan": dict(self.plan), "teacher": self.teacher}
        if self.then is None:
            return kept | {"then": None}
        guard = {**asdict(self.guard), "by": "success and progress"}
        return kept | {"then": self.then.to_json(), "guard": guard}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One regime and the methods that are compared in it."""

    name: str
    title: str
    claim: str
    """What is asked, in a sentence."""
    finding: str = ""
    """What came out, in words; the page says it above the numbers."""
    env_id: str = "turnwise/Corridor-v1"
    env: Mapping[str, Any]
    arms: Sequence[Arm]
    pairs: Sequence[tuple[str, str]] = ()
    """(method, rival): paired differences that are reported."""
    beginning: School | None = None
    """None starts from random weights."""
    teachers: Mapping[str, School] = field(default_factory=dict)
    budget: int = 20_000
    """Environment steps of a run."""
    rates: Sequence[float] = (3e-4, 1e-3)
    plan: Mapping[str, Any] = field(default_factory=dict)
    """Of `TrainConfig`."""
    models: Models = field(default_factory=Models)
    tests: int = 128
    """Test tasks of the last measurement; those on the way take a third."""

    def arm(self, name: str) -> Arm:
        """Return an arm by name."""
        return next(arm for arm in self.arms if arm.name == name)

    def make_env(self, **changes: Any) -> Callable[[], Env]:
        """Return what makes the environment, with some changes."""
        return partial(make, self.env_id, **{**self.env, **changes})


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run."""

    experiment: Experiment
    arm: Arm
    seed: int
    rate: float
    split: str = "test"
    """Of the tasks that it is measured on: `dev` where learning rates are chosen."""

    def settings(self) -> dict[str, Any]:
        """Return everything that the run depends on, as JSON values."""
        about = self.experiment
        kept: dict[str, Any] = {
            "env_id": about.env_id,
            "env": dict(about.env),
            "plan": dict(about.plan),
        }
        kept |= {"budget": about.budget, "tests": about.tests, "models": asdict(about.models)}
        kept["beginning"] = asdict(about.beginning) if about.beginning else None
        kept["teacher"] = asdict(about.teachers[self.arm.teacher]) if self.arm.teacher else None
        kept |= {"arm": self.arm.to_json(), "seed": self.seed, "rate": self.rate}
        return kept | {"split": self.split}

    @property
    def key(self) -> str:
        """The name of its result."""
        return key_of(self.settings())


def run(job: Job, folder: Path) -> dict[str, Any]:
    """Return the result of a job, from its file if it is there."""
    place = folder / "results" / f"{job.key}.json"
    if place.exists():
        return dict(json.loads(place.read_text()))
    torch.set_num_threads(1)
    began, cpu = time.monotonic(), time.process_time()
    result = _Run(job, folder).result()
    result["wall_s"] = round(time.monotonic() - began, 1)
    result["cpu_s"] = round(time.process_time() - cpu, 1)
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_suffix(".part")
    beside.write_text(json.dumps(result))
    beside.rename(place)
    return result


class _Run:
    """A student that learns, and what is measured on the way."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.about, self.folder = job, job.experiment, folder
        self.begins = beginning(job.experiment, job.seed, folder)
        self.model, self.tokenizer = load_model(str(self.begins))
        env = self.about.make_env()()
        self.tests = env.tasks(job.split)[: self.about.tests]
        self.validation = env.tasks("dev")[-VALIDATED:]
        env.close()
        self.spent, self.rows = 0.0, list[dict[str, Any]]()
        self.curve: list[dict[str, float]] = []
        self.left: float | None = None

    def result(self) -> dict[str, Any]:
        """Learn to the end of the budget and return what came out."""
        start = self._at_start()
        self.curve = [{"spent": 0.0, **start}]
        arm: Arm | None = self.job.arm
        while arm is not None and not self._done():
            self._learn(arm)
            arm = arm.then
        end = self.measure(self.tests)
        self.curve.append({"spent": self.spent, **end})
        whole = self.about.budget or self.spent
        points = [(point["spent"], point["success"]) for point in self.curve]
        result: dict[str, Any] = {
            "seed": self.job.seed,
            "rate": self.job.rate,
            "split": self.job.split,
        }
        result |= {"start": start, "end": end, "auc": round(area(points, whole), 4)}
        result |= {"env_steps": self.spent, "updates": self._updates(), "curve": self.curve}
        result |= {"metrics": thirds(self.rows, lambda name: name.startswith(WATCHED))}
        return result | ({} if self.left is None else {"left_at": self.left})

    def _at_start(self) -> dict[str, float]:
        """Return the scores of the student that all arms begin with; the first one measures it."""
        about = self.about
        asked: dict[str, Any] = {
            "start": self.begins.name,
            "env_id": about.env_id,
            "env": dict(about.env),
        }
        asked |= {"tests": about.tests, "split": self.job.split, "seed": self.job.seed}
        place = self.folder / "scores" / f"{key_of(asked)}.json"
        with _alone(place):
            if not place.exists():
                place.write_text(json.dumps(self.measure(self.tests)))
        return dict(json.loads(place.read_text()))

    def _done(self) -> bool:
        return 0 < self.about.budget <= self.spent

    def _updates(self) -> int:
        return sum(int(row["updates"]) for row in self.rows)

    def _learn(self, arm: Arm) -> None:
        """Let one stage run to the end of the budget, or until it is left."""
        best, share = Best(self.model, self._validated), self.about.budget or 1.0
        if arm.then is not None:
            best.look(0.0)
        asked = arm.guard.every
        steps = {**self.about.plan, **arm.plan}.get("steps", WHOLE)
        for row in self._training(arm):
            self.spent += row["env_steps"]
            self.rows.append(row)
            if self._done():
                return
            self._look_on_the_way()
            if arm.then is not None and self.spent / share >= asked:
                asked += arm.guard.every
                best.look(self.spent / share)
                if arm.guard.reason(best.seen):
                    best.restore()
                    self.left = self.spent
                    return
        if row["step"] < steps:
            raise KeyboardInterrupt("the run was stopped amid its steps: it has no result")

    def _validated(self) -> float:
        """Return the mean of success and progress on validation tasks; their turns are charged."""
        found = self.measure(self.validation)
        self.spent += found["turns"] * len(self.validation)
        return (found["success"] + found["progress"]) / 2

    def _look_on_the_way(self) -> None:
        """Measure after each quarter of the budget."""
        quarter = self.about.budget / 4
        if self.about.budget and self.spent >= quarter * len(self.curve):
            found = self.measure(self.tests[: len(self.tests) // 3])
            self.curve.append({"spent": self.spent, **found})

    def _training(self, arm: Arm) -> Iterator[dict[str, Any]]:
        """Yield the metrics of the real loop, with `updates` of each step."""
        teacher = ""
        if arm.teacher:
            teacher = str(teacher_of(self.about, arm.teacher, self.folder))
        out = Path(tempfile.mkdtemp(prefix="contest-"))
        config = _config(self.about, arm, self.job, out / "run", teacher)
        before = 0.0
        with closing_generator(
            train(config, model=(self.model, self.tokenizer), recipe=arm.recipe()), out
        ) as steps:
            for row in steps:
                yield {**row, "updates": row["policy_version"] - before}
                before = row["policy_version"]

    def measure(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Return the scores of the present weights."""
        return scored(self.model, self.tokenizer, self.about, tasks, self.job.seed)


@contextmanager
def closing_generator(steps: Any, out: Path) -> Iterator[Any]:
    """End a run wherever it is, and remove its folder: the result is all that is kept."""
    try:
        with closing(steps):
            yield steps
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _config(about: Experiment, arm: Arm, job: Job, out: Path, teacher: str) -> TrainConfig:
    """Return the plan of a run; it is ended by the budget, or by its steps where there is none."""
    plan: dict[str, Any] = {"steps": WHOLE, "warmup_steps": 3, "updates_per_step": 2}
    plan |= {"tasks_per_step": 8, "group_size": 4, **about.plan, **arm.plan}
    return TrainConfig(
        env=about.env_id,
        env_kwargs=json.dumps({**about.env, **arm.env}),
        recipe=arm.method,
        teacher=teacher,
        learning_rate=job.rate,
        max_tokens=about.models.max_tokens,
        max_new_tokens=about.models.max_new_tokens,
        seed=job.seed,
        first_task=100_000,
        checkpoint_every=0,
        out=out,
        **plan,
    )


def scored(
    model: nn.Module, tokenizer: Any, about: Experiment, tasks: Sequence[Task], seed: int
) -> dict[str, float]:
    """Return success, progress, turns and shares of kinds on `tasks`, one attempt each at T = 1."""
    limits = about.models.max_tokens, about.models.max_new_tokens
    policy = policy_of(model, Renderer(tokenizer), 1.0, *limits)
    return _means(_played(about, policy, tasks, seed))


def floors(about: Experiment) -> dict[str, dict[str, float]]:
    """Return what doing nothing and doing anything reach on the test tasks."""
    env = about.make_env()()
    tasks = env.tasks("test")[: about.tests]
    env.close()
    who = {"nothing": noop, "anything": random_tool}
    return {
        name: _means(_played(about, ScriptedPolicy(act), tasks, 0)) for name, act in who.items()
    }


def _played(about: Experiment, policy: Any, tasks: Sequence[Task], seed: int) -> list[Episode]:
    jobs = jobs_for(tasks, run_seed=seed, split="test")
    settings = Settings(concurrency=128, max_tokens=about.models.max_tokens)
    return [e for e in play(jobs, about.make_env(), policy, settings) if e.outcome.trainable]


def _means(episodes: Sequence[Episode]) -> dict[str, float]:
    turns = [turn for episode in episodes for turn in episode.turns]
    found = {
        "success": fmean(e.success for e in episodes),
        "progress": fmean(e.metrics.get("progress", float(e.success)) for e in episodes),
        "turns": len(turns) / len(episodes),
        **shares_of_kinds(turns),
    }
    return {name: round(value, 4) for name, value in found.items()}


def beginning(about: Experiment, seed: int, folder: Path) -> Path:
    """Return the folder of the student that every arm begins with at a seed; make it if need be."""
    school, shape = about.beginning, dict(about.models.student)
    return _model(about, school, shape, seed, folder / "starts")


def teacher_of(about: Experiment, name: str, folder: Path) -> Path:
    """Return the folder of a teacher; make it if need be."""
    shape = dict(about.models.teacher)
    return _model(about, about.teachers[name], shape, 1_000, folder / "teachers")


def _model(
    about: Experiment, school: School | None, shape: dict[str, int], seed: int, folder: Path
) -> Path:
    settings = {"env_id": about.env_id, "env": dict(about.env), "shape": shape, "seed": seed}
    settings["school"] = asdict(school) if school else None
    if school is not None and about.env_id in ONE_TOKENIZER:
        settings["env"] = {}  # what a school says is all that its pupil depends on
    place = folder / key_of(settings)
    with _alone(place):
        if not (place / "made.json").exists():
            made = _made(about, school, shape, seed, place)
            (place / "made.json").write_text(json.dumps({**settings, **made}))
    return place


ONE_TOKENIZER = ("turnwise/Corridor-v1",)
"""Environments whose tokenizer does not depend on their arguments."""


def _made(
    about: Experiment, school: School | None, shape: dict[str, int], seed: int, place: Path
) -> dict[str, float]:
    plain = partial(make, about.env_id, **({} if about.env_id in ONE_TOKENIZER else about.env))
    model, tokenizer = tiny_from_env(plain, seed=seed, separators=("", " "), **shape)
    made = {} if school is None else _taught(about, school, model, tokenizer, seed)
    save_model(model, tokenizer, place)
    return made


def _taught(
    about: Experiment, school: School, model: nn.Module, tokenizer: Any, seed: int
) -> dict[str, float]:
    there = replace(about, env=school.env)
    env = there.make_env()()
    dev = env.tasks("dev")[:48]
    env.close()
    shown = _shown(there, school, tokenizer)

    def progress(pupil: nn.Module) -> float:
        return scored(pupil, tokenizer, there, dev, seed)["progress"]

    return equal_start(model, shown, progress, school.start, seed=seed)


_SHOWN: dict[str, list[Episode]] = {}
"""What the expert of a school has shown in this process: every pupil sees the same."""


def _shown(there: Experiment, school: School, tokenizer: Any) -> list[Episode]:
    env = there.make_env()()
    tasks = env.tasks("train")[: school.demos]
    env.close()
    key = key_of({"env_id": there.env_id, **asdict(school), "tokens": len(tokenizer)})
    if key not in _SHOWN:
        _SHOWN[key] = demonstrations(
            there.make_env(),
            tasks,
            Renderer(tokenizer),
            seed=0,
            noise=school.noise,
            malformed=0.0,
            settings=Settings(concurrency=64, max_tokens=there.models.max_tokens),
        )
    return _SHOWN[key]


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Let one process at a time make what goes to `place`; the others wait and find it there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
