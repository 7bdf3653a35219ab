"""SOD: learn from a teacher turn by turn, less where the student has drifted off its ground.

    python scripts/train_sod.py --out runs/sod
    python scripts/train_sod.py --teacher runs/sod/teacher_rl/model --out runs/sod2
    python scripts/train_sod.py --train.recipe opd --train.recipe-options '{}' --out runs/opd

Without `--teacher` one is made: a larger model imitates the environment's expert, then learns from
its own attempts. Without `--student` one is made too; nothing is downloaded. The same command again
goes on where it was stopped. Prints success before and after, with intervals, above the floors.
"""

from dataclasses import replace
from pathlib import Path

from turnwise.cli.script import run_script
from turnwise.trainers.asked import asked
from turnwise.trainers.lesson import CRAFT_RL, Lesson
from turnwise.trainers.lesson_run import run_lesson

SOD = Lesson(
    out=Path("runs/sod"),
    # GRPO's advantages are about one; log-ratios of a token are several nats.
    train=replace(CRAFT_RL, recipe="sod", recipe_options='{"coefficient": 1.0}'),
)

if __name__ == "__main__":
    raise SystemExit(run_script(lambda read: run_lesson(asked(SOD, read))))
