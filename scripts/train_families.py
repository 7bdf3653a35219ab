"""A tiny model from nothing on the easiest setting of a tool, a code and a web environment.

    python scripts/train_families.py tool
    python scripts/train_families.py code --out runs/code
    python scripts/train_families.py web --seed 1

Imitation of the expert until it succeeds often, then RL with turn-level credit on its own attempts.
Prints success before and after on held-out tasks, with intervals, above the floors; minutes on two
cores. docs/log.md has what it reached.
"""

from dataclasses import replace
from pathlib import Path

import tyro

from turnwise.cli.script import run_script
from turnwise.trainers.lesson import CRAFT_RL, CRAFT_SFT, Lesson
from turnwise.trainers.lesson_run import run_lesson

SFT = replace(CRAFT_SFT, target=0.72, demos=5000, steps=900, check_every=30)
RL = replace(
    CRAFT_RL, steps=25, tasks_per_step=16, learning_rate=3e-4, decay_from=0.3, max_tokens=700
)
TOOL = Lesson(
    out=Path("runs/tool"),
    env="turnwise/Calculator-v1",
    env_kwargs='{"steps": 1, "digits": 1}',
    student_sft=replace(SFT, target=0.6, demos=2000, steps=500, check_every=10),
    train=replace(RL, steps=60, learning_rate=5e-4, max_tokens=256, max_new_tokens=24),
)
CODE = Lesson(
    out=Path("runs/code"),
    env="turnwise/Sql-v1",
    env_kwargs='{"depth": 1, "schemas": ["shop"], "kinds": ["compared", "narrowed"], '
    '"actions": "command"}',
    student_sft=SFT,
    train=replace(RL, max_new_tokens=64),
)
WEB = Lesson(
    out=Path("runs/web"),
    env="turnwise/Forms-v1",
    env_kwargs='{"pages": 1, "fields": 1, "distractors": 0, "optional": 0, "strict": false, '
    '"kinds": ["date", "number"], "actions": "command", "remind": false}',
    student_sft=replace(SFT, target=0.9, demos=24000, steps=1200, check_every=40, decay_from=0.3),
    train=replace(RL, steps=70, learning_rate=6e-4, decay_from=0.4, max_new_tokens=24),
)

if __name__ == "__main__":
    whole = (tyro.conf.AvoidSubcommands,)
    families = tyro.extras.subcommand_type_from_defaults(
        {"tool": TOOL, "code": CODE, "web": WEB},
        {
            "tool": "Calculator: one sum",
            "code": "Sql: rows of one table by a bound",
            "web": "Forms: one date or number",
        },
    )
    raise SystemExit(run_script(lambda read: run_lesson(read(families, config=whole))))
