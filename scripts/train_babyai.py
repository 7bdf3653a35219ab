"""BabyAI-GoToLocal: imitate minigrid's own bot, then improve by turn-level RL.

    python scripts/train_babyai.py --out runs/babyai

Imitation stops at `--warm-up.target` of the dev tasks, so that there is something left to learn by
doing; `scripts/imitate_babyai.py` shows how far imitation alone goes.
"""

from pathlib import Path

from turnwise.cli.script import run_script
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.course import Course, run_course
from turnwise.trainers.pipeline import WarmUp

BABYAI = Course(
    out=Path("runs/babyai"),
    title="BabyAI-GoToLocal: imitating the bot, then turn-level reinforcement learning",
    env="turnwise/BabyAI-GoToLocal-v1",
    test_tasks=200,
    rope_theta=30.0,
    recall=0,
    warm_up=WarmUp(
        demos=1500,
        noise=0.2,
        malformed=0.0,
        batch=32,
        learning_rate=3e-3,
        target=0.5,
        check_every=2,
    ),
    train=TrainConfig(
        recipe="turn_rloo",
        recipe_options='{"gamma": 0.95, "history_turns": 0}',
        steps=90,
        group_size=16,
        learning_rate=1.5e-3,
        decay_from=0.1,
        max_tokens=256,
        max_new_tokens=4,
        threads=2,
    ),
)

if __name__ == "__main__":
    raise SystemExit(run_script(lambda read: run_course(read(Course, default=BABYAI))))
