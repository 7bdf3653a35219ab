"""What travels between `remote` and `remote_server`: one JSON object, then bytes as they are.

    message  >I length of the JSON | a JSON object | bytes

    POST   /v1/sandboxes             {create, spec}        -> {id, backend, capabilities, ttl_s}
    POST   /v1/sandboxes/ID/calls/OP {number, ...} + bytes -> what the call returned
    GET    /v1/sandboxes             all leases;  GET /v1/sandboxes/ID  one of them
    POST   /v1/heartbeats            {ids}                 -> {gone}
    DELETE /v1/sandboxes/ID                                -> {}

A creation carries an id that its client made, and a call its number, 1, 2, 3 ... per box. Sent
again, both return the first answer; nothing ever runs twice. A failure is an HTTP status above 399
with {error, message, retryable}, which becomes the same exception on the other side.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import asdict, fields
from typing import Any

from turnwise.sandboxes.base import (
    Limits,
    NetPolicy,
    NoSafeSandbox,
    ProtocolError,
    SandboxDied,
    SandboxError,
    SandboxSpec,
    StartFailed,
    Unsupported,
)

TOKEN_VARIABLE, URL_VARIABLE = "TURNWISE_SANDBOX_TOKEN", "TURNWISE_SANDBOX_URL"
TOKEN_RULE = "at least 16 visible ASCII characters"
CONTENT_TYPE = "application/vnd.turnwise.sandbox"
MAX_HEAD_BYTES = 1 << 20
EXTRA_BYTES = 1 << 20
"""Of a message, above the largest file that its box may hold."""
_LENGTH = struct.Struct(">I")
_STATUS = {
    StartFailed: 503,
    SandboxDied: 410,
    ProtocolError: 409,
    Unsupported: 422,
    NoSafeSandbox: 501,
    SandboxError: 500,
    ValueError: 400,
    OSError: 424,
}
"""Exception class -> HTTP status; for people and proxies, clients go by the name in the body."""
_CLASSES = {kind.__name__: kind for kind in _STATUS}


def is_token(token: str) -> bool:
    """Whether `token` keeps `TOKEN_RULE`: it travels in an HTTP header."""
    return len(token) >= 16 and token.isascii() and token.isprintable() and token == token.strip()


def pack(head: dict[str, Any], body: bytes = b"") -> bytes:
    """The message of `head` and `body`."""
    text = json.dumps(head, separators=(",", ":")).encode()
    return _LENGTH.pack(len(text)) + text + body


def unpack(message: bytes) -> tuple[dict[str, Any], bytes]:
    """What `pack` packed.

    Raises:
        ProtocolError: it is not a message.
    """
    if len(message) < _LENGTH.size:
        raise ProtocolError(f"a message of {len(message)} bytes")
    (length,) = _LENGTH.unpack_from(message)
    end = _LENGTH.size + length
    if length > MAX_HEAD_BYTES or len(message) < end:
        raise ProtocolError(f"a message of {len(message)} bytes announces a head of {length}")
    try:
        head = json.loads(message[_LENGTH.size : end])
    except ValueError as error:
        raise ProtocolError(f"a head that is not JSON: {error}") from None
    if not isinstance(head, dict):
        raise ProtocolError(f"a head that is not an object: {head!r:.100}")
    return head, message[end:]


def pack_error(error: Exception) -> tuple[int, bytes]:
    """(HTTP status, message) for what a call raised."""
    kind = next((kind for kind in _STATUS if isinstance(error, kind)), SandboxError)
    exact = next((known for known in _STATUS if type(error) is known), kind)
    head: dict[str, Any] = {"error": exact.__name__, "message": str(error)[:4000]}
    head["retryable"] = getattr(error, "retryable", False)
    head["out_of_memory"] = getattr(error, "out_of_memory", False)
    if isinstance(error, OSError):
        head |= {"errno": error.errno, "message": (error.strerror or str(error))[:4000]}
    return _STATUS[exact], pack(head)


def unpack_error(head: dict[str, Any], status: int) -> Exception:
    """The exception that `pack_error` packed; an unknown one becomes a `SandboxError`."""
    kind = _CLASSES.get(str(head.get("error")), SandboxError)
    message = str(head.get("message", f"the server answered with status {status}"))[:4000]
    if kind is OSError:
        return OSError(_number(head.get("errno"), 5), message)
    error = kind(message)
    if isinstance(error, SandboxError):
        error.retryable = head.get("retryable", error.retryable) is True
    if isinstance(error, SandboxDied):
        error.out_of_memory = head.get("out_of_memory") is True
    return error


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def pack_spec(spec: SandboxSpec) -> dict[str, Any]:
    """`spec` as JSON can hold it."""
    packed = asdict(spec) | {"env": dict(spec.env)}
    del packed["isolation"]  # the rooms of a batch are made on this side
    return packed


def unpack_spec(given: Any) -> SandboxSpec:
    """The spec that a client asks for; every field is checked, nothing is taken on trust.

    Raises:
        ValueError: a field is unknown or of the wrong type.
    """
    known = {field.name for field in fields(SandboxSpec)}
    if not isinstance(given, dict) or not set(given) <= known:
        raise ValueError(f"a spec is an object of {', '.join(sorted(known))}, got {given!r:.200}")
    env = given.get("env", {})
    net = given.get("net", {})
    if not isinstance(env, dict) or not _texts([*env, *env.values()]):
        raise ValueError(f"spec.env must map texts to texts, got {env!r:.200}")
    if not isinstance(net, dict) or net.get("mode", "none") not in ("none", "proxy"):
        raise ValueError(f"spec.net must hold mode 'none' or 'proxy', got {net!r:.200}")
    allow, image, workdir = net.get("allow", []), given.get("image"), given.get("workdir")
    if not isinstance(allow, list) or not _texts(allow):
        raise ValueError(f"spec.net.allow must be a list of texts, got {allow!r:.200}")
    if not _texts([image or "", workdir or ""]):
        raise ValueError("spec.image and spec.workdir must be texts")
    policy = NetPolicy(net.get("mode", "none"), tuple(allow))
    return SandboxSpec(
        image, _limits(given.get("limits", {})), policy, env, workdir or "/workspace"
    )


def _texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) and "\0" not in value for value in values)


def _limits(given: Any) -> Limits:
    known = asdict(Limits())
    if not isinstance(given, dict) or not set(given) <= set(known):
        raise ValueError(f"spec.limits holds {', '.join(known)}, got {given!r:.200}")
    for name, value in given.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(f"spec.limits.{name} must be a number, got {value!r:.100}")
    return Limits(**{name: type(known[name])(value) for name, value in given.items()})
