"""A whole comparison: make who begins and who teaches, choose learning rates, run every seed.

Learning rates are chosen per method at the full budget, on dev seeds and dev tasks, by the mean of
success and progress; a control takes the rate of the method that it is a control of. Test seeds and
test tasks are seen once. A run whose row is among the experiment's compact results is not made
again; what else was done before is read from its file.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from turnwise.trainers.comparison import best_rate
from turnwise.trainers.contest import Arm, Experiment, Job
from turnwise.trainers.contest_models import beginning, floors, teacher_of, teachers
from turnwise.trainers.contest_run import run

Say = Callable[[str], object]
Row = Mapping[str, Any]
"""What is kept of one run."""


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


def _found(compact: Path) -> dict[str, Any]:
    """Return the compact results that are there."""
    return json.loads(compact.read_text()) if compact.exists() else {"dev": [], "rows": []}


def _same_start(about: Experiment, rows: Sequence[Row]) -> None:
    """Refuse rows of one seed that did not begin with one student.

    Raises:
        ValueError: they differ, as they may where another machine made those that were kept.
    """
    starts = {row["arm"]: row["start"] for row in rows}
    if any(start != rows[0]["start"] for start in starts.values()):
        raise ValueError(
            f"{about.name}, seed {rows[0]['seed']}: not all began with the same student: {starts}. "
            f"If {about.name}.json was made on another machine, remove it to run all arms here"
        )


class _Comparison:
    def __init__(
        self, experiment: Experiment, suite: Suite, pool: ProcessPoolExecutor | None
    ) -> None:
        self.about, self.suite, self.pool = experiment, suite, pool
        self.found = _found(suite.results / f"{experiment.name}.json")
        self.kept = {row["key"]: row for row in (*self.found["dev"], *self.found["rows"])}

    def write(self) -> None:
        """Run everything and write the compact results, after each seed what is known."""
        about, suite = self.about, self.suite
        suite.say(f"{about.name}: {len(about.arms)} arms")
        tuned = [arm for arm in about.arms if not arm.rate_of and len(self._rates(arm)) > 1]
        dev = [
            Job(experiment=about, arm=arm, seed=seed, rate=rate, split="dev")
            for arm in tuned
            for seed in suite.dev_seeds
            for rate in self._rates(arm)
        ]
        tried = self._run(dev, _tried)
        rates = self._chosen(tuned, tried)
        found = {"name": about.name, "budget": about.budget, "rates": rates}
        found["dev_seeds"] = len(suite.dev_seeds) if tuned else 0
        found |= {"env": dict(about.env), "floors": floors(about)}
        found["teachers"] = self._teachers()
        found["dev"] = tried
        rows: list[Row] = []
        for seed in suite.seeds:
            of_seed = self._run(self._tests(seed, rates), _compact)
            _same_start(about, of_seed)
            rows += of_seed
            self._keep({**found, "rows": [*rows, *self._others(rows, rates)]})

    def _teachers(self) -> dict[str, Row]:
        """Return what the teachers reach, by name, as it was kept if they are the same."""
        known: dict[str, Row] = self.found.get("teachers", {})
        keys = {name: self.about.key_of_teacher(name) for name in self.about.teachers}
        if {name: row.get("key") for name, row in known.items()} == keys:
            return known
        call = partial(teachers, self.about, self.suite.out)
        made = call() if self.pool is None else self.pool.submit(call).result()
        return {name: {**row, "key": keys[name]} for name, row in made.items()}

    def _tests(self, seed: int, rates: Mapping[str, float]) -> list[Job]:
        arms = self.about.arms
        return [
            Job(experiment=self.about, arm=arm, seed=seed, rate=rates[arm.name]) for arm in arms
        ]

    def _others(self, rows: Sequence[Row], rates: Mapping[str, float]) -> list[Row]:
        """Return the rows at these rates of seeds that are not run now, or not yet."""
        known = {row["seed"] for row in self.kept.values() if "curve" in row}
        seeds = sorted(known - {row["seed"] for row in rows})
        return self._rows([job for seed in seeds for job in self._tests(seed, rates)])

    def _keep(self, found: Mapping[str, Any]) -> None:
        """Write what is known; a line per run."""
        self.suite.results.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found, separators=(",", ":")).replace('{"arm"', '\n{"arm"')
        (self.suite.results / f"{self.about.name}.json").write_text(text + "\n")

    def _rates(self, arm: Arm) -> Sequence[float]:
        return arm.rates or self.about.rates

    def _chosen(self, tuned: Sequence[Arm], dev: Sequence[Row]) -> dict[str, float]:
        """Return every arm's rate: its own choice, or that of the arm that it is a control of."""
        chosen = {arm.name: self._rates(arm)[0] for arm in self.about.arms}
        for arm in tuned:
            scores: dict[float, list[float]] = {}
            for row in dev:
                if row["arm"] == arm.name:
                    scores.setdefault(row["rate"], []).append(
                        (row["success"] + row["progress"]) / 2
                    )
            chosen[arm.name] = best_rate(scores)
        return {arm.name: chosen[arm.rate_of or arm.name] for arm in self.about.arms}

    def _run(self, jobs: Sequence[Job], row_of: Callable[[Job, Row], Row]) -> list[Row]:
        """Return the row of each job, in order; one that failed is said and left out."""
        missing = [job for job in jobs if job.key not in self.kept]
        if self.pool is not None:  # at once, so that no worker waits for the model of another
            self._each(teacher_of, self._once(job.arm.teacher for job in missing))
            self._each(beginning, self._once(job.seed for job in missing))
        results = self._each(run, [(job, self.suite.out) for job in missing])
        self.kept |= {
            job.key: row_of(job, found)
            for job, found in zip(missing, results, strict=True)
            if found
        }
        return self._rows(jobs)

    def _rows(self, jobs: Sequence[Job]) -> list[Row]:
        """Return what is known of these jobs."""
        known = [job for job in jobs if job.key in self.kept]
        return [{**self.kept[job.key], "arm": job.arm.name} for job in known]

    def _once(self, names: Iterable[Any]) -> list[tuple[Any, ...]]:
        """Return the calls that make a model for each of the names, but for the empty one."""
        return [(self.about, name, self.suite.out) for name in dict.fromkeys(names) if name != ""]

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
