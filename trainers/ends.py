"""Which ids end a turn for the student and not for its teacher.

A base model and the chat model made of it have one vocabulary and end a turn with other tokens of
it. What such a teacher says of the student's end is about something else: the token has no score.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from turnwise.agents.engines.functional import base_model


def ends_of(tokenizer: Any, model: Any) -> frozenset[int]:
    """Return the ids that end a text: the tokenizer's, and those that the model generates with."""
    generation = getattr(base_model(model), "generation_config", None)
    return _listed(tokenizer.eos_token_id, getattr(generation, "eos_token_id", None))


def ends_in(folder: str) -> frozenset[int]:
    """Return `ends_of` the model in a folder; nothing where the folder is not on this machine."""
    from turnwise.trainers.model import load_tokenizer

    if not (Path(folder) / "config.json").is_file():
        return frozenset()
    said = [_noted(Path(folder) / f"{name}.json") for name in ("generation_config", "config")]
    noted = next((ends for ends in said if ends is not None), None)
    return _listed(load_tokenizer(folder).eos_token_id, noted)


def foreign(student: frozenset[int], teacher: frozenset[int]) -> frozenset[int]:
    """Return the student's ends that end nothing for a teacher whose ends are known."""
    return student - teacher if teacher else frozenset()


def _noted(file: Path) -> Any:
    return json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None


def _listed(*given: int | list[int] | None) -> frozenset[int]:
    each = [ids if isinstance(ids, list) else [ids] for ids in given]
    return frozenset(i for ids in each for i in ids if i is not None)
