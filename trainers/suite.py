"""A whole comparison: make who begins and who teaches, choose learning rates, run every seed.

Learning rates are chosen per method at the full budget, on dev seeds and dev tasks, by the mean of
success and progress; a control takes the rate of the method that it is a control of. Test seeds and
test tasks are seen once. Whatever was done before is read from its file.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from turnwise.trainers.comparison import best_rate
from turnwise.trainers.contest import Arm, Experiment, Job
from turnwise.trainers.contest_models import beginning, floors, teacher_of
from turnwise.trainers.contest_run import run

Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is to be run."""

    out: Path
    """Models and results by key; may be deleted once the compact results are written."""
    results: Path
    """Compact results, one JSON file per experiment."""
    seeds: Sequence[int] = range(6)
    dev_seeds: Sequence[int] = (100, 101)
    jobs: int = 2
    """Processes at once, each of one thread."""
    say: Say = print


def run_suite(experiments: Sequence[Experiment], suite: Suite) -> None:
    """Run every experiment in order; each one's compact results are there as soon as it is done."""
    with _pool(suite.jobs) as pool:
        for experiment in experiments:
            _Comparison(experiment, suite, pool).write()


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor | None]:
    """Yield forked workers, which share what has been imported; None for one process alone."""
    if jobs < 2:
        yield None
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        yield pool


class _Comparison:
    def __init__(
        self, experiment: Experiment, suite: Suite, pool: ProcessPoolExecutor | None
    ) -> None:
        self.about, self.suite, self.pool = experiment, suite, pool

    def write(self) -> None:
        """Run everything and write the compact results, after each seed what is known."""
        about, suite = self.about, self.suite
        suite.say(f"{about.name}: {len(about.arms)} arms")
        self._each(teacher_of, [(about, name, suite.out) for name in about.teachers])
        tuned = [arm for arm in about.arms if not arm.rate_of and len(about.rates) > 1]
        if self.pool is not None:  # at once, so that no worker waits for the student of another
            seeds = [*(suite.dev_seeds if tuned else ()), *suite.seeds]
            self._each(beginning, [(about, seed, suite.out) for seed in seeds])
        dev = [
            Job(experiment=about, arm=arm, seed=seed, rate=rate, split="dev")
            for arm in tuned
            for seed in suite.dev_seeds
            for rate in about.rates
        ]
        tried = self._run(dev)
        rates = self._chosen(tuned, tried)
        found = {"name": about.name, "budget": about.budget, "rates": rates}
        found["dev_seeds"] = len(suite.dev_seeds) if tuned else 0
        found |= {"env": dict(about.env), "floors": floors(about)}
        found["dev"] = [_tried(job, result) for job, result in tried]
        rows: list[dict[str, Any]] = []
        for seed in suite.seeds:
            test = [
                Job(experiment=about, arm=arm, seed=seed, rate=rates[arm.name])
                for arm in about.arms
            ]
            rows += [_compact(job, result) for job, result in self._run(test)]
            self._keep({**found, "rows": rows})

    def _keep(self, found: Mapping[str, Any]) -> None:
        """Write what is known; a line per run."""
        self.suite.results.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found, separators=(",", ":")).replace('{"arm"', '\n{"arm"')
        (self.suite.results / f"{self.about.name}.json").write_text(text + "\n")

    def _chosen(
        self, tuned: Sequence[Arm], dev: Sequence[tuple[Job, Mapping[str, Any]]]
    ) -> dict[str, float]:
        """Return every arm's rate: its own choice, or that of the arm that it is a control of."""
        chosen = {arm.name: self.about.rates[0] for arm in self.about.arms}
        for arm in tuned:
            scores: dict[float, list[float]] = {}
            for job, result in dev:
                if job.arm is arm:
                    end = result["end"]
                    scores.setdefault(job.rate, []).append((end["success"] + end["progress"]) / 2)
            chosen[arm.name] = best_rate(scores)
        return {arm.name: chosen[arm.rate_of or arm.name] for arm in self.about.arms}

    def _run(self, jobs: Sequence[Job]) -> list[tuple[Job, dict[str, Any]]]:
        """Return each job with its result, in order; one that failed is said and left out."""
        results = self._each(run, [(job, self.suite.out) for job in jobs])
        return [(job, found) for job, found in zip(jobs, results, strict=True) if found]

    def _each(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        if self.pool is None:
            return [self._said(call, function(*call)) for call in calls]
        futures: dict[Future[Any], int] = {
            self.pool.submit(function, *call): i for i, call in enumerate(calls)
        }
        results: list[Any] = [None] * len(calls)
        for future in as_completed(futures):
            index = futures[future]
            if (error := future.exception()) is not None:
                self.suite.say(f"  failed: {_name(calls[index])}: {type(error).__name__}: {error}")
                continue
            results[index] = self._said(calls[index], future.result())
        return results

    def _said(self, call: tuple[Any, ...], result: Any) -> Any:
        if isinstance(result, dict):
            end = result["end"]
            scores = f"success {end['success']:.3f} progress {end['progress']:.3f}"
            spent = f"{result['updates']} updates, {result['cpu_s']} CPU s"
            self.suite.say(f"  {_name(call)}: {scores} auc {result['auc']:.3f} ({spent})")
        return result


def _name(call: tuple[Any, ...]) -> str:
    if isinstance(call[0], Job):
        job = call[0]
        return f"{job.experiment.name} {job.arm.name} seed {job.seed} rate {job.rate:g} {job.split}"
    return f"{call[0].name} {call[1]}"


def _tried(job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run on a dev seed, as it is kept."""
    end = {name: result["end"][name] for name in ("success", "progress")}
    return {"arm": job.arm.name, "seed": job.seed, "rate": job.rate, **end, "key": job.key}


def _compact(job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a run that is kept with the project."""
    kept = ("seed", "rate", "start", "end", "auc", "env_steps", "updates", "metrics", "cpu_s")
    row = {"arm": job.arm.name, "key": job.key, **{name: result[name] for name in kept}}
    if job.arm.then is None:
        row["rate"] = job.arm.plan.get("learning_rate", row["rate"])
    row["curve"] = [[point["spent"], point["success"]] for point in result["curve"]]
    return row | ({"left_at": result["left_at"]} if "left_at" in result else {})


def scaled(experiment: Experiment, factor: float) -> Experiment:
    """Return the experiment with another budget."""
    return replace(experiment, budget=round(experiment.budget * factor))
