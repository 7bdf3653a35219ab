"""Where methods are compared: worlds, models, who teaches and who begins."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from turnwise.trainers.contest import Experiment, Models, School
from turnwise.trainers.equal_start import StartPlan

SHAPE = {"heads": 4, "kv_heads": 2, "head_dim": 16}
MODELS = Models(
    student={"hidden": 48, "layers": 2, "ffn": 96, **SHAPE},
    teacher={"hidden": 80, "layers": 2, "ffn": 160, **SHAPE},
)
BABYAI = Models(
    student={**MODELS.student, "rope_theta": 30.0},
    teacher={**MODELS.teacher, "rope_theta": 30.0},
    max_tokens=256,
    max_new_tokens=4,
    recall=0,
)
"""Each observation tells the mission again, and a small model that sees its own past copies it."""
LONG = {"stages": 12, "turns": 24, "progress": 1.0}
PHASED = {**LONG, "phased": True}
FAILING = {"stages": 8, "turns": 16, "phased": True, "p_fail": 0.15, "progress": 1.0}
SLIPPING = {"stages": 8, "turns": 16, "phased": True, "p_slip": 0.05, "progress": 1.0}

KNOWS = StartPlan(target=0.97, tolerance=0.05, steps=500, learning_rate=4e-3, check_below=0.05)
CLEAN = School(env=PHASED, start=KNOWS)
"""Knows the way, and nothing else: it has never seen a failure or a side branch."""
CLEAN_STATIONARY = School(env=LONG, start=KNOWS)
ROBUST = School(
    env={**PHASED, "turns": 48, "p_fail": 0.15, "p_slip": 0.1},
    start=replace(KNOWS, target=0.85, check_below=0.15, steps=1000),
    noise=0.12,
)
"""Taught where tools fail and hands slip, beside actions of chance: it knows every way back. It has
twice the turns, for in as few as the methods have, seven of eight of such demonstrations end too
soon to be shown."""

ROBUST_STATIONARY = replace(ROBUST, env={k: v for k, v in ROBUST.env.items() if k != "phased"})

LESSER = replace(ROBUST, start=replace(ROBUST.start, target=0.4, tolerance=0.05, check_below=2.0))
"""Was taught the same, to less: it solves .49 of the tasks where the other one solves .91."""


def begins(target: float, **env: object) -> School:
    """Return how a student is brought to this progress: it has seen failures and ways back."""
    return School(env={**env, "p_fail": 0.15}, start=StartPlan(target=target), noise=0.1)


BEGINNER = begins(0.5, **PHASED)
"""Where all begin whose world has phases."""
SKILLED = begins(0.8, **PHASED)
"""Where reward comes at the end alone: a beginner meets it in one attempt of twenty."""
UNSURE = {"check_below": 9.0}
"""The bot has several good ways, and imitation never comes near a loss of 0."""
BABY = School(start=StartPlan(target=0.5, **UNSURE), noise=0.1)
BABY_TEACHER = School(
    start=StartPlan(target=0.85, tolerance=0.05, steps=1500, learning_rate=3e-3, **UNSURE),
    demos=3000,
    noise=0.1,
)
SHELTERED = School(
    env={"stages": 8, "turns": 16, "phased": True}, start=StartPlan(target=0.4), demos=800
)
"""Has seen the expert's way alone, as most demonstrations show it."""


RL = {"tasks_per_step": 4, "group_size": 4}
MANY = {"tasks_per_step": 8, "group_size": 8}
"""For budgets in which a method rises well above its start: 48,000 steps make some 100 updates."""
WIDE = {"tasks_per_step": 8, "group_size": 2}
experiment = partial(Experiment, models=MODELS, tests=96, rates=(1e-3, 3e-3))
GENTLE = (3e-4, 1e-3, 3e-3)
"""Where a teacher takes part: of two rates the lower was always chosen."""
