"""`turnwise init`: a package with one environment, sound as it stands."""

from __future__ import annotations

import keyword
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from rich.text import Text
from tyro.conf import Positional, arg

from turnwise.cli.display import console, print_json, title
from turnwise.cli.options import UsageError
from turnwise.cli.templates import project

MODULES = {
    "tools": {"tools.py": "my_env.py"},
    "code": {"code.py": "my_env.py"},
    "web": {"web.py": "my_env.py", "web_site.py": "my_env_site.py"},
    "text": {"text.py": "my_env.py"},
}
"""Kind to the templates of its modules, each with the file that it becomes."""
MAX_NAME = 32
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


@dataclass(frozen=True)
class Options:
    """Write a package with one environment of about 30 lines, sound as it stands; then edit it.

    It has typed tasks in splits, a reward, an expert, a test, and an id once it is installed.

    example:
      turnwise init my-env --kind tools
    """

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """Of the package and its folder: lower-case letters, digits and hyphens."""
    kind: Literal["tools", "code", "web", "text"] = "tools"
    """What the agent does: calls methods, writes code, uses a web site, or answers in text."""
    folder: Path = Path()
    """Where the new folder goes."""
    json: bool = False
    """Print a JSON object."""


@dataclass(frozen=True)
class Names:
    """The names of one package."""

    package: str

    @property
    def module(self) -> str:
        """`my_env` of `my-env`."""
        return self.package.replace("-", "_")

    @property
    def cls(self) -> str:
        """`MyEnv` of `my-env`."""
        return "".join(map(str.capitalize, self.module.split("_")))

    @property
    def id(self) -> str:
        """`my-env/MyEnv-v1` of `my-env`."""
        return f"{self.package}/{self.cls}-v1"

    def into(self, text: str) -> str:
        """Return a template with these names in place of the example's."""
        given = {"my-env": self.package, "my_env": self.module, "MyEnv": self.cls}
        return re.sub("my-env|my_env|MyEnv", lambda found: given[found[0]], text)


def run(options: Options) -> int:
    """Write the package and return the exit code."""
    names = _names(options.name)
    root = options.folder / names.package
    texts = {root / path: text for path, text in _files(names, options.kind).items()}
    _refuse_taken(names, texts)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    commands = [
        f"cd {shlex.quote(str(root))}",
        f"turnwise check {names.module}:{names.cls}",
        f"pip install -e . && turnwise eval {names.id} --policy expert --tasks 20",
    ]
    if options.json:
        print_json({"id": names.id, "files": [str(path) for path in texts], "next": commands})
    else:
        _show(names, list(texts), commands)
    return 0


def _names(name: str) -> Names:
    """Return the names that follow from the package's.

    Raises:
        UsageError: no package can have this name.
    """
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise UsageError(
            f"{name!r} cannot name a package: write at most {MAX_NAME} lower-case letters and "
            "digits, in words with single hyphens between them, a letter first, as my-env"
        )
    names = Names(name)
    if keyword.iskeyword(names.module) or names.module in sys.stdlib_module_names:
        raise UsageError(f"{names.module!r} is a module or a word of Python; write {name}-env")
    return names


def _files(names: Names, kind: str) -> dict[str, str]:
    """Return path to text of all that is written."""
    templates = files("turnwise.cli.templates")
    modules = {names.into(path): name for name, path in MODULES[kind].items()}
    listed = ", ".join(f'"{path.removesuffix(".py")}"' for path in modules)
    around = {
        "pyproject.toml": project.PYPROJECT.replace("MODULES", listed),
        "README.md": project.README,
        "tests/test_env.py": project.TEST,
    }
    written = {path: templates.joinpath(name).read_text("utf-8") for path, name in modules.items()}
    return {path: names.into(text) for path, text in (written | around).items()}


def _refuse_taken(names: Names, texts: Mapping[Path, str]) -> None:
    """Refuse to write over anything, or a module that Python would confuse with another.

    Raises:
        UsageError: something is there.
    """
    if there := [str(path) for path in texts if path.exists()]:
        raise UsageError(
            f"nothing was written: {there[0]} is there already; choose another name, another "
            "--folder, or take it away"
        )
    if (taken := find_spec(names.module)) is not None:
        raise UsageError(
            f"a module {names.module!r} is installed already ({taken.origin}); choose another name"
        )


def _show(names: Names, written: Sequence[Path], commands: Sequence[str]) -> None:
    out = console()
    out.print(title(names.id, "written"))
    for path in written:
        out.print(Text(f"  {path}"))
    out.print(Text("\nnext", "bold"))
    for command in commands:
        out.print(Text(f"  {command}"), soft_wrap=True)
