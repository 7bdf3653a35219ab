"""An `Episode` as plain JSON and back, exactly: every float bit, every string, every tuple.

`turns` is one flat list, so that `jq '.turns[].action'` works; `segments` says how many turns each
append-only row holds. `reward` and `segments[].sha` follow from the rest and are there for readers.
A task comes back as a `RecordedTask`, which needs no environment; `rebuild_task` types it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from turnwise.envs.types import Episode, Outcome, Segment, Stop, Task, Turn

T = TypeVar("T", bound=Task)
_CALLS = ("calls", "token_calls")
_PICTURES = ("picture", "final_picture")
_TURN_TUPLES = ("context_ids", "action_ids", "logprobs", *_CALLS, "nondet", "label_ids")
_LABELS = ("label", "label_ids", "label_error")
_SELDOM = ("kind", "nondet", *_LABELS, "versions", "token_calls", *_PICTURES)
"""Left out where they are empty: few environments tell kinds of turns apart or read anything from
outside, few runs label, and few weights change amid a turn."""


class TaskChanged(ValueError):
    """The environment's task class no longer makes the recorded task."""


@dataclass(frozen=True, kw_only=True)
class RecordedTask(Task):
    """A task as a record holds it, readable where its environment is not installed."""

    type_name: str
    recorded_key: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The key the task had when it was played."""
        return self.recorded_key

    def to_json(self) -> dict[str, Any]:
        """Return the recorded fields of the original task."""
        return dict(self.fields)


def task_to_json(task: Task) -> dict[str, Any]:
    """Return `{"type", "key", "fields"}` of `task`."""
    name = task.type_name if isinstance(task, RecordedTask) else type(task).__name__
    return {"type": name, "key": task.key, "fields": task.to_json()}


def task_from_json(data: Mapping[str, Any]) -> RecordedTask:
    """Return the task without its class; `key` and `to_json()` are those of the original."""
    fields = data["fields"]
    return RecordedTask(
        type_name=data["type"],
        recorded_key=data["key"],
        fields=fields,
        hidden=fields.get("hidden", {}),
    )


def rebuild_task(task: Task, task_type: type[T]) -> T:
    """Return a recorded task as an instance of `task_type`; a typed task is returned as it is.

    Raises:
        TaskChanged: `task_type` does not take the recorded fields, or gives them another key.
    """
    if isinstance(task, task_type):
        return task
    hints = typing.get_type_hints(task_type)
    fields = {
        name: _tupled(value) if _is_tuple(hints.get(name)) else value
        for name, value in task.to_json().items()
    }
    try:
        rebuilt = task_type(**fields)
    except (TypeError, ValueError) as error:
        raise TaskChanged(f"{task_type.__qualname__} refuses the recorded task: {error}") from error
    if rebuilt.key != task.key:
        raise TaskChanged(f"the task's key was {task.key} and is now {rebuilt.key}")
    return rebuilt


def episode_to_json(episode: Episode) -> dict[str, Any]:
    """Return the episode as JSON values that `episode_from_json` turns back into an equal one."""
    return {
        **_fields(episode, leave_out=("task", "segments", "blobs")),
        "task": task_to_json(episode.task),
        "segments": [
            {
                "turns": len(segment.turns),
                "inherited_ids": list(segment.inherited_ids),
                "sha": segment.sha,
            }
            for segment in episode.segments
        ],
        "turns": [_fields(turn) for turn in episode.turns],
        "reward": episode.reward,
    }


def episode_from_json(data: Mapping[str, Any], task_type: type[Task] | None = None) -> Episode:
    """Return the episode; its task is typed if `task_type` is given, else a `RecordedTask`.

    Keys that this version does not know are ignored.

    Raises:
        KeyError, ValueError, TypeError: `data` is not an episode.
        TaskChanged: `task_type` no longer makes the recorded task.
    """
    known = _known(Episode, data)
    task = task_from_json(data["task"])
    known["task"] = rebuild_task(task, task_type) if task_type else task
    known["nondet"] = tuple(known.get("nondet", ()))
    known.pop("blobs", None)
    known["segments"] = _segments(data["segments"], data["turns"])
    known["outcome"] = Outcome(data["outcome"])
    known["stop"] = Stop(data["stop"])
    return Episode(**known)


def _segments(
    rows: Sequence[Mapping[str, Any]], turns: Sequence[Mapping[str, Any]]
) -> tuple[Segment, ...]:
    if sum(row["turns"] for row in rows) != len(turns):
        raise ValueError("the segments do not add up to the turns")
    rest = map(_turn_from_json, turns)
    return tuple(
        Segment(
            turns=tuple(islice(rest, row["turns"])),
            inherited_ids=tuple(row["inherited_ids"]),
            sealed=row.get("sha", ""),
        )
        for row in rows
    )


def _turn_from_json(data: Mapping[str, Any]) -> Turn:
    known = _known(Turn, data)
    known.update({name: tuple(known[name]) for name in _TURN_TUPLES if name in known})
    known["versions"] = tuple(map(tuple, known.get("versions", ())))
    return Turn(**known)


def _fields(value: Any, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    # Not dataclasses.asdict: it copies every token id one by one.
    names = (item.name for item in dataclasses.fields(value) if item.name not in leave_out)
    fields = {name: getattr(value, name) for name in names}
    return {name: value for name, value in fields.items() if value or name not in _SELDOM}


def _known(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in dataclasses.fields(kind)}
    return {name: value for name, value in data.items() if name in names}


def _is_tuple(hint: Any) -> bool:
    if hint is tuple or typing.get_origin(hint) is tuple:
        return True
    return isinstance(hint, types.UnionType) and any(map(_is_tuple, typing.get_args(hint)))


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value
