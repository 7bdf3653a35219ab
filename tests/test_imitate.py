"""Laws of `scripts/imitate_babyai.py`, on a miniature of it that is run twice into one folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from turnwise.agents.record import read_records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).parents[1] / "scripts" / "imitate_babyai.py"
MINIATURE = ["--test-tasks", "2", "--plan.demos", "8", "--plan.steps", "2", "--plan.batch", "4"]


def run(out, seed):
    pytest.importorskip("minigrid")
    argv = [sys.executable, str(SCRIPT), "--out", str(out), "--seed", str(seed), *MINIATURE]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(argv, env=env, text=True, capture_output=True, stdin=subprocess.DEVNULL)


def test_another_run_into_the_same_folder_moves_the_first_aside_and_is_measured(tmp_path):
    for seed in (0, 1):
        done = run(tmp_path / "sft", seed)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "the model, T = 1" in done.stdout and "CPU seconds" in done.stdout
    folders = list(tmp_path.iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert (folder / "model" / "config.json").exists()
        assert len(list(read_records(folder / "test.jsonl"))) == 2
