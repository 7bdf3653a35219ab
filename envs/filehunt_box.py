"""The file trees of FileHunt inside a sandbox, and the tools that read them there."""

from __future__ import annotations

import json
from collections import OrderedDict

from turnwise.envs.filehunt_world import World
from turnwise.sandboxes.base import ProtocolError, Sandbox, SandboxDied
from turnwise.sandboxes.shared import shared_sandbox

KERNEL = "filehunt"
KEEP = 128
"""Trees that stay on the disk of the box; the least recently mounted goes first."""

# Runs inside the box, in a kernel process of its own. Arguments arrive as Python literals.
PROGRAM = r"""
import json, os, shutil
ROOT = "/workspace/hunts"
os.makedirs(ROOT, exist_ok=True)

def tw_mount(key, files, tags):
    for path, text in files.items():
        full = ROOT + "/" + key + path
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w") as out:
            out.write(text)
    for tag, path in tags.items():
        with open(ROOT + "/" + key + path, "a") as out:
            out.write("\n#" + tag)

def tw_drop(key):
    shutil.rmtree(ROOT + "/" + key, ignore_errors=True)

def tw_inside(key, path):
    return ROOT + "/" + key + os.path.normpath("/" + path)

def tw_ls(key, path):
    try:
        names = sorted(os.listdir(tw_inside(key, path)))
    except OSError:
        return False, "no folder " + path[:64]
    return True, "\n".join("/" + name for name in names)

def tw_cat(key, path):
    try:
        with open(tw_inside(key, path)) as lines:
            return True, lines.read().split("\n#")[0]
    except (OSError, ValueError):
        return False, "no file " + path[:64]

def tw_grep(key, word):
    found = []
    base = ROOT + "/" + key
    for folder, _, names in os.walk(base):
        for name in names:
            with open(folder + "/" + name) as lines:
                if "\n#" + word + "\n" in lines.read() + "\n":
                    found.append(folder[len(base):] + "/" + name)
    return (True, "\n".join(sorted(found))) if found else (False, "no tag " + word[:64])

def tw_call(name, key, argument):
    print(json.dumps({"ls": tw_ls, "cat": tw_cat, "grep": tw_grep}[name](key, argument)))
"""

_mounted: dict[str, OrderedDict[str, None]] = {}


class Tree:
    """One environment's view of the tree that is mounted for its present task."""

    def __init__(self) -> None:
        self._box: Sandbox | None = None
        self._key = ""

    def mount(self, key: str, world: World) -> None:
        """Write the tree of task `key`, unless an attempt at the same task has done so.

        Raises:
            SandboxError: the box failed; the episode says nothing about the agent.
        """
        self._box, self._key = shared_sandbox("filehunt"), key
        trees = _mounted.get(self._box.id)
        if trees is None:
            self._run(PROGRAM)
            trees = _mounted[self._box.id] = OrderedDict()
        if key not in trees:
            self._run(f"tw_mount({key!r}, {dict(world.files)!r}, {dict(world.tags)!r})")
            trees[key] = None
            if len(trees) > KEEP:
                self._run(f"tw_drop({trees.popitem(last=False)[0]!r})")
        trees.move_to_end(key)

    def call(self, name: str, argument: str) -> tuple[bool, str]:
        """Run `ls`, `cat` or `grep` in the box; return whether it found something, and its text."""
        found, text = json.loads(self._run(f"tw_call({name!r}, {self._key!r}, {argument!r})"))
        return found, text

    def close(self) -> None:
        """Let go of the box; it is shared and stays."""
        self._box = None

    def _run(self, code: str) -> str:
        assert self._box is not None
        result = self._box.cell(code, kernel=KERNEL)
        if result.state_lost:
            _mounted.pop(self._box.id, None)
            raise SandboxDied("the kernel that reads the tree was lost")
        if result.exit_code != 0:
            raise ProtocolError(f"a tool of FileHunt failed in its box: {result.text[-300:]}")
        return result.stdout.decode()
