"""RepairShell: `Repair` with a shell besides, as coding agents have one."""

from __future__ import annotations

from turnwise.envs.builtin.mend import MAX_GROWTH
from turnwise.envs.builtin.repair import Repair
from turnwise.envs.code_env import text_of
from turnwise.envs.tools import ToolFailed, tool


class RepairShell(Repair):
    """Repair with `bash` in a folder that holds the programs and their visible tests.

    What commands do to the programs counts, what they do to anything else does not: tests are run
    and judged from texts that are out of the box. A turn takes as long as its command.

    Args:
        options: see `Repair`.
    """

    @tool
    def bash(self, command: str) -> str:
        """Run a shell command where the files are, and show what it prints.

        Args:
            command: The command, for example `python3 -c "..."`.
        """
        if "\0" in command:
            raise ToolFailed("a command cannot hold NUL")
        for name, text in {**self.files, **self.read_only}.items():
            self._put(name, text.encode("utf-8", "replace"))
        said = text_of(self.run_shell(command))
        self._take_back()
        self._last = "bash"
        return said

    def _put(self, name: str, data: bytes) -> None:
        """Write a file, also where the last command left a link, a folder or a pipe."""
        try:
            self.put_file(name, data)
        except ToolFailed:
            remove = 'chmod -R u+rwx "$1"; rm -rf "$1"'
            self.box.exec(["sh", "-c", remove, "sh", self._place(name)])
            self.put_file(name, data)

    def _take_back(self) -> None:
        """Read the programs as the command left them; one that is gone is empty."""
        for name in self.files:
            limit = 4 * (len(self.broken[name]) + MAX_GROWTH)
            found = self.taken(name, max_bytes=limit)
            self.files[name] = found.get(name, b"").decode("utf-8", "replace")
