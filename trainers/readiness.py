"""What is wrong with a lesson and can be found out before a model is made, or a folder written."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from turnwise.trainers.addresses import is_black_box, is_served
from turnwise.trainers.experts import has_expert
from turnwise.trainers.model import load_tokenizer, positions_of
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.teachers import require_same_vocabulary
from turnwise.trainers.tutor import NoTeacher

if TYPE_CHECKING:
    from turnwise.trainers.lesson import Lesson


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
        if not lesson.student and not has_expert(env):
            raise TypeError(
                f"{type(env).__name__} has no expert(), and a student that is made imitates one: "
                "name a model with --student FOLDER"
            )
    if lesson.student:
        positions_of(lesson.student)
    if not lesson.teacher:
        return
    for method in methods:
        _require_enough(method, lesson.teacher)
    if not is_served(lesson.teacher):
        positions_of(lesson.teacher)
        require_same_vocabulary(lesson.tokenizer(), load_tokenizer(lesson.teacher))


def _require_enough(method: Recipe, teacher: str) -> None:
    """Refuse a teacher that is served and gives less than the method reads."""
    shown = method.imitation is not None and method.imitation.direct is not None
    scored = method.distillation is not None and method.distillation.source is None
    if (is_served(teacher) and shown) or (is_black_box(teacher) and scored):
        raise NoTeacher(
            f"recipe {method.name!r} learns from a teacher's distributions, and {teacher!r} gives "
            "none: name a model with --teacher FOLDER, or take a recipe that learns from what a "
            "teacher does, as dagger"
        )
