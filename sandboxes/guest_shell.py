"""Inside the box: stateful shells; folder, variables and functions outlive a command.

A shell is an ordinary interactive `bash` (or `sh`) without a terminal. It reads from a pipe, gets
each command as one quoted word to `eval`, and reports the exit code over a pipe of its own that no
command inherits: nothing that a command prints can be taken for the end of it. Interactive, since
only then does an interrupt end the command rather than the shell. Its own standard error (prompts,
job notices) is thrown away; the commands' is a third pipe.
"""

from __future__ import annotations

import fcntl
import os

from turnwise.sandboxes.guest_children import processes
from turnwise.sandboxes.guest_kernel import become_user_code
from turnwise.sandboxes.guest_run import NoRoom, fork, still_there
from turnwise.sandboxes.guest_workers import Worker, Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from turnwise.sandboxes.guest_run import Answer, Call, Host

BASH = ["bash", "--norc", "--noprofile", "--noediting", "-i"]
SH = ["sh", "-i"]
ABOVE_ALL = 920
MAX_REPORT_BYTES = 4096


class Shell(Worker):
    """One shell process.

    Raises:
        NoRoom: the box can hold no further process.
    """

    kind = "shell"
    may_outlive_its_channel = True  # `exec program` closes the report and is not the end

    def __init__(self, host: Host) -> None:
        self.is_bash = _on_path(BASH[0])
        # Plain sh knows only descriptors of one digit; bash leaves those to the commands.
        self.report_fd, self.err_fd = (901, 902) if self.is_bash else (9, 8)
        script, inlet = os.pipe2(os.O_CLOEXEC)
        outlet, report = os.pipe2(os.O_CLOEXEC)
        super().__init__(host, inlet, outlet)
        try:
            self.pid = fork()
            if self.pid == 0:
                self.become(script, report)
        except NoRoom:
            self.close()
            raise
        finally:
            os.close(script)
            os.close(report)
        self.out.close_child()
        self.err.close_child()

    def become(self, script: int, report: int) -> NoReturn:
        """In the forked child: turn into the shell."""
        code = 127
        try:
            become_user_code(is_python=False)
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            ends = {0: script, 1: self.out.child, 2: null}
            ends.update({self.report_fd: report, self.err_fd: self.err.child})
            # First all out of the way, so that none is overwritten before it has moved.
            above = {
                to: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, ABOVE_ALL) for to, fd in ends.items()
            }
            for to, fd in above.items():
                os.dup2(fd, to)
            argv = BASH if self.is_bash else SH
            os.execvp(argv[0], argv)
        except BaseException as error:
            os.write(self.err_fd, f"no shell could be started: {error}\n".encode())
        finally:
            os._exit(code)

    def request(self, body: bytes | bytearray) -> bytes:
        self.calls += 1
        # `command` keeps a syntax error from ending a plain sh.
        start = b"eval" if self.is_bash else b"command eval"
        if self.calls == 1 and self.is_bash:
            start = b"set +o history +o histexpand; unset HISTFILE\n" + start
        word = b"'" + bytes(body).replace(b"'", b"'\\''") + b"'"
        ends = b"</dev/null 2>&%d %d>&- %d>&-" % (self.err_fd, self.report_fd, self.err_fd)
        return b"%s %s %s\n%s" % (start, word, ends, self.report())

    def report(self) -> bytes:
        return b"command printf '%%s %%s\\n' %d \"$?\" >&%d\n" % (self.calls, self.report_fd)

    def after_interrupt(self) -> bytes:
        # A plain sh throws away what it has read ahead. Two reports do no harm: of one number,
        # the first counts.
        return self.report()

    def take(self, reply: bytes, call: Call) -> int | None:
        code = reported(reply, self.calls)
        if code is not None:
            self.out.drain(call.out)
            self.err.drain(call.err)
            return code
        return -1 if len(reply) > MAX_REPORT_BYTES else None


def reported(reply: bytes, number: int) -> int | None:
    """The exit code that the first whole line for call `number` holds; None if there is none."""
    mark = b"%d " % number
    for line in reply.split(b"\n")[:-1]:
        code = line[len(mark) :]
        if line.startswith(mark) and code.isdigit() and len(code) < 4 and int(code) < 256:
            return int(code)
    return None


class Shells:
    """Runs commands, each in the shell that it names; a shell is started when first named."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers

    def shell(self, header: dict[str, Any], command: bytes | bytearray) -> Answer:
        """Run `command`; what it left in the background goes on, unless it was too late."""
        workers, name = self.workers, header["name"]
        call = workers.call(header)
        shell = workers.running.get((Shell.kind, name))
        if shell is None:
            try:
                shell = Shell(workers.host)
            except NoRoom as error:
                call.note(str(error))
                return call.answer(126)
            workers.adopt(name, shell)
        before = processes()
        before.pop(shell.pid, None)
        result = None
        if workers.is_running(shell):
            result = workers.await_answer(shell, shell.request(command), call)
        else:
            call.note("the shell had ended since its last command; this one did not run")
        if result is None:
            result, call.lost = workers.end(name, shell, call), True
        elif call.late:
            spared = workers.pids(without=shell) + still_there(before)
            workers.host.children.sweep(spared, alone=[shell.pid])
        return call.answer(result)


def _on_path(name: str) -> bool:
    return any(os.access(os.path.join(folder, name), os.X_OK) for folder in os.get_exec_path())
