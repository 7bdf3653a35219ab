"""The file trees of FileHunt inside a sandbox, and the tools that read them there."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import OrderedDict

from turnwise.envs.builtin.filehunt_world import World
from turnwise.sandboxes.base import ProtocolError, Sandbox, SandboxDied, SandboxError
from turnwise.sandboxes.shared import shared_sandbox

KERNEL = "filehunt"
KEEP = 64
"""Trees that nobody reads any more and that stay for the next attempt at their task."""

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
    except (OSError, ValueError):
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


class _Trees:
    """The trees on the disk of one box, and how many environments read each."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.readers: OrderedDict[str, int] = OrderedDict()
        self.lock = threading.Lock()
        self.lost = False
        self.run(PROGRAM)

    def take(self, key: str, world: World) -> None:
        """Write the tree unless it is there, and count one more reader."""
        with self.lock:
            if key not in self.readers:
                self.run(f"tw_mount({key!r}, {dict(world.files)!r}, {dict(world.tags)!r})")
            self.readers[key] = self.readers.get(key, 0) + 1
            self.readers.move_to_end(key)

    def release(self, key: str) -> None:
        """Count one reader less, and drop what has not been read for longest."""
        with self.lock:
            if self.lost:
                return  # who reads after the kernel's death counts anew, and may read this tree
            self.readers[key] -= 1
            unread = [key for key, readers in self.readers.items() if readers == 0]
            for stale in unread[: max(len(unread) - KEEP, 0)]:
                del self.readers[stale]
                self.run(f"tw_drop({stale!r})")

    def run(self, code: str) -> str:
        """Run `code` in the box's kernel and return what it printed."""
        result = self.box.cell(code, kernel=KERNEL)
        if result.state_lost:
            self.lost = True
            _boxes.pop(self.box.id, None)
            raise SandboxDied("the kernel that reads the trees was lost")
        if result.exit_code != 0:
            raise ProtocolError(f"a tool of FileHunt failed in its box: {result.text[-300:]}")
        return result.stdout.decode()


_boxes: dict[str, _Trees] = {}
_boxes_lock = threading.Lock()


def _trees_of(box: Sandbox) -> _Trees:
    with _boxes_lock:
        if box.id not in _boxes:
            _boxes.clear()  # a new box means that the one before it died
            _boxes[box.id] = _Trees(box)
        return _boxes[box.id]


class Tree:
    """One environment's view of the tree that is mounted for its present task."""

    def __init__(self) -> None:
        self._trees: _Trees | None = None
        self._key = ""

    @property
    def backend(self) -> str:
        """Return the name of the backend that holds the tree; empty before `mount`."""
        return self._trees.box.backend if self._trees else ""

    def mount(self, key: str, world: World) -> None:
        """Let go of the tree before, and read that of task `key`, writing it if need be.

        Raises:
            SandboxError: the box failed; the episode says nothing about the agent.
        """
        self.close()
        trees = _trees_of(shared_sandbox("filehunt"))
        trees.take(key, world)
        self._trees, self._key = trees, key

    def call(self, name: str, argument: str) -> tuple[bool, str]:
        """Run `ls`, `cat` or `grep` in the box; return whether it found something, and its text."""
        assert self._trees is not None, "mount a tree first"
        answer = self._trees.run(f"tw_call({name!r}, {self._key!r}, {argument!r})")
        found, text = json.loads(answer)
        return found, text

    def close(self) -> None:
        """Let go of the tree. Safe to call twice; never raises."""
        trees, self._trees = self._trees, None
        if trees is not None:
            with contextlib.suppress(SandboxError):
                trees.release(self._key)
