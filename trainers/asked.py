"""What a script's command line asks for, and the limits that it leaves to the expert's episodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from turnwise.agents.renderer import Renderer
from turnwise.trainers.experts import has_expert, needs_of
from turnwise.trainers.lesson import Lesson, plans_of
from turnwise.trainers.model import positions_of
from turnwise.trainers.sft import expert_episodes
from turnwise.trainers.stages import Stage

L = TypeVar("L", bound=Lesson)
LIMITS = ("max_tokens", "max_new_tokens")
LOOKED_AT = 32
"""Tasks of the train split on which the expert's longest episode is measured."""


def asked(default: L, read: Callable[..., L], args: Sequence[str] | None = None) -> L:
    """Return what the command line asks for; another --env alone has no --env-kwargs.

    Another environment than the script's own also leaves the limits that the command line does not
    name to the expert: see `Lesson.fit`. Another recipe has none of the options of the script's.

    Args:
        default: a script's own lesson.
        read: `tyro.cli`.
        args: None takes those of the process.
    """
    chosen = read(type(default), default=replace(default, env_kwargs=""), args=args)
    kwargs = default.env_kwargs if chosen.env == default.env else "{}"
    chosen = replace(chosen, env_kwargs=chosen.env_kwargs or kwargs)
    chosen = _without_foreign_options(chosen, default, read, args)
    if (chosen.env, chosen.env_kwargs) == (default.env, default.env_kwargs):
        return chosen
    raised = _changed(default, {name: value + 1 for name, value in limits_of(default).items()})
    other = limits_of(read(type(default), default=raised, args=args))
    unnamed = [name for name, value in limits_of(chosen).items() if other[name] != value]
    return replace(chosen, fit=chosen.fit or tuple(unnamed))


def _without_foreign_options(
    chosen: L, default: L, read: Callable[..., L], args: Sequence[str] | None
) -> L:
    """Return `chosen` without a script's own options where only another recipe is named."""
    plans = {name: getattr(chosen, name) for name in plans_of(chosen)}
    others = {n: p for n, p in plans.items() if p.recipe != getattr(default, n).recipe}
    if not others:
        return chosen
    marked = {name: replace(getattr(default, name), recipe_options="{ }") for name in others}
    seen = read(type(default), default=replace(default, **marked), args=args)
    unnamed = [name for name in others if getattr(seen, name).recipe_options == "{ }"]
    return replace(chosen, **{name: replace(others[name], recipe_options="{}") for name in unnamed})


def limits_of(lesson: Lesson) -> dict[str, int]:
    """Return the limits of all that a lesson trains, as "train.max_tokens"."""
    plans = {name: getattr(lesson, name) for name in plans_of(lesson)}
    return {f"{name}.{limit}": getattr(plans[name], limit) for name in plans for limit in LIMITS}


def _changed(lesson: L, limits: Mapping[str, int]) -> L:
    """Return the lesson with other limits."""
    plans: dict[str, Any] = {}
    for name in plans_of(lesson):
        mine = {limit: limits.get(f"{name}.{limit}") for limit in LIMITS}
        new = {limit: value for limit, value in mine.items() if value is not None}
        plans[name] = replace(getattr(lesson, name), **new)
    return replace(lesson, **plans)


def fitted(lesson: L, console: Console) -> L:
    """Return the lesson with the limits that the expert's episodes need; says which they are.

    Raises:
        ValueError: `fit` names no limit.
        NoDemonstrations, ExpertFailed: the expert shows nothing.
    """
    if unknown := set(lesson.fit) - set(limits_of(lesson)):
        raise ValueError(f"fit names {sorted(unknown)}; there are: {', '.join(limits_of(lesson))}")
    with closing(lesson.make_env()) as env:
        if not lesson.fit or not has_expert(env):
            return lesson
    usual = limits_of(lesson)
    with console.status("how long are the expert's episodes?"):
        needs = json.loads(_measuring(lesson).made(lesson.out).read_text())
    limits = {name: max(usual[name], needs["limits"][name]) for name in lesson.fit}
    new = _changed(lesson, limits)
    console.print(
        f"the expert's longest episode has {needs['max_tokens']:,} tokens, its longest action "
        f"{needs['max_new_tokens']}: training has max_tokens {new.train.max_tokens}, "
        f"max_new_tokens {new.train.max_new_tokens}",
        highlight=False,
    )
    return new


def _measuring(lesson: Lesson) -> Stage:
    """Return the stage that measures the expert, once."""
    plan = {"env": lesson.env, "env_kwargs": lesson.env_kwargs, "seed": lesson.seed}
    plan |= {"student": lesson.student, "noise": lesson.student_sft.noise, "texts": lesson.texts}
    wanted = {**plan, "usual": limits_of(lesson)}
    return Stage("limits", wanted, partial(_measured, lesson))


def _measured(lesson: Lesson, folder: Path) -> Path:
    with closing(lesson.make_env()) as env:
        tasks = env.tasks("train")[:LOOKED_AT]
    plan = lesson.student_sft
    shown = expert_episodes(
        lesson.make_env,
        tasks,
        Renderer(lesson.tokenizer()),
        seed=lesson.seed,
        noise=plan.noise,
        malformed=plan.malformed,
    )
    needs, most = needs_of(shown), positions_of(lesson.student) if lesson.student else None
    limits = {
        name: needs.limit(kind := name.split(".")[1], usual, most if kind == LIMITS[0] else None)
        for name, usual in limits_of(lesson).items()
    }
    path = folder / "limits.json"
    path.write_text(json.dumps({**vars(needs), "limits": limits}, indent=1) + "\n")
    return path
