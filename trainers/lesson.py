"""What a lesson is: one method on one environment, by whom, and from whom."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from turnwise.envs.base import Env
from turnwise.envs.registry import make
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.model import load_tokenizer, tokenizer_from_env
from turnwise.trainers.pipeline import WarmUp
from turnwise.trainers.ranges import above, at_least

TEACHER: dict[str, Any] = {"hidden": 128, "layers": 3, "ffn": 256}
"""Shape of a teacher that is made from nothing: about three times the student's weights."""


CRAFT_SFT = WarmUp(demos=2000, noise=0.1, steps=300, learning_rate=4e-3, target=0.3, check_every=10)
"""Brings a tiny model to some success on the easy orders of Craft."""
TEACHER_SFT = replace(CRAFT_SFT, target=0.6, learning_rate=3e-3, check_every=20)
CRAFT_RL = TrainConfig(
    recipe_options='{"gamma": 0.9, "history_turns": 0}',
    steps=40,
    tasks_per_step=8,
    learning_rate=1e-3,
    max_tokens=384,
    max_new_tokens=8,
)
"""Improves on it; with another recipe, the student's training in the scripts."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What is learnt, by whom, from whom."""

    out: Path
    """Run folder. What is there already is not made again."""
    env: str = "turnwise/Craft-v1"
    """An id that `turnwise list` shows, or `module:Class`; with an `expert()`, or models to learn
    from are to be named."""
    env_kwargs: str = '{"depth": [1, 2], "distractors": 0}'
    """JSON arguments of the environment. In a script they belong to its own environment; another
    `--env` has none by default."""
    student: str = ""
    """Folder or Hugging Face name of the model to train; by default one is made."""
    teacher: str = ""
    """Folder or name of a model with the same tokenizer, or the address of a server that holds one,
    or openai:MODEL@URL for dagger; by default one is made if need be."""
    rope_theta: float = 30.0
    """Base of the rotary positions of models that are made, the larger the longer an episode; see
    `turnwise.trainers.tiny.tiny_model`."""
    seed: int = 0
    test_tasks: int = 300
    """Held-out tasks of the test split."""
    student_sft: WarmUp = CRAFT_SFT
    """How a student that is made imitates the expert; it stops at `target`, early. With 0 steps it
    begins at random weights."""
    teacher_sft: WarmUp = TEACHER_SFT
    """How a teacher that is made imitates it."""
    teacher_rl: TrainConfig = CRAFT_RL
    """What such a teacher then learns from its own attempts."""
    train: TrainConfig = CRAFT_RL
    """The method. What a lesson names itself (env, model, teacher, out, seed) it overrides."""
    texts: int = 200
    """Expert episodes from which the tokenizer of models that are made is learnt."""
    fit: tuple[str, ...] = ()
    """Limits, as train.max_tokens, that are raised to what the expert's own episodes need. By
    default, of another environment than a script's own, those that the command line leaves out."""

    def __post_init__(self) -> None:
        at_least(1, texts=self.texts, test_tasks=self.test_tasks)
        at_least(0, seed=self.seed)
        above(0, rope_theta=self.rope_theta)

    def make_env(self) -> Env:
        """Return a new environment."""
        plan = replace(self.train, env_kwargs=self.env_kwargs)
        return make(self.env, **plan.environment_arguments())

    def tokenizer(self) -> Any:
        """Return the student's tokenizer; of a student that is made, before it is made."""
        if self.student:
            return load_tokenizer(self.student)
        return _tokenizer(self.env, self.env_kwargs, self.texts)

    @property
    def positions(self) -> int:
        """Tokens that models which are made hold: those of the longest episode."""
        return max(1024, *(getattr(self, name).max_tokens for name in plans_of(self)))

    def config(self, plan: TrainConfig, model: Path | str, out: str, first: int) -> TrainConfig:
        """Return `plan` for this environment and seed; a run that is there is gone on with."""
        where = self.out / out
        return replace(
            plan,
            env=self.env,
            env_kwargs=self.env_kwargs,
            model=str(model),
            out=where,
            seed=self.seed,
            first_task=first,
            resume=where.exists(),
        )


def plans_of(lesson: Lesson) -> list[str]:
    """Return the names of a lesson's runs of training."""
    names = [field.name for field in fields(lesson)]
    return [name for name in names if isinstance(getattr(lesson, name), TrainConfig)]


@cache
def _tokenizer(env: str, env_kwargs: str, texts: int) -> Any:
    """Make the tokenizer that all models of a lesson share; it is the same each time."""
    return tokenizer_from_env(partial(make, env, **json.loads(env_kwargs)), tasks=texts)
