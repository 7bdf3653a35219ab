"""What a client of `remote_server` may ask of its box, each call read from its JSON and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from turnwise.sandboxes.base import ExecResult, Sandbox

if TYPE_CHECKING:
    from turnwise.sandboxes.remote_leases import Leases

Answer = tuple[dict[str, Any], bytes]
Call = Callable[["Leases", Sandbox, dict[str, Any], bytes], Answer]


def _exec(leases: Leases, box: Sandbox, head: dict[str, Any], body: bytes) -> Answer:
    argv, cwd, env = head.get("argv"), head.get("cwd"), head.get("env") or {}
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        raise ValueError(f"argv must be a list of texts, got {argv!r:.100}")
    if not isinstance(env, dict) or not all(isinstance(v, str) for v in env.values()):
        raise ValueError(f"env must map texts to texts, got {env!r:.100}")
    cwd = None if cwd is None else _text(head, "cwd")
    return _packed(box.exec(argv, stdin=body, cwd=cwd, env=env, timeout_s=_timeout(head)))


def _cell(leases: Leases, box: Sandbox, head: dict[str, Any], body: bytes) -> Answer:
    code, kernel = body.decode("utf-8", "surrogatepass"), _text(head, "kernel")
    return _packed(box.cell(code, kernel=kernel, timeout_s=_timeout(head)))


def _shell(leases: Leases, box: Sandbox, head: dict[str, Any], body: bytes) -> Answer:
    command, name = body.decode("utf-8", "surrogatepass"), _text(head, "name")
    return _packed(box.shell(command, name=name, timeout_s=_timeout(head)))


def _put(leases: Leases, box: Sandbox, head: dict[str, Any], body: bytes) -> Answer:
    box.put(_text(head, "path"), body, mode=_whole(head, "mode"))
    return {}, b""


def _get(leases: Leases, box: Sandbox, head: dict[str, Any], body: bytes) -> Answer:
    limit = None if head.get("max_bytes") is None else _whole(head, "max_bytes")
    return {}, box.get(_text(head, "path"), max_bytes=limit)


def _fork_kernel(leases: Leases, box: Sandbox, head: dict[str, Any], body: bytes) -> Answer:
    box.fork_kernel(_text(head, "kernel"), into=_text(head, "into"))
    return {}, b""


def _snapshot(leases: Leases, box: Sandbox, head: dict[str, Any], body: bytes) -> Answer:
    kept = box.snapshot()
    return {"left_out": list(kept.left_out), "left_out_count": kept.left_out_count}, kept.data


def _fork(leases: Leases, box: Sandbox, head: dict[str, Any], body: bytes) -> Answer:
    """Fork into as many boxes as there are creation ids, from the files in the body if any."""
    from turnwise.sandboxes.snapshot import Snapshot

    creates = head.get("creates")
    if not isinstance(creates, list) or not all(isinstance(one, str) for one in creates):
        raise ValueError(f"creates must be a list of texts, got {creates!r:.100}")
    leases.require_room(creates)
    boxes = box.fork(len(creates), Snapshot(body) if head.get("given") else None)
    return {"boxes": [lease.about() for lease in leases.adopt(boxes, creates)]}, b""


CALLS: dict[str, Call] = {
    "exec": _exec,
    "cell": _cell,
    "shell": _shell,
    "put": _put,
    "get": _get,
    "fork_kernel": _fork_kernel,
    "snapshot": _snapshot,
    "fork": _fork,
}


def _packed(result: ExecResult) -> Answer:
    head = asdict(result) | {"stdout": len(result.stdout), "stderr": len(result.stderr)}
    return head, result.stdout + result.stderr


def _text(head: dict[str, Any], name: str) -> str:
    value = head.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, got {value!r:.100}")
    return value


def _whole(head: dict[str, Any], name: str) -> int:
    value = head.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r:.100}")
    return value


def _timeout(head: dict[str, Any]) -> float | None:
    value = head.get("timeout_s")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"timeout_s must be a number, got {value!r:.100}")
    return value
