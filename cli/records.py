"""Episodes from a record file, or from the folder of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from turnwise.agents.record import read_records
from turnwise.cli.options import UsageError
from turnwise.envs.names import hint
from turnwise.envs.types import Episode

NAME = "episodes.jsonl"


def record_file(path: Path) -> Path:
    """Return the record that `path` is, or that the run folder `path` holds.

    Raises:
        UsageError: a folder without a record, or with several.
    """
    if not path.is_dir():
        return path
    if (path / NAME).is_file():
        return path / NAME
    found = sorted(file.name for file in path.glob("*.jsonl"))
    raise UsageError(
        f"{path} holds no {NAME}; give one file: {', '.join(found) or 'none is there'}"
    )


def episodes_of(path: Path, *, id: str = "", failed: bool = False) -> Iterator[Episode]:
    """Yield the proven episodes of a record in the order in which they ended.

    Args:
        path: A record or a run folder.
        id: Only the episode of this id.
        failed: Only episodes that were not solved.

    Raises:
        RecordError, NewerSchema: as `read_records`.
        UsageError: no episode has this id; the message names the nearest.
    """
    seen: list[str] = []
    found = False
    for row in read_records(record_file(path)):
        seen.append(row.raw.get("id", ""))
        if (id and seen[-1] != id) or (failed and row.raw.get("success")):
            continue
        found = True
        yield row.episode
    if id and not found:
        raise UsageError(f"no {'failed ' if failed else ''}episode {id!r} there; {hint(id, seen)}")


def metrics_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the training metrics beside a record; none where there are none."""
    file = record_file(path).with_name("metrics.jsonl")
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
