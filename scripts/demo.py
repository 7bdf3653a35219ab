"""The whole path in one run: demonstrations, SFT, turn-level RL, evaluation, replay, report.

    python scripts/demo.py --out runs/demo --seed 0

FileHunt asks an agent to follow a chain of clues through a file tree in a sandbox. A model of a
quarter of a million parameters, made on the spot, first imitates an expert for a minute, then
improves on its own attempts. Nothing is downloaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import tyro
from rich.console import Console

from turnwise.envs.registry import make
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.loop import train
from turnwise.trainers.model import load_model, save_model, tiny_from_env
from turnwise.trainers.pipeline import Clock, WarmUp, measure, replay_all, warm_up
from turnwise.trainers.progress import Progress, say_before, say_result
from turnwise.trainers.recipes.turn_rloo import turn_rloo
from turnwise.trainers.story import write_story


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The frozen recipe of the demo."""

    out: Path = Path("runs/demo")
    seed: int = 0
    test_tasks: int = 400
    """Held-out tasks, depths 2 to 12; nobody looked at them while tuning."""
    first_test_task: int = 0
    depth: tuple[int, int] = (2, 12)
    sft_depth: tuple[int, int] = (2, 6)
    """The expert shows no deeper hunts."""
    rl_depth: tuple[int, int] = (2, 10)
    """Nor does the agent train on deeper ones."""
    warm_up: WarmUp = field(
        default_factory=lambda: WarmUp(
            demos=8000, noise=0.15, steps=600, learning_rate=4e-3, target=0.5, check_every=20
        )
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=140, learning_rate=1e-3, max_tokens=640, max_new_tokens=12, decay_from=0.6
        )
    )
    rope_theta: float = 100.0
    gamma: float = 0.5
    """Discount per turn: in a hunt, a turn's worth shows in the next clue or two."""


def main(demo: Demo) -> int:
    """Run every stage; return the exit code."""
    torch.set_num_threads(1)
    console, clock = Console(), Clock()
    env_of = lambda depth: partial(make, "turnwise/FileHunt-v1", depth=list(depth))  # noqa: E731
    tests = make("turnwise/FileHunt-v1", depth=list(demo.depth)).tasks("test")
    tests = tests[demo.first_test_task : demo.first_test_task + demo.test_tasks]
    say_before(console, demo.out, demo.seed)

    with clock.stage("model and demonstrations"), Progress(console, "imitating an expert") as bar:
        model, tokenizer = tiny_from_env(
            env_of(demo.sft_depth), seed=demo.seed, rope_theta=demo.rope_theta
        )
        plan = replace(demo.warm_up, max_tokens=demo.train.max_tokens)
        warm_up(
            model,
            tokenizer,
            env_of(demo.sft_depth),
            plan,
            seed=demo.seed,
            check_env=env_of(demo.depth),
            watch=bar.show,
        )
        save_model(model, tokenizer, demo.out / "sft")

    look = partial(
        measure,
        make_env=env_of(demo.depth),
        tasks=tests,
        by=("depth",),
        max_tokens=demo.train.max_tokens,
        max_new_tokens=demo.train.max_new_tokens,
    )
    reports = {}
    with clock.stage("evaluation"), Progress(console, "evaluating what imitation gave"):
        reports["before"] = look(
            *load_model(str(demo.out / "sft")), path=demo.out / "eval/before.jsonl", floors=True
        )
        reports["before_greedy"] = look(
            model, tokenizer, path=demo.out / "eval/before_greedy.jsonl", temperature=0.0
        )

    config = replace(
        demo.train,
        env_kwargs=json.dumps({"depth": list(demo.rl_depth)}),
        model=str(demo.out / "sft"),
        out=demo.out / "rl",
        seed=demo.seed,
        first_task=500_000,
    )
    with clock.stage("turn-level RL"), Progress(console, "learning from its own attempts") as bar:
        credit = turn_rloo(gamma=demo.gamma, history_turns=0)
        rows = [bar.show(row, total=config.steps) for row in train(config, recipe=credit)]

    with clock.stage("evaluation"), Progress(console, "evaluating what RL gave"):
        trained = load_model(str(config.out / "model"))
        reports["after"] = look(*trained, path=demo.out / "eval/after.jsonl")
        reports["after_greedy"] = look(
            *trained, path=demo.out / "eval/after_greedy.jsonl", temperature=0.0
        )
    with clock.stage("replay"), Progress(console, "re-executing every evaluated episode"):
        replayed = replay_all(sorted((demo.out / "eval").glob("*.jsonl")))

    summary = write_story(demo.out, reports, rows, replayed, clock, tokenizer, seed=demo.seed)
    say_result(console, summary, demo.out)
    return 3 if summary["replay"]["divergences"] else 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Demo)))
