"""The host's side of a site that runs in a box: load it, start an episode, send requests."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnwise.sandboxes.base import ProtocolError, Sandbox, SandboxDied, SandboxError

KIT = "turnwise.envs.web.kit"
MAX_BODY_BYTES = 1 << 18
"""Of a posted form."""

_count = itertools.count()
_loaded: weakref.WeakKeyDictionary[Sandbox, set[str]] = weakref.WeakKeyDictionary()
_loading = threading.Lock()


class SiteError(RuntimeError):
    """The site's own code raised: a bug of the environment, not a mistake of the agent."""


@dataclass(frozen=True, slots=True)
class Site:
    """The code of a site: modules, the last of which has `respond`, and files beside it."""

    modules: tuple[str, ...]
    static: tuple[Path, ...] = ()
    """Served as they are, under `/` and their name."""

    @property
    def kernel(self) -> str:
        """The kernel of the box in which it runs."""
        return f"web-{self.modules[-1].rpartition('.')[2]}"[:60]


@dataclass(frozen=True, slots=True)
class Reply:
    """What the site answered."""

    status: int
    headers: Mapping[str, str]
    body: str


class Session:
    """One episode of a site. Safe to use from several threads.

    Raises:
        SandboxError: the box failed.
        SiteError: the site's code cannot be loaded.
    """

    def __init__(self, box: Sandbox, site: Site, data: Mapping[str, Any], db: str = "{}") -> None:
        self.box, self.site = box, site
        self.key = f"e{next(_count)}"
        self.failure: Exception | None = None
        """What the last request that came from a browser met."""
        _ensure_loaded(box, site)
        self._db_text = self._run("tw_open", self.key, json.dumps(data), db).rstrip("\n")

    @property
    def db_text(self) -> str:
        """The database as canonical JSON, as it was after the last request."""
        return self._db_text

    @property
    def db(self) -> dict[str, Any]:
        """A copy of the database, as it was after the last request."""
        return json.loads(self._db_text)

    def request(self, method: str, target: str, body: str = "", cookies: str = "") -> Reply:
        """Send one request to the site.

        Args:
            method: `GET` or `POST`.
            target: Path and query.
            body: A form as `application/x-www-form-urlencoded`.
            cookies: The value of the `Cookie` header.

        Raises:
            SandboxError: the box failed.
            SiteError: the site raised.
        """
        said = self._run("tw_handle", self.key, method, target, body, cookies)
        head, _, rest = said.partition("\n")
        db_text, _, page = rest.partition("\n")
        try:
            status, headers = json.loads(head)
        except ValueError as error:
            raise ProtocolError(f"the site's kernel sent no answer: {head[:100]!r}") from error
        self._db_text = db_text
        return Reply(status, headers, page)

    def close(self) -> None:
        """Forget the episode in the box. Safe to call twice; never raises."""
        with contextlib.suppress(SandboxError, SiteError):
            self._run("tw_drop", self.key)

    def _run(self, function: str, *args: str) -> str:
        return _run(self.box, self.site, f"{function}({', '.join(map(repr, args))})")


def _run(box: Sandbox, site: Site, code: str) -> str:
    """Run `code` in the site's kernel and return what it printed."""
    result = box.cell(code, kernel=site.kernel)
    if result.state_lost:
        with _loading:
            _loaded.pop(box, None)
        raise SandboxDied(f"the kernel of {site.modules[-1]} was lost")
    if result.timed_out:
        raise SandboxError(f"{site.modules[-1]} did not answer in time")
    if result.exit_code != 0:
        lines = result.text.strip().splitlines() or ["no output"]
        raise SiteError(f"{site.modules[-1]} raised {lines[-1][:300]} (in {_place(lines)})")
    if result.truncated:
        raise SiteError(f"{site.modules[-1]} answered with more than the box lets through")
    return result.stdout.decode()


def _place(lines: list[str]) -> str:
    frames = [line.strip() for line in lines if line.strip().startswith("File ")]
    return frames[-1] if frames else "an unknown place"


def _ensure_loaded(box: Sandbox, site: Site) -> None:
    """Send the code, once per box and site."""
    with _loading:
        loaded = _loaded.setdefault(box, set())
        if site.kernel in loaded:
            return
        guest = Path(__file__).with_name("guest.py").read_text(encoding="utf-8")
        # The cell that makes the functions must not be one that ends with a traceback of ours.
        _run_first(box, site, guest)
        for name in (KIT, *site.modules):
            _run_first(box, site, f"tw_load({name!r}, {source_of(name)!r})")
        for path in site.static:
            text = path.read_text(encoding="utf-8")
            _run_first(box, site, f"STATIC[{'/' + path.name!r}] = {text!r}")
        loaded.add(site.kernel)


def _run_first(box: Sandbox, site: Site, code: str) -> None:
    result = box.cell(code, kernel=site.kernel)
    if result.state_lost:
        raise SandboxDied(f"the kernel of {site.modules[-1]} was lost while it was loaded")
    if result.exit_code != 0:
        raise SiteError(f"{site.modules[-1]} cannot be loaded: {result.text.strip()[-400:]}")


def source_of(module: str) -> str:
    """Return the source of a module without importing it.

    Raises:
        SiteError: there is no such module, or it has no source.
    """
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    source = getattr(spec.loader, "get_source", lambda name: None)(module) if spec else None
    if source is None:
        raise SiteError(f"no source of a module {module!r}; set `site` to a module that is there")
    return source
