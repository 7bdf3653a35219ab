"""One run of a comparison, from a student that begins where all begin to its scores on test tasks.

Its result is JSON in a file that is named by the job's key, so that a comparison goes on where it
was stopped. Whatever the environments play in training is charged: an expert's turns before the
student's, too, and the validation with which a pipeline decides.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from turnwise.envs.types import Task
from turnwise.trainers.comparison import area, key_of, thirds
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.contest import Arm, Experiment, Job
from turnwise.trainers.contest_models import alone, beginning, limits, scored, teacher_of
from turnwise.trainers.guard import Best
from turnwise.trainers.loop import train
from turnwise.trainers.model import load_model

VALIDATED = 64
"""Dev tasks by which a pipeline decides; their turns are charged."""
WHOLE = 100_000
"""Steps of a run that its budget ends."""
WATCHED = ("turns", "teacher_weight", "teacher_kl", "teacher_drift", "success", "entropy")
"""What a result keeps of a run's metrics, by the beginning of the name."""


def run(job: Job, folder: Path) -> dict[str, Any]:
    """Return the result of a job, from its file if it is there."""
    place = folder / "results" / f"{job.key}.json"
    if place.exists():
        return dict(json.loads(place.read_text()))
    torch.set_num_threads(1)
    began, cpu = time.monotonic(), time.process_time()
    result = _Run(job, folder).result()
    result["wall_s"] = round(time.monotonic() - began, 1)
    result["cpu_s"] = round(time.process_time() - cpu, 1)
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_suffix(".part")
    beside.write_text(json.dumps(result))
    beside.rename(place)
    return result


class _Run:
    """A student that learns, and what is measured on the way."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.about, self.folder = job, job.experiment, folder
        self.begins = beginning(job.experiment, job.seed, folder)
        self.model, self.tokenizer = load_model(str(self.begins))
        env = self.about.make_env()()
        self.tests = env.tasks(job.split)[: self.about.tests]
        self.validation = env.tasks("dev")[-VALIDATED:]
        env.close()
        self.spent, self.rows = 0.0, list[dict[str, Any]]()
        self.curve: list[dict[str, float]] = []
        self.left: list[float] = []

    def result(self) -> dict[str, Any]:
        """Learn to the end of the budget and return what came out."""
        start = self._at_start()
        self.curve = [{"spent": 0.0, **start}]
        arm: Arm | None = self.job.arm
        while arm is not None and not self._done():
            self._learn(arm)
            arm = arm.then
        end = self.measure(self.tests)
        self.curve.append({"spent": self.spent, **end})
        whole = self.about.budget or self.spent
        points = [(point["spent"], point["success"]) for point in self.curve]
        result: dict[str, Any] = {
            "seed": self.job.seed,
            "rate": self.job.rate,
            "split": self.job.split,
        }
        result |= {"start": start, "end": end, "auc": round(area(points, whole), 4)}
        result |= {"env_steps": self.spent, "updates": self._updates(), "curve": self.curve}
        result |= {"metrics": thirds(self.rows, lambda name: name.startswith(WATCHED))}
        return result | ({"left_at": self.left} if self.left else {})

    def _at_start(self) -> dict[str, float]:
        """Return the scores of the student that all arms begin with; the first one measures it."""
        about = self.about
        asked: dict[str, Any] = {
            "start": self.begins.name,
            "env_id": about.env_id,
            "env": dict(about.env),
        }
        asked |= limits(about) | {
            "tests": about.tests,
            "split": self.job.split,
            "seed": self.job.seed,
        }
        place = self.folder / "scores" / f"{key_of(asked)}.json"
        with alone(place):
            if not place.exists():
                place.write_text(json.dumps(self.measure(self.tests)))
        return dict(json.loads(place.read_text()))

    def _done(self) -> bool:
        return 0 < self.about.budget <= self.spent

    def _updates(self) -> int:
        return sum(int(row["updates"]) for row in self.rows)

    def _learn(self, arm: Arm) -> None:
        """Let one stage run to the end of the budget, or until it is left."""
        best, share, began = Best(self.model, self._validated), self.about.budget or 1.0, self.spent
        if arm.then is not None:
            best.look(0.0)
        asked = arm.guard.every
        steps = {**self.about.plan, **arm.plan}.get("steps", WHOLE)
        for row in self._training(arm):
            self.spent += row["env_steps"]
            self.rows.append(row)
            if self._done():
                return
            self._look_on_the_way()
            if arm.then is not None and (at := (self.spent - began) / share) >= asked:
                asked += arm.guard.every
                best.look(at)
                if arm.guard.reason(best.seen):
                    best.restore()
                    self.left = [*self.left, self.spent]
                    return
        if row["step"] < steps:
            raise KeyboardInterrupt("the run was stopped amid its steps: it has no result")

    def _validated(self) -> float:
        """Return the mean of success and progress on validation tasks; their turns are charged."""
        found = self.measure(self.validation)
        self.spent += found["turns"] * len(self.validation)
        return (found["success"] + found["progress"]) / 2

    def _look_on_the_way(self) -> None:
        """Measure after each quarter of the budget."""
        quarter = self.about.budget / 4
        if self.about.budget and self.spent >= quarter * len(self.curve):
            found = self.measure(self.tests[: len(self.tests) // 3])
            self.curve.append({"spent": self.spent, **found})

    def _training(self, arm: Arm) -> Iterator[dict[str, Any]]:
        """Yield the metrics of the real loop, with `updates` of each step."""
        teacher = ""
        if arm.teacher:
            teacher = str(teacher_of(self.about, arm.teacher, self.folder))
        out = Path(tempfile.mkdtemp(prefix="contest-"))
        config = _config(self.about, arm, self.job, out / "run", teacher)
        before = 0.0
        with closing_generator(
            train(config, model=(self.model, self.tokenizer), recipe=arm.recipe()), out
        ) as steps:
            for row in steps:
                yield {**row, "updates": row["policy_version"] - before}
                before = row["policy_version"]

    def measure(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Return the scores of the present weights."""
        return scored(self.model, self.tokenizer, self.about, tasks, self.job.seed)


@contextmanager
def closing_generator(steps: Any, out: Path) -> Iterator[Any]:
    """End a run wherever it is, and remove its folder: the result is all that is kept."""
    try:
        with closing(steps):
            yield steps
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _config(about: Experiment, arm: Arm, job: Job, out: Path, teacher: str) -> TrainConfig:
    """Return the plan of a run; it is ended by the budget, or by its steps where there is none."""
    plan: dict[str, Any] = {"steps": WHOLE, "warmup_steps": 3, "updates_per_step": 2}
    plan |= {"tasks_per_step": 8, "group_size": 4, "learning_rate": job.rate}
    plan |= {"max_new_tokens": about.models.max_new_tokens}
    plan |= {**about.plan, **arm.plan}
    return TrainConfig(
        env=about.env_id,
        env_kwargs=json.dumps({**about.env, **arm.env}),
        recipe=arm.method,
        teacher=teacher,
        max_tokens=about.models.max_tokens,
        recall=about.models.recall,
        seed=job.seed,
        first_task=100_000,
        checkpoint_every=0,
        out=out,
        **plan,
    )
