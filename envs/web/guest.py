"""Inside the box: keeps the episodes of one site and answers their requests.

Runs in a kernel of its own, in which no code of an agent ever runs. Its source is sent with the
kit's and the site's; nothing of it runs on the host.
"""

from __future__ import annotations

import json
import sys
import types
from urllib.parse import parse_qsl, unquote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

EPISODES: dict[str, tuple[Any, dict[str, Any]]] = {}
"""(data, db) by episode."""
STATIC: dict[str, str] = {}
SITE: list[Any] = []


def tw_load(name: str, source: str) -> None:
    """Make module `name` of `source`, and empty packages above it."""
    above = ""
    for part in name.split(".")[:-1]:
        above = f"{above}.{part}" if above else part
        if above not in sys.modules:
            package = types.ModuleType(above)
            package.__path__ = []
            sys.modules[above] = package
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, f"<{name}>", "exec", dont_inherit=True), module.__dict__)
    SITE[:] = [module]


def tw_open(key: str, data: str, db: str) -> None:
    """Start an episode; both are JSON."""
    EPISODES[key] = json.loads(data), json.loads(db)
    print(_dumped(EPISODES[key][1]))


def tw_drop(key: str) -> None:
    """Forget an episode."""
    EPISODES.pop(key, None)


def tw_handle(key: str, method: str, target: str, body: str, cookies: str) -> None:
    """Answer one request: print a line of status and headers, the database, then the body."""
    kit = sys.modules["turnwise.envs.web.kit"]
    path, _, query = target.partition("?")
    path = unquote(path)
    if path in STATIC:
        kind = "text/css" if path.endswith(".css") else "image/svg+xml"
        answer = kit.Answer(
            STATIC[path], 200, {"Content-Type": kind, "Cache-Control": "max-age=60"}
        )
    elif path == "/favicon.ico":
        answer = kit.Answer("", 404)
    else:
        data, db = EPISODES[key]
        request = kit.Request(method, path, _fields(query), _fields(body), data, db, _jar(cookies))
        answer = SITE[0].respond(request)
    head = json.dumps([answer.status, dict(answer.headers)])
    print(head, _dumped(EPISODES[key][1]), answer.body, sep="\n", end="")


def _fields(encoded: str) -> dict[str, str]:
    pairs = parse_qsl(encoded, keep_blank_values=True)
    return {name: value.replace("\r\n", "\n") for name, value in pairs}


def _jar(line: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in line.split(";") if "=" in part)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _dumped(db: Any) -> str:
    return json.dumps(db, sort_keys=True, separators=(",", ":"), allow_nan=False)
