"""Laws of `turnwise init`: what it writes is sound, tidy, and found by its id once installed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from turnwise.cli.init import MODULES, Names
from turnwise.cli.main import main
from turnwise.envs.check import check_env
from turnwise.sandboxes.base import NoSafeSandbox
from turnwise.sandboxes.open import open_sandbox

KINDS = tuple(MODULES)
LONGEST = "a-name-as-long-as-a-name-may-be1"
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name.startswith(("my_", "a_name")):
            del sys.modules[name]


@pytest.fixture
def init(capsys):
    """Run `turnwise init`; return (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["init", *arguments])
        return code, *capsys.readouterr()

    return run


def skip_without_a_box(kind: str) -> None:
    if kind not in ("code", "web"):
        return
    try:
        open_sandbox().close()
    except NoSafeSandbox as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def python(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=280,
    )


def done(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_env.py")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_passes_the_check_as_it_stands(kind, init, tmp_path, monkeypatch):
    skip_without_a_box(kind)
    assert init(f"my-{kind}-env", "--kind", kind)[0] == 0
    monkeypatch.syspath_prepend(str(tmp_path / f"my-{kind}-env"))
    where = f"my_{kind}_env:My{kind.capitalize()}Env"
    report = check_env(where, seeds=range(1), concurrency=2, law_s=0.2, adversary=True)
    assert report.ok, str(report)


def test_the_test_that_is_written_passes(init, tmp_path):
    init("my-env", "--kind", "tools")
    assert "1 passed" in done(python(*PYTEST, cwd=tmp_path / "my-env"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_that_is_written_checks_the_environment_that_was(kind, init, tmp_path):
    """All kinds share one test, which passes above; here is shown that it names theirs."""
    init("my-env", "--kind", kind)
    names = {"my_env:MyEnv", "my_env.MyEnv", "MyEnv"}
    test = (tmp_path / "my-env" / "tests" / "test_env.py").read_text()
    assert "check_env(" in test and any(name in test for name in names)


def test_the_test_that_is_written_fails_where_the_environment_is_broken(init, tmp_path):
    init("my-env", "--kind", "tools")
    home = tmp_path / "my-env"
    module = home / "my_env.py"
    module.write_text(module.read_text().replace('call_text("submit"', 'call_text("sbmit"'))
    broken = python(*PYTEST, cwd=home)
    assert broken.returncode == 1 and "expert is accepted" in broken.stdout


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["my-env", "x", "box2d_env", LONGEST])
def test_what_is_written_is_tidy_whatever_its_name(kind, name, init, tmp_path):
    init(name, "--kind", kind)
    rules = ("--select", "E,F,I,UP,B,SIM,RUF", "--no-cache")
    done(python("-m", "ruff", "check", *rules, ".", cwd=tmp_path / name))
    done(python("-m", "ruff", "format", "--check", "--no-cache", ".", cwd=tmp_path / name))
    for path in (tmp_path / name).rglob("*"):
        text = path.read_text() if path.is_file() else ""
        assert name == "my-env" or not any(old in text for old in ("my-env", "my_env", "MyEnv"))
        assert not any(mark in text for mark in (str(ROOT), "MODULES"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_environment_itself_is_short(kind):
    (module,) = [name for name in MODULES[kind] if not name.endswith("_site.py")]
    source = (ROOT / "cli" / "templates" / module).read_text()
    body = source[source.index("class MyEnv") :].splitlines()
    code = [line for line in body if line.strip() and not line.strip().startswith(('"""', "#"))]
    assert len(code) <= 45


@pytest.mark.skipif(find_spec("setuptools") is None, reason="installs with the setuptools at hand")
def test_after_an_editable_install_it_is_found_by_its_id(init, tmp_path):
    init("my-env", "--kind", "text")
    site = tmp_path / "site"
    install = ("-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    done(python(*install, "--target", str(site), "-e", "my-env", cwd=tmp_path))
    away = tmp_path / "away"
    away.mkdir()

    def turnwise(line: str) -> str:
        # A folder of packages whose .pth files are read, as those of an environment are.
        code = (
            "import site, sys; site.addsitedir(sys.argv[1]); from turnwise.cli.main import main; "
            "sys.exit(main(sys.argv[2:]))"
        )
        return done(python("-c", code, str(site), *shlex.split(line), cwd=away))

    assert "my-env/MyEnv-v1" in turnwise("list --tag text")
    assert json.loads(
        turnwise("check my-env/MyEnv-v1 --seeds 1 --law 'expert is accepted' --json")
    )["ok"]
    turnwise("eval my-env/MyEnv-v1 --tasks 4 --skip-floors --floor 1 --record r.jsonl")
    assert '"env_id":"my-env/MyEnv-v1"' in (away / "r.jsonl").read_text()
    turnwise("replay r.jsonl")


def test_it_says_what_to_do_next_and_the_first_command_works(init, tmp_path):
    code, out, err = init("my-env", "--kind", "text", "--folder", "a folder")
    assert (code, err) == (0, "")
    commands = [line.strip() for line in out.split("next\n")[1].splitlines()]
    assert commands[0] == "cd 'a folder/my-env'" and len(commands) == 3
    assert commands[1] == "turnwise check my_env:MyEnv"
    assert "my-env/MyEnv-v1" in commands[2] and "pip install -e ." in commands[2]
    home = Path(shlex.split(commands[0])[1])
    arguments = shlex.split(commands[1])[1:]
    done(python("-m", "turnwise.cli.main", *arguments, "--seeds", "1", cwd=tmp_path / home))


def test_for_programs_it_prints_what_was_written(init, tmp_path):
    code, out, _ = init("my-env", "--kind", "web", "--json")
    said = json.loads(out)
    assert code == 0 and said["id"] == "my-env/MyEnv-v1" and len(said["next"]) == 3
    there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert set(said["files"]) == there and "my-env/my_env_site.py" in there
    project = tomllib.loads(Path("my-env/pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["py-modules"] == ["my_env", "my_env_site"]


def test_nothing_is_ever_written_over(init, tmp_path):
    init("my-env")
    before = {path: path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()}
    code, out, err = init("my-env", "--kind", "text")
    assert (code, out) == (1, "") and "is there already" in err and "--folder" in err
    assert before == {path: path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()}


def test_a_folder_with_other_files_is_filled_and_one_of_ours_stops_all(init, tmp_path):
    home = tmp_path / "my-env"
    home.mkdir()
    (home / "LICENSE").write_text("mine")
    assert init("my-env")[0] == 0 and (home / "LICENSE").read_text() == "mine"
    other = tmp_path / "my-other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    assert "README.md is there already" in init("my-other")[2]
    assert [path.name for path in other.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My Env", "'My Env' cannot name a package: write at most 32 lower-case letters"),
        ("2048", "a letter first"),
        ("my--env", "single hyphens"),
        ("../evil", "cannot name a package"),
        ("a/b", "cannot name a package"),
        ("é", "cannot name a package"),
        ("", "cannot name a package"),
        (LONGEST + "x", "at most 32"),
        ("json", "'json' is a module or a word of Python; write json-env"),
        ("class", "write class-env"),
        ("numpy", "a module 'numpy' is installed already"),
        ("turnwise", "a module 'turnwise' is installed already"),
    ],
)
def test_a_name_that_no_package_can_have_is_refused(name, message, init, tmp_path):
    code, out, err = init(name)
    assert (code, out) == (1, "") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_kind_that_is_not_known_is_refused(init):
    code, _, err = init("my-env", "--kind", "game")
    assert code == 1 and "game" in err and "tools" in err


@pytest.mark.parametrize(
    ("package", "module", "cls"),
    [("my-env", "my_env", "MyEnv"), ("x", "x", "X"), ("box2d_env", "box2d_env", "Box2dEnv")],
)
def test_names_follow_from_the_packages(package, module, cls):
    names = Names(package)
    assert (names.module, names.cls, names.id) == (module, cls, f"{package}/{cls}-v1")
    assert names.into("MyEnv my_env my-env/MyEnv-v1") == f"{cls} {module} {package}/{cls}-v1"
