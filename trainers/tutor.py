"""The teacher's part in a run: who it is, what it said so far, and how it is saved."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from turnwise.agents.engines.base import EngineError
from turnwise.agents.engines.functional import base_model
from turnwise.agents.renderer import Renderer
from turnwise.envs.types import Episode
from turnwise.trainers.addresses import is_address
from turnwise.trainers.batch import Row
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.contexts import with_context
from turnwise.trainers.distillation import Distillation
from turnwise.trainers.ends import ends_in, ends_of, foreign
from turnwise.trainers.engine_teacher import EngineTeacher, likeliest
from turnwise.trainers.engines import TOLERANCE, served
from turnwise.trainers.learner import Learner
from turnwise.trainers.mixes import Progress
from turnwise.trainers.model import ModelNotFound, load_model
from turnwise.trainers.model_teacher import ModelTeacher, frozen
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.teachers import Teacher, TeacherMismatch, require_same_vocabulary
from turnwise.trainers.teaching import distil
from turnwise.trainers.turns import TurnTable

if TYPE_CHECKING:
    from turnwise.agents.engines.vllm import VllmEngine


class NoTeacher(ValueError):
    """The recipe learns from a teacher, and the run names none."""


class UnusedTeacher(ValueError):
    """The run names a teacher, and the recipe asks none."""


class Tutor:
    """Teaches every batch of a run.

    Args:
        how: the recipe's distillation.
        teacher: who scores.
        steps: of the whole run.
        renderer: for the text of a privileged context.

    Raises:
        TeacherMismatch: the recipe reads more of the teacher than its engine gives.
    """

    def __init__(
        self, how: Distillation, teacher: Teacher, steps: int, renderer: Renderer | None = None
    ) -> None:
        if isinstance(teacher, EngineTeacher):
            teacher.require(how)
        self.how, self.teacher, self.steps, self.renderer = how, teacher, steps, renderer
        self.success: list[float] = []
        self.drift: list[float] = []

    @property
    def progress(self) -> Progress:
        """How far the run is: `note` counts its steps, also those in which nothing was taught."""
        done = len(self.success)
        return Progress(done, self.steps, tuple(self.success), tuple(self.drift))

    def teach(
        self,
        rows: Sequence[Row],
        advantages_N: np.ndarray,
        table: TurnTable,
        episodes: Sequence[Episode],
        learner: Learner,
    ) -> tuple[list[Row], dict[str, float]]:
        """Return the rows of one step with what the teacher makes of them, and its metrics."""
        if self.how.context is not None and self.renderer is not None:
            rows = with_context(rows, episodes, self.how.context, self.renderer)
        taught, metrics = distil(
            rows,
            advantages_N,
            table,
            episodes,
            learner=learner,
            teacher=self.teacher,
            how=self.how,
            progress=self.progress,
        )
        return taught, metrics

    def note(self, metrics: dict[str, float]) -> None:
        """Take the metrics of a whole step: success over all attempts, those not kept included."""
        self.success.append(metrics.get("success", math.nan))
        self.drift.append(metrics.get("teacher_drift", math.nan))

    def save(self, folder: Path) -> None:
        """Write what a resumed run needs."""
        seen = {"success": self.success, "drift": self.drift}
        (folder / "tutor.json").write_text(json.dumps(seen))
        if state := self.teacher.state_dict():
            torch.save(state, folder / "teacher.pt")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        seen = json.loads((folder / "tutor.json").read_text())
        self.success, self.drift = seen["success"], seen["drift"]
        if (saved := folder / "teacher.pt").exists():
            self.teacher.load_state_dict(torch.load(saved, weights_only=True))

    def close(self) -> None:
        """Close the connections of a teacher that has any."""
        if isinstance(self.teacher, EngineTeacher):
            self.teacher.close()


def tutor_for(
    recipe: Recipe,
    learner: Learner,
    tokenizer: Any,
    renderer: Renderer,
    *,
    teacher: str,
    steps: int,
    tolerance: float = TOLERANCE,
    temperature: float = 1.0,
    deadline_s: float = TrainConfig.reply_timeout_s,
) -> Tutor | None:
    """Return the tutor of a run, or None for a recipe that has no teacher.

    Args:
        teacher: folder or name of a model with the student's vocabulary, or the address of a
            server that holds one. An end of a turn that is none to it has no score; of a server
            that is known where the folder that it was started with is on this machine.
        tolerance: of that server; see `turnwise.trainers.engines.served`.
        temperature: at which the run samples; a server scores at 1 alone.
        deadline_s: of one answer of that server.

    Raises:
        NoTeacher: the recipe needs one and none is named.
        TeacherMismatch: its vocabulary is not the student's, or the recipe reads more of the
            teacher than a server gives, or another temperature.
        ModelNotFound: there is no such model.
        ServerUnfit, EngineError: see `turnwise.trainers.engines.served`.
    """
    how = recipe.distillation
    if how is None:
        return None
    if how.source is not None:
        return Tutor(how, how.source(learner.model, learner.max_len), steps, renderer)
    if not teacher:
        raise NoTeacher(
            f"recipe {recipe.name!r} learns from a teacher: name one with --teacher FOLDER, a "
            "model with the student's tokenizer, or the address of a server that holds one"
        )
    if is_address(teacher):
        require_temperature(temperature)
        engine = served(teacher, tokenizer, learner.max_len, tolerance, deadline_s)
        own = ends_of(tokenizer, learner.model)
        return Tutor(how, _at_server(how, learner, engine, own), steps, renderer)
    scorer = in_this_process(teacher, learner, tokenizer, learner.max_len)
    return Tutor(how, scorer, steps, renderer)


def in_this_process(name: str, learner: Learner, tokenizer: Any, max_len: int) -> ModelTeacher:
    """Return the teacher of a folder or name; an end of a turn that is none to it has no score.

    Raises:
        TeacherMismatch: its vocabulary is not the student's.
        ModelNotFound: there is no such model.
    """
    model, theirs = load_model(name)
    require_same_vocabulary(tokenizer, theirs)
    unscored = foreign(ends_of(tokenizer, learner.model), ends_of(theirs, model))
    return frozen(model.to(learner.accelerator.device), max_len, unscored)


def require_used(recipe: Recipe, teacher: str) -> None:
    """Refuse a teacher that a run names and its recipe never asks.

    Raises:
        UnusedTeacher: it learns from none, or makes its own.
    """
    how = recipe.distillation
    asked = recipe.imitation is not None if how is None else how.source is None
    if teacher and not asked:
        why = "learns from no teacher" if how is None else "makes its teacher of the student"
        raise UnusedTeacher(
            f"recipe {recipe.name!r} {why}, and teacher {teacher!r} is named: leave --teacher out, "
            "or take a --recipe that distils, as opd or sod"
        )


def require_temperature(temperature: float) -> None:
    """Refuse a run whose tokens a teacher at a server could not score.

    Raises:
        TeacherMismatch: it does not sample at temperature 1.
    """
    if temperature != 1.0:
        raise TeacherMismatch(
            f"the run samples at temperature {temperature:g}, and a teacher at a server scores at "
            "1: set temperature 1, or name a teacher that runs in this process"
        )


def _at_server(
    how: Distillation, learner: Learner, engine: VllmEngine, own: frozenset[int]
) -> EngineTeacher:
    student: Any = base_model(learner.model)
    vocabulary = student.get_input_embeddings().weight.shape[0]
    teacher = EngineTeacher(engine, vocabulary, likeliest(how))
    try:
        teacher.require(how)
        teacher.unscored = foreign(own, ends_in(engine.started_with))
    except (TeacherMismatch, EngineError, ModelNotFound):
        teacher.close()
        raise
    return teacher
