"""What `make` says on a machine that lacks something: one line, with the command that helps."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INPUTS = ("pyproject.toml", "constraints.txt", "scripts/setup.sh")
TOOLS = ("bash", "dirname", "cat", "sha256sum", "cut")
HIDE = 'import sys; sys.modules["ensurepip"] = None; exec(sys.argv[1])'
WITHOUT_VENV = f"#!/bin/sh\nexec '{sys.executable}' -c '{HIDE}' \"$2\"\n"
OLD = "#!/bin/sh\nexit 1\n"  # what the script sees of a Python that is not new enough
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


class Machine:
    """A checkout, and a PATH with nothing on it but what a test puts there; nobody is root."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.programs = folder / "checkout", folder / "bin"
        self.programs.mkdir()
        (self.checkout / "scripts").mkdir(parents=True)
        for name in INPUTS:
            shutil.copy(ROOT / name, self.checkout / name)
        for tool in TOOLS:
            (self.programs / tool).symlink_to(shutil.which(tool))
        self.has("id", "#!/bin/sh\necho 1000\n")

    def has(self, name: str, script: str) -> None:
        """Put a program on the PATH."""
        (self.programs / name).write_text(script)
        (self.programs / name).chmod(0o755)

    def is_set_up(self) -> None:
        """Leave what a first run leaves: an environment and the stamp of its inputs."""
        (self.checkout / ".venv/bin").mkdir(parents=True)
        (self.checkout / ".venv/bin/python").symlink_to(sys.executable)
        inputs = [
            f"{self.checkout}\n".encode(),
            *((self.checkout / n).read_bytes() for n in INPUTS),
        ]
        stamp = hashlib.sha256(b"".join(inputs)).hexdigest()
        (self.checkout / ".venv/turnwise-setup").write_text(f"{stamp}\n")

    def setup(self) -> subprocess.CompletedProcess[str]:
        """Run what `make setup` runs."""
        return subprocess.run(
            [self.programs / "bash", "scripts/setup.sh"],
            cwd=self.checkout,
            env={"PATH": str(self.programs)},
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path.resolve())


@pytest.mark.parametrize(
    ("program", "script", "packages"),
    [
        ("python3.12", WITHOUT_VENV, f"python{VERSION}-venv"),
        ("python3", WITHOUT_VENV, f"python{VERSION}-venv"),
        ("python3", OLD, "python3.11 python3.11-venv"),
        ("nothing", OLD, "python3 python3-venv"),
    ],
    ids=["no venv", "no venv in the usual one", "too old", "no python"],
)
def test_a_python_that_cannot_be_used_is_answered_with_the_package_to_install(
    machine, program, script, packages
):
    machine.has(program, script)
    done = machine.setup()
    command = f"run `sudo apt-get install {packages}`"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"setup: need Python 3.11 or newer with venv; {command}\n"


def test_a_second_run_does_nothing_and_takes_no_time(machine):
    machine.is_set_up()
    machine.has("bwrap", "#!/bin/sh\n")
    start = time.monotonic()
    done = machine.setup()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - start < 5


def test_a_change_of_what_is_to_be_installed_sets_up_anew(machine):
    machine.is_set_up()
    with (machine.checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert "need Python" in machine.setup().stderr


def test_without_bubblewrap_and_root_the_one_command_is_printed_and_the_run_goes_on(machine):
    machine.is_set_up()
    done = machine.setup()
    assert done.returncode == 0
    assert done.stderr.endswith("run `sudo apt-get install bubblewrap`\n")
    assert done.stderr.count("\n") == 1
