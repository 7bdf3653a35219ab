"""GRPO, or another method that needs no teacher, on any environment that has an expert.

    python scripts/train_grpo.py --out runs/grpo
    python scripts/train_grpo.py --env turnwise/Sokoban-v1 --env-kwargs '{"pushes": 1}' --out runs/s
    python scripts/train_grpo.py --train.recipe turn_rloo --student runs/grpo/student --out runs/t

Without `--student` a model of 0.2 million parameters is made on the spot; nothing is downloaded.
The same command again goes on where it was stopped. Prints success before and after, with
intervals, above the floors.
"""

from dataclasses import replace
from pathlib import Path

from turnwise.cli.script import run_script
from turnwise.trainers.asked import asked
from turnwise.trainers.lesson import CRAFT_RL, Lesson
from turnwise.trainers.lesson_run import run_lesson

GRPO = Lesson(
    out=Path("runs/grpo"),
    train=replace(CRAFT_RL, recipe="grpo", recipe_options="{}"),
)

if __name__ == "__main__":
    raise SystemExit(run_script(lambda read: run_lesson(asked(GRPO, read))))
