"""Who shows the ways on which a curriculum starts attempts, where the environment has no expert.

It is the run's teacher: a way is what it does of its own accord, kept if it solves the task.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack

from turnwise.agents.engines.base import Engine
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.policy import LLMPolicy
from turnwise.agents.renderer import Renderer
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
    engine: Engine, renderer: Renderer, config: TrainConfig, temperature: float = 1.0
) -> LLMPolicy:
    """Return the policy of a teacher's model. What it does itself is on record as the teacher's."""
    return LLMPolicy(
        engine,
        renderer,
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

    None, too, of a teacher that follows the student, for a resumed run could not find its ways
    again, and of several teachers: `Coach.require_guide` then refuses the curriculum. Turns of a
    way that are played for an attempt are on record as an expert's, whoever found it.

    Args:
        parts: closes a connection that is opened here.

    Raises:
        ServerUnfit, EngineError: see `turnwise.trainers.engines.served`.
    """
    if has_expert(env) or not follows_a_way(recipe.curriculum, config.steps, env.tasks("train")[0]):
        return None
    # A tokenizer that two threads use at once may fail: "Already borrowed".
    renderer = Renderer(copy.deepcopy(trainee.tokenizer))
    if isinstance(teacher, ModelTeacher) and teacher.follow is None:
        slots, most = config.tasks_per_step, config.max_tokens
        return acting(EmbeddedEngine(teacher.model, slots=slots, max_len=most), renderer, config)
    if isinstance(teacher, EngineTeacher):
        near, late = config.engine_tolerance, config.reply_timeout_s
        engine = served(config.teacher, trainee.tokenizer, config.max_tokens, near, late)
        parts.callback(engine.close)
        return acting(engine, renderer, config)
    return None
