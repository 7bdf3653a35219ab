"""`turnwise list`: which environments there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.text import Text

from turnwise.cli.display import NONE, console, print_json, table, verdict
from turnwise.cli.extras import missing, needed
from turnwise.envs.names import UnknownName, hint
from turnwise.envs.registry import EnvSpec, list_envs


@dataclass(frozen=True)
class Options:
    """Which environments there are, with their tags, splits, and the extra that each needs.

    example:
      turnwise list --tag babyai
    """

    tag: str = ""
    """Only environments with this tag."""
    json: bool = False
    """Print a JSON object."""


def run(options: Options) -> int:
    """Print the environments and return the exit code."""
    rows = [_row(spec) for spec in _chosen(options.tag)]
    if options.json:
        print_json({"envs": rows})
    else:
        console().print(table("id", "tags", "splits", "here", "needs", rows=map(_cells, rows)))
    return 0


def _chosen(tag: str) -> list[EnvSpec]:
    everything = list_envs()
    tags = {name for spec in everything for name in spec.tags}
    if tag and tag not in tags:
        raise UnknownName(f"no environment has the tag {tag!r}; {hint(tag, tags)}")
    return [spec for spec in everything if not tag or tag in spec.tags]


def _cells(row: dict[str, Any]) -> list[str | Text]:
    tags, splits = " ".join(row["tags"]), " ".join(row["splits"]) or NONE
    return [row["id"], tags, splits, verdict(row["installed"]), row["needs"] or NONE]


def _row(spec: EnvSpec) -> dict[str, Any]:
    extra = needed(spec.tags)
    return {
        "id": spec.id,
        "where": spec.where,
        "kwargs": dict(spec.kwargs),
        "tags": list(spec.tags),
        "splits": _splits(spec),
        "needs": f"turnwise[{extra}]" if extra else "",
        "installed": not extra or not missing(extra),
    }


def _splits(spec: EnvSpec) -> list[str]:
    """Return the splits that the class names; none where it cannot be imported."""
    try:
        return list(spec.load().splits)
    except (ImportError, LookupError):
        return []
