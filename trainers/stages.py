"""Stages of a run: each makes one model, once; each model is evaluated.

A stage leaves its model and `made.json` in a folder of its own. The same command again takes what
is whole, goes on with what is not, and refuses what was made under another plan.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnwise.agents.score import Report
from turnwise.trainers.pipeline import summary_of


class PlanChanged(ValueError):
    """The run folder holds what was made under another plan."""


class Interrupted(RuntimeError):
    """A stage was stopped before its end; the same command goes on with it."""


@dataclass(frozen=True)
class Stage:
    """One model to be made.

    Example:
        `Stage("sft", {"demos": 2000, "steps": 300}, imitate_the_expert)`
    """

    name: str
    """Of its folder in the run folder."""
    plan: Mapping[str, Any]
    """All that the model depends on and the stages before it do not say, as JSON values."""
    run: Callable[[Path], Path]
    """Makes the model in this folder, or goes on with it, and returns where the model is."""

    def made(self, out: Path) -> Path:
        """Return the folder of the model; make it if it is not there.

        Raises:
            PlanChanged: the folder was begun under another plan.
            Interrupted: it was stopped on the way.
        """
        folder, before = out / self.name, self.begun(out)
        note = folder / "made.json"
        if before["model"] is None:
            folder.mkdir(parents=True, exist_ok=True)
            _write(note, before)
            model = self.run(folder)
            _write(note, {**before, "model": str(model.relative_to(folder))})
            return model
        return folder / str(before["model"])

    def begun(self, out: Path) -> dict[str, Any]:
        """Return what is there: the plan, and the folder of the model or None.

        Raises:
            PlanChanged: the folder was begun under another plan.
        """
        plan = json.loads(json.dumps(dict(self.plan)))
        note = out / self.name / "made.json"
        before = json.loads(note.read_text()) if note.exists() else {"model": None, "plan": plan}
        require_same(note.parent, before["plan"], plan)
        return dict(before)


@dataclass(frozen=True)
class Named:
    """A model that is there already; it is evaluated like one that is made."""

    name: str
    model: str
    """Folder or Hugging Face name."""

    def made(self, out: Path) -> Path:
        """Return where it is."""
        return Path(self.model)


def require_same(folder: Path, made: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compare two plans.

    Raises:
        PlanChanged: they differ; the message names the first setting and both values.
    """
    for key in sorted(made.keys() | wanted.keys()):
        if made.get(key) != wanted.get(key):
            raise PlanChanged(
                f"{folder} was made with {key}={made.get(key)!r}, and {wanted.get(key)!r} is asked "
                "for: give another --out"
            )


def run_stages(
    out: Path, stages: Sequence[Stage | Named], measure: Callable[[str, Path], Mapping[str, Report]]
) -> dict[str, Mapping[str, Report]]:
    """Make every model in order, evaluate each, and return its reports by split.

    `summary.json` in `out` has what there is after each stage.

    Args:
        measure: (stage, folder of its model) to the report of each split.

    Raises:
        PlanChanged, Interrupted: see `Stage.made`.
    """
    for stage in stages:
        if isinstance(stage, Stage):
            stage.begun(out)  # before the numbers of what is there are written over
    reports: dict[str, Mapping[str, Report]] = {}
    for stage in stages:
        reports[stage.name] = measure(stage.name, stage.made(out))
        _write(out / "summary.json", summary(reports))
    return reports


def summary(reports: Mapping[str, Mapping[str, Report]]) -> dict[str, Any]:
    """Return what `summary.json` holds: by stage, by split."""
    return {
        name: {split: summary_of(report) for split, report in splits.items()}
        for name, splits in reports.items()
    }


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON beside its place and rename it: a kill leaves the old file or the new one."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.rename(path)
