"""A comparison small enough for a test, and the real ones of scripts/compare_methods.py."""

import sys
from pathlib import Path

from turnwise.trainers.contest import Arm, Experiment, Models, School
from turnwise.trainers.equal_start import StartPlan

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from compare_methods import EXPERIMENTS  # noqa: E402, F401  (of the tests)
from compared.arms import SOD  # noqa: E402, F401
from compared.controls import shuffled, uniform  # noqa: E402, F401

MINI = School(
    env={"stages": 2, "turns": 4, "symbols": 2},
    start=StartPlan(
        target=0.3,
        tolerance=0.12,
        steps=100,
        check_every=5,
        check_below=1.5,
        learning_rate=1e-2,
        batch=8,
    ),
    demos=48,
    noise=0.1,
)
SHAPE = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn": 16}
SMALL = Experiment(
    name="small",
    title="Small",
    claim="Does it run?",
    env={"stages": 2, "turns": 4, "symbols": 2, "p_fail": 0.2, "progress": 1.0},
    beginning=MINI,
    teachers={"mini": MINI},
    arms=(
        Arm(name="SOD", method="sod", teacher="mini"),
        Arm(name="uniform", method="sod", teacher="mini", change=uniform, rate_of="SOD"),
    ),
    pairs=(("SOD", "uniform"),),
    budget=150,
    rates=(1e-3, 3e-3),
    plan={"tasks_per_step": 2, "group_size": 2},
    models=Models(student=SHAPE, teacher={**SHAPE, "hidden": 24}, max_tokens=64),
    tests=12,
)
