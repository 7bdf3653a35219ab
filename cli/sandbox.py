"""`turnwise sandbox`: look at boxes, clean up after them, try one, serve them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import tyro

PORT = 8337


@dataclass(frozen=True)
class Action:
    """What every action takes."""

    json: bool = False
    """Print a JSON object."""


@dataclass(frozen=True)
class Ls(Action):
    """Which boxes there are, whose they are, and what owners that were killed have left.

    example:
      turnwise sandbox ls --json
    """


@dataclass(frozen=True)
class Gc(Action):
    """Remove what owners that have ended left: boxes, containers, cgroups, folders.

    example:
      turnwise sandbox gc
    """


@dataclass(frozen=True)
class Doctor(Action):
    """Probe every backend with a program and some attacks, and say what to run to mend it.

    Exit 4 if none isolates here.

    example:
      turnwise sandbox doctor
    """


@dataclass(frozen=True)
class Shell(Action):
    """Run one program in a fresh box, or lines that you type; the box ends with the command.

    Exits with the code of the program.

    example:
      turnwise sandbox shell -- ls -la /
    """

    argv: tyro.conf.Positional[tuple[str, ...]] = ()
    """The program and its arguments, after `--`; none to be asked for lines."""
    backend: str = "auto"
    """As in `open_sandbox`."""
    image: str = ""
    """An image of the docker engine."""
    allow: tuple[str, ...] = ()
    """Hosts that it may reach through the proxy, such as `pypi.org` or `*.debian.org`."""
    timeout_s: float = 300.0
    """Of the program, or of each line."""


@dataclass(frozen=True)
class Image(Action):
    """Make the image of docker boxes from Debian packages, or fetch or build one of your own.

    example:
      turnwise sandbox image build --packages gcc make
    """

    what: tyro.conf.Positional[Literal["build"]] = "build"
    """The one thing to do."""
    tag: str = ""
    """Its name; that of the base image by default."""
    packages: tuple[str, ...] = ()
    """Debian packages besides those of the base image; needs no registry."""
    dockerfile: Path | None = None
    """Build this one."""
    image: str = ""
    """Fetch this one from its registry."""


@dataclass(frozen=True)
class Serve(Action):
    """Lend boxes of this machine to others, which use the backend `remote`. Ends at Ctrl-C.

    The token is read from TURNWISE_SANDBOX_TOKEN; without one only this machine can be served, and
    a token is made and printed. Put a TLS proxy in front before you serve a network.

    example:
      turnwise sandbox serve --backend bubblewrap --max-live 16
    """

    host: str = "127.0.0.1"
    """Where to listen."""
    port: int = PORT
    """0 for any that is free."""
    backend: str = "auto"
    """What runs the boxes."""
    max_live: int = 32
    """Boxes at once."""
    allow: tuple[str, ...] = ()
    """Hosts that a client may have its boxes reach; none by default."""


Actions = (
    Annotated[Ls, tyro.conf.subcommand("ls")]
    | Annotated[Gc, tyro.conf.subcommand("gc")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Shell, tyro.conf.subcommand("shell")]
    | Annotated[Image, tyro.conf.subcommand("image")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
)
HOMES = {
    Ls: "sandbox_ls:show",
    Gc: "sandbox_ls:collect",
    Doctor: "sandbox_doctor:examine",
    Shell: "sandbox_shell:run",
    Image: "sandbox_ls:build",
    Serve: "sandbox_serve:serve",
}


@tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes)
@dataclass(frozen=True)
class Options:
    """Look at boxes, clean up after owners that were killed, try a box, or serve them.

    Each action has a `--help` of its own.

    example:
      turnwise sandbox shell -- ls -la /
    """

    action: Actions
    json: bool = False
    """Print a JSON object."""


def run(options: Options) -> int:
    """Do the action and return the exit code."""
    module, function = HOMES[type(options.action)].split(":")
    act = getattr(import_module(f"turnwise.cli.{module}"), function)
    return int(act(options.action, json=options.json or options.action.json))
