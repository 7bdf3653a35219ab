"""`CodeEnv`: a `SandboxEnv` whose agent writes files and runs Python and shell commands."""

from __future__ import annotations

from turnwise.envs.sandbox_env import SandboxEnv
from turnwise.envs.tools import ToolFailed, tool
from turnwise.sandboxes.base import ExecResult


class CodeEnv(SandboxEnv):
    """A `SandboxEnv` with four tools: `python`, `bash`, `write` and `read`.

    A subclass that offers fewer takes one away by `python = None`.
    """

    @tool
    def python(self, code: str) -> str:
        """Run Python code and show what it prints. Variables are kept between calls.

        Args:
            code: The code.
        """
        return text_of(self.run_python(code))

    @tool
    def bash(self, command: str) -> str:
        """Run a shell command and show what it prints. The shell is kept between calls.

        Args:
            command: The command.
        """
        if "\0" in command:
            raise ToolFailed("a command cannot hold NUL")
        return text_of(self.run_shell(command))

    @tool
    def write(self, path: str, text: str) -> None:
        """Write a file; the folders above it are made.

        Args:
            path: Where.
            text: What the file is to hold.
        """
        self.put_file(path, text.encode("utf-8", "replace"))

    @tool
    def read(self, path: str) -> str:
        """Show a file.

        Args:
            path: Where it is.
        """
        return self.get_file(path).decode("utf-8", "replace")


def text_of(result: ExecResult) -> str:
    """What an agent reads of a call: its output, and in brackets what went wrong.

    It tells no times, so that an episode that is played again reads the same.
    """
    notes = [
        "timed out" if result.timed_out else "",
        "it had to be killed: its state is lost" if result.state_lost else "",
        f"exit code {result.exit_code}" if result.exit_code else "",
    ]
    lines = [result.text.rstrip("\n"), *(f"[{note}]" for note in notes if note)]
    return "\n".join(line for line in lines if line)
