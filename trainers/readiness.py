"""What is wrong with a lesson and can be found out before a model is made, or a folder written."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from turnwise.agents.openai_agent import chat_named
from turnwise.trainers.addresses import is_black_box, is_served
from turnwise.trainers.experts import has_expert
from turnwise.trainers.lesson import Lesson
from turnwise.trainers.model import load_tokenizer, positions_of
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.teachers import require_same_vocabulary
from turnwise.trainers.tutor import NoTeacher


def require_ready(lesson: Lesson, methods: Sequence[Recipe]) -> None:
    """Refuse a lesson that cannot be held.

    Args:
        methods: that learn from the teacher of the lesson.

    Raises:
        UnknownEnv, MissingExtra, TypeError: there is no such environment, or no expert for models
            that are to be made.
        ModelNotFound: the student or the teacher that is named is not there.
        TeacherMismatch: the teacher has another vocabulary than the student.
        NoTeacher: a method needs more of the teacher than it gives.
    """
    with closing(lesson.make_env()) as env:
        if not has_expert(env):
            _require_models(lesson, methods, type(env).__name__)
    if lesson.student:
        positions_of(lesson.student)
    if not lesson.teacher:
        return
    for method in methods:
        _require_enough(method, lesson.teacher)
    if not is_served(lesson.teacher):
        positions_of(lesson.teacher)
        require_same_vocabulary(lesson.tokenizer(), load_tokenizer(lesson.teacher))


def _require_models(lesson: Lesson, methods: Sequence[Recipe], env: str) -> None:
    """Refuse to make a model, or to ask for labels, where nobody can demonstrate."""
    who = "" if lesson.student else "student"
    if not lesson.teacher and any(map(_asks, methods)):
        who = who or "teacher"
    if who:
        raise TypeError(
            f"{env} has no expert(), and a {who} that is made imitates one: name a model with "
            f"--{who} FOLDER"
        )


def _asks(method: Recipe) -> bool:
    """Whether it learns from somebody that the run names."""
    how = method.distillation
    return method.imitation is not None or (how is not None and how.source is None)


def _require_enough(method: Recipe, teacher: str) -> None:
    """Refuse a teacher that is served and gives less than the method reads."""
    if is_black_box(teacher):
        chat_named(teacher)
    shown = method.imitation is not None and method.imitation.direct is not None
    scored = method.distillation is not None and method.distillation.source is None
    if (is_served(teacher) and shown) or (is_black_box(teacher) and scored):
        raise NoTeacher(
            f"recipe {method.name!r} learns here from more of a teacher than {teacher!r} gives: "
            "name a model with --teacher FOLDER, or learn from what a teacher does, by dagger "
            "without white_box (in a pipeline --bridge.recipe-options, and --skip-opd for a text)"
        )
