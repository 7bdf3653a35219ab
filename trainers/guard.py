"""When to leave a teacher: probe a run as it goes on, keep the best weights, return to them.

    leave   when the score is more than `fall` below that of the start,
            or when the best score is `patience` probes old
    keep    the weights of the best probe, the earliest of equals; the start is one of them

What the student can do decides, not the distance to the teacher: a teacher that knows nothing of
the states that a student meets comes ever closer while it ruins what the student could do before.
The score is the mean of success and reward. Success alone is blind where it is rare: a student that
solves 4 % of its tasks can lose all it knows and be within the noise of a probe.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turnwise.envs.types import Episode


@dataclass(frozen=True, kw_only=True)
class Guard:
    """When a run is left. Units of `every` and `settle` are those of `leave_on_success(at=...)`.

    Raises:
        ValueError: `every` is not above 0, `patience` is below 1, or `fall` is negative.
    """

    every: float = 5
    """Steps between probes."""
    patience: int = 3
    """Probes without a better one after which the run is left."""
    fall: float = 0.05
    """A score further than this below that of the start ends the run at once; about the noise of
    a probe."""
    settle: float = 0
    """Probes up to here do not count against `patience`: a curriculum shows the whole task late."""

    def __post_init__(self) -> None:
        if self.every <= 0 or self.patience < 1 or self.fall < 0:
            raise ValueError(
                "every must be above 0, patience at least 1 and fall 0 or more, got "
                f"{self.every}, {self.patience} and {self.fall}"
            )

    def reason(self, seen: Mapping[float, float]) -> str:
        """Return why to leave now, "fell" or "stalled", or "" to go on.

        Args:
            seen: the score by how far the run was; the first is that of the start.
        """
        scores, best = list(seen.values()), best_of(seen)
        if scores[-1] < scores[0] - self.fall - 1e-9:
            return "fell"
        stale = sum(at > max(best, self.settle) for at in seen)
        return "stalled" if stale >= self.patience else ""


def best_of(seen: Mapping[float, float]) -> float:
    """Return where the score was best; the earliest of equals."""
    return max(seen, key=lambda at: seen[at])


class Best:
    """The best weights of a model so far, by what a probe says of them.

    Args:
        model: a run changes it in place; whole weights, without adapters.
        probe: returns the score of its present weights, 0 to 1, on tasks that nobody learns from
            and no result is measured on; see `score_of`.
        folder: keeps probes and weights for a run that goes on later; None keeps them in memory.
    """

    def __init__(
        self, model: nn.Module, probe: Callable[[], float], folder: Path | None = None
    ) -> None:
        self.model, self.probe, self.folder = model, probe, folder
        self.seen: dict[float, float] = {}
        self.weights: dict[str, Tensor] = {}
        self.left = ""
        """Why the run was left, or "ended"; empty while it goes on."""
        if folder is not None and (folder / "probes.json").exists():
            self._load(folder)

    def look(self, at: float) -> float:
        """Probe, keep the weights if they are better than all before, and return the score."""
        self.seen[at] = self.probe()
        if best_of(self.seen) == at:
            state = self.model.state_dict()
            self.weights = {name: w.detach().cpu().clone() for name, w in state.items()}
        if self.folder is not None:
            self._save(self.folder)
        return self.seen[at]

    def restore(self) -> None:
        """Give the model its best weights back."""
        self.model.load_state_dict(self.weights)

    def _save(self, folder: Path) -> None:
        # The weights first: a kill between the two leaves probes that know their weights.
        folder.mkdir(parents=True, exist_ok=True)
        best = f"best-{best_of(self.seen):g}.pt"
        if not (folder / best).exists():
            _beside(folder / best, lambda path: torch.save(self.weights, path))
        said = json.dumps({"best": best, "seen": list(self.seen.items())})
        _beside(folder / "probes.json", lambda path: path.write_text(said + "\n"))
        for old in set(folder.glob("best-*.pt")) - {folder / best}:
            old.unlink()

    def _load(self, folder: Path) -> None:
        said = json.loads((folder / "probes.json").read_text())
        self.seen = {float(at): score for at, score in said["seen"]}
        self.weights = torch.load(folder / said["best"], weights_only=True)


def score_of(episodes: Sequence[Episode]) -> float:
    """Return the mean of success and reward over `episodes`, each reward held within 0 and 1."""
    scores = [(e.success + min(max(e.reward, 0.0), 1.0)) / 2 for e in episodes]
    return sum(scores) / max(len(scores), 1)


def _beside(path: Path, write: Callable[[Path], Any]) -> None:
    part = path.with_suffix(".part")
    write(part)
    part.rename(path)


def forget_unprobed(run: Path, best: Best, guard: Guard) -> None:
    """Remove checkpoints after which the run was killed before its probe: it plays that again.

    Args:
        run: the folder of a run with `checkpoint_every` equal to `guard.every`.
    """
    for place in (run / "checkpoints").glob("step-[0-9]*[0-9]"):
        step = int(place.name.removeprefix("step-"))
        if step % guard.every == 0 and step not in best.seen:
            shutil.rmtree(place)


def step_of(row: Mapping[str, Any]) -> float:
    """Return the steps that a run has done."""
    return float(row["step"])


def leave_on_success(
    rows: Generator[dict[str, Any]],
    best: Best,
    guard: Guard,
    *,
    until: float,
    at: Callable[[Mapping[str, Any]], float] = step_of,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a run that changes `best.model`; end it when it is to be left.

    Then, and when it came to its end, the model has its best weights and `best.left` says why. A
    run whose rows end before `until` was interrupted: its weights stay as they are. The run is
    probed before its first row, every `guard.every` and at its end; `best.seen` counts the probes,
    and such a row has its score as `probe`.

    Args:
        rows: as `turnwise.trainers.loop.train(config, model=(best.model, tokenizer))` gives them.
        until: where the run ends, in the unit of `at`.
        at: how far a row is; steps, or what they have cost in environment steps.
    """
    try:
        if not best.seen:
            best.look(0.0)
        due = max(best.seen) + guard.every
        best.left = _why(best, guard, until)
        while not best.left:
            if (row := next(rows, None)) is None:
                return
            if (here := at(row)) >= min(due, until):
                row, due = {**row, "probe": best.look(here)}, here + guard.every
                best.left = _why(best, guard, until)
            yield row
        best.restore()
    finally:
        rows.close()


def _why(best: Best, guard: Guard, until: float) -> str:
    return guard.reason(best.seen) or ("ended" if max(best.seen) >= until else "")
