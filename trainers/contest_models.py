"""Who begins a comparison and who teaches in it: each model is made once and kept by its settings.

Also how they are measured: one attempt at each task at T = 1.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from turnwise.agents.policy import ScriptedPolicy, noop, random_tool
from turnwise.agents.renderer import Renderer, remember
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.envs.registry import make
from turnwise.envs.types import Episode, Task
from turnwise.trainers.comparison import key_of
from turnwise.trainers.contest import Experiment, Models, School
from turnwise.trainers.equal_start import equal_start
from turnwise.trainers.model import load_model, save_model, tiny_from_env
from turnwise.trainers.pipeline import policy_of
from turnwise.trainers.sft import demonstrations
from turnwise.trainers.watch import shares_of_kinds


def scored(
    model: nn.Module, tokenizer: Any, about: Experiment, tasks: Sequence[Task], seed: int
) -> dict[str, float]:
    """Return means over `tasks`, one attempt each at T = 1.

    Returns:
        `success` and `progress`, 0 to 1; `turns` of an episode; shares of turns by their kind.
    """
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


def teachers(about: Experiment, folder: Path) -> dict[str, dict[str, float]]:
    """Return what the teachers themselves reach on the test tasks, by name, as `scored` does."""
    env = about.make_env()()
    tasks = env.tasks("test")[: about.tests]
    env.close()
    return {
        name: scored(*load_model(str(teacher_of(about, name, folder))), about, tasks, 0)
        for name in about.teachers
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
    settings |= limits(about)
    if school is not None and about.env_id in ONE_TOKENIZER:
        settings["env"] = {}  # what a school says is all that its pupil depends on
    place = folder / key_of(settings)
    with alone(place):
        if not (place / "made.json").exists():
            made = _made(about, school, shape, seed, place)
            (place / "made.json").write_text(json.dumps({**settings, **made}))
    return place


def limits(about: Experiment) -> dict[str, int]:
    """Return what of an agent's limits is not as usual: what a model learns depends on it."""
    usual, given = Models().to_json(), about.models.to_json()
    return {
        name: given[name]
        for name in ("max_tokens", "max_new_tokens", "recall")
        if given.get(name) != usual.get(name)
    }


ONE_TOKENIZER = ("turnwise/Corridor-v1",)
"""Environments whose tokenizer does not depend on their arguments."""


def _made(
    about: Experiment, school: School | None, shape: dict[str, int], seed: int, place: Path
) -> dict[str, float]:
    plain = partial(make, about.env_id, **({} if about.env_id in ONE_TOKENIZER else about.env))
    how: dict[str, Any] = dict(shape)
    if about.env_id in ONE_TOKENIZER:
        how["separators"] = ("", " ")
    model, tokenizer = tiny_from_env(plain, seed=seed, **how)
    remember(tokenizer, about.models.recall)
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
    key = key_of(
        {"env_id": there.env_id, **asdict(school), "tokens": len(tokenizer)} | limits(there)
    )
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
def alone(place: Path) -> Iterator[None]:
    """Let one process at a time make what goes to `place`; the others wait and find it there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
