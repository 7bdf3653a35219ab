"""The worlds of FileHunt: a file tree with a chain of clues in it, made from a seed alone.

Every clue names the next file in one of three ways, and only the first says where it is outright:

    read /maple/red-owl     the path itself                                         -> cat
    look /maple/red         a folder and a mark: several files are there, one with the mark -> ls, cat
    seek otter              a tag: one file of the tree carries it                  -> grep, cat

The last file of the chain holds `code fox-elm`, to be submitted. Files beside the chain hold nothing,
or a decoy: a clue that leads astray, or a wrong code.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

WORDS = tuple(
    [
        "ash",
        "bay",
        "bee",
        "cat",
        "clay",
        "corn",
        "crab",
        "crow",
        "deer",
        "dove",
        "drum",
        "duck",
        "elk",
        "elm",
        "fern",
        "fig",
        "fish",
        "fox",
        "frog",
        "gem",
        "goat",
        "gold",
        "hare",
        "hawk",
        "hill",
        "iris",
        "jade",
        "kite",
        "lake",
        "lamb",
        "lark",
        "leaf",
        "lime",
        "lion",
        "lynx",
        "mint",
        "moss",
        "moth",
        "oak",
        "opal",
        "owl",
        "palm",
        "pear",
        "pine",
        "rose",
        "ruby",
        "seal",
        "wolf",
    ]
)
"""A closed list, so that a small tokenizer can hold each word as one token."""

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


def make_world(rng: random.Random, depth: int, *, siblings: int = 3, decoys: float = 0.5) -> World:
    """Return a world whose chain has `depth` files.

    Args:
        rng: the only source of randomness.
        depth: 1 to 16 hops.
        siblings: files beside each file of the chain, in the same folder.
        decoys: share of those that lead astray instead of holding nothing.
    """
    folders = rng.sample(WORDS, depth)
    paths = [_folder_paths(rng, folder, siblings) for folder in folders]
    tags = rng.sample(WORDS, depth)
    kinds = [rng.choice(KINDS) for _ in range(depth)]
    hops = [_hop(*parts) for parts in zip(kinds, folders, [p[0] for p in paths], tags, strict=True)]
    code = _pair(rng)
    clues = [*(hop.clue for hop in hops[1:]), f"code {code}"]
    files = {hop.path: clue for hop, clue in zip(hops, clues, strict=True)}
    for siblings_of in paths:
        files |= {path: _filler(rng, decoys, folders) for path in siblings_of[1:]}
    seekable = {hop.tag: hop.path for hop in hops if hop.tag}
    return World(dict(sorted(files.items())), seekable, tuple(hops), code)


def _folder_paths(rng: random.Random, folder: str, siblings: int) -> list[str]:
    """Return paths with distinct marks; the first is the one on the chain."""
    marks = rng.sample([word for word in WORDS if word != folder], siblings + 1)
    return [f"/{folder}/{mark}-{rng.choice(WORDS)}" for mark in marks]


def _hop(kind: str, folder: str, path: str, tag: str) -> Hop:
    if kind == "read":
        return Hop(kind, f"read {path}", f"/{folder}", path)
    if kind == "look":
        return Hop(kind, f"look {path.rpartition('-')[0]}", f"/{folder}", path)
    return Hop(kind, f"seek {tag}", f"/{folder}", path, tag)


def _filler(rng: random.Random, decoys: float, folders: list[str]) -> str:
    if rng.random() >= decoys:
        return "nothing"
    if rng.random() < 0.5:
        return f"code {_pair(rng)}"
    return f"read /{rng.choice(folders)}/{_pair(rng)}"


def _pair(rng: random.Random) -> str:
    return "-".join(rng.sample(WORDS, 2))
