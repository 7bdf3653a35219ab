"""BabyAI-GoToLocal by imitation alone: what a quarter of a million parameters learn from the bot.

    python scripts/imitate_babyai.py --out runs/babyai-sft

Prints success on held-out layouts, sampled at T = 1, above the floors, and the
seconds of process CPU time that learning took.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from turnwise.agents.renderer import remember
from turnwise.cli.script import run_script
from turnwise.envs.registry import make
from turnwise.trainers.course import move_aside
from turnwise.trainers.model import save_model, tiny_from_env
from turnwise.trainers.pipeline import WarmUp, measure, warm_up
from turnwise.trainers.progress import Progress

PLAN = WarmUp(
    demos=8000,
    noise=0.2,
    malformed=0.0,
    steps=800,
    batch=80,
    learning_rate=3e-3,
    decay_from=0.05,
    target=2.0,  # never: the last steps, at a small learning rate, are worth the most
    check_every=10_000,
    max_tokens=256,
    max_new_tokens=4,
)


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """What is learnt, and where it goes; what an earlier run left there is moved aside."""

    out: Path = Path("runs/babyai-sft")
    seed: int = 0
    test_tasks: int = 200
    plan: WarmUp = PLAN


def main(run: Imitation) -> None:
    """Imitate, then measure on layouts of the test split."""
    torch.set_num_threads(1)
    console, make_env = Console(), partial(make, "turnwise/BabyAI-GoToLocal-v1")
    move_aside(run.out)
    start = time.process_time()
    model, tokenizer = tiny_from_env(make_env, seed=run.seed, rope_theta=30.0)
    remember(tokenizer, 0)  # an observation tells the mission and the view: the past only misleads
    with Progress(console, "imitating the bot") as bar:
        warm_up(model, tokenizer, make_env, run.plan, seed=run.seed, watch=bar.show, say=bar.say)
    seconds = time.process_time() - start
    save_model(model, tokenizer, run.out / "model")
    tests = make_env().tasks("test")[: run.test_tasks]
    look = partial(measure, model, tokenizer, make_env, tests, max_tokens=256, max_new_tokens=4)
    sampled = look(run.out / "test.jsonl", floors=True)
    greedy = look(run.out / "test_greedy.jsonl", temperature=0.0)
    rows = {**sampled.floors, "the model, T = 1": sampled, "the model, greedy": greedy}
    for name, report in rows.items():
        console.print(f"{name:>18}  {report.success}")
    console.print(f"{seconds:.0f} CPU seconds, demonstrations included; {run.out}/model")


if __name__ == "__main__":
    raise SystemExit(run_script(lambda read: main(read(Imitation))))
