"""BabyAI-GoToLocal: imitate minigrid's own bot, then improve on it by turn-level RL.

    python scripts/train_babyai.py --out runs/babyai

`--target` is the success at which imitation stops; `--train.steps` are the RL steps after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import tyro
from rich.console import Console

from turnwise.agents.renderer import Renderer
from turnwise.envs.registry import make
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.loop import train
from turnwise.trainers.model import load_model, save_model, tiny_from_env
from turnwise.trainers.pipeline import Clock, WarmUp, measure, warm_up
from turnwise.trainers.progress import Progress


@dataclass(frozen=True, kw_only=True)
class BabyAI:
    """The recipe."""

    out: Path = Path("runs/babyai")
    level: str = "GoToLocal"
    seed: int = 0
    test_tasks: int = 200
    warm_up: WarmUp = field(
        default_factory=lambda: WarmUp(
            demos=6000, noise=0.1, steps=1500, learning_rate=3e-3, target=0.9, max_new_tokens=4
        )
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(steps=60, learning_rate=1e-3, max_new_tokens=4)
    )


def main(job: BabyAI) -> int:
    """Imitate, evaluate, train, evaluate."""
    torch.set_num_threads(1)
    console, clock = Console(), Clock()
    env_id = f"turnwise/BabyAI-{job.level}-v1"
    make_env = partial(make, env_id)
    tests = make_env().tasks("test")[: job.test_tasks]
    with clock.stage("SFT"), Progress(console, "imitating the bot") as bar:
        model, tokenizer = tiny_from_env(make_env, seed=job.seed, rope_theta=100.0)
        warm_up(model, tokenizer, make_env, job.warm_up, seed=job.seed, watch=bar.show)
        save_model(model, tokenizer, job.out / "sft")
    Renderer(tokenizer)  # a chat template that cannot be appended to is refused here
    with clock.stage("evaluation"):
        before = measure(model, tokenizer, make_env, tests, job.out / "before.jsonl", floors=True)
    console.print(f"after imitation: {before}")
    config = replace(
        job.train,
        env=env_id,
        model=str(job.out / "sft"),
        out=job.out / "rl",
        seed=job.seed,
        first_task=500_000,
    )
    with clock.stage("RL"), Progress(console, "learning from its own attempts") as bar:
        for row in train(config):
            bar.show(row, total=config.steps)
    after = measure(
        *load_model(str(config.out / "model")), make_env, tests, job.out / "after.jsonl"
    )
    console.print(f"after RL: {after}\nseconds: {clock.seconds}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(BabyAI)))
