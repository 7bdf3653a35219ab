"""A whole run from nothing: demonstrations, SFT, turn-level RL, evaluation, replay, report.

`scripts/demo.py` and `scripts/train_babyai.py` are two courses; copy one for your environment.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from turnwise.agents.renderer import remember
from turnwise.agents.score import Report
from turnwise.envs.base import Env
from turnwise.envs.registry import make
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.loop import train
from turnwise.trainers.model import load_model, save_model, tiny_from_env
from turnwise.trainers.pipeline import Clock, WarmUp, measure, replay_all, warm_up
from turnwise.trainers.progress import Progress, say_before, say_result
from turnwise.trainers.story import write_story

INTERRUPTED = 130
DIVERGED = 3


@dataclass(frozen=True, kw_only=True)
class Course:
    """What is learnt, and how."""

    out: Path
    """Run folder. What an earlier run left there is moved aside, never overwritten."""
    title: str = ""
    env: str = "turnwise/FileHunt-v1"
    sft_kwargs: str = "{}"
    """JSON arguments of the environment in which the expert demonstrates."""
    rl_kwargs: str = "{}"
    """Those of the one in which the agent trains."""
    test_kwargs: str = "{}"
    """Those of the one in which it is measured."""
    by: str = ""
    """Task field to break success down by."""
    seed: int = 0
    test_tasks: int = 400
    """Held-out tasks of the test split."""
    rope_theta: float = 100.0
    recall: int | None = None
    """Past turns that the agent is shown; None is all. See `turnwise.agents.renderer.Renderer`."""
    warm_up: WarmUp = field(default_factory=WarmUp)
    train: TrainConfig = field(default_factory=TrainConfig)

    def env_of(self, kwargs: str) -> Callable[[], Env]:
        """Return what makes the environment with these arguments."""
        return partial(make, self.env, **json.loads(kwargs))


def run_course(course: Course) -> int:
    """Run every stage; return 0, 3 if a replay diverged, or 130 if it was interrupted."""
    torch.set_num_threads(course.train.threads)
    console, clock = Console(), Clock()
    moved = move_aside(course.out)
    say_before(console, course.title or course.env, course.out, course.seed, moved)
    tokenizer = _imitate(course, console, clock)
    reports = _measure(course, "before", course.out / "sft", console, clock)
    config = _rl_config(course)
    with clock.stage("RL"), Progress(console, "learning from its own attempts") as bar:
        rows = [bar.show(row, total=config.steps) for row in train(config)]
    if len(rows) < config.steps:
        console.print(f"stopped after {len(rows)} steps; the model so far is in {config.out}/model")
        return INTERRUPTED
    reports |= _measure(course, "after", config.out / "model", console, clock)
    with clock.stage("replay"), Progress(console, "re-executing every evaluated episode"):
        replayed = replay_all(sorted((course.out / "eval").glob("*.jsonl")))
    summary = write_story(
        course.out,
        reports,
        rows,
        replayed,
        clock,
        tokenizer,
        seed=course.seed,
        field=course.by,
        title=course.title or course.env,
    )
    say_result(console, summary, course.out, course.env)
    return DIVERGED if summary["replay"]["divergences"] else 0


def move_aside(out: Path) -> Path | None:
    """Rename what an earlier run left, so that nothing mixes; return its name now, if any."""
    if not out.exists() or not any(out.iterdir()):
        return None
    aside = out.with_name(f"{out.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    return out.rename(aside)


def _imitate(course: Course, console: Console, clock: Clock) -> Any:
    """Make a model from nothing and bring it to where RL can begin; return its tokenizer."""
    shown = course.env_of(course.sft_kwargs)
    plan = replace(course.warm_up, max_tokens=course.train.max_tokens)
    plan = replace(plan, max_new_tokens=course.train.max_new_tokens)
    with Progress(console, "imitating an expert") as bar:
        with clock.stage("model"):
            model, tokenizer = tiny_from_env(shown, seed=course.seed, rope_theta=course.rope_theta)
            remember(tokenizer, course.recall)
        last = warm_up(
            model,
            tokenizer,
            shown,
            plan,
            seed=course.seed,
            check_env=course.env_of(course.test_kwargs),
            clock=clock,
            watch=bar.show,
            say=bar.say,
        )
    if last.get("success", 0.0) < plan.target:
        console.print(
            f"  [yellow]note[/yellow] imitation ended at {last.get('success', 0.0):.2f} on dev "
            f"tasks, below its target {plan.target:.2f}; RL has less to start from"
        )
    save_model(model, tokenizer, course.out / "sft")
    return tokenizer


def _measure(
    course: Course, name: str, model: Path, console: Console, clock: Clock
) -> dict[str, Report]:
    """Evaluate a saved model at T = 1 and greedily; floors beside the first."""
    make_env = course.env_of(course.test_kwargs)
    env = make_env()
    tests = env.tasks("test")[: course.test_tasks]
    env.close()
    look: Callable[..., Report] = partial(
        measure,
        *load_model(str(model)),
        make_env,
        tests,
        by=(course.by,) if course.by else (),
        max_tokens=course.train.max_tokens,
        max_new_tokens=course.train.max_new_tokens,
    )
    title = f"evaluating on {len(tests)} held-out tasks, {name} RL"
    folder = course.out / "eval"
    with clock.stage("evaluation"), Progress(console, title):
        sampled = look(path=folder / f"{name}.jsonl", floors=name == "before")
        greedy = look(path=folder / f"{name}_greedy.jsonl", temperature=0.0)
    return {name: sampled, f"{name}_greedy": greedy}


def _rl_config(course: Course) -> TrainConfig:
    changes: Mapping[str, Any] = {
        "env": course.env,
        "env_kwargs": course.rl_kwargs,
        "model": str(course.out / "sft"),
        "out": course.out / "rl",
        "seed": course.seed,
        "first_task": 500_000,
    }
    return replace(course.train, **changes)
