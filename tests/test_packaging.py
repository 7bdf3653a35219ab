"""What is in the tree is in the wheel, and the core stays small and quick to import."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)


def folders_with_code() -> set[str]:
    tops = {folder.split("/")[0] for folder in FOLDERS.values()}
    return {
        str(path.parent.relative_to(ROOT)) for top in tops for path in ROOT.glob(f"{top}/**/*.py")
    }


def files_of_packages() -> set[str]:
    return {
        f"{package.replace('.', '/')}/{path.name}"
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).iterdir()
        if path.suffix in (".py", ".html", ".css", ".js", ".typed")
    }


def test_every_folder_with_code_is_a_listed_package():
    assert set(FOLDERS.values()) == folders_with_code()
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(FOLDERS)


def test_every_package_is_type_checked():
    tops = {name for name, folder in FOLDERS.items() if "/" not in folder}
    assert set(PROJECT["tool"]["mypy"]["packages"]) == tops


def test_every_top_package_says_that_it_is_typed():
    tops = [folder for folder in FOLDERS.values() if "/" not in folder]
    assert [top for top in tops if not (ROOT / top / "py.typed").is_file()] == []


def test_a_bare_import_of_a_folder_is_refused():
    for folder in (folder for folder in FOLDERS.values() if "/" not in folder):
        run = [sys.executable, "-S", "-c", f"import {folder}"]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
        assert f"import turnwise.{folder}" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(find_spec("setuptools") is None, reason="builds with the setuptools at hand")
def test_the_wheel_holds_every_module_and_data_file_of_the_tree(tmp_path):
    source = tmp_path / "source"  # a build writes beside the sources: not into the checkout
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        _copy(ROOT / name, source / name)
    for folder in FOLDERS.values():
        for path in (ROOT / folder).iterdir():
            if path.is_file():
                _copy(path, source / folder / path.name)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('..'))"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == files_of_packages()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def closure(names: list[str]) -> Iterator[str]:
    """Yield the distributions that installing `names` installs, by installed metadata."""
    todo, seen = [Requirement(name) for name in names], set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in seen:
            continue
        seen.add(name)
        yield name
        wanted = requirement.extras or {""}
        for line in requires(name) or ():
            needed = Requirement(line)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in wanted):
                todo.append(needed)


def test_the_core_installs_at_most_fifteen_distributions():
    installed = {"turnwise", *closure(PROJECT["project"]["dependencies"])}
    assert {"gymnasium", "numpy", "rich", "tyro"} <= installed
    assert len(installed) <= 15, sorted(installed)


def requirements() -> Iterator[Requirement]:
    optional = PROJECT["project"]["optional-dependencies"]
    for lines in (PROJECT["project"]["dependencies"], *optional.values()):
        yield from map(Requirement, lines)


def test_dependencies_are_ranges_not_pins():
    operators = {spec.operator for requirement in requirements() for spec in requirement.specifier}
    assert operators == {">="}


def test_the_constraints_lie_within_the_ranges_and_name_no_place():
    for requirement in requirements():
        if pin := PINS.get(canonicalize_name(requirement.name)):
            assert requirement.specifier.contains(pin), requirement
    assert all(re.fullmatch(r"[\d.a-z]+", pin) for pin in PINS.values())


EXTRAS = ("train", "babyai", "browser", "docker", "remote", "ray", "dev")
"""What scripts/setup.sh installs."""


def test_the_constraints_pin_all_that_the_tests_run_on():
    optional = PROJECT["project"]["optional-dependencies"]
    wanted = [line for extra in EXTRAS for line in optional[extra]]
    try:
        installed = {*closure([*PROJECT["project"]["dependencies"], *wanted])}
    except PackageNotFoundError as absent:
        pytest.skip(f"{absent} is not installed here")
    assert installed <= PINS.keys()


def test_importing_the_environments_takes_less_than_half_a_second_of_the_processor():
    # Processor time, and the least of five: the machine may be doing other things.
    code = "import time, turnwise.envs; print(time.process_time())"
    run = [sys.executable, "-c", code]
    spent = [float(subprocess.check_output(run)) for _ in range(5)]
    assert min(spent) < 0.5


def test_the_version_is_the_one_of_the_project():
    assert version("turnwise") == PROJECT["project"]["version"]
