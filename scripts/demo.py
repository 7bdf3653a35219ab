"""The whole path in one run: demonstrations, SFT, turn-level RL, evaluation, replay, report.

    python scripts/demo.py --out runs/demo --seed 0

FileHunt asks an agent to follow a chain of clues through a file tree in a sandbox. A model of 0.23
million parameters, made on the spot, first imitates an expert, then improves on its own attempts.
Nothing is downloaded.
"""

from pathlib import Path

from turnwise.cli.script import run_script
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.course import Course, run_course
from turnwise.trainers.pipeline import WarmUp

DEMO = Course(
    out=Path("runs/demo"),
    title="FileHunt: imitation, then turn-level reinforcement learning",
    env="turnwise/FileHunt-v1",
    sft_kwargs='{"depth": [2, 6]}',  # the expert shows no deeper hunts
    rl_kwargs='{"depth": [2, 10]}',  # nor does the agent train on the deepest
    test_kwargs='{"depth": [2, 12]}',
    by="depth",
    warm_up=WarmUp(
        demos=8000, noise=0.15, steps=600, learning_rate=4e-3, target=0.5, check_every=20
    ),
    train=TrainConfig(
        recipe="turn_rloo",
        # In a hunt a turn's worth shows in the next clue or two.
        recipe_options='{"gamma": 0.5, "history_turns": 0}',
        steps=140,
        learning_rate=1e-3,
        decay_from=0.6,
        max_tokens=640,
        max_new_tokens=12,
        threads=2,
    ),
)

if __name__ == "__main__":
    raise SystemExit(run_script(lambda read: run_course(read(Course, default=DEMO))))
