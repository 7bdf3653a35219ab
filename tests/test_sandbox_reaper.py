"""Whatever ends the owner of a box, nothing of the box is left, and nothing else is touched."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from boxes import need_bubblewrap, need_docker, processes_with, wait_until

from turnwise.sandboxes import Limits, cgroup, open_sandbox, owner, reaper, strays
from turnwise.sandboxes.reaper import Container

pytestmark = pytest.mark.xdist_group("engine")  # an engine at work mounts, too
SMALL = Limits(memory_mb=96, pids=24, disk_mb=4, wall_s=10.0)
NOW = 1e9

OWNER = """
import sys, time
from turnwise.sandboxes import Limits, open_sandbox, owner
owner.own_folder().joinpath("socket").touch()
limits = Limits(memory_mb=96, pids=24, disk_mb=4)
boxes = [open_sandbox(sys.argv[1], limits=limits) for _ in range(int(sys.argv[2]))]
for box in boxes:
    box.cell(f"import subprocess; subprocess.Popen(['setsid', 'sleep', {sys.argv[3]!r}])")
print(owner.owner_of_this_process(), *(box.id for box in boxes), flush=True)
time.sleep(100)
"""


@pytest.fixture
def word():
    """The command line of a process that only this test starts."""
    return f"77.{os.getpid()}{time.time_ns() % 10**9}"


@contextlib.contextmanager
def an_owner(backend: str, word: str, boxes: int = 1):
    """Start a process that owns boxes; yields it and what it printed."""
    argv = [sys.executable, "-c", OWNER, backend, str(boxes), word]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().split()
        finally:
            process.kill()


def cgroups_of(name: str) -> list[Path]:
    pid, start = name.split(":")[1:]
    pattern = f"turnwise-*-{pid}-{start}-*"
    return [path for parent, _, _ in cgroup._parents() for path in parent.glob(pattern)]


def folders_of(name: str) -> list[Path]:
    pid, start = name.split(":")[1:]
    return list(owner._folders().glob(f"*-{pid}-{start}"))


def mounts(without: str = "no such word") -> set[str]:
    return {m for m in Path("/proc/self/mounts").read_text().splitlines() if without not in m}


def sweep_in_a_new_process(backend: str) -> None:
    code = "import sys; from turnwise.sandboxes import open_sandbox; open_sandbox(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, backend], check=True, timeout=60)


# ---------------------------------------------------------------- owners


def test_this_process_is_alive_and_owns_what_its_child_does_not():
    name = owner.owner_of_this_process()
    assert owner.is_alive(name) and owner.pid_of(name) == os.getpid()
    assert owner.is_of_this_boot(name)
    pid = os.fork()
    if pid == 0:
        os._exit(int(owner.owner_of_this_process() == name))
    assert os.waitpid(pid, 0)[1] == 0


def test_an_owner_ends_with_its_process_even_while_nobody_has_buried_it():
    with subprocess.Popen(["sleep", "100"]) as process:
        world, start = owner._world(), owner.start_time(process.pid)
        name = f"{world}:{process.pid}:{start}"
        assert owner.is_alive(name)
        assert not owner.is_alive(f"{world}:{process.pid}:{start - 1}"), "a pid given anew"
        process.kill()
        assert wait_until(lambda: not owner.is_alive(name))
    assert not owner.is_alive(name)


def test_an_owner_that_cannot_be_judged_from_here_counts_as_alive():
    world = owner._world()
    boot = world.rpartition("-")[0]
    assert owner.is_alive(f"another-boot-1:{2**22 + 1}:1")
    assert owner.is_alive(f"{boot}-1:{2**22 + 1}:1"), "another PID namespace"
    assert not owner.is_of_this_boot(f"another-boot-1:{2**22 + 1}:1")
    with pytest.raises(ValueError, match="got 'nobody'"):
        owner.is_alive("nobody")


def test_a_process_that_proc_hides_counts_as_alive(monkeypatch):
    def hidden(pid):
        raise FileNotFoundError

    name = f"{owner._world()}:1:1"
    assert not owner.is_alive(name)
    monkeypatch.setattr(owner, "stat_of", hidden)
    assert owner.is_alive(name)


def test_folders_of_the_dead_are_removed_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(owner.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(owner, "_held", None)
    mine = owner.own_folder()
    short = mine.name.rsplit("-", 2)[0]
    pid, space = 2**22 + 1, short.split("-")[1]
    names = f"{short}-{pid}-5", f"{short}1-{pid}-5", f"00000000-{space}-1-1", "mine"
    dead, elsewhere, rebooted, odd = (mine.parent / name for name in names)
    for folder in (dead, elsewhere, rebooted, odd):
        folder.mkdir()
        (folder / "file").touch()
    assert sorted(owner.sweep_folders()) == sorted([dead, rebooted])
    assert {path.name for path in mine.parent.iterdir()} == {mine.name, elsewhere.name, "mine"}


def test_a_folder_that_is_still_locked_is_not_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(owner.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = owner._folders() / f"{owner._short(owner._world())}-{2**22 + 1}-5"
    folder.mkdir()
    lock = os.open(folder, os.O_RDONLY)
    owner.fcntl.flock(lock, owner.fcntl.LOCK_SH)
    assert owner.sweep_folders() == []
    os.close(lock)
    assert owner.sweep_folders() == [folder]


def test_a_folder_that_somebody_else_could_have_made_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(owner.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(owner, "_held", None)
    (tmp_path / f"turnwise-run-{os.geteuid()}").mkdir()
    (tmp_path / f"turnwise-run-{os.geteuid()}").chmod(0o777)
    with pytest.raises(PermissionError, match="remove it"):
        owner.own_folder()


# ---------------------------------------------------------------- kill -9


@pytest.mark.slow
def test_twenty_owners_killed_with_boxes_leave_nothing_after_the_next_start(word):
    need_bubblewrap()
    before, names = mounts(without="/overlay2/"), []
    for _ in range(20):
        with an_owner("bubblewrap", word, boxes=2) as (process, said):
            names.append(said[0])
            assert len(said) == 3
            process.kill()
    sweep_in_a_new_process("bubblewrap")
    assert wait_until(lambda: not processes_with(word))
    assert mounts(without="/overlay2/") <= before, "but for those of an engine"
    assert [path for name in names for path in cgroups_of(name) + folders_of(name)] == []
    assert not any(owner.is_alive(name) for name in names)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes cgroups")
def test_a_sweeper_in_another_cgroup_finds_those_of_the_dead(word, monkeypatch):
    need_bubblewrap()
    with an_owner("bubblewrap", word) as (process, said):
        made = cgroups_of(said[0])
        process.kill()
    if not made:
        pytest.skip("no cgroup controller may be used here")
    monkeypatch.setattr(cgroup, "_parents", list)
    assert wait_until(lambda: not processes_with(word))
    assert wait_until(lambda: reaper.sweep(containers=False) and not any(p.exists() for p in made))
    assert not folders_of(said[0])


def test_the_sweep_spares_an_owner_that_lives(word):
    need_bubblewrap()
    with an_owner("bubblewrap", word) as (_, said):
        kept = cgroups_of(said[0]) + folders_of(said[0])
        assert kept
        sweep_in_a_new_process("bubblewrap")
        assert cgroups_of(said[0]) + folders_of(said[0]) == kept
        assert processes_with(word)


# ---------------------------------------------------------------- killed amid a start

STARTING = """
import os, signal
from turnwise.sandboxes import bubblewrap, bubblewrap_command, open_sandbox
name = f"another-boot-1:{os.getpid()}:1"  # which no sweep ends: the box must do so by itself
bubblewrap_command.owner_of_this_process = lambda: name
print(name, flush=True)
bubblewrap._guest_pid = lambda info: os.kill(os.getpid(), signal.SIGKILL)
open_sandbox("bubblewrap")
"""


def test_an_owner_that_is_killed_while_its_box_starts_leaves_no_bwrap_that_waits_for_it():
    need_bubblewrap()
    argv = [sys.executable, "-c", STARTING]
    names = []
    for _ in range(3):
        killed = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
        assert killed.returncode == -signal.SIGKILL
        names.append(killed.stdout.strip())
    # Also what has not become a bwrap yet: its owner is in its command line from the beginning.
    try:
        assert wait_until(lambda: not any(processes_with(name) for name in names))
    finally:
        for box in [box for box in strays.seen_boxes() if box.owner in names]:
            strays._end(box)


@contextlib.contextmanager
def looks_like_a_box_of(name: str):
    """Start a process with the command line of a bwrap that this owner started."""
    words = [*strays.signature(name), strays._GUEST.decode(), "0123456789", "7"]
    argv = ["bwrap", "-c", "import time; time.sleep(100)", *words]
    with subprocess.Popen(argv, executable=sys.executable) as process:
        try:
            assert wait_until(lambda: process.pid in [box.pid for box in strays.seen_boxes()])
            yield process
        finally:
            process.kill()


def test_a_sweep_ends_the_boxes_of_owners_that_provably_ended_and_no_others():
    world, mine = owner._world(), owner.owner_of_this_process()
    dead, elsewhere = f"{world}:{2**22 + 1}:1", f"another-boot-1:{2**22 + 1}:1"
    with contextlib.ExitStack() as started:
        stray, *spared = [
            started.enter_context(looks_like_a_box_of(name))
            for name in (dead, mine, elsewhere, "nobody")
        ]
        reaper.sweep(containers=False)
        assert stray.wait(10) == -signal.SIGKILL
        assert [process.poll() for process in spared] == [None] * 3


def test_a_number_that_went_to_another_process_is_not_killed():
    with looks_like_a_box_of(owner.owner_of_this_process()) as process:
        (box,) = [box for box in strays.seen_boxes() if box.pid == process.pid]
        assert not strays._end(replace(box, argv=b"bwrap of before"))
        assert process.poll() is None and strays._end(box)


# ---------------------------------------------------------------- SIGTERM


def test_a_sigterm_ends_the_boxes_and_then_the_process(word):
    need_bubblewrap()
    with an_owner("bubblewrap", word, boxes=2) as (process, said):
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM
        assert not processes_with(word)
        assert cgroups_of(said[0]) == []


THREADED = """
import sys, threading, time
from turnwise.envs.sandbox_env import SandboxEnv
from turnwise.sandboxes import Limits, open_sandbox, owner, warm_pool
limits = Limits(memory_mb=96, pids=24, disk_mb=4)
made = SandboxEnv(backend="bubblewrap") if sys.argv[1] == "environment" else warm_pool(target=0)
boxes = []
thread = threading.Thread(target=lambda: boxes.append(open_sandbox("bubblewrap", limits=limits)))
thread.start()
thread.join()
print(owner.owner_of_this_process(), flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("what", ["environment", "pool"])
def test_a_sigterm_ends_boxes_that_only_threads_have_started(what):
    need_bubblewrap()
    argv = [sys.executable, "-c", THREADED, what]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        name = process.stdout.readline().strip()
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM
        assert cgroups_of(name) == []


HANDLED = """
import os, signal, time
{early}
from turnwise.sandboxes import open_sandbox
box = open_sandbox()
{late}
os.kill(os.getpid(), signal.SIGTERM)
print(box.cell("print(6 * 7)").text.strip(), flush=True)
"""
HANDLER = "signal.signal(signal.SIGTERM, lambda *_: print('saving', flush=True))"


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_handler_of_somebody_else_stays_and_keeps_its_boxes(when):
    need_bubblewrap()
    code = HANDLED.format(**{"early": "", "late": "", when: HANDLER})
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout.split() == ["saving", "42"], ran.stderr
    assert ran.returncode == 0


def test_a_handler_is_set_in_the_main_thread_only():
    code = """
import signal, threading
from turnwise.sandboxes import reaper
thread = threading.Thread(target=lambda: print(reaper.end_at_sigterm()))
thread.start()
thread.join()
print(reaper.end_at_sigterm(), reaper.end_at_sigterm())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout.split() == ["False", "True", "True"], ran.stderr


# ---------------------------------------------------------------- containers


def container(**changes) -> Container:
    fields = {"id": "1", "name": "box", "owner": owner.owner_of_this_process(),
              "deadline": NOW + 1, "status": "running"}  # fmt: skip
    return Container(**fields | changes)


DEAD = f"{owner._world()}:{2**22 + 1}:1"
ELSEWHERE = f"another-boot-1:{2**22 + 1}:1"


@pytest.mark.parametrize(
    ("found", "leftover"),
    [
        (container(), False),
        (container(deadline=NOW - 1), True),
        (container(owner=DEAD), True),
        (container(owner=DEAD, status="created"), True),
        (container(owner=ELSEWHERE), False),
        (container(owner=ELSEWHERE, deadline=NOW - 1), True),
        (container(owner=ELSEWHERE, status="created"), False),
        (container(owner=ELSEWHERE, status="exited"), True),
        (container(owner="nonsense", status="exited"), False),
        (container(owner="nonsense", deadline=NOW - 1), True),
    ],
)
def test_a_container_is_a_leftover_only_by_proof_or_by_its_deadline(found, leftover):
    assert found.is_leftover(NOW) is leftover


def ours() -> set[str]:
    return {found.name for found in reaper.list_containers()}


@pytest.mark.docker
@pytest.mark.slow
def test_twenty_owners_killed_with_containers_leave_nothing_after_the_next_start(word):
    need_docker()
    before, left = mounts(), set()
    for _ in range(20):
        with an_owner("docker", word) as (process, said):
            left |= set(said[1:])
            process.kill()
    sweep_in_a_new_process("docker")
    assert len(left) == 20
    assert wait_until(lambda: not processes_with(word) and not ours() & left, 20)
    assert mounts() <= before


@pytest.mark.docker
def test_the_sweep_removes_a_container_of_a_dead_owner_and_spares_the_others(word):
    need_docker()
    from turnwise.sandboxes.docker_engine import connect

    api = connect().api
    labels = {"dead": {owner.OWNER_LABEL: DEAD}, "late": {owner.DEADLINE_LABEL: "1"},
              "alive": {}, "foreign": None}  # fmt: skip
    made = {}
    for name, more in labels.items():
        own = {owner.OWNER_LABEL: owner.owner_of_this_process(), owner.DEADLINE_LABEL: "9e9"}
        given = {} if more is None else own | more
        made[name] = api.create_container("turnwise/base", "true", labels=given)["Id"]
    try:
        reaper.sweep()
        left = {entry["Id"] for entry in api.containers(all=True)} & set(made.values())
        assert left == {made["alive"], made["foreign"]}
    finally:
        for id in made.values():
            with contextlib.suppress(Exception):
                api.remove_container(id, force=True)


def test_without_an_engine_there_is_nothing_to_sweep(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    assert reaper.sweep(containers=True).containers == ()


# ---------------------------------------------------------------- the minute thread


def test_leftovers_are_swept_while_boxes_live_and_the_thread_ends_with_them(monkeypatch):
    need_bubblewrap()
    swept = []
    monkeypatch.setattr(reaper, "PERIOD_S", 0.02)
    monkeypatch.setattr(reaper, "sweep", lambda **how: swept.append(how))
    monkeypatch.setattr(reaper, "_running", False)
    monkeypatch.setattr(reaper, "_boxes", type(reaper._boxes)())
    with open_sandbox("bubblewrap", limits=SMALL):
        assert wait_until(lambda: len(swept) >= 3)
    assert wait_until(lambda: not reaper._running)
