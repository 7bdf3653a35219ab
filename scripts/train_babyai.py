"""BabyAI-GoToLocal: imitate minigrid's own bot, then improve by turn-level RL.

    python scripts/train_babyai.py --out runs/babyai

`--warm-up.target` is the success on dev tasks at which imitation stops, `--train.steps` the RL
steps after it.
"""

from pathlib import Path

import tyro

from turnwise.trainers.config import TrainConfig
from turnwise.trainers.course import Course, run_course
from turnwise.trainers.pipeline import WarmUp

BABYAI = Course(
    out=Path("runs/babyai"),
    title="BabyAI-GoToLocal: imitating the bot, then turn-level reinforcement learning",
    env="turnwise/BabyAI-GoToLocal-v1",
    test_tasks=200,
    warm_up=WarmUp(demos=12000, noise=0.1, steps=1500, learning_rate=3e-3, target=0.5),
    train=TrainConfig(
        recipe="turn_rloo",
        recipe_options='{"gamma": 0.95, "history_turns": 0}',
        steps=60,
        learning_rate=1e-3,
        max_new_tokens=4,
    ),
)

if __name__ == "__main__":
    raise SystemExit(run_course(tyro.cli(Course, default=BABYAI)))
