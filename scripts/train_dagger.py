"""DAgger: the teacher says what it would do wherever the student went.

    python scripts/train_dagger.py --out runs/dagger

The teacher is the environment's expert, or the model in `--teacher`; without `--model`
a tiny student is made on the spot. Hands slip here; `--recipe sft` has demonstrations alone.
"""

from functools import partial
from pathlib import Path

import tyro
from rich.console import Console

from turnwise.envs.registry import make
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.loop import train
from turnwise.trainers.model import load_model, tiny_from_env
from turnwise.trainers.pipeline import measure
from turnwise.trainers.progress import Progress

PLAN = TrainConfig(
    env_kwargs='{"depth": [2, 4], "wrappers": [["ActionSlips", {"p": 0.1}]]}',
    recipe="dagger",
    steps=8,
    tasks_per_step=128,
    group_size=2,
    updates_per_step=60,
    learning_rate=4e-3,
    decay_from=0.5,
    max_new_tokens=16,
    out=Path("runs/dagger"),
)
TESTS = 200
"""Held-out tasks on which it is measured."""


def main(config: TrainConfig) -> None:
    """Measure, train, measure again."""
    console, out = Console(), config.out
    make_env = partial(make, config.env, **config.environment_arguments())
    fresh = partial(tiny_from_env, make_env, seed=config.seed, rope_theta=100)
    student = load_model(config.model) if config.model else fresh()
    limits = {"max_tokens": config.max_tokens, "max_new_tokens": config.max_new_tokens}
    look = partial(measure, make_env=make_env, tasks=make_env().tasks("test")[:TESTS], **limits)
    before = look(*student, path=out / "before.jsonl").success
    with Progress(console, f"{config.recipe} on {config.env}") as bar:
        for row in train(config, model=student):
            bar.show(row, total=config.steps)
            shares = "{teacher_share:.2f} of the turns, meant {teacher_odds:.2f}".format(**row)
            console.print(f"round {row['step']}: the teacher took {shares}")
    after = look(*load_model(str(out / "model")), path=out / "after.jsonl").success
    console.print(f"success {before} before, {after} after; the model is in {out}/model")


if __name__ == "__main__":
    main(tyro.cli(TrainConfig, default=PLAN))
