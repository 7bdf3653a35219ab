"""Attacks from inside a box. Each is harmless where it is contained, and small where it is not.

An attack prints `HELD` when it met a wall and `THROUGH` with what it got when it did not.
"""

import os
import secrets
import socket
import tempfile
import threading

import pytest
from boxes import need_bubblewrap, processes_with

from turnwise.sandboxes import Limits, SandboxSpec, bubblewrap, cgroup, open_sandbox

LIMITS = Limits(memory_mb=96, pids=24, disk_mb=4, inodes=500, output_bytes=10_000, wall_s=15.0)

TRY = """
import ctypes, errno, os, socket
LIBC = ctypes.CDLL(None, use_errno=True)
def denied(what, *expected):
    '''HELD if calling `what` fails with one of `expected`, by exception or by -1.'''
    try:
        got = what()
        number = ctypes.get_errno() if got == -1 else None
    except OSError as error:
        number = error.errno
    if number is None or expected and number not in expected:
        print("THROUGH", number)
    else:
        print("HELD")
def call(number, *args):
    return lambda: LIBC.syscall(number, *map(ctypes.c_long, args))
"""


@pytest.fixture(scope="module")
def box():
    need_bubblewrap()
    with open_sandbox(limits=LIMITS) as box:
        yield box


@pytest.fixture(params=["as it is", "without cgroups"])
def limited(request, monkeypatch):
    """A box of its own: with what this user may use, and with what every user may."""
    need_bubblewrap()
    if request.param == "without cgroups":
        monkeypatch.setattr(cgroup, "make", lambda number, limits: cgroup.Cgroup())
    with bubblewrap.open_box(SandboxSpec(limits=LIMITS)) as box:
        yield box


def attack(box, code):
    result = box.cell(TRY + code)
    words = result.stdout.split(b"\n")[:-1]
    assert words and all(word == b"HELD" for word in words), result.text
    assert box.cell("print(1)").stdout == b"1\n", "the box itself goes on"


# ---------------------------------------------------------------- the host


def test_files_of_the_host_are_not_there(box):
    secret = secrets.token_hex(8)
    with tempfile.NamedTemporaryFile("w", suffix=secret) as file:
        os.chmod(file.name, 0o644)
        attack(
            box,
            f"""
for prefix in ("", "/proc/1/root", "/proc/1/cwd/../..", "/proc/self/root"):
    denied(lambda: open(prefix + {file.name!r}))
for path in ("/etc/shadow", "/root", "/home", "/var", "/run", "/sys", "/boot"):
    denied(lambda: os.stat(path), errno.ENOENT)
""",
        )


def test_nothing_of_the_host_can_be_written_to(box):
    attack(
        box,
        """
for path in ("/x", "/usr/x", "/usr/bin/x", "/etc/x", "/etc/passwd", "/dev/x", "/opt/turnwise/x",
             "/.turnwise-box", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger",
             "/proc/sys/vm/drop_caches"):
    denied(lambda: open(path, "w"))
    denied(lambda: os.rename("/usr", "/usr2"))
""",
    )


def test_services_of_the_host_cannot_be_reached(box):
    name = "\0turnwise-" + secrets.token_hex(8)
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(name)
        unix.listen()
        attack(
            box,
            f"""
denied(lambda: socket.create_connection({tcp.getsockname()!r}, 2))
denied(lambda: socket.socket(socket.AF_UNIX).connect({name!r}))
for address in ("1.1.1.1", "169.254.169.254", "10.0.2.2"):
    denied(lambda: socket.create_connection((address, 53), 2))
denied(lambda: socket.getaddrinfo("example.org", 80))
""",
        )


def test_processes_of_the_host_are_neither_seen_nor_signalled(box):
    seen = box.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]).text
    assert "pytest" not in seen
    attack(
        box,
        """
live = [int(name) for name in os.listdir("/proc") if name.isdigit()]
print("HELD" if len(live) < 6 else "THROUGH")
denied(lambda: os.kill(max(live) + 1000, 0), errno.ESRCH)
""",
    )


def test_neither_environment_nor_descriptors_of_the_host_come_in(box, monkeypatch):
    monkeypatch.setenv("TURNWISE_TEST_SECRET", "turnwise-test-secret")
    with open_sandbox(limits=LIMITS) as fresh:
        names = fresh.exec(["env"]).text
        assert "turnwise-test-secret" not in names and "PATH=" in names
        assert fresh.exec(["sh", "-c", "ls /proc/self/fd"]).stdout.split() == [
            b"0",
            b"1",
            b"2",
            b"3",
        ]
        listed = fresh.cell("import os; print(*sorted(map(int, os.listdir('/proc/self/fd'))))")
        assert listed.stdout.split()[:4] == [b"0", b"1", b"2", b"3"]
        assert len(listed.stdout.split()) == 5, "and the socket to the guest"


# ---------------------------------------------------------------- the guest


def test_the_guest_cannot_be_read_traced_or_starved(box):
    attack(
        box,
        """
import resource
for name in ("mem", "environ", "maps", "fd/0", "root", "cwd", "exe"):
    denied(lambda: open("/proc/1/" + name))
denied(lambda: os.listdir("/proc/1/fd"))
denied(lambda: open("/proc/1/oom_score_adj", "w"))
denied(lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0)), errno.EPERM)
denied(lambda: LIBC.ptrace(16, 1, 0, 0), errno.EPERM)
""",
    )


@pytest.mark.skipif(
    os.environ.get("TURNWISE_TEST_KILL") != "1", reason="opt in with TURNWISE_TEST_KILL=1"
)
def test_the_guest_cannot_be_signalled_to_death(box):
    # The code proves by itself that it is in a box before it signals anyone.
    code = """
import os, signal
with open("/proc/1/cmdline") as guest:
    inside = "turnwise.sandboxes.guest" in guest.read()
assert inside and os.path.exists("/.turnwise-box") and os.getpid() < 1000
assert not os.path.exists("/home") and not os.path.exists("/root")
for number in (9, 15, 19, 2, 11, 10, 17):
    os.kill(1, number)
if os.fork() == 0:
    os.kill(-1, 9)
import time; time.sleep(5)
"""
    result = box.cell(code, kernel="killer")
    assert (result.exit_code, result.state_lost) == (137, True), result.text
    assert box.exec(["echo", "on"]).stdout == b"on\n"
    assert box.cell("print(1)").state_lost, "its kernel was killed with all others"
    assert box.cell("print(1)").stdout == b"1\n"


@pytest.mark.parametrize(
    "lie",
    [
        "struct.pack('>IiII', 2**32 - 1, 0, 0, 0)",
        "struct.pack('>IiII', 1, 0, 2**31, 2**31)",
        "struct.pack('>IiII', 1, -5, 0, 0)",
        "os.urandom(16)",
        "b'x' * 100_000",
    ],
)
def test_a_cell_that_answers_in_the_kernels_place_fools_only_itself(box, lie):
    code = f"import os, struct\nos.write(900, {lie})"
    box.cell("kept = 1", kernel="honest")
    result = box.cell(code + "\nprint('after')", kernel="liar", timeout_s=5.0)
    assert (result.exit_code, result.state_lost, result.timed_out) == (137, True, False)
    assert box.cell("print(1)", kernel="liar").stdout == b"1\n"
    box.cell("import os; os._exit(0)", kernel="liar")
    assert box.cell("print(kept)", kernel="honest").stdout == b"1\n"


def test_breaking_the_interpreter_breaks_one_kernel(box):
    for code in (
        "import sys; sys.stdout = sys.stderr = None",
        "import builtins; builtins.print = builtins.compile = builtins.len = None",
        "import os; os.closerange(0, 1024)",
        "import sys; sys.setrecursionlimit(10**9); f = lambda: f(); f()",
        "import ctypes; ctypes.string_at(0)",
        "import signal; signal.raise_signal(19)",
    ):
        result = box.cell(code, kernel="broken", timeout_s=1.0)
        assert 0 <= result.exit_code <= 255
        box.cell("import os; os._exit(0)", kernel="broken", timeout_s=1.0)
    assert box.cell("print(1)").stdout == b"1\n"


# ---------------------------------------------------------------- the kernel


def test_namespaces_and_mounts_are_out_of_reach(box):
    attack(
        box,
        """
for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000):
    denied(lambda: LIBC.unshare(flag), errno.EPERM)
denied(lambda: LIBC.mount(b"none", b"/tmp", b"tmpfs", 0, None), errno.EPERM)
denied(lambda: LIBC.umount2(b"/usr", 2), errno.EPERM)
denied(lambda: LIBC.setns(os.open("/proc/self/ns/net", os.O_RDONLY), 0), errno.EPERM)
denied(lambda: os.chroot("/tmp"), errno.EPERM)
denied(lambda: os.mknod("/tmp/disk", 0o60666, os.makedev(8, 0)), errno.EPERM)
""",
    )
    assert box.exec(["unshare", "-Ur", "true"]).exit_code != 0


def test_dangerous_system_calls_are_denied(box):
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers below are those of x86_64")
    attack(
        box,
        """
for number in (425, 426, 427, 321, 323, 298, 248, 249, 250, 101, 310, 311, 304, 175, 246):
    denied(call(number, 0, 0, 0, 0, 0), errno.EPERM)
denied(call(135, 0x0040000), errno.EPERM)       # personality(ADDR_NO_RANDOMIZE)
denied(call(435, 0, 0), errno.ENOSYS)            # clone3
denied(call(0x40000000 + 39), errno.ENOSYS)      # getpid of the x32 ABI
denied(call(56, 0x10000000 | 17, 0, 0, 0, 0), errno.EPERM)  # clone(NEWUSER)
denied(lambda: LIBC.ioctl(0, 0x5412, b"x"), errno.EPERM)     # TIOCSTI
for family in (16, 17, 38, 40):
    denied(lambda: socket.socket(family, socket.SOCK_RAW), errno.EAFNOSUPPORT)
denied(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1), errno.EPERM)
""",
    )


def test_there_are_no_rights_to_win(box):
    attack(
        box,
        """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    print("HELD" if int(status[name], 16) == 0 else "THROUGH " + name)
for name, value in (("NoNewPrivs", "1"), ("Seccomp", "2")):
    print("HELD" if status[name].strip() == value else "THROUGH " + name)
denied(lambda: os.setuid(0))
denied(lambda: os.setgroups([0]))
denied(lambda: os.chown("/tmp", 0, 0))
denied(lambda: os.nice(-5))
""",
    )


# ---------------------------------------------------------------- resources


def test_a_fork_bomb_meets_its_limit_and_the_box_goes_on(limited):
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
    made = int(limited.cell(code, kernel="bomb").stdout)
    assert 5 < made < LIMITS.pids
    assert limited.exec(["true"]).exit_code in (0, 126)
    limited.cell("import os; os._exit(0)", kernel="bomb")
    assert limited.exec(["echo", "on"]).stdout == b"on\n"


def test_a_fork_bomb_that_flees_is_swept(limited):
    code = "while :; do (setsid sh -c 'while :; do (:&); done' &); done"
    limited.exec(["sh", "-c", code], timeout_s=0.5)
    count = limited.exec(["sh", "-c", "ls -d /proc/[0-9]* | wc -l"])
    assert count.exit_code == 0 and int(count.stdout) <= 5


@pytest.mark.parametrize("count", [1, 6])
def test_a_memory_bomb_is_killed_and_the_box_goes_on(limited, count):
    code = f"""
import multiprocessing, os, time
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
    result = limited.cell(code, kernel="eater")
    assert result.exit_code in (9, 137), result
    assert limited.cell("print(1)").stdout == b"1\n"


def test_the_disk_is_as_small_as_promised(limited):
    for folder in ("/workspace", "/tmp"):
        filled = limited.exec(
            ["sh", "-c", f"head -c 40000000 /dev/zero > {folder}/full; wc -c {folder}/full"]
        )
        assert b"No space" in filled.stderr
        assert int(filled.stdout.split()[0]) <= LIMITS.disk_mb << 20
        assert limited.exec(["rm", f"{folder}/full"]).exit_code == 0


def test_endless_files_are_stopped(limited):
    code = "i = 0\nwhile True:\n    i += 1\n    open(f'/workspace/f{i}', 'w').close()"
    result = limited.cell(code)
    assert result.state_lost and not result.timed_out and b"500 files" in result.stderr
    shell = limited.exec(["sh", "-c", "i=0; while :; do i=$((i+1)); : > /tmp/g$i; done"])
    assert shell.exit_code == 137 and b"500 files" in shell.stderr
    slow = limited.cell("import time; time.sleep(0.2); print(1)")
    assert slow.stdout == b"1\n", "what is over the limit can still be used, to delete"
    assert limited.exec(["sh", "-c", "rm -r /workspace/* /tmp/*"]).exit_code == 0
    assert limited.cell("print(1)").stdout == b"1\n"


def test_a_flood_of_output_costs_the_host_nothing(box):
    result = box.exec(["head", "-c", "300000000", "/dev/zero"])
    assert len(result.stdout) < LIMITS.output_bytes + 100
    assert result.truncated == 300_000_000 - LIMITS.output_bytes
    endless = box.exec(["sh", "-c", "cat /dev/zero & cat /dev/zero >&2"], timeout_s=0.5)
    assert endless.timed_out and endless.wall_s < 2.0
    endless = box.cell("import os\nwhile True: os.write(1, b'x' * 65536)", timeout_s=0.5)
    assert endless.timed_out and endless.wall_s < 2.0


def test_using_up_descriptors_does_not_reach_the_guest(box):
    code = "import os\nheld = []\nwhile True: held.append(os.dup(0))"
    assert b"Too many open files" in box.cell(code, kernel="hoarder").stderr
    assert box.cell("print(len(held))", kernel="hoarder").exit_code == 0
    assert box.exec(["echo", "on"]).stdout == b"on\n"


def test_files_larger_than_the_limit_cannot_be_made():
    need_bubblewrap()
    with open_sandbox(limits=Limits(file_bytes=1 << 20)) as box:
        assert box.exec(["sh", "-c", "head -c 2000000 /dev/zero > f"]).exit_code != 0
        assert len(box.get("f")) == 1 << 20
        result = box.cell("open('g', 'wb').write(b'x' * 2000000)")
        assert b"File too large" in result.stderr and not result.state_lost
        with pytest.raises(OSError, match="over the limit"):
            box.put("h", b"x" * 2_000_000)


def test_racing_a_folder_against_a_link_never_leads_a_put_outside(box):
    # /workspace/spot is a folder and a link to /tmp by turns; a put may fail but not land in /tmp.
    code = """
import os, threading, time
def flip():
    while True:
        try:
            os.rename("/workspace/spot", "/workspace/aside")
            os.symlink("/tmp", "/workspace/spot")
            os.unlink("/workspace/spot")
            os.rename("/workspace/aside", "/workspace/spot")
        except OSError:
            pass
os.makedirs("/workspace/spot", exist_ok=True)
threading.Thread(target=flip, daemon=True).start()
"""
    box.cell(code, kernel="racer")
    outcomes = []
    for i in range(300):
        try:
            box.put("spot/landed", b"%d" % i)
            outcomes.append(True)
        except OSError:
            outcomes.append(False)
    box.cell("os._exit(0)", kernel="racer")
    assert any(outcomes)
    assert box.exec(["ls", "/tmp/landed"]).exit_code != 0


def test_boxes_do_not_see_each_other(box):
    with open_sandbox(limits=LIMITS) as other:
        other.put("/tmp/mine", b"1")
        word = f"66.{secrets.randbelow(10**9)}"
        other.cell(f"import subprocess; p = subprocess.Popen(['sleep', '{word}'])")
        assert box.exec(["ls", "/tmp/mine"]).exit_code != 0
        assert word not in box.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"]).text
        assert processes_with(word)
    assert not processes_with(word)


def test_four_threads_that_open_and_close_boxes_leave_nothing():
    need_bubblewrap()
    word = f"65.{secrets.randbelow(10**9)}"

    def churn():
        for _ in range(2):
            with open_sandbox(limits=LIMITS) as box:
                box.cell(f"import subprocess; p = subprocess.Popen(['setsid', 'sleep', '{word}'])")

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not processes_with(word)
