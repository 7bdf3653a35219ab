"""What is compared: regimes, methods and controls, and the runs that this takes.

An `Experiment` is a regime (an environment, where students begin, how many environment steps they
have) with its `Arm`s; a `Job` is one arm at one seed and learning rate, and has the hash of
everything that its run depends on. `turnwise.trainers.contest_run` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from turnwise.envs.base import Env
from turnwise.envs.registry import make
from turnwise.trainers.comparison import key_of
from turnwise.trainers.equal_start import StartPlan
from turnwise.trainers.guard import Guard
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.recipes import recipe

LEAVE = Guard(every=1 / 8, patience=3, settle=0.4)
"""By default; with 48,000 steps F2B shows whole tasks after a fourth of them."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """Shapes, made from nothing; all share one tokenizer."""

    student: Mapping[str, int] = field(default_factory=dict)
    teacher: Mapping[str, int] = field(default_factory=dict)
    max_tokens: int = 320
    max_new_tokens: int = 2
    recall: int | None = None
    """Past turns that a prompt shows; None is all. See `turnwise.agents.renderer.Renderer`."""

    def to_json(self) -> dict[str, Any]:
        """Return what a run depends on."""
        kept = asdict(self)
        return kept if self.recall is not None else {k: v for k, v in kept.items() if k != "recall"}


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
    """The arm whose learning rate it takes; by default its own is tuned. `plan` comes first."""
    rates: Sequence[float] = ()
    """Learning rates that are tried for it; by default the experiment's. Not with `rate_of`."""
    then: Arm | None = None
    """What follows once the mean of success and progress on validation tasks no longer rises."""
    guard: Guard = LEAVE
    """When that is; its units are shares of the budget, from where its stage begins."""

    def __post_init__(self) -> None:
        if self.rates and self.rate_of:
            raise ValueError(f"{self.name} has rates of its own and that of {self.rate_of}: one")

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
        if self.then.teacher not in ("", self.teacher):
            raise ValueError(f"{self.name} has two teachers; the stages of a pipeline share one")
        guard = {**asdict(self.guard), "by": "success and progress"}
        return kept | {"then": self.then.to_json(), "guard": guard}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One regime and the methods that are compared in it."""

    name: str
    title: str
    claim: str
    """What is asked, in a sentence."""
    short: str = ""
    """What came out, in a line; the page begins with those of all experiments."""
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

    def key_of_teacher(self, name: str) -> str:
        """Return what names a teacher's own score: all that it depends on."""
        about: dict[str, Any] = {"school": asdict(self.teachers[name])}
        about |= {"models": self.models.to_json()}
        about |= {"env_id": self.env_id, "env": dict(self.env), "tests": self.tests}
        return key_of(about)

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
        kept |= {"budget": about.budget, "tests": about.tests, "models": about.models.to_json()}
        kept["beginning"] = asdict(about.beginning) if about.beginning else None
        kept["teacher"] = asdict(about.teachers[self.arm.teacher]) if self.arm.teacher else None
        kept |= {"arm": self.arm.to_json(), "seed": self.seed, "rate": self.rate}
        return kept | {"split": self.split}

    @property
    def key(self) -> str:
        """The name of its result."""
        return key_of(self.settings())
