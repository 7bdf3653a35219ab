"""Laws of the walls of a box: harmless attacks first, then bombs behind them."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from turnwise.sandboxes.base import (
    ExecResult,
    Sandbox,
)
from turnwise.sandboxes.law import LIMITS, Law, Trial, added_to, require

WALLS: list[Law] = []
law = added_to(WALLS)


# ---------------------------------------------------------------- walls: harmless attacks


@law("walls", "give each box a workdir, a kernel and a process tree of its own")
def two_boxes_share_nothing(trial: Trial, box: Sandbox) -> None:
    """What one episode leaves behind is an answer for another."""
    word = f"turnwise-{secrets.token_hex(8)}"
    with trial.box() as other:
        other.put("mine", word.encode())
        other.cell(f"mine = {word!r}")
        other.exec(["sh", "-c", f"echo {word} > /tmp/{word} || :"])
        look = f"cat mine ../*/mine /tmp/{word} 2>/dev/null; cat /proc/[0-9]*/environ"
        seen = box.exec(["sh", "-c", look]).stdout + box.cell("print(mine)").stdout
        with contextlib.suppress(OSError):
            os.unlink(f"/tmp/{word}")  # where there is no wall, it is ours to clean up
        require(word.encode() not in seen, "one box sees what is in another")


@law(
    "walls",
    "give the box a root of its own, without any folder of the host that is not the system's",
)
def files_of_the_host_are_out_of_reach(trial: Trial, box: Sandbox) -> None:
    """Keys, hidden tests and the trainer's own checkpoints lie there."""
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="turnwise-check-") as folder:
        os.chmod(folder, 0o777)
        file = Path(folder, "secret")
        file.write_text(secret)
        file.chmod(0o666)
        seen = box.exec(["sh", "-c", f"cat {file} /proc/1/root{file}; echo harmed >> {file}"])
        require(secret not in seen.text, "a file of the host can be read")
        require(file.read_text() == secret, "a file of the host can be written")


@law("walls", "give the box a network namespace of its own, and put nothing into it")
def services_of_the_host_are_out_of_reach(trial: Trial, box: Sandbox) -> None:
    """Metadata services and the trainer's own ports answer whoever connects."""
    name = f"\0turnwise-{secrets.token_hex(8)}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(name)
        unix.listen()
        code = (
            "import socket\nfor family, address in ((2, {!r}), (1, {!r})):\n"
            "    try:\n        socket.socket(family).connect(address)\n        print('reached')\n"
            "    except OSError:\n        print('refused')"
        )
        seen = box.cell(code.format(tcp.getsockname(), name), kernel="network").stdout.split()
    require(seen == [b"refused"] * 2, seen)


@law("walls", "give the box a PID namespace and a /proc of its own")
def processes_of_the_host_are_out_of_sight(trial: Trial, box: Sandbox) -> None:
    """Whoever sees a process of the same user reads its environment and ends it."""
    word = f"turnwise-{secrets.token_hex(8)}"
    code = "import time; print(flush=True); time.sleep(60)"
    argv = [sys.executable, "-c", code, word]
    host = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        assert host.stdout is not None
        host.stdout.readline()  # until it has begun, it still goes by our own name
        # Not the word, which may stand in the command line of who looks, and not whole lines,
        # of which a busy host has more than a box may print.
        code = "import glob, re\nfor name in glob.glob('/proc/[0-9]*/cmdline'):\n"
        code += "    try: line = open(name).read()\n    except OSError: continue\n"
        code += "    print(*re.findall('turnwise-[0-9a-f]{16}', line), end=' ')"
        seen = box.cell(code, kernel="looker").text
    finally:
        host.kill()
        host.communicate()
    require(word not in seen, "a process of the host can be seen")


# ---------------------------------------------------------------- limits: bombs, behind walls


@law("limits", "bound the number of processes: a pids cgroup, or RLIMIT_NPROC per user namespace")
def processes_are_limited(trial: Trial, box: Sandbox) -> str:
    """A fork bomb in one box stops all others."""
    code = """
import os, time
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        made += 1
except OSError:
    pass
print(made)
"""
    with trial.box() as other:
        made = other.cell(code, kernel="bomb").stdout.strip()
        require(made.isdigit() and int(made) < LIMITS.pids, f"made {made!r} processes")
        other.cell("import os; os._exit(0)", kernel="bomb")
        require(other.exec(["echo", "on"]).stdout == b"on\n", "the box did not go on")
    return f"{int(made)} of {LIMITS.pids}"


@law("limits", "bound the memory of all processes together, and let the box itself outlive it")
def memory_is_limited(trial: Trial, box: Sandbox) -> str:
    """The host's OOM killer would choose the trainer."""
    code = """
import time
held = []
for _ in range(50):
    held.append(bytearray(4 << 20))
    time.sleep(0.005)
time.sleep(0.5)
"""
    with trial.box() as other:
        result = other.cell(code, kernel="eater")
        require(result.exit_code != 0, f"200 MB were to be had under {LIMITS.memory_mb} MB")
        require(other.cell("print(1)").stdout == b"1\n", "the box did not go on")
    return f"exit code {result.exit_code}"


@law(
    "limits", "give every writable folder a size and a number of files: tmpfs size= and nr_inodes="
)
def disk_and_files_are_limited(trial: Trial, box: Sandbox) -> str:
    """A full disk, or one without inodes, ends every run on the machine."""
    with trial.box() as other:
        filled: ExecResult = other.exec(["sh", "-c", "i=0; while [ $i -lt 16 ]; do i=$((i+1));"
            " head -c 1000000 /dev/zero > full$i || exit 9; done"])  # fmt: skip
        require(filled.exit_code != 0, f"16 MB fit into {LIMITS.disk_mb} MB")
        other.exec(["sh", "-c", "rm -f full*"])
        code = "for i in range(2000): open(f'many{i}', 'w').close()"
        many = other.cell(code, kernel="many")
        require(many.exit_code != 0, f"2000 files fit into {LIMITS.inodes}")
        count = int(other.exec(["sh", "-c", "ls | wc -l"]).stdout)
        require(count <= LIMITS.inodes, f"{count} files")
        other.exec(["sh", "-c", "rm -f many*"])
        require(other.exec(["sh", "-c", "echo 1 > again"]).exit_code == 0, "it cannot be emptied")
    return f"{count} files of {LIMITS.inodes}"


@law(
    "limits",
    "count what a fork began with against its limits, wherever it is kept",
    "snapshot_files",
)
def a_forked_box_has_the_same_limits(trial: Trial, box: Sandbox) -> str:
    """A chain of forks would otherwise hold any number of files."""
    fill = "i=0; while head -c 100000 /dev/zero > {0}$i; do i=$((i+1)); done; rm {0}$i; echo $i"
    many = "for i in range(2000): open(f'many{i}', 'w').close()"
    with trial.box() as stem:
        stem.exec(["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do head -c 100000 /dev/zero > o$i; done"])
        with stem.fork()[0] as branch:
            made = 8 + int(branch.exec(["sh", "-c", fill.format("full")]).stdout)
            require(made * 100_000 <= LIMITS.disk_mb << 20, f"{made} files of 100 kB")
            branch.exec(["sh", "-c", "rm full*; rm -f o*"])
            require(branch.exec(["sh", "-c", "echo 1 > again"]).exit_code == 0, "it stays full")
            require(branch.cell(many, kernel="many").exit_code != 0, "2000 files fit")
            count = int(branch.exec(["sh", "-c", "ls | wc -l"]).stdout)
            require(count <= LIMITS.inodes, f"{count} files")
        require(stem.exec(["sh", "-c", "ls | wc -l"]).stdout == b"8\n", "its stem changed")
    return f"{made} files of 100 kB, {count} of none"
