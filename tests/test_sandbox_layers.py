"""Laws of forked boxes, whether their files are shared by a layer or copied by an archive."""

import ctypes
import errno
import os
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from boxes import need_bubblewrap, need_docker, wait_until

from turnwise.sandboxes import (
    Limits,
    SandboxDied,
    StartFailed,
    layers,
    mounts,
    open_sandbox,
    warm_pool,
)
from turnwise.sandboxes.host_files import HostFiles
from turnwise.sandboxes.trees import Copier, TooMuch

SMALL = Limits(memory_mb=96, pids=24, disk_mb=8, inodes=800, wall_s=10.0)
SHOW = "find . -type f -readable | sort | xargs -r md5sum; find . -printf '%p %y %m %l\\n' | sort"


def need_layers():
    need_bubblewrap()
    if not layers.usable():
        pytest.skip("only root, on a recent kernel, lets boxes share files")


@pytest.fixture(params=["shared", "copied", "warm", "warm and copied"])
def way(request, monkeypatch):
    """All ways to fork; what each test says holds for all.

    The files are shared with the fork, or put into it, by the host or as an archive.
    """
    need_bubblewrap()
    if request.param in ("shared", "warm"):
        need_layers()
    if "copied" in request.param:
        monkeypatch.setattr(layers, "usable", lambda: False)
        monkeypatch.setattr(HostFiles, "copy_into", lambda *_: False)
    return request.param


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def box(way, stack):
    return stack.enter_context(open_sandbox("bubblewrap", limits=SMALL))


@pytest.fixture(autouse=True)
def the_way(request):
    """The way of the present test; none in one that has no fixture `way`."""
    global _way
    _way = request.getfixturevalue("way") if "way" in request.fixturenames else ""


def fresh(box):
    """Where the way under test has the boxes from that `box` is forked into."""
    from turnwise.sandboxes.open import open_spec

    return (lambda: open_spec("bubblewrap", box.spec)) if "warm" in _way else None


def forked(stack, box, n=1):
    forks = [stack.enter_context(fork) for fork in box.fork(n, fresh=fresh(box))]
    return forks if n > 1 else forks[0]


def is_shared(box):
    return b" /workspace overlay " in box.exec(["cat", "/proc/self/mounts"]).stdout


def sh(box, line):
    result = box.exec(["sh", "-c", line])
    assert result.exit_code == 0, result.text
    return result.stdout


# ---------------------------------------------------------------- what a fork has


def test_the_way_under_test_is_the_way_taken(box, stack, way):
    assert not is_shared(box)
    assert is_shared(forked(stack, box)) == (way == "shared")


def test_a_fork_sees_files_modes_times_and_links_and_nothing_that_is_not_kept(box, stack):
    sh(box, "mkdir -p a/b locked; echo x > a/b/f; chmod 751 a/b/f; touch -d @1000000 a/b/f")
    sh(box, "ln -s b/f a/near; echo odd > \"$(printf 'o\\377')\"; : > locked/in; chmod 500 locked")
    before = sh(box, SHOW)
    sh(box, "ln -s /etc/passwd out; ln -s a/../../x sly; mkfifo pipe; echo 1 > shut; chmod 0 shut")
    sh(
        box,
        "mkdir unread unsearched; echo 1 > unsearched/x; chmod 300 unread; chmod 600 unsearched",
    )
    fork = forked(stack, box)
    assert sh(fork, SHOW) == before + b"./unsearched d 600 \n"
    assert sh(fork, "chmod 700 unsearched; ls unsearched") == b""
    assert sh(fork, "stat -c '%u %g %a %Y' a/b/f") == b"1000 1000 751 1000000\n"
    assert sh(fork, "cat a/near") == b"x\n"


@pytest.mark.parametrize("how", ["exec", "cell", "shell", "put"])
def test_a_fork_has_what_was_written_in_every_way_and_may_change_it(box, stack, how):
    write = {
        "exec": lambda box, text: sh(box, f"printf {text} > file"),
        "cell": lambda box, text: box.cell(f"open('file', 'w').write({text!r})"),
        "shell": lambda box, text: box.shell(f"printf {text} > file"),
        "put": lambda box, text: box.put("file", text.encode()),
    }[how]
    write(box, "stem")
    fork = forked(stack, box)
    assert fork.get("file") == sh(fork, "cat file") == b"stem"
    write(fork, "branch")
    assert (box.get("file"), fork.get("file")) == (b"stem", b"branch")


CHANGES = {
    "overwritten": "echo new > f",
    "appended": "echo more >> f",
    "cut": "truncate -s 1 f",
    "in place": "printf X | dd of=f conv=notrunc status=none",
    "mapped": "python3 -c \"import mmap; f = open('f', 'r+b'); mmap.mmap(f.fileno(), 0)[0] = 88\"",
    "removed": "rm f",
    "moved": "mv f g",
    "made closed": "chmod 600 f",
    "linked": "ln f g; echo new > g",
    "made a folder": "rm f; mkdir f; echo 1 > f/x",
    "folder removed": "rm -r d",
    "folder moved": "python3 -c \"import os; os.rename('d', 'e')\"; echo 1 > e/new",
    "folder made anew": "rm -r d; mkdir d; echo 1 > d/other",
    "folder made a link": "rm -r d; ln -s f d",
    "link aimed elsewhere": "ln -sfn d l",
    "file in a folder": "echo 1 > d/new; rm d/x",
    "git": "cd d; HOME=$PWD git init -q . && git add -A && git -c user.name=a -c user.email=b"
    " commit -qm m && git mv x y && git status --short | grep -q R",
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_fork_changes_its_stem_and_siblings_do_not_see(box, stack, name):
    sh(box, "mkdir -p d/e; echo old > f; echo x > d/x; echo y > d/e/y; ln -s f l")
    before = sh(box, SHOW)
    one, two = forked(stack, box, 2)
    if name == "git" and one.exec(["git", "--version"]).exit_code:
        pytest.skip("this machine has no git")
    sh(one, CHANGES[name])
    after = sh(one, SHOW)
    assert after != before
    assert sh(two, SHOW) == sh(box, SHOW) == before
    assert sh(forked(stack, one), SHOW) == after, "a fork of the fork has the change"
    sh(box, CHANGES[name])
    assert sh(two, SHOW) == before, "a change of the stem reaches no fork"


def test_forks_of_forks_go_as_deep_as_one_likes(box, stack):
    boxes = [box]
    for depth in range(6):
        sh(boxes[-1], f"echo {depth} > made-{depth}; rm -f made-{depth - 1}; echo {depth} >> log")
        boxes.append(forked(stack, boxes[-1]))
    for depth in range(6):
        assert sh(boxes[depth], "cat log").split() == [b"%d" % n for n in range(depth + 1)]
        assert sh(boxes[depth], "ls") == b"log\nmade-%d\n" % depth
    assert is_shared(boxes[1]) == is_shared(boxes[6])
    assert sh(boxes[6], "ls") == b"log\nmade-5\n"


def test_the_stem_goes_on_with_its_kernels_shells_and_open_files(box, stack):
    box.cell("import os; file = open('open', 'w+'); file.write('1'); file.flush(); kept = 5")
    box.shell("mkdir -p deep; cd deep; echo a > here; exec 7>>here")
    fork = forked(stack, box)
    box.cell("file.write('2'); file.flush()")
    box.shell("echo b >&7; mv ../open ../opened")
    assert sh(fork, "cat open deep/here") == b"1a\n"
    assert box.cell("file.seek(0); print(kept, file.read(), os.listdir())").stdout.startswith(
        b"5 12"
    )
    assert box.shell("pwd; cat here ../opened").stdout == b"/workspace/deep\na\nb\n12"


def test_threads_that_fork_forks_get_each_their_own(box, stack):
    sh(box, "echo stem > f")

    def grow(name):
        with ExitStack() as inner:
            boxes = [box]
            for depth in range(2):
                boxes.append(forked(inner, boxes[-1]))
                sh(boxes[-1], f"echo {name}-{depth} >> f")
            return [sh(one, "cat f") for one in boxes]

    with ThreadPoolExecutor(4) as pool:
        grown = list(pool.map(grow, "abcd"))
    for name, (stem, one, two) in zip("abcd", grown, strict=True):
        assert stem == b"stem\n" and one == stem + b"%s-0\n" % name.encode()
        assert two == one + b"%s-1\n" % name.encode()


def test_a_stem_that_writes_all_the_time_can_be_forked(box, stack):
    work = (
        "while :; do for i in 1 2 3 4; do mkdir -p d$i; echo 12345 > d$i/f; mv d$i e$i; rm -r e$i;"
    )
    box.shell(f"({work} ln -sfn /etc l; ln -sfn d1 l; done; done) >/dev/null 2>&1 &")
    for _ in range(5):
        fork = forked(stack, box)
        assert sh(fork, "find . -type f | xargs cat | sort -u") in (b"", b"12345\n")
        sh(fork, "rm -rf ./* && mkdir d1 && echo ours > d1/f")


# ---------------------------------------------------------------- limits


def test_a_fork_has_no_more_room_than_a_box_and_can_be_emptied(box, stack):
    sh(box, "head -c 1500000 /dev/zero > large; for i in $(seq 100); do : > n$i; done")
    fork = forked(stack, box)
    full = fork.exec(["sh", "-c", "head -c 9000000 /dev/zero > more"])
    assert full.exit_code != 0
    assert int(sh(fork, "du -sb --apparent-size . | cut -f1")) <= SMALL.disk_mb << 20
    sh(fork, "rm more large")
    assert fork.cell("for i in range(2000): open(f'many{i}', 'w').close()").exit_code
    assert 600 < int(sh(fork, "find . | wc -l")) <= SMALL.inodes + 1
    sh(fork, "rm -f many*; echo 1 > again; rm n1")
    assert len(sh(box, "ls").split()) == 101


def test_a_fork_may_use_most_of_its_room_even_if_it_rewrites_all_that_it_began_with(box, stack):
    sh(box, "for i in $(seq 20); do head -c 100000 /dev/zero > f$i; done")  # just below a quarter
    fork = forked(stack, box)
    sh(fork, "for i in $(seq 20); do echo 1 >> f$i; done")
    sh(fork, f"head -c {(SMALL.disk_mb << 20) // 4} /dev/zero > more")


def test_the_memory_of_a_fork_is_limited(box, stack):
    sh(box, "echo 1 > f")
    fork = forked(stack, box)
    result = fork.cell("held = [bytearray(4 << 20) for _ in range(60)]", kernel="eater")
    assert result.exit_code == 137
    assert sh(fork, "cat f") == b"1\n"


@pytest.mark.parametrize(
    "fill", ["head -c 5000000 /dev/zero > f", "for i in $(seq 500); do : > $i; done"]
)
def test_more_than_a_layer_may_hold_is_copied(box, stack, fill):
    sh(box, fill)
    fork = forked(stack, box)
    assert not is_shared(fork)
    assert sh(fork, SHOW) == sh(box, SHOW)


def test_folders_too_deep_and_too_many_bytes_are_refused_as_ever(box):
    sh(box, "for i in $(seq 70); do mkdir -p $(printf 'd/%.0s' $(seq $i)); done")
    with pytest.raises(OSError, match="nested deeper"):
        box.fork(fresh=fresh(box))
    sh(box, "rm -r d; truncate -s 60M a; truncate -s 60M b")
    with pytest.raises(OSError, match=r"more than|No space"):
        box.fork(fresh=fresh(box))
    assert sh(box, "ls") == b"a\nb\n"


# ---------------------------------------------------------------- into boxes that are ready


def backends():
    return ["bubblewrap", pytest.param("docker", marks=pytest.mark.docker)]


def opened(backend, **how):
    need_docker() if backend == "docker" else need_bubblewrap()
    return open_sandbox(backend, limits=SMALL, **how)


@pytest.mark.parametrize("backend", backends())
def test_boxes_of_a_pool_take_the_files_as_their_own_user(backend, stack):
    box = stack.enter_context(opened(backend))
    sh(box, "mkdir -p a/b; echo 1 > a/b/f; chmod 640 a/b/f; ln -s b/f a/near; touch -d @9 a/b/f")
    pool = stack.enter_context(warm_pool(backend, limits=SMALL, target=1, max_starting=1))
    forks = [stack.enter_context(fork) for fork in box.fork(2, fresh=pool.lease)]
    assert pool.stats().leased == 2
    for fork in forks:
        assert sh(fork, "cat a/near; stat -c '%a %Y' a/b/f") == b"1\n640 9\n"
        assert sh(fork, "find . -not -user $(id -u) -o -not -group $(id -g)") == b""
        sh(fork, "echo 2 >> a/b/f; rm a/near; rmdir a 2>/dev/null || mv a c")
    assert sh(box, "cat a/near") == b"1\n"
    assert box.fork(1, box.snapshot(), fresh=pool.lease)[0].get("a/b/f") == b"1\n"


def test_a_box_of_another_spec_is_refused_and_closed(stack):
    box, given = stack.enter_context(opened("bubblewrap")), []

    def other():
        given.append(open_sandbox("bubblewrap", limits=Limits(memory_mb=80)))
        return given[-1]

    with pytest.raises(ValueError, match=r"memory_mb=96.*`fresh` gave.*memory_mb=80"):
        box.fork(fresh=other)
    assert not given[0].alive and box.alive


def test_a_fresh_box_that_died_or_is_full_fails_the_fork_and_not_its_stem(stack):
    box = stack.enter_context(opened("bubblewrap"))
    sh(box, "head -c 5000000 /dev/zero > f; mkdir d")

    def dead():
        fresh = opened("bubblewrap")
        signal.pidfd_send_signal(guest_of(fresh), signal.SIGKILL)
        select.select([guest_of(fresh)], [], [], 10.0)
        return fresh

    def full(line):
        fresh = opened("bubblewrap")
        sh(fresh, line)
        return fresh

    with pytest.raises(StartFailed if layers.usable() else SandboxDied):
        box.fork(fresh=dead)
    with pytest.raises(OSError, match="No space"):
        box.fork(fresh=lambda: full("head -c 7000000 /dev/zero > other"))
    with pytest.raises(FileExistsError):
        box.fork(fresh=lambda: full("mkdir f"))
    assert sh(box, "ls") == b"d\nf\n"


@pytest.mark.parametrize("n", [1, 2])
def test_where_the_host_may_not_write_as_another_user_fresh_boxes_get_an_archive(
    stack, n, monkeypatch
):
    need_layers()

    def refuse(*_):
        raise OSError(errno.EOVERFLOW, "no such user")

    monkeypatch.setattr("turnwise.sandboxes.host_files.copy_as", refuse)
    box = stack.enter_context(opened("bubblewrap"))
    sh(box, "mkdir d; echo 1 > d/f")
    for fork in box.fork(n, fresh=lambda: opened("bubblewrap")):
        assert sh(stack.enter_context(fork), "cat d/f") == b"1\n"


def test_the_host_is_itself_again_after_copying(stack, tmp_path):
    need_layers()
    libc, number = ctypes.CDLL(None), ctypes.c_int()
    libc.prctl(1, signal.SIGUSR1, 0, 0, 0)
    try:
        box = stack.enter_context(opened("bubblewrap"))
        sh(box, "echo 1 > f; ln -s f l; mkdir d")
        stack.enter_context(box.fork(fresh=lambda: opened("bubblewrap"))[0])
        (tmp_path / "file").touch()
        assert (tmp_path / "file").stat().st_uid == os.geteuid()
        libc.prctl(2, ctypes.byref(number), 0, 0, 0)
        assert number.value == signal.SIGUSR1 and libc.prctl(3, 0, 0, 0, 0) == 1
    finally:
        libc.prctl(1, 0, 0, 0, 0)


def guest_of(box):
    return box._end.peek()[1].__self__.guest


# ---------------------------------------------------------------- ends


def test_a_box_that_is_gone_has_no_forks(box, stack):
    fork = forked(stack, box)
    box.close()
    with pytest.raises(SandboxDied, match="closed"):
        box.fork(fresh=fresh(box))
    sh(fork, "echo on > f")
    assert sh(forked(stack, fork), "cat f") == b"on\n", "a fork outlives its stem"


def test_a_box_that_dies_meanwhile_has_no_forks(box):
    box._channel.sock.shutdown(2)
    assert wait_until(lambda: box._end.peek() and not is_running(box))
    with pytest.raises(SandboxDied):
        box.fork(fresh=fresh(box))
    assert not box.alive


def is_running(box):
    return any(
        box.id.split("-")[1].encode() in Path("/proc", name, "cmdline").read_bytes()
        for name in os.listdir("/proc")
        if name.isdigit() and Path("/proc", name).exists()
    )


FORKER = """
import sys, time
from turnwise.sandboxes import Limits, open_sandbox
box = open_sandbox("bubblewrap", limits=Limits(memory_mb=96, pids=24))
box.exec(["sh", "-c", "head -c 12000000 /dev/urandom > large"])
forks = box.fork(2)
forks += forks[0].fork()
print(open("/proc/self/mounts").read().count("upperdir=/upper"), len(forks), flush=True)
time.sleep(100)
"""


def shmem_mb():
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:")) / 1024


def test_no_mount_is_ever_seen_and_a_killed_owner_leaves_none(way):
    if way != "shared":
        pytest.skip("no mount is made")
    with subprocess.Popen([sys.executable, "-c", FORKER], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"0 3\n"
            assert "upperdir=/upper" not in Path("/proc/self/mounts").read_text()
            held = shmem_mb()
        finally:
            process.kill()
    assert "upperdir=/upper" not in Path("/proc/self/mounts").read_text()
    assert wait_until(lambda: shmem_mb() < held - 30, 20.0), "12 MB of the stem, 24 MB of layers"


def test_forks_leave_no_descriptor_and_no_process(box, stack, way):
    sh(box, "echo 1 > f")
    box.fork(fresh=fresh(box))[0].close()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for fork in [*box.fork(2, fresh=fresh(box)), *box.fork(1, fresh=fresh(box))]:
        fork.close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_the_agent_finds_no_descriptor_of_its_own_mount(box, stack):
    fork = forked(stack, box)
    seen = fork.exec(["ls", "/proc/self/fd"]).stdout.split()
    assert seen == [b"0", b"1", b"2", b"3"], "3 is of ls itself"


# ---------------------------------------------------------------- where layers cannot be had


def test_where_the_kernel_refuses_boxes_are_forked_by_archives(stack, monkeypatch):
    need_bubblewrap()

    def refuse(*_):
        raise OSError(errno.EPERM, "no")

    box = stack.enter_context(open_sandbox("bubblewrap", limits=SMALL))
    sh(box, "echo 1 > f")
    layers.usable.cache_clear()
    try:
        monkeypatch.setattr(mounts, "mount", refuse)
        assert not layers.usable()
        fork = forked(stack, box)
        assert sh(fork, "cat f") == b"1\n" and not is_shared(fork)
    finally:
        layers.usable.cache_clear()


def test_the_trial_finds_out_when_another_user_cannot_change_the_files(monkeypatch):
    need_layers()
    layers.usable.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(mounts, "owned_by", lambda tree, users: os.dup(tree))
            assert not layers.usable(), "the files belong to root"
    finally:
        layers.usable.cache_clear()
    assert layers.usable()


def test_what_the_kernel_says_about_a_mount_is_in_the_error():
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    with pytest.raises(OSError, match=r"tmpfs: .*size"):
        mounts.mount("tmpfs", {"size": "many"})


# ---------------------------------------------------------------- the copier by itself


@pytest.fixture
def trees(tmp_path):
    """(folder to copy, folder to copy into), and a function that copies one into the other."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()

    def copy(max_files=100):
        fds = [os.open(folder, os.O_RDONLY) for folder in (here, there)]
        try:
            Copier(max_files).copy(*fds)
        finally:
            for fd in fds:
                os.close(fd)

    return here, there, copy


def test_the_copier_stops_at_its_number_of_files_and_at_its_depth(trees):
    here, there, copy = trees
    for name in "abc":
        (here / name).touch()
    with pytest.raises(TooMuch):
        copy(2)
    assert list(there.iterdir()) == []
    copy(3)
    assert sorted(os.listdir(there)) == ["a", "b", "c"]


def test_the_copier_follows_no_link_that_takes_the_place_of_a_file(trees, monkeypatch):
    here, there, copy = trees
    secret = here.parent / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    (here / "file").write_text("1")
    (here / "folder").mkdir()
    one = Copier.one

    def swap(self, entry, *rest):
        path = here / entry.name
        path.rmdir() if path.is_dir() else path.unlink()
        path.symlink_to(secret / "key" if entry.is_file() else secret)
        one(self, entry, *rest)

    monkeypatch.setattr(Copier, "one", swap)
    copy()
    assert list(there.iterdir()) == []


def test_the_copy_of_a_file_that_shrinks_is_filled_up_and_one_that_grows_is_cut(trees, monkeypatch):
    here, there, copy = trees
    (here / "file").write_bytes(b"12345")
    send = os.sendfile
    monkeypatch.setattr(os, "sendfile", lambda out, fd, at, size: send(out, fd, at, min(size, 2)))
    copy()
    assert (there / "file").read_bytes() == b"12345"
    (there / "file").unlink()
    ends = iter([2, 0])
    monkeypatch.setattr(os, "sendfile", lambda out, fd, at, size: send(out, fd, at, next(ends)))
    copy()
    assert (there / "file").read_bytes() == b"12\0\0\0"


def test_the_copier_sets_modes_whatever_the_umask_and_keeps_no_rights_of_a_program(trees):
    here, there, copy = trees
    (here / "file").touch()
    (here / "file").chmod(0o6777)
    (here / "folder").mkdir()
    (here / "folder").chmod(0o1777)
    before = os.umask(0o077)
    try:
        copy()
    finally:
        os.umask(before)
    assert (there / "file").stat().st_mode & 0o7777 == 0o777
    assert (there / "folder").stat().st_mode & 0o7777 == 0o777
