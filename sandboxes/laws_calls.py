"""Laws of the calls of a box: programs, cells, shells and files."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

from turnwise.sandboxes.base import (
    Sandbox,
)
from turnwise.sandboxes.law import LIMITS, Law, Trial, added_to, refuses, require

CALLS: list[Law] = []
law = added_to(CALLS)


# ---------------------------------------------------------------- results


@law("results", "fill in id, backend, spec and capabilities, and offer every method of Sandbox")
def a_box_says_what_it_is(trial: Trial, box: Sandbox) -> str:
    """Records name the backend of each episode, and environments ask for capabilities."""
    require(isinstance(box, Sandbox), f"{type(box).__name__} lacks a method of Sandbox")
    require(box.id and box.backend, f"id {box.id!r}, backend {box.backend!r}")
    require(box.spec.limits == LIMITS, box.spec)
    return f"{box.backend}, with {', '.join(sorted(box.capabilities))}"


@law("results", "return ExecResult with the program's own exit code, 128 + n after signal n")
def a_failing_program_is_a_result(trial: Trial, box: Sandbox) -> None:
    """The agent must see what its command did; an exception would end its episode."""
    failed = box.exec(["sh", "-c", "echo out; echo err >&2; exit 3"])
    require((failed.exit_code, failed.stdout, failed.stderr) == (3, b"out\n", b"err\n"), failed)
    require(not failed.timed_out and not failed.truncated, failed)
    killed = box.exec(["sh", "-c", "kill -SEGV $$"])
    require(killed.exit_code == 128 + 11, killed)


@law("results", "return exit code 127 for no such program, 126 for one that cannot be run")
def a_missing_program_is_a_result(trial: Trial, box: Sandbox) -> None:
    """Agents misspell commands; that is no failure of the machine."""
    for argv, code in ((["no-such-program-of-anybody"], 127), (["/usr"], 126)):
        result = box.exec(argv)
        require(result.exit_code == code and result.stderr, result)
    require(box.exec(["true"], cwd="no/such/folder").exit_code == 126, "an unknown cwd")


@law("results", "pass argv to execve as it is; refuse a str, an empty list and NUL by ValueError")
def argv_is_no_shell_line(trial: Trial, box: Sandbox) -> None:
    """A word with a semicolon in it would otherwise be a second command."""
    result = box.exec(["echo", "a; echo b", "$HOME", "*"])
    require(result.stdout == b"a; echo b $HOME *\n", result)
    wrong: tuple[Any, ...] = ("echo a", [], ["a\0b"])
    for argv in wrong:
        refuses(lambda argv=argv: box.exec(argv), ValueError)  # type: ignore[misc]


@law("results", "feed stdin while you read the output; set cwd and env for this one process")
def input_folder_and_environment_are_of_one_call(trial: Trial, box: Sandbox) -> None:
    """What leaks from one call into the next makes episodes depend on their history."""
    box.exec(["mkdir", "-p", "below"])
    sent = os.urandom(300_000)
    line = ["sh", "-c", "wc -c; pwd; echo $WORD"]
    result = box.exec(line, stdin=sent, cwd="below", env={"WORD": "b"})
    words = result.stdout.split()
    good = words[:1] == [b"300000"] and words[1].endswith(b"/below") and words[2:] == [b"b"]
    require(good, result)
    require(box.exec(["sh", "-c", "echo $WORD"]).stdout == b"\n", "env outlived its call")
    require(box.exec(["true"], stdin=sent).exit_code == 0, "unread input is no failure")


@law("results", "end the whole tree at the deadline, and return timed_out=True, not an exception")
def a_late_program_is_a_result(trial: Trial, box: Sandbox) -> str:
    """A hanging command must cost the agent its turn and the trainer nothing."""
    began = time.monotonic()
    deaf = "trap '' TERM INT HUP; echo begun; while :; do :; done"
    result = box.exec(["sh", "-c", deaf], timeout_s=0.3)
    took = time.monotonic() - began
    require(result.timed_out and result.exit_code != 0, result)
    require(result.stdout == b"begun\n", "what it said before the deadline is kept")
    require(took < 5.0, f"a limit of 0.3 s took {took:.1f} s")
    return f"0.3 s took {took:.2f} s"


@law("results", "refuse a timeout that is not above 0 and finite by ValueError")
def a_timeout_of_no_time_is_refused(trial: Trial, box: Sandbox) -> None:
    """0 means `none` to some and `at once` to others."""
    for timeout_s in (0.0, -1.0, float("nan"), float("inf")):
        refuses(lambda t=timeout_s: box.exec(["true"], timeout_s=t), ValueError)  # type: ignore[misc]
        refuses(lambda t=timeout_s: box.cell("1", timeout_s=t), ValueError)  # type: ignore[misc]


@law("results", "keep head and tail of each stream up to output_bytes, count the rest as you read")
def endless_output_is_cut_and_counted(trial: Trial, box: Sandbox) -> str:
    """One `yes` would otherwise fill the memory of the trainer."""
    limit = box.spec.limits.output_bytes
    line = "echo first; head -c 1000000 /dev/zero | tr '\\0' x; echo last"
    result = box.exec(["sh", "-c", line])
    require(result.stdout.startswith(b"first\n") and result.stdout.endswith(b"last\n"), result)
    require(result.truncated == 6 + 1_000_000 + 5 - limit, f"{result.truncated} counted")
    flood = box.exec(["sh", "-c", "yes | head -c 10G"], timeout_s=0.5)
    kept = len(flood.stdout) + len(flood.stderr)
    require(flood.truncated > limit and kept < 2 * limit + 1000, f"{kept} bytes kept")
    return f"{flood.truncated >> 20} MB counted in {flood.wall_s:.1f} s, {kept} bytes kept"


@law("results", "return when the program ends, not when its last child closes the pipe")
def a_background_child_does_not_hold_the_call(trial: Trial, box: Sandbox) -> None:
    """Agents start servers with `&`; the call would wait for them until its deadline."""
    began = time.monotonic()
    result = box.exec(["sh", "-c", "sleep 5 & echo done"])
    require(result.stdout == b"done\n" and time.monotonic() - began < 3.0, result)


@law("results", "read and write streams as bytes; decode nowhere on the way")
def binary_output_comes_as_it_is(trial: Trial, box: Sandbox) -> None:
    """Garbage on a stream must neither end the box nor be changed."""
    result = box.exec(["printf", r"\377\000\r\n\376"])
    require(result.stdout == b"\xff\0\r\n\xfe", result)
    result = box.cell("import os\nos.write(1, b'\\xff\\0' + bytes(range(256)))")
    require(result.stdout == b"\xff\0" + bytes(range(256)), result)


# ---------------------------------------------------------------- cells and shells


@law("cells", "keep one namespace per kernel name, for as long as the box lives", "python_state")
def cells_keep_their_state(trial: Trial, box: Sandbox) -> None:
    """An agent defines a function in one turn and calls it in the next."""
    box.cell("a = 1", kernel="one")
    require(box.cell("print(a + 1)", kernel="one").stdout == b"2\n", "a variable was lost")
    result = box.cell("print(a)", kernel="two")
    require(result.exit_code == 1 and b"NameError" in result.stderr, "kernels share variables")


@law("cells", "return exit code 1 and the traceback on stderr; keep the kernel", "python_state")
def an_exception_is_a_result(trial: Trial, box: Sandbox) -> None:
    """Agents learn from tracebacks."""
    box.cell("kept = 5", kernel="raising")
    result = box.cell("print('before')\n1 / 0", kernel="raising")
    require(result.exit_code == 1 and result.stdout == b"before\n", result)
    require(b"ZeroDivisionError" in result.stderr and not result.state_lost, result)
    require(b"SyntaxError" in box.cell("a b", kernel="raising").stderr, "a syntax error")
    require(box.cell("print(kept)", kernel="raising").stdout == b"5\n", "the state was lost")


@law("cells", "interrupt first; if the kernel must be killed, say state_lost=True", "python_state")
def a_late_cell_says_what_became_of_its_state(trial: Trial, box: Sandbox) -> str:
    """An agent that believes in variables which are gone makes errors that nobody can explain."""
    box.cell("kept = 6", kernel="late")
    late = box.cell("import time\ntime.sleep(60)", kernel="late", timeout_s=0.3)
    require(late.timed_out and late.wall_s < 5.0, late)
    kept = box.cell("print(kept)", kernel="late").stdout == b"6\n"
    require(kept is not late.state_lost, f"state_lost={late.state_lost}, but kept={kept}")
    code = "import signal\nsignal.signal(2, signal.SIG_IGN)\nwhile True: pass"
    deaf = box.cell(code, kernel="late", timeout_s=0.3)
    require(deaf.timed_out and deaf.state_lost and deaf.wall_s < 5.0, deaf)
    require(b"NameError" in box.cell("kept", kernel="late").stderr, "no fresh kernel")
    return f"a sleeping cell {'kept' if kept else 'lost'} its state"


@law("cells", "say state_lost=True and start a fresh kernel for the next cell", "python_state")
def a_kernel_that_ends_is_a_result(trial: Trial, box: Sandbox) -> None:
    """`os._exit` in a cell is the agent's doing."""
    for code, exit_code in (
        ("import os; os._exit(4)", 4),
        ("import os; os.kill(os.getpid(), 9)", 137),
    ):
        result = box.cell(code, kernel="ending")
        require((result.exit_code, result.state_lost) == (exit_code, True), result)
        require(box.cell("print(1)", kernel="ending").stdout == b"1\n", "no fresh kernel")
    require(box.cell("exit(3)", kernel="ending").exit_code == 3, "exit() is only the cell's end")


@law("cells", "keep one shell process per name; feed it commands, not new shells", "shell")
def shells_keep_their_state(trial: Trial, box: Sandbox) -> None:
    """An agent changes folder in one turn and works there in the next."""
    box.shell("mkdir -p inner; cd inner; WORD=kept; f() { echo f-$1; }")
    result = box.shell("pwd; echo $WORD; f 1")
    words = result.stdout.split()
    require(words[0].endswith(b"/inner") and words[1:] == [b"kept", b"f-1"], result)
    require(box.shell("false").exit_code == 1, "the exit code of the command")
    require(box.shell("echo $WORD", name="other").stdout == b"\n", "shells share variables")


# ---------------------------------------------------------------- files


@law("files", "write and read bytes; truncate what was there; make the folders above", "files")
def a_file_comes_back_as_it_was_put(trial: Trial, box: Sandbox) -> None:
    """Graders read what agents write, byte by byte."""
    for data in (b"", b"\0\xff\r\n", os.urandom(1 << 20), b"short"):
        box.put("a/b/file", data, mode=0o755)
        require(box.get("a/b/file") == data, f"{len(data)} bytes came back otherwise")
    require(box.exec(["sh", "-c", "test -x a/b/file"]).exit_code == 0, "the mode was lost")
    require(box.exec(["cat", "a/b/file"]).stdout == b"short", "programs see another file")


@law("files", "open each step with O_NOFOLLOW, the last with O_NONBLOCK, then fstat", "files")
def links_pipes_and_folders_are_refused(trial: Trial, box: Sandbox) -> None:
    """A link leads `put` out of the workspace; a pipe makes `get` wait for ever."""
    line = "ln -s /etc/passwd link; ln -s . loop; mkfifo pipe; mkdir folder"
    box.exec(["sh", "-c", line])
    began = time.monotonic()
    for path in ("link", "loop/link", "pipe", "folder", "", "/", "/dev/zero", "/proc/self/mem"):
        refuses(lambda path=path: box.get(path), OSError)  # type: ignore[misc]
        refuses(lambda path=path: box.put(path, b"x"), OSError)  # type: ignore[misc]
    require(time.monotonic() - began < 5.0, "it was waited for")


@law(
    "files", "resolve .. by name before you open anything; write nothing but the box's own", "files"
)
def no_path_leads_outside(trial: Trial, box: Sandbox) -> None:
    """Agents choose the paths of `put` and `get` in many environments."""
    with tempfile.TemporaryDirectory(prefix="turnwise-check-") as folder:
        os.chmod(folder, 0o777)
        target, secret = Path(folder, "target"), secrets.token_bytes(16)
        target.write_bytes(secret)
        target.chmod(0o666)
        for path in ("../" * 12 + str(target)[1:], str(target), f"/proc/1/root{target}"):
            with contextlib.suppress(OSError):
                require(box.get(path) != secret, f"a file of the host was read by {path}")
            with contextlib.suppress(OSError):  # where the box has such a folder itself
                box.put(path, b"harmed")
        require(target.read_bytes() == secret, "a file of the host was written")


@law("files", "raise FileNotFoundError, or OSError for what is too long or can be no name", "files")
def what_cannot_be_read_is_an_os_error(trial: Trial, box: Sandbox) -> None:
    """The caller tells the agent; any other error would count against the machine."""
    refuses(lambda: box.get("nothing/here"), FileNotFoundError)
    box.put("five", b"12345")
    require(box.get("five", max_bytes=5) == b"12345", "a file of just the limit")
    for limit in (4, 0):
        refuses(lambda limit=limit: box.get("five", max_bytes=limit), OSError)  # type: ignore[misc]
    refuses(lambda: box.put("much", bytes(box.spec.limits.file_bytes + 1)), OSError)
    for path in ("a\0b", "\ud800", "x" * 300, "a/" * 3000 + "b"):
        refuses(lambda path=path: box.get(path), OSError)  # type: ignore[misc]
        refuses(lambda path=path: box.put(path, b"x"), OSError)  # type: ignore[misc]


@law(
    "files",
    "pack the workdir as a tar; unpack it in fresh boxes of the same spec",
    "snapshot_files",
)
def forked_boxes_have_the_files_and_part_ways(trial: Trial, box: Sandbox) -> None:
    """Branches of a tree start from the same state and must not see each other."""
    with trial.box() as first:
        first.put("d/file", b"before")
        snapshot = first.snapshot()
        first.put("d/file", b"after")
        with contextlib.ExitStack() as stack:
            now, then = first.fork()[0], first.fork(snapshot=snapshot)[0]
            for branch in (now, then):
                stack.enter_context(branch)
            require(now.get("d/file") == b"after", "a fork has the files of now")
            require(then.get("d/file") == b"before", "a snapshot has the files of then")
            now.put("d/file", b"branch")
            require(first.get("d/file") == b"after", "a branch changed its parent")


@law(
    "files",
    "give each fork files of its own, or an overlay whose writes and removals are its own",
    "snapshot_files",
)
def what_one_branch_writes_or_removes_no_other_sees(trial: Trial, box: Sandbox) -> str:
    """A branch that finds what its sibling did is rewarded for the sibling's actions."""
    lay = "mkdir -p d/e; for n in 1 2 3; do echo $n > d/$n; done; ln -s 3 d/link; echo x > d/e/x"
    change = "echo {0} > d/1; rm -r d/2 d/e; mv d/3 d/moved; mkdir d/2; echo {0} > d/{0}"
    show = "find . -type f | sort | xargs grep -H ''; find . ! -type f | sort"
    with trial.box() as stem, contextlib.ExitStack() as stack:
        stem.exec(["sh", "-c", lay])
        before = stem.exec(["sh", "-c", show]).stdout
        branches = {name: stack.enter_context(stem.fork()[0]) for name in ("one", "two")}
        for name, branch in branches.items():
            require(branch.exec(["sh", "-c", show]).stdout == before, "a fork has other files")
            changed = branch.exec(["sh", "-c", change.format(name)])
            require(changed.exit_code == 0, changed)
        twig = stack.enter_context(branches["one"].fork()[0])
        after = branches["one"].exec(["sh", "-c", show]).stdout
        require(twig.exec(["sh", "-c", show]).stdout == after, "a fork of a fork has other files")
        twig.exec(["sh", "-c", "rm -r d"])
        other = branches["two"].exec(["sh", "-c", show]).stdout
        require(other == after.replace(b"one", b"two"), "one branch sees another")
        require(branches["one"].exec(["sh", "-c", show]).stdout == after, "its fork changed it")
        require(stem.exec(["sh", "-c", show]).stdout == before, "a branch changed its stem")
    return f"{len(after.splitlines())} lines apart"


@law("files", "copy the kernel by os.fork into another name of the same box", "fork_python")
def a_forked_kernel_has_the_variables_and_parts_ways(trial: Trial, box: Sandbox) -> None:
    """The same for Python state."""
    box.cell("n = 1", kernel="stem")
    box.fork_kernel("stem", into="branch")
    box.cell("n += 1", kernel="branch")
    seen = [box.cell("print(n)", kernel=name).stdout for name in ("stem", "branch")]
    require(seen == [b"1\n", b"2\n"], seen)
