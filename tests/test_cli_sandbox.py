"""`turnwise sandbox`: every action has a help that shows how, JSON for programs, and exit codes."""

import contextlib
import io
import json
import os
import re
import shlex
import sys

import pytest
from boxes import need_bubblewrap, need_docker, wait_until

from turnwise.cli import sandbox, sandbox_doctor
from turnwise.cli.main import main
from turnwise.cli.options import parse
from turnwise.sandboxes import Limits, open_sandbox, owner

OK, USAGE, FAILED, DIVERGED, INFRASTRUCTURE = range(5)
ACTIONS = ("ls", "gc", "doctor", "shell", "image", "serve")
SMALL = Limits(memory_mb=96, pids=24, disk_mb=4, wall_s=10.0)


@pytest.fixture
def turnwise(capfdbinary, monkeypatch):
    """Run a command line with a text as its standard input; return (exit code, stdout, stderr)."""

    def run(line: str, given: str = "") -> tuple[int, str, str]:
        capfdbinary.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        code = main(["sandbox", *shlex.split(line)])
        captured = capfdbinary.readouterr()
        return code, captured.out.decode(), captured.err.decode()

    return run


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """No server of the user's; the default engine only where a test asks for it."""
    monkeypatch.delenv("TURNWISE_SANDBOX_URL", raising=False)
    monkeypatch.delenv("TURNWISE_SANDBOX_TOKEN", raising=False)
    monkeypatch.delenv("TURNWISE_DEBUG", raising=False)


@pytest.fixture
def no_engine(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")


# ---------------------------------------------------------------- help and mistakes


@pytest.mark.parametrize("action", ACTIONS)
def test_the_help_of_an_action_shows_an_example_that_parses(action, turnwise):
    code, out, _ = turnwise(f"{action} --help")
    assert code == OK
    example = re.search(r"example:\n +turnwise sandbox (.+)", out)
    assert example and "--json" in out, out
    given = shlex.split(example[1])
    assert given[0] == action
    parse(sandbox.Options, "sandbox", given)


def test_every_action_has_a_home_that_exists():
    from importlib import import_module

    for home in sandbox.HOMES.values():
        module, function = home.split(":")
        act = getattr(import_module(f"turnwise.cli.{module}"), function)
        assert "exit code" in act.__doc__


@pytest.mark.parametrize(
    ("line", "said"),
    [("", "ls, gc, doctor, shell, image, serve"), ("lss", "lss"), ("image bild", "build"),
     ("shell --backend bublewrap -- ls", "did you mean 'bubblewrap'?"),
     ("shell --backend bubblewrap --allow 'a b' -- ls", "'host:port'"),
     ("serve --host 0.0.0.0", "TURNWISE_SANDBOX_TOKEN"),
     ("serve --backend unsafe", "isolate")],
)  # fmt: skip
def test_a_mistake_is_one_line_with_the_way_out(line, said, turnwise, no_engine):
    code, out, err = turnwise(line)
    assert code == USAGE and out == "" and said in err
    assert len(err.strip().splitlines()) == 1 and err.startswith("turnwise sandbox: ")


def test_an_image_needs_an_engine_and_says_how_to_get_one(turnwise, no_engine):
    code, _, err = turnwise("image build")
    assert code == INFRASTRUCTURE and "docker.io" in err


# ---------------------------------------------------------------- shell


def test_a_program_runs_in_a_fresh_box_and_its_exit_code_is_ours(turnwise):
    need_bubblewrap()
    line = "shell --backend bubblewrap -- sh -c 'wc -c; ls -d /root; echo err >&2; exit 3'"
    code, out, err = turnwise(line, "four")
    assert (code, out) == (3, "4\n") and "err" in err and "/root" in err
    code, out, _ = turnwise("shell --json --backend bubblewrap -- echo hi")
    assert code == OK and json.loads(out)["stdout"] == "hi\n"


def test_lines_share_their_state_until_exit(turnwise):
    need_bubblewrap()
    lines = "cd /tmp\nx=7\n\necho $x $PWD\nfalse\nexit\necho unreached\n"
    code, out, _ = turnwise("shell --backend bubblewrap", lines)
    assert (code, out) == (1, "7 /tmp\n")


def test_a_program_that_is_late_says_so(turnwise):
    need_bubblewrap()
    code, _, err = turnwise("shell --backend bubblewrap --timeout-s 0.2 -- sleep 9")
    assert code == 137 and "its time was over" in err


# ---------------------------------------------------------------- ls and gc


@contextlib.contextmanager
def a_leftover():
    """A folder of an owner that has ended."""
    folder = owner._folders() / f"{owner._short(owner._world())}-{2**22 + 1}-7"
    folder.mkdir()
    try:
        yield folder
    finally:
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()


def test_ls_shows_the_living_and_what_the_dead_left_and_gc_removes_only_that(turnwise, no_engine):
    need_bubblewrap()
    with open_sandbox("bubblewrap", limits=SMALL) as box, a_leftover() as folder:
        code, out, _ = turnwise("ls --json")
        found = {entry["id"]: entry for entry in json.loads(out)["found"]}
        assert code == OK
        mine, left = found[box.id], found[folder.name]
        assert mine["owner_pid"] == os.getpid() and mine["alive"] and mine["kind"] == "box"
        assert 0 < mine["memory_mb"] < 500 and mine["age_s"] < 60
        assert left["owner_pid"] == 2**22 + 1 and not left["alive"]
        _, table, _ = turnwise("ls")
        assert box.id in table and "turnwise sandbox gc" in table
        code, out, _ = turnwise("gc --json")
        assert code == OK and str(folder) in json.loads(out)["folders"]
        assert not folder.exists() and box.cell("print(1)").stdout == b"1\n"
    assert wait_until(lambda: box.id not in turnwise("ls --json")[1])


@pytest.mark.docker
def test_ls_shows_containers_with_their_deadline(turnwise):
    need_docker()
    with open_sandbox("docker", limits=SMALL) as box:
        found = {entry["id"]: entry for entry in json.loads(turnwise("ls --json")[1])["found"]}
        assert found[box.id]["kind"] == "container" and found[box.id]["alive"]
        assert found[box.id]["owner_pid"] == os.getpid() and 0 < found[box.id]["left_s"] < 4000


# ---------------------------------------------------------------- doctor


def test_doctor_probes_each_backend_and_names_the_one_that_auto_takes(turnwise, no_engine):
    need_bubblewrap()
    code, out, _ = turnwise("doctor --json")
    told = json.loads(out)
    signs = {sign["name"]: sign for sign in told["signs"]}
    assert code == OK and told["auto"] == "bubblewrap" and signs["bubblewrap"]["good"]
    assert signs["docker"]["good"] is False and "docker.io" in signs["docker"]["mend"]
    assert signs["unsafe"]["good"] is None and signs["remote"]["good"] is None
    assert "takes bubblewrap" in turnwise("doctor")[1]


def test_doctor_says_when_nothing_isolates(turnwise, no_engine, monkeypatch):
    from turnwise.sandboxes import bubblewrap_command

    bubblewrap_command.bwrap.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    try:
        code, out, _ = turnwise("doctor")
    finally:
        bubblewrap_command.bwrap.cache_clear()
    assert code == INFRASTRUCTURE
    assert "Nothing here isolates" in out and "apt-get install -y bubblewrap" in out


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("bubblewrap is not installed; run: apt-get install -y bubblewrap", "apt-get install -y b"
         "ubblewrap"),
        ("none answers; start one (to install it: apt-get install -y docker.io) or set DOCKER_HOST",
         "apt-get install -y docker.io"),
        ("refuses: run as root `sysctl -w a=0 b=1` (in a container: --privileged)",
         "sysctl -w a=0 b=1"),
        ("a program does not run in it", ""),
    ],
)  # fmt: skip
def test_the_cure_is_the_command_that_the_error_names(text, command):
    assert sandbox_doctor.cure(text) == command
