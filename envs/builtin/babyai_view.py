"""minigrid's levels: how they are made, what they look like in words, and what their state is."""

from __future__ import annotations

import threading
from typing import Any

from turnwise.envs.extras import need
from turnwise.envs.names import UnknownName, hint

_PREFIX = "BabyAI-"
_DOORS = ("open", "closed", "locked")
_lock = threading.Lock()


def _ids() -> dict[str, str]:
    """Return gymnasium's id of each level by its short name."""
    import gymnasium

    found = (id for id in gymnasium.registry if id.startswith(_PREFIX))
    return {id.removeprefix(_PREFIX).rpartition("-v")[0]: id for id in found}


def make_level(level: str) -> Any:
    """Return minigrid's own environment of `level`, without wrappers.

    Raises:
        MissingExtra: minigrid is not installed.
        UnknownName: there is no such level.
    """
    import gymnasium

    with _lock:
        need("minigrid", extra="babyai")
        # minigrid prints every layout that it rejects; a print per reset drowns a training run.
        quiet = need("minigrid.envs.babyai.core.roomgrid_level", extra="babyai")
        quiet.print = lambda *_: None  # type: ignore[attr-defined]
        ids = _ids()
    if level not in ids:
        raise UnknownName(f"no BabyAI level {level!r}; {hint(level, ids)}")
    return gymnasium.make(ids[level], disable_env_checker=True).unwrapped


def _where(ahead: int, right: int) -> str:
    """Return a place as one word: `f3l1` is three steps forward and one to the left."""
    side = f"{'r' if right > 0 else 'l'}{abs(right)}" if right else ""
    return f"f{ahead}{side}" if ahead else side


def _things(image: Any) -> list[tuple[int, int, str]]:
    """Return (steps ahead, steps right, name) of all that is seen, nearest first."""
    from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT

    rows = image.tolist()
    middle, last = len(rows) // 2, len(rows[0]) - 1
    found = []
    for x, column in enumerate(rows):
        for y, (kind, color, state) in enumerate(column):
            if kind > 3 and (x, y) != (middle, last):  # not unseen, empty, wall or floor
                door = f"{_DOORS[state]} " if kind == 4 else ""
                name = f"{door}{IDX_TO_COLOR[color]} {IDX_TO_OBJECT[kind]}"
                found.append((last - y, x - middle, name))
    return sorted(found, key=lambda thing: (thing[0] + abs(thing[1]), thing))


def _wall_ahead(image: Any) -> int:
    """Return how many steps ahead the first wall is, or 0 where none is seen."""
    middle, last = image.shape[0] // 2, image.shape[1] - 1
    for ahead in range(1, last + 1):
        if image[middle, last - ahead, 0] == 2:
            return ahead
    return 0


def describe(image: Any, carried: Any) -> str:
    """Return minigrid's view in words: things nearest first, the wall ahead, what is carried.

    Every word is one that a tiny tokenizer can hold as one token, and nothing stands between them:
    a thing is place, colour and type, a door also says whether it is open, closed or locked. The
    place stands in front, at a fixed distance from the name that a model looks for: learning to
    read on *behind* a match takes a small transformer far longer.

    Args:
        image: (7, 7, 3) uint8, of [object, colour, state]; the agent is at [3, 6] and looks
            towards [3, 0].
        carried: What the agent carries, or None.
    """
    parts = [f"{_where(ahead, side)} {name}" for ahead, side, name in _things(image)]
    if wall := _wall_ahead(image):
        parts.append(f"f{wall} wall")
    if carried is not None:
        parts.append(f"carry {carried.color} {carried.type}")
    return " ".join(parts) or "nothing"


def _progress(instruction: Any) -> list[Any]:
    """Return which parts of a mission are done."""
    parts = [getattr(instruction, name, None) for name in ("instr_a", "instr_b")]
    done = [bool(getattr(instruction, name, False)) for name in ("a_done", "b_done")]
    return [done, *(_progress(part) for part in parts if part is not None)]


def _opening(cell: Any) -> int:
    """Return 0 open or not a door, 1 closed, 2 locked."""
    if cell.type != "door" or cell.is_open:
        return 0
    return 2 if cell.is_locked else 1


def state_of(level: Any) -> list[Any]:
    """Return all that decides what follows, the number of steps aside, as JSON values."""
    cells = [
        [at, cell.type, cell.color, _opening(cell)]
        for at, cell in enumerate(level.grid.grid)
        if cell is not None and cell.type != "wall"
    ]
    carried = level.carrying and [level.carrying.color, level.carrying.type]
    agent = [int(level.agent_pos[0]), int(level.agent_pos[1]), int(level.agent_dir)]
    return [level.mission, agent, carried, cells, _progress(level.instrs)]
