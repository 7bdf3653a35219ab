"""One method on one environment, measured before and after: what the `train_*` scripts share.

    student    named, or made: a tiny model that imitates an expert until it succeeds now and then
    teacher    named, or made if the recipe asks for one: a larger tiny model, or the named student,
               that imitates the expert for longer and then learns from its own attempts
    training   `turnwise.trainers.loop.train` with the recipe
    measures   student, teacher and result on held-out tasks, with intervals, above the floors

Every stage leaves its result in the run folder. The same command again goes on where it stopped.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from turnwise.agents.score import Report
from turnwise.trainers.addresses import is_served
from turnwise.trainers.asked import fitted
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.lesson import TEACHER, Lesson
from turnwise.trainers.loop import train
from turnwise.trainers.model import load_model, save_model
from turnwise.trainers.pipeline import WarmUp, measure, plan_to_json, summary_of, warm_up
from turnwise.trainers.progress import Progress
from turnwise.trainers.readiness import require_ready
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.recipes import recipe
from turnwise.trainers.stages import Stage
from turnwise.trainers.tiny import tiny_model
from turnwise.trainers.tutor import require_used

INTERRUPTED = 130


def run_lesson(lesson: Lesson) -> int:
    """Run every stage and print what came out; return 0, or 130 if it was interrupted.

    Raises:
        PlanChanged: the run folder holds models that were made under another plan.
        UnknownRecipe, UnusedTeacher, and what `require_ready` raises: before anything is made.
    """
    torch.set_num_threads(lesson.train.threads)
    console, name = Console(), lesson.train.recipe
    method, _ = method_of(lesson.train), method_of(lesson.teacher_rl)
    require_used(method, lesson.teacher)
    taught = method.distillation is not None and method.distillation.source is None
    require_ready(lesson, [method])
    console.print(f"{name} on {lesson.env} {lesson.env_kwargs}; everything goes to {lesson.out}")
    lesson = fitted(lesson, console)
    student = lesson.student or imitation(lesson, "student", lesson.student_sft, console).made(
        lesson.out
    )
    reports = {"before": measured(lesson, "before", student, console, floors=True)}
    teacher = ""
    taught = taught or (method.imitation is not None and bool(lesson.teacher))
    if taught and (made := _teacher(lesson, console)) is None:
        return INTERRUPTED
    if taught:
        teacher = str(made)
    if teacher and not is_served(teacher):
        reports["teacher"] = measured(lesson, "teacher", teacher, console)
    config = replace(lesson.config(lesson.train, student, "run", 500_000), teacher=teacher)
    if not trained(config, console, f"learning by {name}"):
        return INTERRUPTED
    reports["after"] = measured(lesson, "after", config.out / "model", console)
    _tell(lesson, reports, console)
    return 0


def method_of(plan: TrainConfig) -> Recipe:
    """Return the recipe of a run. Raises UnknownRecipe."""
    return recipe(plan.recipe, **plan.options_of_recipe())


def imitation(lesson: Lesson, name: str, plan: WarmUp, console: Console) -> Stage:
    """Return the stage in which a student or a teacher imitates the expert."""
    limits = {"max_tokens": lesson.train.max_tokens, "max_new_tokens": lesson.train.max_new_tokens}
    plan = replace(plan, **limits)
    wanted = {"env": lesson.env, "env_kwargs": lesson.env_kwargs, "seed": lesson.seed}
    wanted |= {"rope_theta": lesson.rope_theta, "from": lesson.student, **plan_to_json(plan)}
    wanted |= {"texts": lesson.texts} if lesson.texts != Lesson.texts else {}
    return Stage(name, wanted, partial(_imitated, lesson, name, plan, console))


def _imitated(lesson: Lesson, name: str, plan: WarmUp, console: Console, folder: Path) -> Path:
    with Progress(console, f"{name}: imitating the expert") as bar:
        model, tokenizer = _beginner(lesson, name)
        if plan.steps:
            warm_up(
                model,
                tokenizer,
                lesson.make_env,
                plan,
                seed=lesson.seed,
                watch=bar.show,
                say=bar.say,
                tell=partial(_note, console),
            )
    return save_model(model, tokenizer, folder)


def _note(console: Console, line: str) -> None:
    console.print(f"  [yellow]note[/yellow] {line}", highlight=False, soft_wrap=True)


def _beginner(lesson: Lesson, name: str) -> tuple[nn.Module, Any]:
    """Return the weights that imitation starts from; all have the student's tokenizer."""
    if lesson.student:
        return load_model(lesson.student)
    shape = dict(TEACHER) if name == "teacher" else {}
    shape |= {"rope_theta": lesson.rope_theta, "max_len": lesson.positions}
    tokenizer = lesson.tokenizer()
    return tiny_model(len(tokenizer), seed=lesson.seed, **shape), tokenizer


def _teacher(lesson: Lesson, console: Console) -> Path | str | None:
    """Return the teacher's folder or name, or None if its training was interrupted."""
    if lesson.teacher:
        return lesson.teacher
    start = imitation(lesson, "teacher", lesson.teacher_sft, console).made(lesson.out)
    config = lesson.config(lesson.teacher_rl, start, "teacher_rl", 700_000)
    done = trained(config, console, "teacher: learning from its own attempts")
    return config.out / "model" if done else None


def trained(config: TrainConfig, console: Console, title: str) -> bool:
    """Train, or go on, to the last step; return whether it was reached."""
    done = _steps_done(config.out)
    with Progress(console, title) as bar:
        for row in train(config):
            bar.show(row, total=config.steps)
            done = int(row["step"])
    return done >= config.steps


def _steps_done(out: Path) -> int:
    rows = out / "metrics.jsonl"
    return len(rows.read_text().splitlines()) if rows.exists() else 0


def measured(
    lesson: Lesson,
    name: str,
    model: Path | str,
    console: Console,
    *,
    floors: bool = False,
    split: str = "test",
    tasks: int | None = None,
) -> Report:
    """Evaluate a saved model at T = 1, from the beginning and to the end of every task.

    Args:
        name: of the record of its episodes.
        tasks: how many of the split's first; None is `test_tasks`.
    """
    env = lesson.make_env()
    tests = env.tasks(split)[: lesson.test_tasks if tasks is None else tasks]
    env.close()
    with Progress(console, f"measuring on {len(tests)} held-out tasks: {name}"):
        return measure(
            *load_model(str(model)),
            lesson.make_env,
            tests,
            lesson.out / "eval" / f"{name}.jsonl",
            split=split,
            floors=floors,
            max_tokens=lesson.train.max_tokens,
            max_new_tokens=lesson.train.max_new_tokens,
        )


def unmeasured(teacher: str) -> str:
    """Return what is said of a teacher that is served elsewhere."""
    return f"not measured: it is served as {teacher}"


def _tell(lesson: Lesson, reports: dict[str, Report], console: Console) -> None:
    floors = reports["before"].floors
    console.print("\nsuccess on held-out tasks, one attempt each, with 95 % intervals")
    for name, report in {**floors, **reports}.items():
        floor = "  (floor)" if name in floors else ""
        console.print(f"  {name:<10} {report.success}{floor}", highlight=False)
    summary = {name: summary_of(report) for name, report in reports.items()}
    if is_served(lesson.teacher):
        console.print(f"  {'teacher':<10} {unmeasured(lesson.teacher)}", highlight=False)
        summary["teacher"] = {"not measured": lesson.teacher}
    (lesson.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    console.print(f"\nmodel in {lesson.out}/run/model, numbers in {lesson.out}/summary.json")
