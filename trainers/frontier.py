"""What is in flight when a checkpoint is written: played and not yet learnt from, or half played.

    frontier/000012/ticket.json      step, version of the weights it is played with
                    prompts.json     and coach.json: what its tasks and depths follow from
                    episodes.jsonl   those that are over, without what was lost
                    weights.pt       unless all of it is over

A resumed run takes finished episodes as they are and plays the others with the same weights and
seeds. Where environments are fast, a batch that is half over is played again from its beginning:
its numbers then come out equal to the last bit, which a smaller batch of requests does not promise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from turnwise.agents.episode_json import episode_from_json, episode_to_json
from turnwise.envs.types import Episode, canonical_json


@dataclass(eq=False)
class Ticket:
    """A batch in flight: which one, under which weights, and what is over of it."""

    step: int
    version: int
    kept: dict[str, Episode] = field(default_factory=dict)
    """Finished episodes by their job's id."""
    weights: dict[str, Tensor] | None = None
    """From a checkpoint, until the player has them."""
    state: Path | None = None
    """The folder of a checkpoint that says from where it is played."""
    over: bool = False
    """From a checkpoint that has all of it."""


@dataclass(frozen=True)
class InFlight:
    """A batch as it is saved."""

    ticket: Ticket
    kept: Sequence[Episode]
    """What goes on as it is, of all processes."""
    weights: dict[str, Tensor] | None
    """Those that the rest is to be played with; None where there is no rest."""
    save_state: Callable[[Path], None]
    """Writes from where it is played."""


def write_tickets(folder: Path, batches: Sequence[InFlight]) -> None:
    """Write the batches in flight below `folder`."""
    for batch in batches:
        ticket = batch.ticket
        place = folder / "frontier" / f"{ticket.step:06d}"
        place.mkdir(parents=True)
        batch.save_state(place)
        (place / "ticket.json").write_text(
            json.dumps({"step": ticket.step, "version": ticket.version})
        )
        lines = [canonical_json(episode_to_json(episode)) + "\n" for episode in batch.kept]
        (place / "episodes.jsonl").write_text("".join(lines), encoding="utf-8")
        if batch.weights is not None:
            torch.save(batch.weights, place / "weights.pt")


def read_tickets(folder: Path) -> list[Ticket]:
    """Return what `write_tickets` wrote, in the order of the steps."""
    return [_ticket(place) for place in sorted((folder / "frontier").glob("[0-9]*"))]


def _ticket(place: Path) -> Ticket:
    named, saved = json.loads((place / "ticket.json").read_text()), place / "weights.pt"
    lines = (place / "episodes.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    episodes = [episode_from_json(json.loads(line)) for line in lines]
    return Ticket(
        named["step"],
        named["version"],
        kept={episode.id: episode for episode in episodes},
        weights=torch.load(saved, weights_only=True) if saved.exists() else None,
        state=place,
        over=not saved.exists(),
    )
