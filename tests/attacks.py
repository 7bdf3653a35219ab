"""Attacks from inside a box, as data. `test_sandbox_attacks.py` runs each against each backend.

An attack prints `HELD` when it met a wall and `THROUGH` with what it got when it did not. It is
small where it is not contained. `harmless` ones also run where nothing isolates: they signal
nobody, start no bombs, and touch no file but the bait that the test laid out. All others prove
first that they are in a box.

Nothing here imports pytest: another user runs this file by a Python that may not have it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from turnwise.sandboxes import Limits, Sandbox, SandboxError

LIMITS = Limits(
    memory_mb=96, pids=24, disk_mb=4, inodes=500, output_bytes=10_000, wall_s=15.0, lifetime_s=600.0
)
OpenBox = Callable[..., Sandbox]
LIBC = ctypes.CDLL(None)
KINDS = (
    *("host", "network", "processes", "guest", "container", "kernel", "copy", "files", "bomb"),
    *("time", "boxes"),
)

PRELUDE = '''
import ctypes, errno, os, resource, signal, socket, stat, sys, time
LIBC = ctypes.CDLL(None, use_errno=True)
INTEL = os.uname().machine == "x86_64"
INSIDE = os.path.exists("/.turnwise-box")
FOLDERS = [os.getcwd(), "/tmp", "/dev/shm"] if INSIDE else [os.getcwd()]
def held(good, *got):
    print("HELD" if good else "THROUGH", *got)
def denied(what, *expected):
    """HELD if calling `what` fails with one of `expected`, by exception or by -1."""
    try:
        got = what()
        number = ctypes.get_errno() if got == -1 else None
    except OSError as error:
        got, number = error, error.errno or error.args
    good = number is not None and (not expected or number in expected)
    print("HELD" if good else f"THROUGH {got!r:.120}")
def call(number, *args):
    return lambda: LIBC.syscall(ctypes.c_long(number), *map(ctypes.c_long, args))
def syscalls(**numbers):
    """`name=(x86_64, aarch64)`: each with zeros for arguments."""
    for name, pair in numbers.items():
        if pair[not INTEL] is not None:
            denied(call(pair[not INTEL], 0, 0, 0, 0, 0), errno.EPERM)
def in_a_child(what):
    """What `what()` prints in a forked child, for what may end or change the process."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            what()
            sys.stdout.flush()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]
def prove_that_this_is_a_box():
    """What comes next would do harm outside."""
    names = [name for name in os.listdir("/proc") if name.isdigit()]
    lines = b" ".join(open(f"/proc/{name}/cmdline", "rb").read() for name in names if name != "1")
    if not INSIDE or len(names) > 80 or BAIT["word"].encode() in lines:
        print("THROUGH this is no box; nothing was tried")
        os._exit(0)
'''


@dataclass(frozen=True)
class Bait:
    """What lies on the host for an attack to take, and must be untouched afterwards."""

    secret: str
    file: str
    """Readable by all; holds the secret."""
    target: str
    """Writable by all."""
    shm: str
    """The same, in /dev/shm."""
    tcp: tuple[str, int]
    """A listener on the loopback."""
    abstract: str
    """A listener on an abstract unix socket."""
    victim: int
    """A process of this user; `word` is in its command line, `secret` in its environment."""
    word: str
    key: int
    """Of a System V shared memory segment."""


class Harmed(Exception):
    """Something of the bait was changed."""


def check(bait: Bait) -> None:
    """Raise `Harmed` unless the bait is as it was laid out; mend it."""
    for path in (bait.target, bait.shm):
        text = Path(path).read_text() if os.path.exists(path) else "(gone)"
        if text != "untouched":
            Path(path).write_text("untouched")
            raise Harmed(f"{path} holds {text[:80]!r}")
    if Path(f"/proc/{bait.victim}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "SR":
        raise Harmed("the process of the host was ended or stopped")


@contextlib.contextmanager
def lay_out() -> Iterator[Bait]:
    """The bait, for as long as the block runs."""
    secret, word = secrets.token_hex(16), f"turnwise-victim-{secrets.token_hex(8)}"
    code = "import time; time.sleep(900)"
    with (
        tempfile.TemporaryDirectory(prefix="turnwise-bait-") as folder,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        file, target = Path(folder, "secret"), Path(folder, "target")
        shm = Path("/dev/shm", f"turnwise-bait-{word[-16:]}")
        unix.bind(f"\0{word}")
        unix.listen()
        key = secrets.randbelow(2**31 - 1) + 1
        segment = LIBC.shmget(key, 4096, 0o1666)
        victim = subprocess.Popen([sys.executable, "-c", code, word], env={"TOKEN": secret})
        try:
            os.chmod(folder, 0o777)
            for path, text in ((file, secret), (target, "untouched"), (shm, "untouched")):
                path.write_text(text)
                path.chmod(0o666 if text == "untouched" else 0o644)
            address, pid = tcp.getsockname(), victim.pid
            files = secret, str(file), str(target), str(shm)
            yield Bait(*files, address, f"\0{word}", pid, word, key)
        finally:
            victim.kill()
            victim.wait()
            shm.unlink(missing_ok=True)
            LIBC.shmctl(segment, 0, None)


@dataclass(frozen=True)
class Stage:
    """Where an attack plays: a box that it may use, and how to get further ones."""

    box: Sandbox
    open: OpenBox
    bait: Bait


@dataclass(frozen=True)
class Attack:
    """One attack: `code` runs in a cell, or `play` drives the box from outside."""

    name: str
    kind: str
    code: str = ""
    play: Callable[[Stage, Attack], Iterator[str]] | None = None
    harmless: bool = False
    """May also run where nothing isolates."""
    real: bool = False
    """Goes through there: the proof that the attack is one."""
    own_box: bool = False
    """Needs a box of its own, since it may use up or break what other attacks share."""
    limits: dict[str, Any] = field(default_factory=dict)
    """Other limits than `LIMITS`, of its own box."""

    def words(self, stage: Stage) -> list[str]:
        """What came of it, one line per step, each beginning with HELD or THROUGH."""
        found = list((self.play or by_cell)(stage, self))
        try:
            check(stage.bait)
        except Harmed as harm:
            found.append(f"THROUGH {harm}")
        return found


def run(attack: Attack, shared: Sandbox, open_box: OpenBox, bait: Bait) -> list[str]:
    """The words of `attack` in `shared`, or in a box of its own, and whether the box goes on."""
    if not attack.own_box:
        return [*attack.words(Stage(shared, open_box, bait)), *goes_on(shared)]
    with open_box(limits=replace(LIMITS, **attack.limits)) as box:
        return [*attack.words(Stage(box, open_box, bait)), *goes_on(box)]


def goes_on(box: Sandbox) -> Iterator[str]:
    """The box itself must outlast each attack."""
    good = box.cell("print(6 * 7)", kernel="after").stdout == b"42\n"
    yield said(good and box.exec(["echo", "on"]).stdout == b"on\n", "the box does not go on")


def by_cell(stage: Stage, attack: Attack) -> Iterator[str]:
    """Run the code in a kernel of its own, and read what it printed."""
    yield from lines_of(attack_cell(stage, attack))
    stage.box.cell("import os; os._exit(0)", kernel=attack.name)


def attack_cell(stage: Stage, attack: Attack) -> Any:
    """The result of the attack's code."""
    code = f"BAIT = {asdict(stage.bait)!r}\n{PRELUDE}"
    if not attack.harmless:
        code += "prove_that_this_is_a_box()\n"
    return stage.box.cell(code + attack.code, kernel=attack.name)


def lines_of(result: Any) -> Iterator[str]:
    """The lines that an attack printed; what is not a verdict counts as going through."""
    lines = result.stdout.decode("utf-8", "replace").splitlines()
    yield from lines
    if not lines or result.exit_code:
        yield f"THROUGH or failed, exit code {result.exit_code}: {result.text[-600:]}"


def said(good: bool, otherwise: object) -> str:
    """A verdict from outside."""
    return "HELD" if good else f"THROUGH {str(otherwise)[:300]}"


ATTACKS: list[Attack] = []


def attack(name: str, kind: str, code: str = "", **more: Any) -> None:
    """Add an attack that is a cell."""
    ATTACKS.append(Attack(name, kind, code, **more))


def played(kind: str, **more: Any) -> Callable[[Any], Any]:
    """Add an attack that is driven from outside."""

    def add(function: Any) -> Any:
        name = function.__name__
        ATTACKS.append(Attack(name, kind, play=lambda stage, _: function(stage), **more))
        return function

    return add


# ---------------------------------------------------------------- the host's files and secrets

attack(
    "secrets_in_environments",
    "host",
    """
held(not any(BAIT["secret"] in value for value in os.environ.values()))
for name in filter(str.isdigit, os.listdir("/proc")):
    try:
        text = open(f"/proc/{name}/environ", "rb").read()
    except OSError:
        continue
    held(BAIT["secret"].encode() not in text, name)
""",
    harmless=True,
    real=True,
)
attack(
    "host_file_read",
    "host",
    """
try:
    os.symlink(BAIT["file"], "link")
except FileExistsError:
    pass
ways = ["", "/proc/self/root", "/proc/self/cwd/../../../../../..", "/dev/fd/../../.."]
for way in ways:
    denied(lambda: open(way + BAIT["file"]))
denied(lambda: open("link"))
""",
    harmless=True,
    real=True,
)
attack(
    "host_files_through_the_guest",
    "host",
    """
for way in ("/proc/1/root", "/proc/1/cwd/../..", "/proc/1/fd/0", "/proc/1/task/1/root"):
    denied(lambda: open(way + BAIT["file"]))
    denied(lambda: os.listdir(way))
""",
)
attack(
    "host_file_write",
    "host",
    """
denied(lambda: open(BAIT["target"], "r+").write("harmed"))
denied(lambda: os.truncate(BAIT["target"], 0))
denied(lambda: os.rename(BAIT["target"], BAIT["target"] + "2"))
denied(lambda: os.unlink(BAIT["target"]))
""",
    harmless=True,
    real=True,
)
attack(
    "host_shared_memory",
    "host",
    """
held(os.path.basename(BAIT["shm"]) not in os.listdir("/dev/shm"))
denied(lambda: open(BAIT["shm"], "r+").write("harmed"))
denied(lambda: LIBC.shmget(BAIT["key"], 0, 0), errno.ENOENT, errno.EPERM)
""",
    harmless=True,
    real=True,
)
attack(
    "system_folders",
    "host",
    """
for path in ("/x", "/usr/x", "/usr/bin/x", "/usr/lib/x", "/etc/x", "/etc/passwd", "/dev/x",
             "/opt/x", "/opt/turnwise/x", "/opt/turnwise/sandboxes/guest.py", "/.turnwise-box"):
    denied(lambda: open(path, "w"))
    denied(lambda: os.chmod(path, 0o777))
denied(lambda: os.rename("/usr", "/usr2"))
denied(lambda: os.rename("/tmp", "/tmp2"))
denied(lambda: os.rmdir(os.path.expanduser("~")))
for folder in ("/root", "/home", "/boot", "/sys", "/run", "/var"):
    held(not os.path.isdir(folder) or not os.access(folder, os.W_OK), folder)
""",
)
attack(
    "descriptors_that_came_along",
    "host",
    """
links = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
         if os.path.islink(f"/proc/self/fd/{fd}")}
good = ("pipe:", "socket:", "/dev/null", "/proc/", "anon_inode:")
held(all(link.startswith(good) for link in links.values()), links)
held(sum(link.startswith("socket:") for link in links.values()) <= 1, links)
""",
)

# ---------------------------------------------------------------- the host's network

attack(
    "host_loopback",
    "network",
    'denied(lambda: socket.create_connection(tuple(BAIT["tcp"]), 2))\n',
    harmless=True,
    real=True,
)
attack(
    "abstract_unix_socket",
    "network",
    """
held(BAIT["word"] not in open("/proc/net/unix").read())
denied(lambda: socket.socket(socket.AF_UNIX).connect(BAIT["abstract"]))
""",
    harmless=True,
    real=True,
)
attack(
    "routes_and_cards",
    "network",
    """
inert = ("lo", "tunl", "gre", "erspan", "ip_vti", "ip6", "sit")
cards = [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]]
held(all(card.startswith(inert) for card in cards), cards)
held(len(open("/proc/net/route").readlines()) <= 1)
""",
    harmless=True,
)
attack(
    "any_way_out",
    "network",
    """
for address in ("1.1.1.1", "169.254.169.254", "10.0.2.2", "172.17.0.1", "192.168.0.1"):
    denied(lambda: socket.create_connection((address, 53), 2))
    denied(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (address, 53)))
denied(lambda: socket.create_connection(("2606:4700:4700::1111", 53), 2))
denied(lambda: socket.getaddrinfo("example.org", 80))
""",
)
attack(
    "raw_and_odd_sockets",
    "network",
    """
for family, kind in ((17, 3), (16, 3), (38, 5), (40, 1), (31, 3), (29, 3), (44, 3)):
    denied(lambda: socket.socket(family, kind))
    denied(lambda: socket.socketpair(family, kind))
denied(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1), errno.EPERM)
denied(lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58), errno.EPERM)
""",
    harmless=True,
)

# ---------------------------------------------------------------- the host's processes

attack(
    "see_host_processes",
    "processes",
    """
names = [name for name in os.listdir("/proc") if name.isdigit()]
def line_of(name):
    try:
        return open(f"/proc/{name}/cmdline", "rb").read()
    except OSError:
        return b""
held(not any(BAIT["word"].encode() in line_of(name) for name in names))
""",
    harmless=True,
    real=True,
)
attack(
    "signal_host_processes",
    "processes",
    """
live = {int(name) for name in os.listdir("/proc") if name.isdigit()}
for pid in {BAIT["victim"], max(live) + 1000} - live:
    denied(lambda: os.kill(pid, 9), errno.ESRCH)
    denied(lambda: os.killpg(pid, 9), errno.ESRCH)
    denied(lambda: os.pidfd_open(pid), errno.ESRCH, errno.EPERM, errno.EINVAL)
    denied(lambda: os.sched_setaffinity(pid, {0}), errno.ESRCH, errno.EPERM)
    denied(lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0)), errno.ESRCH, errno.EPERM)
""",
)
attack(
    "trace_host_processes",
    "processes",
    """
buffer = ctypes.create_string_buffer(64)
vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 64)
live = {int(name) for name in os.listdir("/proc") if name.isdigit()}
for pid in {BAIT["victim"]} - live:
    for request in (16, 0x4206):  # ATTACH, SEIZE
        denied(lambda: LIBC.ptrace(request, pid, 0, 0))
    denied(lambda: LIBC.process_vm_readv(pid, vector, 1, vector, 1, 0))
    denied(lambda: open(f"/proc/{pid}/mem"))
held(BAIT["victim"] in live or not os.path.exists(f"/proc/{BAIT['victim']}"))
""",
)

# ---------------------------------------------------------------- the guest, PID 1 of the box

attack(
    "read_the_guest",
    "guest",
    """
for name in ("mem", "environ", "maps", "fd/0", "root", "cwd", "exe", "auxv", "stack", "io"):
    denied(lambda: open("/proc/1/" + name).read(1))
denied(lambda: os.listdir("/proc/1/fd"))
denied(lambda: os.listdir("/proc/1/map_files"))
denied(lambda: os.readlink("/proc/1/exe"))
""",
)
attack(
    "trace_the_guest",
    "guest",
    """
for request in (16, 0x4206):
    denied(lambda: LIBC.ptrace(request, 1, 0, 0))
vector = (ctypes.c_void_p * 2)(ctypes.addressof(ctypes.create_string_buffer(64)), 64)
for name in ("process_vm_readv", "process_vm_writev"):
    denied(lambda: getattr(LIBC, name)(1, vector, 1, vector, 1, 0))
fd = os.pidfd_open(1)
denied(call(438, fd, 0, 0), errno.EPERM)  # pidfd_getfd
denied(call(440, fd, 0, 0, 0, 0), errno.EPERM)  # process_madvise
denied(lambda: open("/proc/1/mem", "wb"))
""",
)
attack(
    "starve_the_guest",
    "guest",
    """
denied(lambda: open("/proc/1/oom_score_adj", "w"))
denied(lambda: open("/proc/1/coredump_filter", "w"))
denied(lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0)), errno.EPERM)
denied(lambda: os.setpriority(os.PRIO_PROCESS, 1, 19))
denied(lambda: os.setpriority(os.PRIO_PGRP, os.getpgid(1), 19))
denied(lambda: os.setpriority(os.PRIO_USER, os.getuid(), 19))
denied(lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)))
denied(call(251 if INTEL else 30, 1, 1, 3 << 13))  # ioprio_set(PROCESS, 1, IDLE)
attributes = (ctypes.c_uint32 * 14)(56, 5)  # sched_setattr: SCHED_IDLE
denied(lambda: LIBC.syscall(314 if INTEL else 274, 1, attributes, 0))
""",
)


@played("guest")
def answer_in_the_kernels_place(stage: Stage) -> Iterator[str]:
    """Whoever finds the socket to the guest fools only itself."""
    box = stage.box
    box.cell("kept = 1", kernel="honest")
    find = (
        "import os, stat, struct\n"
        "fd = [n for n in range(3, 1024) if os.path.exists(f'/proc/self/fd/{n}')"
        " and stat.S_ISSOCK(os.fstat(n).st_mode)][0]\n"
    )
    for lie in (
        "struct.pack('>IiII', 2**32 - 1, 0, 0, 0)",
        "struct.pack('>IiII', 1, 0, 2**31, 2**31)",
        "struct.pack('>IiII', 1, -5, 0, 0)",
        "os.urandom(16)",
        "b'x' * 100_000",
    ):
        told = f"{find}os.write(fd, {lie})\nprint('after')"
        result = box.cell(told, kernel="liar", timeout_s=5.0)
        good = (result.exit_code, result.state_lost, result.timed_out) == (137, True, False)
        yield said(good, result)
    yield said(box.cell("print(kept)", kernel="honest").stdout == b"1\n", "another kernel was lost")


@played("guest")
def break_the_interpreter(stage: Stage) -> Iterator[str]:
    """What breaks one kernel breaks no other."""
    for code in (
        "import sys; sys.stdout = sys.stderr = None",
        "import builtins; builtins.print = builtins.compile = builtins.len = None",
        "import os; os.closerange(0, 1024)",
        "import sys; sys.setrecursionlimit(10**9); f = lambda: f(); f()",
        "import ctypes; ctypes.string_at(0)",
        "import signal; signal.raise_signal(19)",
    ):
        result = stage.box.cell(code, kernel="broken", timeout_s=1.0)
        yield said(0 <= result.exit_code <= 255, result)
        stage.box.cell("import os; os._exit(0)", kernel="broken", timeout_s=1.0)


@played("guest", own_box=True)
def kill_everything(stage: Stage) -> Iterator[str]:
    """PID 1 outlives every signal; opt-in, and proven once more by the code itself."""
    if os.environ.get("TURNWISE_TEST_KILL") != "1":
        yield "SKIPPED opt in with TURNWISE_TEST_KILL=1"
        return
    code = """
import os, time
with open("/proc/1/cmdline") as guest:
    inside = "turnwise.sandboxes.guest" in guest.read()
assert inside and os.path.exists("/.turnwise-box") and os.getpid() < 1000
assert len([name for name in os.listdir("/proc") if name.isdigit()]) < 10
for number in (9, 15, 19, 2, 11, 10, 17):
    os.kill(1, number)
if os.fork() == 0:
    os.kill(-1, 9)
time.sleep(5)
"""
    result = stage.box.cell(code, kernel="killer")
    yield said((result.exit_code, result.state_lost) == (137, True), result)


# ---------------------------------------------------------------- out of the container

attack(
    "mounts",
    "container",
    """
denied(lambda: LIBC.mount(b"none", b"/tmp", b"tmpfs", 0, None), errno.EPERM)
denied(lambda: LIBC.mount(None, b"/", None, 0x1021, None), errno.EPERM)  # remount read-write
denied(lambda: LIBC.mount(b"/proc", b"/tmp", None, 4096, None), errno.EPERM)
denied(lambda: LIBC.umount2(b"/usr", 2), errno.EPERM)
denied(lambda: os.chroot("/tmp"), errno.EPERM)
syscalls(pivot_root=(155, 41), open_tree=(428, 428), move_mount=(429, 429), fsopen=(430, 430),
         fsmount=(432, 432), fspick=(433, 433), mount_setattr=(442, 442))
""",
)
attack(
    "namespaces",
    "container",
    """
for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000, 0x80):
    in_a_child(lambda: denied(lambda: LIBC.unshare(flag)))
for name in os.listdir("/proc/self/ns"):
    denied(lambda: LIBC.setns(os.open(f"/proc/self/ns/{name}", os.O_RDONLY), 0))
if INTEL:
    denied(call(56, 0x10000000 | 17, 0, 0, 0, 0), errno.EPERM)  # clone(NEWUSER)
denied(call(435, 0, 0), errno.ENOSYS)  # clone3, whose flags no filter can see
""",
)
attack(
    "user_namespace",
    "container",
    """
def enter():
    denied(lambda: LIBC.unshare(0x10000000))
    open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
    denied(lambda: LIBC.unshare(0x20000))
uid = os.getuid()
in_a_child(enter)
""",
    harmless=True,
)
attack(
    "device_nodes",
    "container",
    """
for device in ((8, 0), (1, 1), (10, 229), (254, 0)):
    denied(lambda: os.mknod("disk", 0o60666, os.makedev(*device)), errno.EPERM, errno.EACCES)
    denied(lambda: os.mknod("chr", 0o20666, os.makedev(*device)), errno.EPERM, errno.EACCES)
for name in ("sda", "vda", "nvme0n1", "mem", "kmem", "port", "kmsg", "kvm", "fuse", "loop-control",
             "net/tun", "snapshot", "mapper/control", "vhost-net", "vsock", "uinput"):
    denied(lambda: os.open("/dev/" + name, os.O_RDWR | os.O_NONBLOCK))
""",
)
attack(
    "kernel_settings",
    "container",
    """
import glob
found = [path for pattern in ("/proc/sys/*/*", "/proc/sys/*/*/*") for path in glob.glob(pattern)]
open_ones = []
for path in found:
    if os.path.isfile(path) and not path.startswith("/proc/sys/net/"):  # its own network's
        try:
            os.close(os.open(path, os.O_WRONLY))
            open_ones.append(path)
        except OSError:
            pass
held(not open_ones, open_ones)
for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches",
             "/proc/sys/kernel/modprobe", "/proc/kcore", "/proc/kmsg", "/proc/kallsyms",
             "/proc/timer_list", "/proc/irq/default_smp_affinity", "/proc/acpi/wakeup"):
    try:
        fd = os.open(path, os.O_WRONLY)
        held(os.fstat(fd).st_rdev == os.stat("/dev/null").st_rdev, path)  # covered by it
    except OSError:
        held(True)
""",
)
attack(
    "cgroup_files",
    "container",
    """
mounts = [line.split()[4] for line in open("/proc/self/mountinfo") if " - cgroup" in line]
writable = []
for mount in [*mounts, "/sys/fs/cgroup"]:
    for folder, folders, names in os.walk(mount):
        writable += [n for n in names if os.access(os.path.join(folder, n), os.W_OK)]
        denied(lambda: os.mkdir(os.path.join(folder, "mine")))
        break
held(not writable, writable)
held("turnwise" not in "".join(line.split(":")[2] for line in open("/proc/self/cgroup")) or True)
""",
)
attack(
    "rights",
    "container",
    """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    held(int(status[name], 16) == 0, name, status[name].strip())
held(status["NoNewPrivs"].strip() == "1", "NoNewPrivs")
held(status["Seccomp"].strip() == "2", "Seccomp")
held(0 not in os.getresuid() + os.getresgid() + tuple(os.getgroups()))
""",
    harmless=True,
    real=True,
)
attack(
    "become_root",
    "container",
    """
denied(lambda: os.setuid(0))
denied(lambda: os.setresuid(0, 0, 0))
denied(lambda: os.setgid(0))
denied(lambda: os.setgroups([0]))
open("mine", "w").close()
denied(lambda: os.chown("mine", 0, 0))
os.chmod("mine", 0o4755)
held(os.statvfs("mine").f_flag & os.ST_NOSUID)
denied(lambda: os.setxattr("mine", "security.capability", b"\\x01\\0\\0\\x02" + b"\\xff" * 16))
""",
)
attack(
    "setuid_programs",
    "container",
    """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
powerful = []
for folder in ("/bin", "/usr/bin", "/usr/sbin", "/usr/local/bin"):
    for entry in os.scandir(folder) if os.path.isdir(folder) else ():
        mode = entry.stat().st_mode if entry.is_file() else 0
        if mode & (stat.S_ISUID | stat.S_ISGID):
            powerful.append(entry.path)
harmless = status["NoNewPrivs"].strip() == "1" or os.statvfs("/usr").f_flag & os.ST_NOSUID
held(harmless or not powerful, powerful)
""",
    harmless=True,
)

# ---------------------------------------------------------------- the surface of the kernel

attack(
    "io_uring",
    "kernel",
    """
syscalls(io_uring_setup=(425, 425), io_uring_enter=(426, 426), io_uring_register=(427, 427))
parameters = (ctypes.c_uint32 * 30)()
denied(lambda: LIBC.syscall(425, 4, parameters), errno.EPERM, errno.ENOSYS)
""",
    harmless=True,
)
attack(
    "bpf_perf_userfaultfd_keys",
    "kernel",
    """
syscalls(bpf=(321, 280), perf_event_open=(298, 241), userfaultfd=(323, 282), add_key=(248, 217),
         request_key=(249, 218), keyctl=(250, 219), fanotify_init=(300, 262),
         name_to_handle_at=(303, 264), open_by_handle_at=(304, 265))
""",
    harmless=True,
    real=True,
)
attack(
    "modules_reboot_and_swap",
    "kernel",
    """
syscalls(init_module=(175, 105), finit_module=(313, 273), delete_module=(176, 106),
         kexec_load=(246, 104), kexec_file_load=(320, 294), swapon=(167, 224), swapoff=(168, 225),
         acct=(163, 89), quotactl=(179, 60), syslog=(103, 116), vhangup=(153, 58),
         iopl=(172, None), ioperm=(173, None), modify_ldt=(154, None), memfd_secret=(447, 447))
denied(call(169 if INTEL else 142, 0, 0, 0, 0), errno.EPERM)  # reboot, with a wrong magic
""",
)
attack(
    "tracing_and_personality",
    "kernel",
    """
denied(lambda: LIBC.ptrace(0, 0, 0, 0), errno.EPERM)  # TRACEME
syscalls(kcmp=(312, 272), move_pages=(279, 239), migrate_pages=(256, 238))
denied(call(135 if INTEL else 92, 0x0040000), errno.EPERM)  # ADDR_NO_RANDOMIZE
denied(call(135 if INTEL else 92, 0x0400000), errno.EPERM)  # READ_IMPLIES_EXEC
""",
)
attack(
    "foreign_system_calls",
    "kernel",
    """
def ask():
    denied(call(0x40000000 + 39), errno.ENOSYS)  # getpid of the x32 ABI
ended = in_a_child(ask) if INTEL else 31
held(ended in (0, 31, 159), "a call of another ABI is refused, or ends who made it", ended)
""",
)
attack(
    "terminal_injection",
    "kernel",
    """
def inject():
    master, slave = os.openpty()
    os.setsid()
    LIBC.ioctl(slave, 0x540E, 0)  # TIOCSCTTY
    for request in (0x5412, 0x541C):  # TIOCSTI, TIOCLINUX
        denied(lambda: LIBC.ioctl(slave, request, b"x"))
        denied(lambda: LIBC.ioctl(ctypes.c_int(slave), ctypes.c_ulong(request + (1 << 32)), b"x"))
in_a_child(inject)
denied(lambda: os.open("/dev/tty", os.O_RDWR))
""",
)
attack(
    "clock_and_names",
    "kernel",
    """
now = time.clock_gettime(time.CLOCK_REALTIME)
denied(lambda: time.clock_settime(time.CLOCK_REALTIME, now), errno.EPERM)
syscalls(settimeofday=(164, 170), adjtimex=(159, 171), clock_adjtime=(305, 266))
name = socket.gethostname()
denied(lambda: socket.sethostname(name), errno.EPERM)
held(name in ("sandbox",), name)
""",
)

# ---------------------------------------------------------------- copying in and out


@played("copy", harmless=True)
def copy_through_links(stage: Stage) -> Iterator[str]:
    """`get` and `put` follow no link, wherever it stands in the path."""
    bait, box = stage.bait, stage.box
    folder, file = os.path.split(bait.target)
    code = (
        "import os\nfor a, b in (({0!r}, 'to_file'), ({1!r}, 'to_target'), ({2!r}, 'to_folder'),"
        " ('to_target', 'to_link')):\n    os.path.lexists(b) or os.symlink(a, b)"
    )
    box.cell(code.format(bait.file, bait.target, folder), kernel="links")
    for path in ("to_file", "to_target", "to_link", f"to_folder/{file}", "to_folder/../to_link"):
        yield refused(lambda path=path: box.get(path))
        yield refused(lambda path=path: box.put(path, b"harmed"))


@played("copy", harmless=True)
def copy_by_dots_and_absolute_paths(stage: Stage) -> Iterator[str]:
    """No path of `get` or `put` leads to the host's files."""
    bait, box = stage.bait, stage.box
    up = "../" * 12
    for path in (bait.target, bait.file, up + bait.target, f"/proc/1/root{bait.target}"):
        for way in (path, path.replace("/", "//"), path.replace("/", "/./")):
            yield refused(lambda way=way: box.get(way))
    for path in (up + "usr/x", "/etc/passwd", "/usr/bin/sh", "/opt/turnwise/x", "..", "/", "", "."):
        yield refused(lambda path=path: box.put(path, b"harmed"))


@played("copy", harmless=True)
def copy_what_is_no_file(stage: Stage) -> Iterator[str]:
    """Pipes, sockets, folders and devices are neither read nor waited for."""
    box, began = stage.box, time.monotonic()
    box.cell(
        "import os, socket\nos.path.exists('fifo') or os.mkfifo('fifo')\n"
        "s = socket.socket(socket.AF_UNIX)\nos.path.exists('sock') or s.bind('sock')\n"
        "os.makedirs('folder', exist_ok=True)",
        kernel="odd",
    )
    for path in ("fifo", "sock", "folder", "/dev/zero", "/dev/null", "/proc/self/mem", "/dev/fd/0"):
        yield refused(lambda path=path: box.get(path))
        yield refused(lambda path=path: box.put(path, b"x"))
    yield said(time.monotonic() - began < 5, "it was waited for")


@played("copy", harmless=True)
def copy_names_that_are_none(stage: Stage) -> Iterator[str]:
    """A path that no file can have is an `OSError`, and costs the box nothing."""
    for path in ("a\0b", "\ud800", "x" * 300, "a/" * 3000 + "b", "\0"):
        yield refused(lambda path=path: stage.box.get(path))
        yield refused(lambda path=path: stage.box.put(path, b"x"))


@played("copy", own_box=True, limits={"file_bytes": 1 << 20})
def copy_what_is_too_large(stage: Stage) -> Iterator[str]:
    """Files over `file_bytes` can be neither made, sent nor fetched."""
    box = stage.box
    made = box.exec(["sh", "-c", "head -c 2000000 /dev/zero > f"])
    yield said(made.exit_code != 0 and len(box.get("f")) <= 1 << 20, made)
    made = box.cell("open('g', 'wb').truncate(1 << 40)")
    yield said(b"File too large" in made.stderr and not made.state_lost, made)
    yield refused(lambda: box.put("h", b"x" * 2_000_000))
    yield refused(lambda: box.get("f", max_bytes=10))


@played("copy")
def copy_in_a_race(stage: Stage) -> Iterator[str]:
    """`spot` is a folder and a link to /tmp by turns; a put may fail but not land in /tmp."""
    code = """
import os, threading
def flip():
    while True:
        try:
            os.rename("spot", "aside")
            os.symlink("/tmp", "spot")
            os.unlink("spot")
            os.rename("aside", "spot")
        except OSError:
            pass
os.makedirs("spot", exist_ok=True)
threading.Thread(target=flip, daemon=True).start()
"""
    stage.box.cell(code, kernel="racer")
    landed = 0
    for i in range(200):
        with contextlib.suppress(OSError):
            stage.box.put("spot/landed", b"%d" % i)
            landed += 1
    stage.box.cell("os._exit(0)", kernel="racer")
    yield said(landed > 0, "none landed: the race was not run")
    yield said(stage.box.exec(["ls", "/tmp/landed"]).exit_code != 0, "it landed in /tmp")


def refused(what: Callable[[], object]) -> str:
    """HELD if `what` raises `OSError`."""
    try:
        return said(False, f"got {what()!r:.100}")
    except OSError:
        return "HELD"


# ---------------------------------------------------------------- names, depths, dumps

attack(
    "deep_folders_and_odd_names",
    "files",
    """
import shutil
base = os.getcwd()
os.makedirs("deep", exist_ok=True)
os.chdir("deep")
for depth in range(300):
    os.mkdir("d" * 250)
    os.chdir("d" * 250)
denied(lambda: open("/".join(["d" * 250] * 20)), errno.ENAMETOOLONG, errno.ENOENT)
denied(lambda: open("n" * 256, "w"), errno.ENAMETOOLONG)
os.chdir(base)
for name in (b"new\\nline", b"\\xff\\xfe", b"-rf", b"'; echo", "é".encode(), b" ", b"n" * 255):
    open(name, "w").close()
held(len(os.listdir(base)) >= 8)
""",
    own_box=True,
)
attack(
    "core_dumps",
    "files",
    """
held(resource.getrlimit(resource.RLIMIT_CORE)[1] <= 1)
before = set(os.listdir("."))
status = in_a_child(lambda: os.kill(os.getpid(), signal.SIGSEGV))
held(not os.WCOREDUMP(status), "a core was dumped")
held(set(os.listdir(".")) == before)
""",
)
attack(
    "raise_limits",
    "files",
    """
for name in ("NOFILE", "CORE", "FSIZE", "MEMLOCK", "RTPRIO", "NICE", "MSGQUEUE"):
    kind = getattr(resource, "RLIMIT_" + name, {"RTPRIO": 14, "NICE": 13}.get(name))
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        try:
            resource.setrlimit(kind, (hard + 1, hard + 1))
            held(False, name)
        except (ValueError, OSError):
            held(True)
denied(lambda: os.nice(-5))
denied(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
""",
)

# ---------------------------------------------------------------- bombs

FORKS = """
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


@played("bomb", own_box=True)
def fork_bomb(stage: Stage) -> Iterator[str]:
    """It meets its limit."""
    made = stage.box.cell(FORKS, kernel="bomb").stdout.strip()
    yield said(made.isdigit() and 5 < int(made) < LIMITS.pids, made)
    stage.box.cell("import os; os._exit(0)", kernel="bomb")


@played("bomb", own_box=True)
def fork_bomb_that_flees(stage: Stage) -> Iterator[str]:
    """All that it started in sessions of their own is swept."""
    code = "while :; do (setsid sh -c 'while :; do (:&); done' &); done"
    stage.box.exec(["sh", "-c", code], timeout_s=0.5)
    count = stage.box.exec(["sh", "-c", "ls -d /proc/[0-9]* | wc -l"])
    yield said(count.exit_code == 0 and int(count.stdout) <= 5, count)


def eat_memory(stage: Stage, count: int) -> Iterator[str]:
    """384 MB in all, by `count` processes."""
    code = f"""
import os, time
def eat():
    held = []
    for _ in range({384 // count} // 4):
        held.append(bytearray(4 << 20))
        time.sleep(0.005)
    time.sleep(0.5)
for _ in range({count} - 1):
    if os.fork() == 0:
        eat()
        os._exit(0)
eat()
codes = [os.wait()[1] for _ in range({count} - 1)]
raise SystemExit(9 if any(codes) else 0)
"""
    result = stage.box.cell(code, kernel="eater")
    yield said(result.exit_code in (9, 137), result)


@played("bomb", own_box=True)
def memory_bomb(stage: Stage) -> Iterator[str]:
    """One process."""
    yield from eat_memory(stage, 1)


@played("bomb", own_box=True)
def memory_bomb_of_eight(stage: Stage) -> Iterator[str]:
    """Eight, each far below the limit."""
    yield from eat_memory(stage, 8)


@played("bomb", own_box=True)
def memory_outside_processes(stage: Stage) -> Iterator[str]:
    """Memory that no process is charged for: what the kernel holds on a program's behalf."""
    for name, code in HIDDEN_MEMORY.items():
        with stage.open(limits=LIMITS) as box:
            before = available_mb()
            try:
                with least_available_mb() as seen:
                    result = box.cell(code, timeout_s=5.0)
            except SandboxError as error:
                yield lost(box, name, before - min(seen), error)
                continue
            used = before - available_mb()
            good = b"limited" in result.stdout or result.exit_code in (137, 9)
            yield said(good, (name, used, result))
            yield said(box.exec(["true"]).exit_code >= 0, "a full box still answers")


@played("bomb", own_box=True)
def page_tables_in_every_call(stage: Stage) -> Iterator[str]:
    """They outlive the process that had them for a moment, and must not cost the box meanwhile."""
    with stage.open(limits=LIMITS) as box:
        box.put("kept", b"1")
        box.put("fill.py", HIDDEN_MEMORY["page tables"].encode())
        calls: tuple[Callable[[], Any], ...] = (
            lambda: box.shell("python3 fill.py", timeout_s=5.0),
            lambda: box.exec(["python3", "fill.py"], timeout_s=5.0),
            lambda: box.cell(HIDDEN_MEMORY["page tables"], timeout_s=5.0),
            lambda: box.exec(["sh", "-c", "for i in 1 2 3; do python3 fill.py & done; wait"]),
        )
        before = available_mb()
        for call in (*calls, *calls):
            try:
                with least_available_mb() as seen:
                    result = call()
            except SandboxError as error:
                yield lost(box, "page tables", before - min(seen), error)
                return
            yield said(not result.timed_out, result)
        yield said(box.get("kept") == b"1", "the box lost its files")


def lost(box: Sandbox, name: str, most_mb: float, error: SandboxError) -> str:
    """Whether a box may be lost so. A guest in a container does not see what its kernel ends.

    Where page tables fill the limit, its turn may come. Then the call says so by a typed error,
    and the wall has held if what the box took at its most stayed near the limit.
    """
    told = box.backend == "docker" and name == "page tables" and error.retryable
    return said(told and most_mb < 2 * LIMITS.memory_mb, f"{name}: {most_mb} MB, then {error}")


HIDDEN_MEMORY = {
    # 4 KiB of page table for each 2 MiB that is looked at but never written to
    "page tables": """
import ctypes, mmap
size, step = 64 << 30, 2 << 20
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
regions = []
for _ in range(3):
    at = libc.mmap(None, size, 1, 0x4022, -1, 0)
    if at in (None, ctypes.c_void_p(-1).value):
        print("limited")
        break
    libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(size), 15)  # no huge pages
    for offset in range(0, size, step):
        ctypes.c_char.from_address(at + offset).value
import time
time.sleep(0.2)
""",
    "semaphores": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
made = 0
while made < 200 and libc.semget(0, 32000, 0o1600) >= 0:  # 2 MB each
    made += 1
print("all" if made == 200 else "limited")
""",
    "message queues": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
text = ctypes.create_string_buffer(8200)
text[0] = 1
sent = 0
while sent < 24000:  # 192 MB
    queue = libc.msgget(0, 0o1600)
    if queue < 0 or libc.msgsnd(queue, text, 8192, 0o4000) < 0:
        break
    sent += 1 + (libc.msgsnd(queue, text, 8000, 0o4000) == 0)
print("all" if sent >= 24000 else "limited")
""",
    "socket buffers": """
import os, socket, time
held, size = [], 0
try:
    while size < 200 << 20:
        pair = socket.socketpair()
        held.append(pair)
        for side in pair:
            side.setblocking(False)
            side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            try:
                while True:
                    size += side.send(bytes(65536))
            except BlockingIOError:
                pass
except OSError:
    pass
time.sleep(0.3)
print("all" if size > 110 << 20 else "limited")
""",
    "a file in memory": """
import os
try:
    fd = os.memfd_create("x")
    for _ in range(200):
        os.write(fd, bytes(1 << 20))
except OSError:
    print("limited")
""",
    "shared memory": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
for _ in range(200):
    segment = libc.shmget(0, 1 << 20, 0o1600)
    if segment < 0:
        print("limited")
        break
    at = libc.shmat(segment, None, 0)
    ctypes.memset(at, 1, 1 << 20)
    libc.shmdt(ctypes.c_void_p(at))
""",
}


@contextlib.contextmanager
def least_available_mb() -> Iterator[list[float]]:
    """The memory of this machine that was available, every 5 ms, in MB."""
    seen, done = [available_mb()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(available_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def available_mb() -> int:
    """What the host could still give out."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) >> 10


attack(
    "disk_fill",
    "bomb",
    """
for folder in FOLDERS:
    wrote, path = 0, folder + "/full"
    try:
        with open(path, "wb", buffering=0) as file:
            while wrote < 32 << 20:
                wrote += file.write(bytes(1 << 20))
    except OSError as error:
        held(error.errno == errno.ENOSPC, error)
    held(wrote <= 16 << 20, wrote)
    os.unlink(path)
""",
    own_box=True,
    harmless=True,
    real=True,
)
attack(
    "inode_fill",
    "bomb",
    """
for folder in FOLDERS:
    made = 0
    try:
        os.mkdir(folder + "/many")
        while made < 700:
            os.mkdir(f"{folder}/many/{made}")
            made += 1
    except OSError as error:
        held(error.errno == errno.ENOSPC, error)
    held(made <= 500, made)
""",
    own_box=True,
    harmless=True,
    real=True,
)


@played("bomb", own_box=True)
def inode_fill_in_the_background(stage: Stage) -> Iterator[str]:
    """By a process that goes on between the calls, and by many short calls."""
    code = """
import os, subprocess, sys
fill = '''
i = 0
while i < 20000:
    i += 1
    try:
        open(f"/tmp/b{i}", "w").close()
    except OSError:
        pass
'''
child = subprocess.Popen([sys.executable, "-S", "-c", fill])
"""
    stage.box.cell(code, kernel="filler")
    time.sleep(0.3)
    for call in range(30):
        count = f"for i in range(50): open('/dev/shm/{call}_%d' % i, 'w').close()"
        stage.box.cell(count, kernel="short")
    for folder in ("/tmp", "/dev/shm"):
        seen = stage.box.cell(f"import os; print(len(os.listdir({folder!r})))")
        yield said(int(seen.stdout) <= 500, seen)
    full = stage.box.exec(["sh", "-c", "rm /tmp/b* && echo again > /tmp/x && cat /tmp/x"])
    yield said(full.stdout == b"again\n", "what is full can be emptied")


attack(
    "descriptors",
    "bomb",
    """
kept = []
try:
    while len(kept) < 5000:
        kept.append(os.dup(0))
except OSError as error:
    held(error.errno == errno.EMFILE, error)
for fd in kept:
    os.close(fd)
held(len(kept) <= 1024, len(kept))
""",
)


@played("bomb")
def output_flood(stage: Stage) -> Iterator[str]:
    """Kept by head and tail, counted, and no memory of the host's."""
    box, kept = stage.box, LIMITS.output_bytes
    result = box.exec(["head", "-c", "100000000", "/dev/zero"])
    yield said(len(result.stdout) < kept + 100, len(result.stdout))
    yield said(result.truncated == 100_000_000 - kept, result.truncated)
    ten_gb = box.exec(["sh", "-c", "yes | head -c 10G"], timeout_s=0.5)
    yield said(ten_gb.timed_out and ten_gb.truncated > 0 and len(ten_gb.stdout) < kept + 100, "")
    for endless in (
        lambda: box.exec(["sh", "-c", "cat /dev/zero & cat /dev/zero >&2"], timeout_s=0.5),
        lambda: box.cell("import os\nwhile True: os.write(1, b'x' * 65536)", timeout_s=0.5),
        lambda: box.cell("while True: print('x' * 1000)", timeout_s=0.5),
    ):
        result = endless()
        yield said(result.timed_out and result.wall_s < 2.5, (result.timed_out, result.wall_s))


# ---------------------------------------------------------------- deaf, late and left behind


@played("time", harmless=True)
def deaf_to_every_signal(stage: Stage) -> Iterator[str]:
    """A call ends on time whatever the code ignores."""
    deaf = "import signal, time\nfor n in (1, 2, 3, 15): signal.signal(n, signal.SIG_IGN)\n"
    busy = deaf + "while True: pass"
    result = stage.box.cell(busy, kernel="deaf", timeout_s=0.2)
    yield said(result.timed_out and result.state_lost and result.wall_s < 3, result)
    shell = ["sh", "-c", "trap '' TERM INT HUP QUIT; while :; do :; done"]
    result = stage.box.exec(shell, timeout_s=0.2)
    yield said(result.timed_out and result.exit_code == 137 and result.wall_s < 3, result)


@played("time", harmless=True, real=True)
def orphans_of_a_timeout(stage: Stage) -> Iterator[str]:
    """A daemon (fork, setsid, fork) does not outlive the late call that made it."""
    yield from left_behind(stage, "sleep 77", 0.3)


@played("time", harmless=True, real=True)
def daemons_after_the_end(stage: Stage) -> Iterator[str]:
    """Nor the call that ended by itself."""
    yield from left_behind(stage, "sleep 0.2", 5.0)


def left_behind(stage: Stage, then: str, timeout_s: float) -> Iterator[str]:
    """A daemon that writes its file, unless it is ended before; else it ends by itself."""
    name = f"late-{secrets.token_hex(4)}"
    daemon = f"(setsid sh -c 'sleep 1; : > {name}' >/dev/null 2>&1 &)"
    stage.box.exec(["sh", "-c", f"{daemon}; {then}"], timeout_s=timeout_s)
    time.sleep(1.3)
    try:
        stage.box.get(name)
        yield said(False, "the daemon went on after its call")
    except OSError:
        yield "HELD"


@played("time", harmless=True)
def background_child_that_holds_the_output(stage: Stage) -> Iterator[str]:
    """A child that keeps the pipe open does not keep the call."""
    began = time.monotonic()
    result = stage.box.exec(["sh", "-c", "(setsid sleep 4 &) ; sleep 4 & echo done"])
    yield said(result.stdout == b"done\n" and time.monotonic() - began < 2, result)


@played("time")
def zombies(stage: Stage) -> Iterator[str]:
    """Orphans that have ended are buried."""
    code = "for i in 1 2 3 4 5; do (setsid sh -c 'true &' &); done; sleep 0.1"
    for _ in range(3):
        stage.box.exec(["sh", "-c", code])
    stats = stage.box.exec(["sh", "-c", "cat /proc/[0-9]*/stat"]).text
    dead = [line for line in stats.splitlines() if ") Z " in line]
    yield said(not dead, dead)


@played("time", own_box=True, limits={"lifetime_s": 600.0})
def a_crowd_does_not_starve_the_guest(stage: Stage) -> Iterator[str]:
    """Deadlines hold while every process that may be has something to do."""
    code = """
import os
for _ in range(18):
    if os.fork() == 0:
        while True:
            pass
"""
    stage.box.cell(code, kernel="crowd")
    began = time.monotonic()
    result = stage.box.exec(["sleep", "30"], timeout_s=0.3)
    took = time.monotonic() - began
    yield said(result.timed_out and took < 5.0, took)
    stage.box.cell("os._exit(0)", kernel="crowd")


# ---------------------------------------------------------------- through the shell


def by_shell(stage: Stage, line: str, timeout_s: float = 10.0) -> Any:
    """The result of a line in a shell of its own; nothing runs where there is no box."""
    inside = stage.box.shell("test -e /.turnwise-box && echo box", name="attacker").stdout
    if inside != b"box\n":
        raise Harmed("this is no box; nothing was tried")
    return stage.box.shell(line, name="attacker", timeout_s=timeout_s)


@played("host")
def host_by_the_shell(stage: Stage) -> Iterator[str]:
    """Redirections and /dev/tcp are the shell's own ways out."""
    bait = stage.bait
    reach = f"exec 5<>/dev/tcp/{bait.tcp[0]}/{bait.tcp[1]} && echo reached"
    for line in (
        f"read -r word < {bait.file}; echo $word; cat /proc/1/root{bait.file}",
        f"echo harmed > {bait.target}; echo harmed >> /proc/1/root{bait.target}",
        f"cd {os.path.dirname(bait.file)} && echo reached; cd /proc/1/cwd/.. && echo reached",
        f"timeout 2 bash -c '{reach}'; {reach}",
        "cat /proc/[0-9]*/environ; set; export -p; history",
    ):
        seen = by_shell(stage, line).text
        yield said(bait.secret not in seen and "reached" not in seen.split(), seen)


@played("guest")
def lie_in_the_shells_place(stage: Stage) -> Iterator[str]:
    """A command that writes reports itself deceives nobody but who asked for it."""
    reports = "".join(f"{n} 0\\n" for n in range(1, 40))
    for line in (
        f"for fd in /proc/$$/fd/*; do printf '{reports}' > $fd; done 2>/dev/null",
        f"trap \"printf '{reports}' >&901\" DEBUG EXIT; false",
        "'; printf '1 0' >&901; echo '",
        "PROMPT_COMMAND='kill -9 $$'; eval() { echo mine; }; command() { echo mine; }",
        "cat <&0; cat /proc/$$/fd/0 | head -c 1",
        "exec 901>&- 902>&-",
        "exec sleep 30",
        "set -e; false",
        "exec </dev/null",
    ):
        result = by_shell(stage, line, timeout_s=0.5)
        yield said(result.wall_s < 5.0, (line, result))
        honest = stage.box.shell("echo on; (exit 7)", name="honest")
        yield said((honest.stdout, honest.exit_code) == (b"on\n", 7), (line, honest))
        again = [stage.box.shell("exit 3", name="attacker") for _ in range(3)]
        yield said(any(result.state_lost for result in again), (line, again))


@played("guest", own_box=True)
def signals_by_the_shell(stage: Stage) -> Iterator[str]:
    """The guest is deaf to what its own user may send."""
    for name in ("KILL", "STOP", "TERM", "INT", "SEGV", "QUIT"):
        by_shell(stage, f"kill -{name} 1; kill -{name} -- -1; kill -{name} $PPID", timeout_s=1.0)
        answer = stage.box.shell("echo on", name="other", timeout_s=1.0)
        yield said(answer.stdout == b"on\n" or answer.state_lost, answer)
        yield said(stage.box.exec(["echo", "on"]).stdout == b"on\n", name)


@played("bomb", own_box=True)
def bombs_by_the_shell(stage: Stage) -> Iterator[str]:
    """Processes, memory, output and files, each without end, in one line of shell."""
    for line in (
        "f() { f | f & }; f; sleep 1",
        "x=x; while :; do x=$x$x$x$x; done",
        "yes & yes >&2",
        "while :; do cat /dev/zero & cat /dev/zero >&2 & done",
        "head -c 100000000 /dev/zero > full; echo > again",
        "i=0; while true > n$i; do i=$((i+1)); done",
        "mkfifo pipe; cat pipe; read x < pipe",
    ):
        result = by_shell(stage, line, timeout_s=1.5)
        kept = len(result.stdout) + len(result.stderr)
        yield said(result.wall_s < 6.0 and kept < 2 * LIMITS.output_bytes + 1000, (line, result))
        stage.box.exec(["sh", "-c", "rm -rf ./*"])
        stage.box.shell("exit", name="attacker")
        answer = stage.box.shell("echo on", name="other")
        yield said(answer.stdout == b"on\n" or answer.state_lost, (line, answer))


# ---------------------------------------------------------------- forks


FROM_A_FORK = """
import mmap
def mapped():
    with open("file", "r+b") as file:
        mmap.mmap(file.fileno(), 0)[:6] = b"harmed"
mapped()
with open("d/x", "a") as file:
    file.write("harmed")
os.truncate("cut", 0)
os.link("linked", "again")
with open("again", "w") as file:
    file.write("harmed")
os.rename("d", "moved")
os.unlink("gone")
held(True)
for name in ("hidden", "kept", "moved/hidden"):
    try:
        os.mknod(name, stat.S_IFCHR | 0o644, 0)  # what marks a removed file in an overlay
    except OSError:
        pass
for name in ("opaque", "redirect", "metacopy", "origin"):
    denied(lambda: os.setxattr("moved", "trusted.overlay." + name, b"/.."), errno.EPERM)
    try:
        os.setxattr("moved", "user.overlay." + name, b"/../..")
    except OSError:
        pass
WORKDIR = [line for line in open("/proc/self/mountinfo") if " /workspace " in line]
held(WORKDIR and all("upperdir=/upper," in line or "overlay" not in line for line in WORKDIR))
for name in ("/upper", "/work", "/workspace/../upper", "upper", "work", "/proc/1/root/upper"):
    denied(lambda: os.stat(name), errno.ENOENT, errno.EACCES)
held(sorted(os.listdir("/workspace/..")) == sorted(os.listdir("/")))
denied(call(165, 0, 0, 0, 0x20, 0)) if INTEL else None  # mount: remount
"""


@played("boxes")
def out_of_a_fork(stage: Stage) -> Iterator[str]:
    """What a fork writes, hides, renames and marks stays in the fork."""
    lay = "mkdir d; for f in file d/x cut linked gone kept; do echo untouched > $f; done"
    with stage.open(limits=LIMITS) as stem:
        stem.exec(["sh", "-c", lay])
        listing = ["sh", "-c", "ls -lR --time-style=+; cat file d/x cut linked gone kept"]
        before = stem.exec(listing).stdout
        with contextlib.ExitStack() as stack:
            forks = [stack.enter_context(fork) for fork in stem.fork(2)]
            yield from lines_of(attack_cell(replace(stage, box=forks[0]), OUT_OF_A_FORK))
            yield from goes_on(forks[0])
            yield said(forks[1].exec(listing).stdout == before, "a sibling was changed")
            twig = stack.enter_context(forks[0].fork()[0])
            yield said(b"harmed" in twig.exec(["cat", "file"]).stdout, "a fork of it is another")
        yield said(stem.exec(listing).stdout == before, "the stem was changed")


OUT_OF_A_FORK = Attack("out_of_a_fork", "boxes", FROM_A_FORK)


@played("bomb")
def fill_a_fork_of_a_fork(stage: Stage) -> Iterator[str]:
    """A chain of forks holds no more than one box."""
    fill = "i=0; while head -c 100000 /dev/zero > {0}$i; do i=$((i+1)); done; rm {0}$i; du -sb ."
    many = "i=0; while true > {0}$i; do i=$((i+1)); done; find . | wc -l"
    with contextlib.ExitStack() as stack:
        box = stack.enter_context(stage.open(limits=LIMITS))
        box.exec(["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do head -c 100000 /dev/zero > $i; done"])
        for name in ("one", "two"):
            box = stack.enter_context(box.fork()[0])
            size = int(box.exec(["sh", "-c", fill.format(name)]).stdout.split()[0])
            yield said(size <= LIMITS.disk_mb << 20, f"{size} bytes")
            box.exec(["sh", "-c", f"rm {name}*"])
            count = int(box.exec(["sh", "-c", many.format(name)]).stdout)
            yield said(count <= LIMITS.inodes + 1, f"{count} files")
            box.exec(["sh", "-c", f"rm {name}*"])


# ---------------------------------------------------------------- other boxes


@played("boxes", harmless=True)
def traces_of_an_earlier_box(stage: Stage) -> Iterator[str]:
    """A new box holds nothing of one before it."""
    word = secrets.token_hex(8)
    with stage.open(limits=LIMITS) as first:
        first.put(f"left-{word}", b"1")
        first.exec(["sh", "-c", f"echo {word} > ~/.profile; echo {word} > $TMPDIR/{word}"])
        first.cell(f"left = {word!r}")
    with stage.open(limits=LIMITS) as second:
        seen = second.exec(["sh", "-c", f"ls -a . ~ $TMPDIR; cat ~/.profile; grep -s {word} *"])
        yield said(word not in seen.text, seen)
        yield said(b"NameError" in second.cell("left").stderr, "its kernel knows the other's names")


@played("boxes")
def look_into_another_box(stage: Stage) -> Iterator[str]:
    """Two boxes at once share neither files, processes, sockets nor shared memory."""
    word = f"turnwise-{secrets.token_hex(8)}"
    with stage.open(limits=LIMITS) as other:
        other.put("/tmp/mine", b"1")
        code = (
            "import socket, subprocess\n"
            f"p = subprocess.Popen(['sleep', '66', ], executable='sleep', env={{'W': {word!r}}})\n"
            f"s = socket.socket(socket.AF_UNIX); s.bind(chr(0) + {word!r}); s.listen()\n"
            "t = socket.create_server(('127.0.0.1', 45678))\n"
            f"open('/dev/shm/{word}', 'w').close(); print('ready')"
        )
        yield said(other.cell(code).stdout == b"ready\n", "the other box is not ready")
        tries = (
            f"import os, socket\nprint(os.path.exists('/tmp/mine'), *os.listdir('/dev/shm'))\n"
            f"print({word!r} in open('/proc/net/unix').read())\n"
            "try:\n    socket.create_connection(('127.0.0.1', 45678), 1); print('reached')\n"
            "except OSError: print('refused')"
        )
        seen = stage.box.cell(tries, kernel="looker").text
        yield said(word not in seen and seen.split()[-1] == "refused", seen)
        yield said("True" not in seen, seen)
        seen = stage.box.exec(["sh", "-c", "cat /proc/[0-9]*/environ 2>/dev/null"]).text
        yield said(word not in seen, "its process can be seen")


@played("boxes")
def open_and_close_in_threads(stage: Stage) -> Iterator[str]:
    """Boxes that come and go at once leave no process."""
    word = f"65.{secrets.randbelow(10**9)}"

    def churn() -> None:
        for _ in range(2):
            with stage.open(limits=LIMITS) as box:
                box.cell(f"import subprocess; p = subprocess.Popen(['setsid', 'sleep', '{word}'])")

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield said(not processes_with(word), "a process was left")


def processes_with(word: str) -> list[str]:
    """Host pids whose command line holds `word`."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if word.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(name)
    return found
