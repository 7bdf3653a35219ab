"""Who shows the ways on which a curriculum starts attempts, where the environment has no expert.

It is the run's teacher: a way is what it does of its own accord, kept if it solves the task.
"""

from __future__ import annotations

from contextlib import ExitStack

from turnwise.agents.engines.base import Engine
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.policy import LLMPolicy
from turnwise.envs.base import Env
from turnwise.trainers.coach import follows_a_way
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.engine_teacher import EngineTeacher
from turnwise.trainers.engines import served
from turnwise.trainers.experts import has_expert
from turnwise.trainers.model_teacher import ModelTeacher
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.teachers import Teacher
from turnwise.trainers.trainee import Trainee


def acting(
    engine: Engine, trainee: Trainee, config: TrainConfig, temperature: float = 1.0
) -> LLMPolicy:
    """Return the policy of a teacher's model, which is on record as the teacher."""
    return LLMPolicy(
        engine,
        trainee.renderer,
        temperature=temperature,
        max_new_tokens=config.max_new_tokens,
        executor="teacher",
    )


def guide_for(
    config: TrainConfig,
    recipe: Recipe,
    env: Env,
    trainee: Trainee,
    teacher: Teacher | None,
    parts: ExitStack,
) -> LLMPolicy | None:
    """Return who shows the ways; None where nobody is asked, or the environment's expert is.

    A teacher that follows the student shows none: a resumed run could not find its ways again.

    Args:
        parts: closes a connection that is opened here.

    Raises:
        ServerUnfit, EngineError: see `turnwise.trainers.engines.served`.
    """
    if has_expert(env) or not follows_a_way(recipe.curriculum, config.steps, env.tasks("train")[0]):
        return None
    if isinstance(teacher, ModelTeacher) and teacher.follow is None:
        slots, most = config.tasks_per_step, config.max_tokens
        return acting(EmbeddedEngine(teacher.model, slots=slots, max_len=most), trainee, config)
    if isinstance(teacher, EngineTeacher):
        near, late = config.engine_tolerance, config.reply_timeout_s
        engine = served(config.teacher, trainee.tokenizer, config.max_tokens, near, late)
        parts.callback(engine.close)
        return acting(engine, trainee, config)
    return None
