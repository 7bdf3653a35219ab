"""TCOD: learn from a teacher on ever longer parts of a task, from its beginning or from its end.

    python scripts/train_tcod.py --out runs/f2b
    python scripts/train_tcod.py --train.recipe tcod_b2f --out runs/b2f
    python scripts/train_tcod.py --train.recipe-options '{"drift": 0.5}' --out runs/gated

By default the first turns alone, then one more every other step (`tcod_f2b`). `tcod_b2f` has the
environment's expert play the beginning and leaves ever more of its way to the student. Evaluation
is always the whole task. Without `--teacher` and `--student` both are made; nothing is downloaded.
The same command again goes on where it was stopped.
"""

from dataclasses import replace
from pathlib import Path

from turnwise.cli.script import run_script
from turnwise.trainers.asked import asked
from turnwise.trainers.lesson import CRAFT_RL, Lesson
from turnwise.trainers.lesson_run import run_lesson

TCOD = Lesson(
    out=Path("runs/tcod"),
    train=replace(CRAFT_RL, recipe="tcod_f2b", recipe_options='{"every": 2}'),
)

if __name__ == "__main__":
    raise SystemExit(run_script(lambda read: run_lesson(asked(TCOD, read))))
