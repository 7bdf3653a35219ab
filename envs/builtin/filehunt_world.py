"""The worlds of FileHunt: a file tree with a chain of clues in it, made from a seed alone.

Every clue names the next file in one of three ways, and only the first says where it is outright:

    read /maple/goat      the path itself                                                    -> cat
    look /maple stone     a folder with several files: one is named after a stone         -> ls, cat
    seek otter            a tag: one file of the tree carries it                        -> grep, cat

The last file of the chain holds `code fox-elm`, to be submitted. Files beside the chain hold
nothing, or a decoy: a clue that leads astray, or a wrong code.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

KINDS_OF_THING: Mapping[str, tuple[str, ...]] = {
    "animal": tuple(
        ["bee", "crab", "crow", "deer", "duck", "elk", "fox", "frog", "goat", "hare", "lion", "owl"]
    ),
    "plant": tuple(
        ["ash", "bay", "corn", "elm", "fern", "fig", "iris", "lime", "mint", "moss", "oak", "rose"]
    ),
    "stone": tuple(
        [
            "clay",
            "coal",
            "flint",
            "gem",
            "gold",
            "jade",
            "onyx",
            "opal",
            "ruby",
            "sand",
            "slate",
            "zinc",
        ]
    ),
    "tool": tuple(
        ["axe", "bell", "bow", "cup", "drum", "fork", "kite", "lamp", "nail", "oar", "pot", "saw"]
    ),
}
"""What a candidate must be, and the names that are it; nobody tells the agent which are which."""

WORDS = tuple(word for names in KINDS_OF_THING.values() for word in names)
"""A closed list, so that a small tokenizer can hold each word as one token."""

START, CLUE = "/start", "/clue"
"""Where the first clue lies, and the name under which the clue reached last is always found."""

KINDS = ("read", "look", "seek")


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of the chain: the clue that is read, and the file that it leads to."""

    kind: str
    clue: str
    folder: str
    path: str
    tag: str = ""

    @property
    def detour(self) -> tuple[str, str] | None:
        """The tool call that turns the clue into a path, where one is needed."""
        if self.kind == "look":
            return "ls", self.folder
        return ("grep", self.tag) if self.kind == "seek" else None


@dataclass(frozen=True, slots=True)
class World:
    """A file tree, the chain through it and the code at its end."""

    files: Mapping[str, str]
    """Absolute path -> content."""
    tags: Mapping[str, str]
    """Tag -> path of the one file that carries it."""
    hops: tuple[Hop, ...]
    code: str

    @property
    def expert_turns(self) -> int:
        """How many calls an expert needs, the submission included."""
        return sum(2 if hop.detour else 1 for hop in self.hops) + 1


def make_world(rng: random.Random, depth: int, *, siblings: int = 3, decoys: float = 0.25) -> World:
    """Return a world whose chain has `depth` files.

    Args:
        rng: the only source of randomness.
        depth: 1 to 16 hops.
        siblings: 1 to 8 files beside each file of the chain, in the same folder.
        decoys: share of those that lead astray instead of holding nothing.
    """
    folders, tags = rng.sample(WORDS, depth), rng.sample(WORDS, depth)
    hops: list[Hop] = []
    files: dict[str, str] = {}
    for folder, tag in zip(folders, tags, strict=True):
        hop, others = _hop(rng, folder, tag, siblings)
        hops.append(hop)
        files |= {path: _filler(rng, decoys, folders) for path in others}
    code = _pair(rng)
    files[START] = hops[0].clue
    clues = [*(hop.clue for hop in hops[1:]), f"code {code}"]
    files |= {hop.path: clue for hop, clue in zip(hops, clues, strict=True)}
    seekable = {hop.tag: hop.path for hop in hops if hop.tag}
    return World(dict(sorted(files.items())), seekable, tuple(hops), code)


def _hop(rng: random.Random, folder: str, tag: str, siblings: int) -> tuple[Hop, list[str]]:
    """Return a hop into `folder`, and the paths of the other files there.

    The file that the clue means is the only one of its kind of thing in the folder.
    """
    thing = rng.choice(list(KINDS_OF_THING))
    name = rng.choice(KINDS_OF_THING[thing])
    other = [word for word in WORDS if word not in KINDS_OF_THING[thing]]
    others = [f"/{folder}/{word}" for word in rng.sample(other, siblings)]
    path, kind = f"/{folder}/{name}", rng.choice(KINDS)
    clue = {"read": f"read {path}", "look": f"look /{folder} {thing}", "seek": f"seek {tag}"}[kind]
    return Hop(kind, clue, f"/{folder}", path, tag if kind == "seek" else ""), others


def _filler(rng: random.Random, decoys: float, folders: list[str]) -> str:
    if rng.random() >= decoys:
        return "nothing"
    if rng.random() < 0.5:
        return f"code {_pair(rng)}"
    return f"read /{rng.choice(folders)}/{rng.choice(WORDS)}"


def _pair(rng: random.Random) -> str:
    return "-".join(rng.sample(WORDS, 2))
