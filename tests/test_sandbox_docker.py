"""Boxes by docker, on a real engine; they keep the same promises as those by bubblewrap."""

import contextlib
import errno
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from boxes import need_bubblewrap, need_docker, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.cli.sandbox_image import build_image
from turnwise.sandboxes import (
    Limits,
    NetPolicy,
    NoSafeSandbox,
    Sandbox,
    SandboxDied,
    SandboxSpec,
    StartFailed,
    Unsupported,
    docker,
    docker_config,
    docker_engine,
    docker_image,
    open_sandbox,
    owner,
    seccomp,
)

pytestmark = pytest.mark.docker
SMALL = Limits(memory_mb=96, pids=24, disk_mb=4, inodes=500, output_bytes=2000, wall_s=10.0)
NOWHERE = "unix:///nowhere/docker.sock"


@pytest.fixture(scope="module")
def box():
    need_docker()
    with open_sandbox("docker", limits=SMALL) as box:
        yield box


@pytest.fixture(scope="module")
def twin():
    need_bubblewrap()
    with open_sandbox("bubblewrap", limits=SMALL) as twin:
        yield twin


def api():
    return docker_engine.connect().api


def names():
    """Every container that the engine has, running or not."""
    return {name.lstrip("/") for found in api().containers(all=True) for name in found["Names"]}


def own_containers():
    """Those of this process; others may use the same engine."""
    label = f"{owner.OWNER_LABEL}={owner.owner_of_this_process()}"
    return {found["Id"] for found in api().containers(all=True, filters={"label": label})}


def mounts_of(name):
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]


# ---------------------------------------------------------------- the same promises

EXECS = {
    "output and exit code": ["sh", "-c", "echo out; echo err >&2; exit 3"],
    "a signal": ["sh", "-c", "kill -SEGV $$"],
    "no such program": ["no-such-program"],
    "a folder as program": ["/usr"],
    "no shell": ["echo", "a; echo b", "$HOME"],
    "a child that holds the output": ["sh", "-c", "sleep 77 & echo done"],
    "a daemon": ["sh", "-c", "setsid sleep 77 >/dev/null 2>&1 & :"],
    "a flood": ["sh", "-c", "echo first; head -c 300000000 /dev/zero; echo last"],
    "exactly the limit": ["head", "-c", "2000", "/dev/zero"],
    "the environment": ["env", "-u", "USER"],
    "the streams": ["sh", "-c", "ls /proc/self/fd; readlink /proc/self/cwd"],
    "the tools": ["sh", "-c", "for p in bash git awk grep sed find python3; do type $p; done"],
}


@pytest.mark.parametrize("argv", EXECS.values(), ids=EXECS)
def test_a_program_gives_the_same_result_as_under_bubblewrap(box, twin, argv):
    assert seen(box.exec(argv)) == seen(twin.exec(argv))


@pytest.mark.parametrize(
    "more",
    [
        {"cwd": "/no/such/folder"},
        {"stdin": b"x" * 300_000, "cwd": "/tmp", "env": {"A": "b"}},
        {"timeout_s": 0.3},
    ],
    ids=["no such folder", "input, folder, environment", "a timeout"],
)
def test_a_programs_surroundings_are_the_same_as_under_bubblewrap(box, twin, more):
    line = "setsid sh -c 'trap \"\" TERM INT; sleep 77 &' & sleep 77"
    argv = ["sh", "-c", line if "timeout_s" in more else "wc -c; pwd; echo $A"]
    began = time.monotonic()
    assert seen(box.exec(argv, **more)) == seen(twin.exec(argv, **more))
    assert time.monotonic() - began < 6.0
    assert "sleep" not in box.exec(["sh", "-c", "cat /proc/[0-9]*/comm"]).text


CELLS = {
    "state": ["a = 1", "print(a + 1)"],
    "an exception": ["def f():\n    return 1 / 0\nprint('before')\nf()"],
    "a syntax error": ["a b"],
    "leaving": ["exit(3)", "raise SystemExit('no')"],
    "all its writers": ["import os, subprocess\nos.write(1, b'1')\nsubprocess.run(['echo', '2'])"],
    "a flood": ["print('first'); print('x' * 1_000_000); print('last')"],
    "its end": ["import os; os._exit(4)", "print(1)"],
    "a kill": ["import os; os.kill(os.getpid(), 9)", "print(1)"],
    "late": ["kept = 6", "import time\nprint('begun')\ntime.sleep(77)", "print(kept)"],
    "deaf": ["import signal, time\nsignal.signal(2, signal.SIG_IGN)\ntime.sleep(77)", "print(1)"],
    "children": ["import subprocess\nsubprocess.run(['setsid', 'sleep', '77'])", "print(2)"],
}


@pytest.mark.parametrize("name", CELLS)
def test_cells_give_the_same_results_as_under_bubblewrap(box, twin, name):
    for code in CELLS[name]:
        results = [each.cell(code, kernel=name, timeout_s=0.7) for each in (box, twin)]
        assert seen(results[0]) == seen(results[1]), code


FILES = {
    "write and read": lambda box: (box.put("a/b", b"\0\xff", mode=0o600), box.get("a/b")),
    "absolute": lambda box: (box.put("/tmp/c", b"1"), box.get("/workspace/../tmp/c")),
    "missing": lambda box: box.get("no/such"),
    "a folder": lambda box: box.get("/usr"),
    "a link": lambda box: box.exec(["ln", "-s", "/etc/passwd", "l"]) and box.get("l"),
    "write over a link": lambda box: box.exec(["ln", "-s", "/tmp/x", "m"]) and box.put("m", b""),
    "a pipe": lambda box: box.exec(["mkfifo", "p"]) and box.get("p"),
    "a device": lambda box: box.get("/dev/zero"),
    "too long for the caller": lambda box: (box.put("d", b"12345"), box.get("d", max_bytes=4)),
    "too long for the disk": lambda box: box.put("e", b"x" * (5 << 20)),
    "the system": lambda box: box.put("/usr/bin/sh", b""),
    "a new top folder": lambda box: box.put("/new/x", b""),
    "the root": lambda box: box.put("/", b""),
    "outside": lambda box: box.put("../../x", b""),
    "the token": lambda box: box.put("/.turnwise-box", b""),
}


@pytest.mark.parametrize("act", FILES.values(), ids=FILES)
def test_files_go_in_and_out_as_under_bubblewrap(box, twin, act):
    assert outcome(act, box) == outcome(act, twin)
    for each in (box, twin):
        each.exec(["sh", "-c", "rm -rf /workspace/* /tmp/*"])


def outcome(act, box):
    try:
        return act(box)
    except OSError as error:
        return errno.errorcode[error.errno]


def seen(result):
    """All of a result but its time, and the parts of its text that differ by design."""
    lines = [line for line in result.stdout.split(b"\n") if not line.startswith(b"PWD=")]
    return (
        sorted(lines) if b"PATH=" in result.stdout else result.stdout,
        result.stderr.replace(b"/usr/local/bin", b"/usr/bin"),
        result.exit_code,
        result.timed_out,
        result.truncated,
        result.state_lost,
    )


def test_a_shell_a_snapshot_and_a_fork_work_in_it(box):
    assert isinstance(box, Sandbox) and box.backend == "docker"
    box.shell("cd /tmp; x=1")
    assert box.shell("pwd; echo $x").stdout == b"/tmp\n1\n"
    box.put("kept", b"2")
    with contextlib.ExitStack() as stack:
        (copy,) = (stack.enter_context(each) for each in box.fork(1))
        assert copy.get("kept") == b"2" and copy.id != box.id
    box.exec(["rm", "kept"])


# ---------------------------------------------------------------- the walls


def test_the_container_has_every_flag_that_isolates_it(box):
    host = api().inspect_container(box.id)["HostConfig"]
    profile = json.loads(host["SecurityOpt"][1].removeprefix("seccomp="))
    assert profile == seccomp.docker_profile() and host["SecurityOpt"][0] == "no-new-privileges"
    expected = {
        **{"NetworkMode": "none", "IpcMode": "private", "ReadonlyRootfs": True},
        **{"CapDrop": ["ALL"], "CapAdd": None, "Privileged": False, "AutoRemove": True},
        **{"Memory": 96 << 20, "MemorySwap": 96 << 20, "PidsLimit": 24, "NanoCpus": 10**9},
        **{"PortBindings": None, "Binds": None, "Devices": None, "Init": False},
    }
    assert {name: host[name] for name in expected} == expected
    assert host["LogConfig"]["Type"] == "none"
    assert all(mount["ReadOnly"] for mount in host["Mounts"])


def test_its_user_is_nobodys_of_the_host_and_can_win_no_right(box, twin):
    uids = {int(line.split(":")[2]) for line in Path("/etc/passwd").read_text().splitlines()}
    with open_sandbox("docker", limits=SMALL) as other:
        own = [int(each.exec(["id", "-u"]).stdout) for each in (box, other)]
    assert not uids & {*own} and own[0] != own[1] and 0 not in own
    assert box.exec(["id", "-un"]).stdout == twin.exec(["id", "-un"]).stdout == b"agent\n"
    lines = box.exec(["cat", "/proc/self/status"]).text.splitlines()
    status = dict(line.split(":\t", 1) for line in lines)
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"


def test_our_own_filter_is_on_where_dockers_is_weaker(box):
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers below are those of x86_64")
    numbers = {name: row[0] for name, row in seccomp.DENIED.items()}
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def answer(*words):
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(*map(ctypes.c_long, words)) < 0 else 0
print({{name for name, number in {numbers}.items() if answer(number, 0, 0, 0, 0, 0) != 1}})
print([answer(272, bit) for bit in (0x10000000, 0x20000, 0x40000000)], answer(435, 0, 0))
"""
    assert box.cell(code).stdout == b"set()\n[1, 1, 1] 38\n"


def test_what_the_host_shares_is_gone_once_the_guest_runs(box):
    shown = box.exec(["sh", "-c", "ls -A /opt/turnwise/sandboxes /sys; cat /.turnwise-box | wc -c"])
    assert shown.stdout.split() == [b"/opt/turnwise/sandboxes:", b"/sys:", b"32"]
    code = "import socket\ns = socket.socket(socket.AF_UNIX)\n"
    code += "s.connect('/opt/turnwise/sandboxes/channel.sock')"
    assert b"FileNotFoundError" in box.cell(code).stderr
    assert not (owner.own_folder() / box.id).exists()


@pytest.mark.parametrize("folder", ["/workspace", "/tmp", "/dev/shm"])
def test_no_folder_holds_more_files_or_bytes_than_the_limits_say(box, folder):
    many = f"for i in range(2000): open(f'{folder}/f{{i}}', 'w').close()"
    assert b"No space left" in box.cell(many).stderr
    assert int(box.exec(["sh", "-c", f"ls {folder} | wc -l"]).stdout) <= SMALL.inodes
    assert box.exec(["sh", "-c", f"rm {folder}/f*"]).exit_code == 0
    large = box.exec(["sh", "-c", f"head -c 40000000 /dev/zero > {folder}/large"])
    assert b"No space left" in large.stderr and large.exit_code
    assert box.exec(["rm", f"{folder}/large"]).exit_code == 0


def test_processes_and_memory_are_bounded_and_the_box_goes_on(box):
    forks = "import os, time\nmade = 0\ntry:\n    while made < 90:\n        if not os.fork():"
    forks += "\n            time.sleep(30)\n        made += 1\nexcept OSError: print(made)"
    assert 5 < int(box.cell(forks, kernel="forks").stdout) < SMALL.pids
    box.cell("import os; os._exit(0)", kernel="forks")
    eaten = box.cell("held = [bytearray(1 << 20) for _ in range(300)]", kernel="eater")
    assert eaten.exit_code == 137 and eaten.state_lost
    assert box.cell("print(1)").stdout == b"1\n"


def test_a_tenth_of_a_core_is_not_a_whole_one():
    need_docker()
    code = "import os, time\nend = time.monotonic() + 1\nbegan = sum(os.times()[:2])\n"
    code += "while time.monotonic() < end: pass\nprint(sum(os.times()[:2]) - began)"
    with open_sandbox("docker", limits=Limits(cpus=0.1)) as box:
        assert float(box.cell(code).stdout) < 0.25


# ---------------------------------------------------------------- lifetimes


def test_labels_say_whose_a_container_is_and_until_when(monkeypatch):
    need_docker()
    monkeypatch.setenv("TURNWISE_RUN", "run-7")
    with open_sandbox("docker", limits=Limits(lifetime_s=500)) as box:
        labels = api().inspect_container(box.id)["Config"]["Labels"]
    assert labels[owner.OWNER_LABEL] == owner.owner_of_this_process()
    assert 400 < float(labels[owner.DEADLINE_LABEL]) - time.time() < 600
    assert labels[docker_config.RUN_LABEL] == "run-7"


def test_a_closed_box_leaves_no_container_folder_mount_or_descriptor():
    need_docker()
    open_sandbox("docker", limits=SMALL).close()
    assert names() is not None
    fds = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        box = open_sandbox("docker", limits=SMALL)
        assert box.id in names()
        box.close()
        box.close()
        assert box.id not in names() and not mounts_of(box.id)
    assert not list(owner.own_folder().glob("turnwise-*"))
    assert len(os.listdir("/proc/self/fd")) <= fds
    with pytest.raises(SandboxDied, match="closed"):
        box.exec(["true"])


def test_an_end_waits_for_one_that_is_under_way():
    need_docker()
    box = open_sandbox("docker", limits=SMALL)
    parts, seen = box._end.peek()[1].__self__, []
    threads = [
        threading.Thread(target=lambda: seen.append((parts._remove(), box.id in names())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [("", False)] * 4


def test_a_killed_owner_leaves_no_container():
    need_docker()
    code = "from turnwise.sandboxes import open_sandbox\nimport time\n"
    code += "boxes = [open_sandbox('docker') for _ in 'ab']\n"
    code += "print(*[box.id for box in boxes], flush=True)\n"
    code += "boxes[1].exec(['sleep', '77'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as host:
        ids = set(host.stdout.readline().split())
        assert len(ids) == 2 and ids <= names()
        host.kill()
    assert wait_until(lambda: not names() & ids, 10.0)


def test_a_box_that_ends_in_a_call_says_why_and_is_removed():
    need_docker()
    with open_sandbox("docker", limits=Limits(lifetime_s=1.0)) as box:
        with pytest.raises(SandboxDied, match="lifetime of 1 s") as caught:
            box.exec(["sleep", "77"], timeout_s=20.0)
        assert caught.value.retryable and box.id not in names()
    with open_sandbox("docker", limits=SMALL) as box:
        killer = threading.Timer(0.3, lambda: api().kill(box.id))
        killer.start()
        with pytest.raises(SandboxDied):
            box.exec(["sleep", "77"], timeout_s=20.0)
        killer.join()


def test_a_long_path_to_the_folder_of_sockets_is_no_obstacle(monkeypatch, tmp_path):
    need_docker()
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    monkeypatch.setattr(docker, "own_folder", lambda: folder)
    with docker.open_box(SandboxSpec(limits=SMALL)) as box:
        assert box.exec(["echo", "on"]).stdout == b"on\n"
    monkeypatch.setattr(docker, "own_folder", lambda: tmp_path / "missing")
    with pytest.raises(StartFailed, match="missing"):
        docker.open_box(SandboxSpec(limits=SMALL))


def test_a_box_outlives_the_thread_that_started_it():
    need_docker()
    boxes = []
    thread = threading.Thread(target=lambda: boxes.append(open_sandbox("docker", limits=SMALL)))
    thread.start()
    thread.join()
    time.sleep(0.3)
    with boxes[0] as box:
        assert box.exec(["echo", "on"]).stdout == b"on\n"


def test_boxes_are_started_and_ended_by_many_threads_at_once():
    need_docker()
    said, ids = [], []

    def live(word):
        with open_sandbox("docker", limits=SMALL) as box:
            ids.append(box.id)
            said.append(box.exec(["echo", word]).text == f"{word}\n")

    threads = [threading.Thread(target=live, args=(f"word {i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [True] * 6 and len({*ids}) == 6 and not {*ids} & names()


# ---------------------------------------------------------------- what cannot be done


def test_a_missing_image_is_named_with_the_command_that_gets_it(monkeypatch):
    need_docker()
    with pytest.raises(NoSafeSandbox, match=r"no-such.*sandbox image build --image no-such") as one:
        open_sandbox("docker", image="no-such")
    monkeypatch.setattr(docker, "BASE_IMAGE", "turnwise/not-built")
    with pytest.raises(NoSafeSandbox, match=r"not-built'; run: turnwise sandbox image build$"):
        open_sandbox("docker")
    assert not one.value.retryable


def test_without_an_engine_the_error_says_where_it_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    with pytest.raises(NoSafeSandbox, match=r"nowhere.*apt-get install -y docker.io"):
        open_sandbox("docker")
    with socket.socket(socket.AF_UNIX) as dead:  # nobody accepts
        dead.bind(str(tmp_path / "s"))
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/s")
        with pytest.raises(NoSafeSandbox, match="refused"):
            open_sandbox("docker")


def test_an_engine_that_never_answers_is_given_up(monkeypatch, tmp_path):
    pytest.importorskip("docker")
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "s"))
        deaf.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/s")
        monkeypatch.setattr(docker_engine, "CALL_TIMEOUT_S", 0.3)
        began = time.monotonic()
        with pytest.raises(NoSafeSandbox, match="timed out"):
            open_sandbox("docker")
    assert time.monotonic() - began < 5.0


def test_an_engine_on_another_machine_and_a_missing_sdk_are_told_apart(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    with pytest.raises(Unsupported, match="not on this machine"):
        open_sandbox("docker")
    monkeypatch.undo()
    need_docker()
    monkeypatch.setattr(docker_engine, "_engines", {})
    monkeypatch.setattr(docker_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoSafeSandbox, match=r"pip install 'turnwise\[docker\]'"):
        open_sandbox("docker")


def test_auto_is_docker_where_engine_and_image_are_there_and_else_bubblewrap(monkeypatch):
    need_bubblewrap()
    for url in (NOWHERE, "tcp://192.0.2.1:2375"):
        monkeypatch.setenv("DOCKER_HOST", url)
        with open_sandbox(limits=SMALL) as box:
            assert box.backend == "bubblewrap"
    monkeypatch.undo()
    need_docker()
    with open_sandbox(limits=SMALL) as box:
        assert box.backend == "docker"
    monkeypatch.setattr(docker, "BASE_IMAGE", "turnwise/not-built")
    with open_sandbox(limits=SMALL) as box:
        assert box.backend == "bubblewrap"


def test_a_spec_that_docker_cannot_run_is_refused_before_anything_starts():
    with pytest.raises(ValueError, match="workdir"):
        docker.open_box(SandboxSpec(workdir="/etc"))
    with pytest.raises(Unsupported, match="network mode 'else'"):
        docker.open_box(SandboxSpec(net=NetPolicy("else")))


@pytest.mark.parametrize(
    "lack", [{"MemoryLimit": False}, {"PidsLimit": False}, {"SecurityOptions": []}]
)
def test_an_engine_that_cannot_hold_a_limit_is_not_used(lack):
    whole = {"OSType": "linux", "MemoryLimit": True, "PidsLimit": True, "CpuCfsQuota": True}
    whole["SecurityOptions"] = ["name=seccomp,profile=default"]
    docker_engine._refuse("it", whole)
    with pytest.raises(NoSafeSandbox):
        docker_engine._refuse("it", whole | lack)


# ---------------------------------------------------------------- images


@pytest.fixture(scope="module")
def make_image():
    """A function that builds an image on top of the base, removed at the end."""
    need_docker()
    made, mine = [], f"turnwise/test-{secrets.token_hex(4)}"  # another worker may build some, too

    def make(*lines):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "Dockerfile")
            file.write_text("\n".join([f"FROM {docker_image.BASE_IMAGE}", *lines]))
            made.append(build_image(f"{mine}-{len(made)}", dockerfile=file, say=lambda line: None))
        return made[-1]

    yield make
    for name in made:
        docker_engine.quietly(partial(api().remove_image, name, force=True))


def test_an_image_brings_its_files_and_environment_and_none_of_its_habits(make_image):
    image = make_image(
        "USER 0:0",
        "RUN echo brought > /opt/file",
        "ENV ITS=own HOME=/root PATH=/opt/bin:/usr/bin",
        "VOLUME /data",
        "HEALTHCHECK --interval=1s CMD sleep 77",
        "EXPOSE 80",
        "WORKDIR /opt",
        "ENTRYPOINT false",
    )
    volumes = api().volumes()["Volumes"]
    with open_sandbox("docker", image=image, limits=SMALL) as box:
        said = box.exec(["sh", "-c", "cat /opt/file; echo $ITS $HOME $PATH; pwd; id -u"]).text
        assert said.split()[:-1] == [
            "brought",
            "own",
            "/workspace",
            "/opt/bin:/usr/bin",
            "/workspace",
        ]
        assert int(said.split()[-1]) > 1000
        full = box.exec(["sh", "-c", "head -c 40000000 /dev/zero > /data/large"])
        assert b"No space left" in full.stderr
        time.sleep(1.2)
        assert "sleep" not in box.exec(["sh", "-c", "cat /proc/[0-9]*/comm"]).text
        assert api().volumes()["Volumes"] == volumes


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("RUN rm /usr/bin/python3", "python3"),
        ("RUN printf '#!/bin/sh\\necho no such luck >&2; exit 9' > /usr/bin/python3", "luck"),
        ("RUN printf '#!/bin/sh\\nsleep 77' > /usr/bin/python3", "did not connect"),
        (
            "RUN printf '#!/usr/bin/python3.11\\nimport socket, sys\\n"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[-1]);"
            " s.sendall(bytes(range(256)) * 999)' > /usr/bin/python3",
            "guest",
        ),
    ],
    ids=["no python", "one that fails", "one that waits", "one that talks garbage"],
)
def test_an_image_that_cannot_run_the_guest_fails_with_the_reason(
    make_image, monkeypatch, line, reason
):
    monkeypatch.setattr(docker, "START_TIMEOUT_S", 2.0)
    before = own_containers()
    extra = [] if "rm" in line else ["RUN chmod 755 /usr/bin/python3"]
    image = make_image(
        "USER 0:0", "RUN rm /usr/bin/python3 && touch /usr/bin/python3", line, *extra
    )
    with pytest.raises(StartFailed, match=reason):
        docker.open_box(SandboxSpec(image=image))
    assert own_containers() <= before


def test_what_cannot_be_built_says_which_step_failed(make_image, tmp_path):
    with pytest.raises(StartFailed, match="returned a non-zero code: 7"):
        make_image("RUN exit 7")
    with pytest.raises(FileNotFoundError):
        build_image(dockerfile=tmp_path)
    with pytest.raises(ValueError, match="one of"):
        build_image(image="a", packages=["b"])


# ---------------------------------------------------------------- on paper


def allowed_by(profile, name, args):
    """What libseccomp makes of the profile: a rule fits when all its comparisons do."""
    tests = {
        "SCMP_CMP_MASKED_EQ": lambda arg, one, two: arg & one == two,
        "SCMP_CMP_NE": lambda arg, one, two: arg != one,
        "SCMP_CMP_GT": lambda arg, one, two: arg > one,
    }
    for rule in profile["syscalls"]:
        found = [tests[a["op"]](args[a["index"]], a["value"], a["valueTwo"]) for a in rule["args"]]
        if name in rule["names"] and all(found):
            return rule["errnoRet"]
    return 0


WORDS = st.one_of(
    st.integers(0, 2**32 - 1),
    st.integers(0, 31).map(lambda bit: 1 << bit),
    st.sampled_from([0, 1, 2, 10, 11, 2**31, 2**32 - 1, 2**32 - 2, 0x5412, 0x541C]),
)


@given(st.sampled_from(["clone", "ioctl", "socket", "prlimit64", "personality"]), WORDS, WORDS)
@settings(deadline=None)
def test_the_profile_judges_arguments_as_the_filter_does(name, first, second):
    from test_sandbox import run_filter

    for column, machine in enumerate(seccomp.ARCHES):
        number = getattr(seccomp, name.upper())[column]
        args = (first, second, 0)
        program = seccomp.compile_filter(machine)
        answer = run_filter(program, number, args, seccomp.ARCHES[machine])
        expected = 0 if answer == seccomp.ALLOW else answer & 0xFFFF
        assert allowed_by(seccomp.docker_profile(machine), name, args) == expected


@pytest.mark.parametrize("machine", seccomp.ARCHES)
def test_the_profile_denies_by_name_what_the_filter_denies_by_number(machine):
    profile = seccomp.docker_profile(machine, [seccomp.UNLIMITED_CPU])
    column = list(seccomp.ARCHES).index(machine)
    for name, row in {**seccomp.DENIED, **seccomp.UNLIMITED_CPU}.items():
        expected = 1 if row[column] is not None else 0
        assert allowed_by(profile, name, (0, 0, 0)) == expected, name
    assert allowed_by(profile, "clone3", (0, 0, 0)) == errno.ENOSYS
    assert allowed_by(profile, "read", (0, 0, 0)) == 0
    with pytest.raises(Unsupported, match="riscv64"):
        seccomp.docker_profile("riscv64")
