"""DAgger: the teacher says what it would do wherever the student went.

    python scripts/train_dagger.py --out runs/dagger
    python scripts/train_dagger.py --train.recipe sft --out runs/sft
    python scripts/train_dagger.py --teacher MODEL --out runs/from_a_model

The teacher is the environment's expert, or the model in `--teacher`. Hands slip here: one action in
ten is not what was meant; `--train.recipe sft` has demonstrations alone. Without `--student` a tiny
one begins at random weights; nothing is downloaded. The same command again goes on where it was
stopped. Prints success before and after, with intervals, above the floors.
"""

from dataclasses import replace
from pathlib import Path

from turnwise.cli.script import run_script
from turnwise.trainers.asked import asked
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.lesson import CRAFT_SFT, Lesson
from turnwise.trainers.lesson_run import run_lesson

DAGGER = Lesson(
    out=Path("runs/dagger"),
    env="turnwise/FileHunt-v1",
    env_kwargs='{"depth": [2, 4], "wrappers": [["ActionSlips", {"p": 0.1}]]}',
    student_sft=replace(CRAFT_SFT, steps=0),
    rope_theta=100.0,
    test_tasks=200,
    train=TrainConfig(
        recipe="dagger",
        steps=8,
        tasks_per_step=128,
        group_size=2,
        updates_per_step=60,
        learning_rate=4e-3,
        decay_from=0.5,
        max_new_tokens=16,
    ),
)

if __name__ == "__main__":
    raise SystemExit(run_script(lambda read: run_lesson(asked(DAGGER, read))))
