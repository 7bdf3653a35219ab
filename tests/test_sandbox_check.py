"""`check_sandbox` passes on every backend here, and each law notices the box that breaks it."""

import dataclasses
import json
import os
import re
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from attack_columns import NoPython, lay_open, python_for_others
from boxes import need_bubblewrap

from turnwise.sandboxes import (
    BACKENDS,
    Limits,
    NoSafeSandbox,
    SandboxDied,
    Unsupported,
    check_sandbox,
    open_sandbox,
)
from turnwise.sandboxes.check import LawResult, SandboxReport, _try
from turnwise.sandboxes.law import LIMITS, Trial
from turnwise.sandboxes.laws import LAWS

WALLS = {law.name for law in LAWS if law.kind == "walls"}


def checked_here(name):
    try:
        return check_sandbox(name)
    except (NoSafeSandbox, Unsupported) as error:
        missing = pytest.fail if os.environ.get("CI") and name == "bubblewrap" else pytest.skip
        missing(f"{name}: {error}")


def checked_as_a_user(name):
    code = "import json, turnwise.sandboxes as s\nprint(json.dumps(s.check_sandbox(%r).to_json()))"
    try:
        with tempfile.TemporaryDirectory(prefix="turnwise-") as folder:
            ran = subprocess.run(
                [python_for_others(), "-c", code % name],
                **lay_open(Path(folder)),
                capture_output=True,
                timeout=120,
            )
    except NoPython as error:
        pytest.skip(str(error))
    assert ran.stdout, ran.stderr.decode()
    seen = json.loads(ran.stdout)
    return SandboxReport(seen["backend"], tuple(LawResult(**law) for law in seen["laws"]))


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - {"unsafe", "remote"}))
def test_every_backend_of_this_machine_keeps_the_contract(name):
    report = checked_here(name)
    assert report.ok, str(report)
    assert {law.status for law in report.laws} == {"pass"}, str(report)
    assert report.backend == name and len(report.laws) == len(LAWS) > 30


def test_what_does_not_isolate_is_said_to_and_gets_no_bombs():
    report = checked_as_a_user("unsafe")
    assert {law.name for law in report.failures} == WALLS, str(report)
    limits = [law for law in report.laws if law.kind == "limits"]
    assert limits and all(law.status == "skip" and "no bomb" in law.detail for law in limits)


def test_a_report_is_a_table_and_json():
    why, mend = "because", "so"
    good = LawResult("one law", "life", "pass", "seen", why)
    report = SandboxReport("mine", (good, dataclasses.replace(good, status="fail", mend=mend)))
    assert not report.ok and report.failures[0].mend == "so"
    text = str(report)
    assert "mine: 1 broken" in text and "mend: so" in text and "why: because" in text
    assert json.loads(json.dumps(report.to_json()))["laws"][1]["status"] == "fail"
    assert all(law.why.endswith(".") and law.mend for law in LAWS)


def test_an_unknown_backend_gets_the_nearest_name_and_nothing_is_started():
    with pytest.raises(ValueError, match="did you mean 'bubblewrap'"):
        check_sandbox("bublewrap")


# ---------------------------------------------------------------- boxes that break a law


class Tampered:
    """A box that behaves as another, but for what a subclass changes."""

    def __init__(self, box):
        self.box = box

    def __getattr__(self, name):
        return getattr(self.box, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def exec(self, argv, **more):
        return self.box.exec(argv, **more)

    def cell(self, code, **more):
        return self.box.cell(code, **more)

    def put(self, path, data, **more):
        return self.box.put(path, data, **more)

    def get(self, path, **more):
        return self.box.get(path, **more)

    def close(self):
        return self.box.close()


class Nameless(Tampered):
    backend = ""


class Raising(Tampered):
    def exec(self, argv, **more):
        result = self.box.exec(argv, **more)
        if result.exit_code:
            raise RuntimeError(f"exit code {result.exit_code}")
        return result


class Joining(Tampered):
    def exec(self, argv, **more):
        return self.box.exec(["sh", "-c", " ".join(argv)], **more)


class Patient(Tampered):
    def exec(self, argv, timeout_s=None, **more):
        if timeout_s is not None and timeout_s > 0:
            raise TimeoutError("late")
        return self.box.exec(argv, timeout_s=timeout_s, **more)


class Endless(Tampered):
    def exec(self, argv, timeout_s=None, **more):
        return self.box.exec(argv, timeout_s=timeout_s or None, **more)


class Uncounted(Tampered):
    def exec(self, argv, **more):
        return dataclasses.replace(self.box.exec(argv, **more), truncated=0)


class Decoded(Tampered):
    def exec(self, argv, **more):
        result = self.box.exec(argv, **more)
        return dataclasses.replace(result, stdout=result.text.encode())


class Forgetful(Tampered):
    def cell(self, code, kernel="main", **more):
        return self.box.cell(code, kernel=os.urandom(4).hex(), **more)


class OneKernel(Tampered):
    def cell(self, code, kernel="main", **more):
        return self.box.cell(code, **more)


class SilentLoss(Tampered):
    def cell(self, code, **more):
        return dataclasses.replace(self.box.cell(code, **more), state_lost=False)


class Following(Tampered):
    def get(self, path, **more):
        found = self.box.exec(["cat", path])
        if found.exit_code:
            raise FileNotFoundError(path)
        return found.stdout


class TextFiles(Tampered):
    def put(self, path, data, **more):
        return self.box.put(path, data.replace(b"\r\n", b"\n"), **more)


class HostFiles(Tampered):
    def get(self, path, **more):
        return Path("/", path.replace("../", "")).read_bytes()


class Strict(Tampered):
    def get(self, path, **more):
        try:
            return self.box.get(path, **more)
        except OSError as error:
            raise KeyError(path) from error


class Open(Tampered):
    def close(self):
        """Stays open."""


class Mixed(Tampered):
    def exec(self, argv, **more):
        result = self.box.exec(argv, **more)
        before, self.__dict__["last"] = self.__dict__.get("last", result), result
        return before if threading.current_thread() is not threading.main_thread() else result


class AbruptClose(Tampered):
    def exec(self, argv, **more):
        try:
            return self.box.exec(argv, **more)
        except SandboxDied:
            raise OSError("channel closed") from None


class Sharing(Tampered):
    """Its forks are itself."""

    def fork(self, n=1, snapshot=None):
        return [Sharing(self.box) for _ in range(n)]

    def __exit__(self, *_):
        """The stem goes on."""


class Limitless(Tampered):
    def fork(self, n=1, snapshot=None):
        spec = self.box.spec
        larger = dataclasses.replace(spec.limits, disk_mb=16, inodes=3000)
        forks = [open_sandbox("bubblewrap", limits=larger) for _ in range(n)]
        for fork in forks:
            fork.unpack(self.box.snapshot().data)
        return forks


BROKEN_BY = {
    "what one branch writes or removes no other sees": Sharing,
    "a forked box has the same limits": Limitless,
    "a box says what it is": Nameless,
    "a failing program is a result": Raising,
    "a missing program is a result": Raising,
    "argv is no shell line": Joining,
    "a late program is a result": Patient,
    "a timeout of no time is refused": Endless,
    "endless output is cut and counted": Uncounted,
    "binary output comes as it is": Decoded,
    "cells keep their state": OneKernel,
    "an exception is a result": Forgetful,
    "a late cell says what became of its state": SilentLoss,
    "a kernel that ends is a result": SilentLoss,
    "a file comes back as it was put": TextFiles,
    "links pipes and folders are refused": Following,
    "no path leads outside": HostFiles,
    "what cannot be read is an os error": Strict,
    "a closed box stays closed": Open,
    "close ends a call in progress": AbruptClose,
    "a lifetime ends": AbruptClose,
    "eight threads may call one box": Mixed,
    "nothing is left after close": Open,
}


@pytest.mark.parametrize("name", sorted(BROKEN_BY))
def test_a_law_notices_the_box_that_breaks_it(name):
    need_bubblewrap()
    opened = []

    def start(spec):
        opened.append(open_sandbox("bubblewrap", limits=spec.limits))
        return BROKEN_BY[name](opened[-1])

    (law,) = [law for law in LAWS if law.name == name]
    try:
        with open_sandbox("bubblewrap", limits=LIMITS) as box:
            honest = Trial(lambda spec: open_sandbox("bubblewrap", limits=spec.limits))
            assert _try(law, honest, box, []).status == "pass", "the box itself keeps it"
            found = _try(law, Trial(start), BROKEN_BY[name](box), [])
        assert found.status == "fail" and found.mend == law.mend, found
    finally:
        for box in opened:
            box.close()


@pytest.mark.parametrize("name", sorted(WALLS))
def test_a_missing_wall_stops_the_bombs(name):
    (bomb,) = [law for law in LAWS if law.name == "memory is limited"]
    missing = LawResult(name, "walls", "fail", "", "")

    class Box:
        capabilities = frozenset()

    assert _try(bomb, Trial(None), Box(), [missing]).status == "skip"


def test_a_call_that_ends_the_box_ends_the_check():
    need_bubblewrap()

    class Fragile(Tampered):
        def exec(self, argv, **more):
            if "kill -SEGV" in argv[-1]:
                self.close()
            return self.box.exec(argv, **more)

    report = check_sandbox(
        lambda spec: Fragile(open_sandbox("bubblewrap", limits=spec.limits)),
    )
    assert [law.name for law in report.failures] == ["a failing program is a result"]
    assert "ended the box" in report.failures[0].detail and len(report.laws) < len(LAWS)


# ---------------------------------------------------------------- the page


def test_the_page_shows_what_works_and_counts_the_laws():
    need_bubblewrap()
    page = Path(__file__).parent.parent.joinpath("docs/sandboxes.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "docs/sandboxes.md", "exec"), {})
    assert f"against {len(LAWS)} laws" in page
    assert all(f"| `{name}` |" in page for name in BACKENDS)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_limit_that_allows_nothing_is_refused_for_every_backend(name, value):
    with pytest.raises(ValueError, match=rf"Limits\.{name} must be above 0"):
        open_sandbox("bubblewrap", limits=Limits(**{name: value}))


def test_ten_gigabytes_of_output_cost_the_host_no_memory():
    need_bubblewrap()
    with open_sandbox("bubblewrap", limits=LIMITS) as box:
        before, began = resident_kb(), time.monotonic()
        result = box.exec(["sh", "-c", "yes | head -c 10G"], timeout_s=1.0)
        assert result.timed_out or result.truncated == 10 * 2**30 - LIMITS.output_bytes
        assert resident_kb() - before < 8_000 and time.monotonic() - began < 4.0


def resident_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
