"""FileHunt: follow a chain of clues through a file tree with `ls`, `cat`, `grep` and `submit`.

Whoever has lost the thread reads `/clue`: it always holds the clue that was reached last.

The tree is written into a sandbox and the tools read it there, through the system calls of the
box's own kernel process. The agent runs no code of its own, so environments of one process share
one box, and attempts at the same task share one read-only tree.

Rewards: the same share for each clue reached in order and for the right code, so that a right move
is worth the same in a short hunt and in a long one.
"""

from __future__ import annotations

import json
import posixpath
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from turnwise.envs.base import Response
from turnwise.envs.builtin.filehunt_box import Tree
from turnwise.envs.builtin.filehunt_world import (
    CLUE,
    KINDS_OF_THING,
    START,
    WORDS,
    World,
    make_world,
)
from turnwise.envs.knobs import count, share, span
from turnwise.envs.seeds import derive
from turnwise.envs.task_range import check_drawn
from turnwise.envs.tool_env import EpisodeView, ToolEnv
from turnwise.envs.tools import ToolFailed, metric, reward, tool
from turnwise.envs.types import Task, digest

MAX_DEPTH = 16
SHARE = 1 / (MAX_DEPTH + 1)
"""Of the reward, for one clue or the code: the longest hunt pays 1."""
SIZES = {"train": 1_000_000, "dev": 10_000, "test": 10_000}


@dataclass(frozen=True, kw_only=True)
class Hunt(Task):
    """One hunt. The world follows from these fields alone."""

    split: str = "train"
    index: int = 0
    depth: int = 2
    siblings: int = 3
    decoys: float = 0.25

    def __post_init__(self) -> None:
        check_drawn(self, depth=(1, MAX_DEPTH), siblings=(1, 8))
        share("Hunt.decoys", self.decoys)


class FileHunt(ToolEnv):
    """A chain of clues, some of which need a choice among candidates.

    Args:
        depth: number of clues, or (least, most); task i has depth least + i mod (most - least + 1).
        siblings: files beside each file of the chain, 1 to 8.
        decoys: share of those that lead astray.
        tool_failure: probability that a call fails for no reason and must be repeated.
        slack: turns beyond what the expert needs.
        actions: `command` (one line, few tokens) or `hermes` (JSON).
    """

    Task: ClassVar[type[Task]] = Hunt
    fast: ClassVar[bool] = True
    hints = False
    words: ClassVar[tuple[str, ...]] = (*WORDS, *KINDS_OF_THING, "clue")
    """What a tokenizer made for this environment should hold as single tokens."""
    unsaved: ClassVar[tuple[str, ...]] = ("_tree",)

    def __init__(
        self,
        *,
        depth: int | Sequence[int] = (2, 6),
        siblings: int = 3,
        decoys: float = 0.25,
        tool_failure: float = 0.0,
        slack: int = 8,
        actions: str = "command",
    ) -> None:
        super().__init__(actions=actions)
        self.depths = span("depth", depth, 1, MAX_DEPTH)
        self.siblings = count("siblings", siblings, 1, 8)
        self.decoys, self.slack = share("decoys", decoys), count("slack", slack, 0, 1000)
        if not 0 <= tool_failure < 1:
            raise ValueError(f"tool_failure is a probability below 1, got {tool_failure}")
        self.tool_failure = tool_failure
        self._tree: Tree | None = None

    def tasks(self, split: str) -> Sequence[Hunt]:
        """Return the hunts of a split, made on demand; depths take turns."""
        return _Hunts(self, self.known_split(split))

    def system(self) -> str:
        """Return what the agent is told before the first clue."""
        return super().system() if self.format.name != "command" else "tools: ls cat grep submit"

    def setup(self, task: Hunt, rng: random.Random) -> str:
        """Make the tree and return the first clue."""
        self.world: World = task_world(task)
        self._tree = self._tree or Tree()
        self._tree.mount(task.key, self.world)
        self.sandbox = self._tree.backend
        self.reached = 0
        self.max_turns = self.world.expert_turns + self.slack
        self._detoured, self._lost = False, False
        self._paid, self._submitted, self._last = 0, "", ""
        return self.world.hops[0].clue

    def restored(self) -> None:
        """Mount the tree of the hunt that a snapshot holds."""
        self._tree = self._tree or Tree()
        self._tree.mount(self.task.key, self.world)

    @tool
    def ls(self, path: str) -> str:
        """List the files of a folder, one per line.

        Args:
            path: The folder.
        """
        return self._detour("ls", path)

    @tool
    def cat(self, path: str) -> str:
        """Show a file.

        Args:
            path: The file. `/clue` is the clue that was reached last.
        """
        hop, place = self._next_hop(), _absolute(path)
        back = place == CLUE
        self._lost = not back
        answer = self._call("cat", self._here() if back else path)
        if back:
            self._detoured = False
        elif hop is not None and place == hop.path:
            self.reached, self._detoured, self._lost = self.reached + 1, False, False
        return answer

    @tool
    def grep(self, word: str) -> str:
        """Find the files that carry a tag.

        Args:
            word: The tag.
        """
        return self._detour("grep", word)

    @tool(final=True)
    def submit(self, code: str) -> str:
        """Give the code that the last clue holds; ends the episode.

        Args:
            code: The code.
        """
        self._submitted = code
        return "done"

    @reward(weight=SHARE, turn=True)
    def progress(self, episode: EpisodeView) -> float:
        """Pay for each clue that was reached in order by this turn."""
        newly, self._paid = self.reached - self._paid, self.reached
        return float(newly)

    @reward(weight=SHARE)
    def solved(self, episode: EpisodeView) -> float:
        """Pay for the right code, whoever told it."""
        return float(self._submitted == self.world.code)

    @metric
    def clues(self, episode: EpisodeView) -> float:
        """Share of the chain that was read."""
        return self.reached / len(self.world.hops)

    def expert(self) -> str:
        """Return the right call now, whatever was done before."""
        hop = self._next_hop()
        if self._lost:
            return self.call_text("cat", path=CLUE)
        if hop is None:
            return self.call_text("submit", code=self.world.code)
        if hop.detour and not self._detoured:
            name, argument = hop.detour
            return self.call_text(name, **{"path" if name == "ls" else "word": argument})
        return self.call_text("cat", path=hop.path)

    def state_hash(self) -> str:
        """Hash what decides the future and what was read last; the turn's number is left out."""
        where = [self.reached, self._detoured, self._lost]
        return digest([self.task.key, *where, self._submitted, self._last])

    def close(self) -> None:
        """Give the tree back. Safe to call twice."""
        tree, self._tree = self._tree, None
        if tree is not None:
            tree.close()

    def _next_hop(self) -> Any:
        hops = self.world.hops
        return hops[self.reached] if self.reached < len(hops) else None

    def _here(self) -> str:
        """Return the path of the clue that was reached last."""
        return self.world.hops[self.reached - 1].path if self.reached else START

    def _detour(self, name: str, argument: str) -> str:
        """Run `ls` or `grep`; the agent is lost unless the clue asks for just that."""
        hop, self._lost = self._next_hop(), True
        answer = self._call(name, argument)
        wanted = (name, _absolute(argument) if name == "ls" else argument)
        if hop is not None and hop.detour == wanted:
            self._detoured, self._lost = True, False
        return answer

    def respond(self, action: str) -> Response:
        """Answer a turn; one that calls no tool of ours loses the thread, too."""
        lost = self._lost
        self._lost = True
        answer = super().respond(action)
        code = answer.info.get("error")
        self._lost = lost if code == "timeout" else self._lost
        return answer

    def _call(self, name: str, argument: str) -> str:
        if self.tool_failure and self.rng.random() < self.tool_failure:
            raise ToolFailed("busy, try again", "timeout")
        assert self._tree is not None
        found, text = self._tree.call(name, argument)
        self._last = digest([name, argument])
        if not found:
            raise ToolFailed(text)
        return text


def _absolute(path: str) -> str:
    """Return the path as the tools in the box take it, however it was written."""
    return posixpath.normpath("/" + path.lstrip("/"))


def task_world(task: Hunt) -> World:
    """Return the world of a task."""
    rng = random.Random(derive("filehunt", json.dumps(task.to_json(), sort_keys=True)))
    return make_world(rng, task.depth, siblings=task.siblings, decoys=task.decoys)


class _Hunts(Sequence[Hunt]):
    """The tasks of one split, made when they are asked for."""

    def __init__(self, env: FileHunt, split: str) -> None:
        self.env, self.split = env, split

    def __len__(self) -> int:
        return SIZES[self.split]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"split {self.split!r} has {len(self)} tasks, asked for {index}")
        index %= len(self)
        low, high = self.env.depths
        return Hunt(
            split=self.split,
            index=index,
            depth=low + index % (high - low + 1),
            siblings=self.env.siblings,
            decoys=self.env.decoys,
        )
