"""`Mend`: what environments have in common in which code with bugs is read, tested and edited.

The files are kept on this side; the box gets them when tests are run. Tests are run from texts that
the agent cannot change, and what is paid is decided in a fresh box.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turnwise.envs.builtin import mend_text
from turnwise.envs.knobs import count, share
from turnwise.envs.sandbox_env import SandboxEnv
from turnwise.envs.tool_env import EpisodeView
from turnwise.envs.tools import ToolFailed, metric, reward, tool
from turnwise.envs.types import digest

MAX_GROWTH = 20_000
"""Characters that edits may add to a file."""


class Mend(SandboxEnv):
    """Five tools, a reward for code that is right, and an expert that knows how it was.

    A subclass calls `begin_mend` in `setup`, and defines `try_visible` and `is_right`.

    Args:
        line_numbers: whether `read` shows them.
        shaping: this much of a reward is paid when visible tests pass for the first time, and
            taken back at the end: the sum stays 1 or 0, and each turn learns what it was worth.
        slack: turns beyond what the expert needs.
    """

    def __init__(
        self,
        *,
        line_numbers: bool = False,
        shaping: float = 0.0,
        slack: int = 8,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        share("shaping", shaping)
        count("slack", slack, 0, 1000)
        self.line_numbers, self.shaping, self.slack = line_numbers, shaping, slack

    def begin_mend(
        self,
        original: Mapping[str, str],
        broken: Mapping[str, str],
        read_only: Mapping[str, str],
        *,
        bugs: int,
        passing: float,
    ) -> None:
        """Start with the files as they are when there are bugs in them.

        Args:
            original: path -> text as it was; for the expert alone.
            broken: the same paths.
            read_only: path -> text of what may be read and not changed.
            bugs: how many there are.
            passing: share of the visible tests that pass at the start.
        """
        self.original, self.broken, self.read_only = original, dict(broken), read_only
        self.files = dict(broken)
        self._seen: set[str] = set()
        self._tested: dict[str, str] | None = None
        self._report, self._last = "", ""
        self._at_first = self._best = passing
        self._paid = 0.0
        self._submitted = False
        changed = sum(text != broken[name] for name, text in original.items())
        self.max_turns = changed + bugs + 3 + self.slack

    def try_visible(self) -> tuple[str, float]:
        """Run the visible tests on `self.files`; return what to tell, and the share that passes."""
        raise NotImplementedError(f"{type(self).__name__} must define try_visible()")

    def is_right(self) -> bool:
        """Say whether `self.files` pass every test, in a box without a past."""
        raise NotImplementedError(f"{type(self).__name__} must define is_right()")

    def refuse(self, name: str, text: str) -> None:
        """Raise `ToolFailed` where `text` must not become the content of a file."""

    @tool
    def ls(self) -> str:
        """List the files."""
        self._last = "ls"
        return "\n".join(self.listed(""))

    @tool
    def read(self, path: str, start: int = 1, end: int = 0) -> str:
        """Show a file, or some of its lines.

        Args:
            path: The file.
            start: The first line, from 1.
            end: The last line; 0 for all.
        """
        name, text = self.file(path)
        shown = mend_text.lines(text, start, end, numbers=self.line_numbers)
        self._seen.add(name)
        self._last = digest(["read", name, start, end])
        return shown

    @tool
    def edit(self, path: str, old: str, new: str) -> str:
        """Replace a piece of a file. The old text must occur exactly once.

        Args:
            path: The file.
            old: The text to replace, as it stands in the file.
            new: What is to stand there.
        """
        name, text = self.file(path)
        if name not in self.files:
            raise ToolFailed(f"{name} is read-only: mend the program", "not_allowed")
        edited = mend_text.replaced(name, text, old, mend_text.utf8(new))
        if len(edited) > len(self.broken[name]) + MAX_GROWTH:
            raise ToolFailed(f"{name} would grow by over {MAX_GROWTH} characters", "not_allowed")
        self.refuse(name, edited)
        self.files[name] = edited
        self._last = "edit"
        return f"ok, from line {text[: text.find(old)].count(chr(10)) + 1}"

    @tool
    def run_tests(self) -> str:
        """Run the tests that can be seen."""
        if self._tested != self.files:
            self._report, share = self.try_visible()
            self._tested, self._best = dict(self.files), max(self._best, share)
        self._last = "run_tests"
        return self._report

    @tool(final=True)
    def submit(self) -> str:
        """Hand in the program; hidden tests decide. Ends the episode."""
        self._submitted = True
        return "done"

    @reward(turn=True)
    def progress(self, episode: EpisodeView) -> float:
        """Pay `shaping` for visible tests that pass for the first time."""
        before, self._paid = self._paid, self.shaping * self.visible(episode)
        return self._paid - before

    @reward(shaping=True)
    def repaid(self, episode: EpisodeView) -> float:
        """Take back what `progress` paid."""
        return 0.0 - self._paid

    @reward
    def solved(self, episode: EpisodeView) -> float:
        """Whether what was submitted is right; the program as it was given is known not to be."""
        return float(self._submitted and self.files != self.broken and self.is_right())

    @metric
    def visible(self, episode: EpisodeView) -> float:
        """Of the visible tests that failed at first, the share that the best run has mended."""
        return (self._best - self._at_first) / (1.0 - self._at_first)

    def expert(self) -> str:
        """Return the right call now: it knows the files as they were, and undoes every change."""
        wrong = [name for name, text in self.original.items() if self.files[name] != text]
        if wrong and wrong[0] not in self._seen:
            return self.call_text("read", path=wrong[0])
        if self._tested is None or (not wrong and self._tested != self.files):
            return self.call_text("run_tests")
        if not wrong:
            return self.call_text("submit")
        old, new = mend_text.step(self.files[wrong[0]], self.original[wrong[0]])
        return self.call_text("edit", path=wrong[0], old=old, new=new)

    def state_hash(self) -> str:
        """Hash the files and what is known of them; the turn's number is left out."""
        changed = {name: text for name, text in self.files.items() if text != self.broken[name]}
        tested = self._tested == self.files if self._tested is not None else None
        known = [sorted(self._seen), tested, self._best, self._last, self._submitted]
        return digest([self.task.key, changed, known])

    def listed(self, under: str) -> list[str]:
        """Return a line for each file whose path starts with `under`."""
        texts = [(name, text, "") for name, text in self.files.items()]
        texts += [(name, text, ", read-only") for name, text in self.read_only.items()]
        return [
            f"{name} ({text.count(chr(10))} lines{more})"
            for name, text, more in sorted(texts)
            if name.startswith(under)
        ]

    def file(self, path: str) -> tuple[str, str]:
        """Return the name and text of a file, however its path is written.

        Raises:
            ToolFailed: there is none.
        """
        name = path.removeprefix("./").removeprefix("/workspace/")
        if (text := self.files.get(name, self.read_only.get(name))) is None:
            known = mend_text.nearest(name, [*self.files, *self.read_only])
            raise ToolFailed(f"no file {path[:60]!r}; {known}")
        return name, text
