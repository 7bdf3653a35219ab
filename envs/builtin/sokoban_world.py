"""Sokoban levels: rules, a solver, and levels that take a given number of pushes.

Cells are (row, column). A state is (player, boxes); walls and goals never change.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count

ROOMS = 64
"""So many are tried for one level."""
Cell = tuple[int, int]
Boxes = frozenset[Cell]
MOVES: dict[str, Cell] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
MARKS = {
    **{(0, 0, 0): ".", (0, 0, 1): "_"},
    **{(1, 0, 0): "@", (1, 0, 1): "+"},
    **{(0, 1, 0): "$", (0, 1, 1): "*"},
}
"""(player, box, goal) to the mark of a cell; `#` is a wall."""


@dataclass(frozen=True, slots=True)
class Level:
    """What does not move, and where everything starts."""

    size: int
    floor: frozenset[Cell]
    goals: Boxes
    player: Cell
    boxes: Boxes
    pushes: int
    """The fewest pushes that solve it from the start."""

    def picture(self, player: Cell, boxes: Boxes) -> str:
        """Return the level as lines of marks, one space between them."""
        rows = ([(r, c) for c in range(self.size)] for r in range(self.size))
        return "\n".join(" ".join(self._mark(cell, player, boxes) for cell in row) for row in rows)

    def _mark(self, cell: Cell, player: Cell, boxes: Boxes) -> str:
        if cell not in self.floor:
            return "#"
        return MARKS[cell == player, cell in boxes, cell in self.goals]


def beside(cell: Cell, way: Cell) -> Cell:
    """Return the next cell that way."""
    return cell[0] + way[0], cell[1] + way[1]


def opposite(way: Cell) -> Cell:
    """Return the way back."""
    return -way[0], -way[1]


def step(level: Level, player: Cell, boxes: Boxes, move: str) -> tuple[Cell, Boxes] | None:
    """Return the state after `move`, or None where a wall or a second box is in the way."""
    way = MOVES[move]
    to = beside(player, way)
    if to not in level.floor:
        return None
    if to not in boxes:
        return to, boxes
    beyond = beside(to, way)
    if beyond not in level.floor or beyond in boxes:
        return None
    return to, boxes - {to} | {beyond}


def walks(floor: frozenset[Cell], boxes: Boxes, start: Cell) -> dict[Cell, tuple[str, ...]]:
    """Return the shortest walk without a push to each cell that `start` reaches."""
    found: dict[Cell, tuple[str, ...]] = {start: ()}
    queue = deque([start])
    while queue:
        cell = queue.popleft()
        for move, way in MOVES.items():
            to = beside(cell, way)
            if to in floor and to not in boxes and to not in found:
                found[to] = (*found[cell], move)
                queue.append(to)
    return found


Place = tuple[frozenset[Cell], Boxes]
"""The floor of a room, and the goals."""
Node = tuple[Cell, Boxes]
"""A state up to walking: the first cell that the player reaches, and the boxes."""


def _node(floor: frozenset[Cell], player: Cell, boxes: Boxes) -> Node:
    return min(walks(floor, boxes, player)), boxes


def _search(
    starts: Iterable[Node], successors: Callable[[Node], Iterator[Node]]
) -> Iterator[tuple[int, Node]]:
    """Yield (distance, node) in the order of distance; the starts at 0."""
    queue = deque((0, node) for node in starts)
    seen = {node for _, node in queue}
    while queue:
        far, node = queue.popleft()
        yield far, node
        for other in successors(node):
            if other not in seen:
                seen.add(other)
                queue.append((far + 1, other))


def _pulls(floor: frozenset[Cell]) -> Callable[[Node], Iterator[Node]]:
    """Return the function from a node to those that one push leads here from."""

    def successors(node: Node) -> Iterator[Node]:
        start, boxes = node
        reached = walks(floor, boxes, start)
        for box in sorted(boxes):
            for way in MOVES.values():
                stand, back = beside(box, way), beside(beside(box, way), way)
                if stand in reached and back in floor and back not in boxes:
                    yield _node(floor, back, boxes - {box} | {stand})

    return successors


def solve(level: Level, player: Cell, boxes: Boxes) -> tuple[str, ...] | None:
    """Return moves with the fewest pushes to every box on a goal, or None if there are none.

    Breadth first over pushes; boxes are never pushed where no push can bring one to a goal.
    """
    alive = _alive(level.floor, level.goals)
    queue: deque[tuple[Cell, Boxes, tuple[str, ...]]] = deque([(player, boxes, ())])
    seen = {_node(level.floor, player, boxes)}
    while queue:
        player, boxes, moves = queue.popleft()
        if boxes == level.goals:
            return moves
        for to, after, pushed in _pushes(level, player, boxes):
            node = _node(level.floor, to, after)
            if after - boxes <= alive and node not in seen:
                seen.add(node)
                queue.append((to, after, moves + pushed))
    return None


def _pushes(
    level: Level, player: Cell, boxes: Boxes
) -> Iterator[tuple[Cell, Boxes, tuple[str, ...]]]:
    """Yield (player, boxes, moves) for each push that the player can walk to."""
    reached = walks(level.floor, boxes, player)
    for box in sorted(boxes):
        for move, way in MOVES.items():
            stand = beside(box, opposite(way))
            if stand in reached and (after := step(level, stand, boxes, move)) is not None:
                yield *after, (*reached[stand], move)


def _alive(floor: frozenset[Cell], goals: Boxes) -> frozenset[Cell]:
    """Return the cells from which a lone box can be pushed to a goal."""
    alive, open_ = set(goals), list(goals)
    while open_:
        cell = open_.pop()
        for way in MOVES.values():
            came, stood = beside(cell, way), beside(beside(cell, way), way)
            if came in floor and stood in floor and came not in alive:
                alive.add(came)
                open_.append(came)
    return frozenset(alive)


def make_level(rng: random.Random, place: Callable[[], Place], size: int, pushes: int) -> Level:
    """Return a level whose best solution takes `pushes` pushes.

    Places are drawn until one has such a start, and the start is drawn among all of that place. If
    none of `ROOMS` has one, the level is the hardest of what they have: `Level.pushes` says.

    Args:
        place: Draws a room with goals, as `make_place` does.
    """
    hardest = _level_in(rng, place(), size, pushes)
    for tried in count(1):
        if hardest.pushes == pushes or (hardest.pushes and tried >= ROOMS):
            break
        level = _level_in(rng, place(), size, pushes)
        hardest = max(hardest, level, key=lambda one: one.pushes)
    return hardest


def _level_in(rng: random.Random, place: Place, size: int, pushes: int) -> Level:
    """Return a level in one place that takes `pushes` pushes, or as many as it has."""
    floor, goals = place
    ends = {_node(floor, cell, goals) for cell in sorted(floor - goals)}
    farthest, starts = 0, list[Node]()
    for far, node in _search(sorted(ends, key=_order), _pulls(floor)):
        if far > pushes:
            break
        starts = [node] if far > farthest else [*starts, node]
        farthest = far
    player, placed = rng.choice(starts)
    stand = rng.choice(sorted(walks(floor, placed, player)))
    return Level(size, floor, goals, stand, placed, farthest)


def _order(node: Node) -> tuple[Cell, list[Cell]]:
    return node[0], sorted(node[1])


def make_place(rng: random.Random, size: int, boxes: int) -> Place:
    """Return the floor of a connected room inside a wall, and goals on it.

    A walk carves the room until two thirds of the inside are floor.
    """
    inside = [(r, c) for r in range(1, size - 1) for c in range(1, size - 1)]
    cell = rng.choice(inside)
    floor, wanted = {cell}, len(inside) * 2 // 3
    while len(floor) < wanted:
        to = beside(cell, rng.choice(list(MOVES.values())))
        if to in inside:
            cell = to
            floor.add(cell)
    return frozenset(floor), frozenset(rng.sample(sorted(floor), boxes))
