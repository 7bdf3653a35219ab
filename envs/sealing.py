"""The bytes of a snapshot: a header that says of which environment it is, then a pickle."""

from __future__ import annotations

import copyreg
import hashlib
import inspect
import io
import json
import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turnwise.envs.env import Env

VERSION = 1
"""Of the bytes."""
_MAGIC = b"turnwise snapshot\n"


class WrongSnapshot(ValueError):
    """These bytes are of another environment, other arguments or another version, or damaged."""


def sealed(env: Env, state: dict[str, Any]) -> bytes:
    """Return `state` pickled, under a header that says of which environment it is."""
    body = dump(env, state)
    sha = hashlib.sha256(body).hexdigest()
    header = json.dumps({"version": VERSION, "env": _identity(env), "sha": sha})
    return b"%s%s\n%s" % (_MAGIC, header.encode(), body)


def opened(env: Env, saved: bytes) -> dict[str, Any]:
    """Return the state that `sealed` took, its header checked before anything is unpickled.

    Raises:
        WrongSnapshot: see there.
    """
    if not saved.startswith(_MAGIC):
        raise WrongSnapshot("these bytes are no snapshot of an environment")
    line, _, body = saved[len(_MAGIC) :].partition(b"\n")
    header = json.loads(line)
    if (version := header["version"]) != VERSION:
        raise WrongSnapshot(f"a snapshot of version {version}; this turnwise reads {VERSION}")
    if (of := header["env"]) != (own := _identity(env)):
        raise WrongSnapshot(f"a snapshot of {_named(of, own)}; this is {_named(own, of)}")
    if header["sha"] != hashlib.sha256(body).hexdigest():
        raise WrongSnapshot("the snapshot was cut or changed after it was taken")
    state: dict[str, Any] = _Unpickler(env, body).load()
    return state


def _identity(env: Env) -> dict[str, Any]:
    """What must be equal: the class, the id, and the arguments with their defaults."""
    args, kwargs = env._made_with
    bound = inspect.signature(type(env)).bind(*args, **kwargs)
    bound.apply_defaults()
    text = json.dumps(_flat(bound), sort_keys=True, default=lambda value: type(value).__qualname__)
    where = f"{type(env).__module__}:{type(env).__qualname__}"
    return {"id": env.env_id, "class": where, "arguments": json.loads(text)}


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return the arguments by name, those of `**more` among them."""
    given = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name)
    return given


def _named(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Say what `one` is, with the first thing in which it differs from `other`."""
    for what in ("id", "class"):
        if one[what] != other[what]:
            return f"{what} {one[what]!r}"
    return f"{one['id'] or one['class']} with arguments {one['arguments']}"


def dump(env: Env, state: dict[str, Any]) -> bytes:
    """Pickle `state`; a reference to `env` itself, as in a bound method, becomes `_here`."""

    def reduced(found: Any) -> Any:
        return (_here, ()) if found is env else found.__reduce_ex__(pickle.HIGHEST_PROTOCOL)

    out = io.BytesIO()
    pickler = pickle.Pickler(out, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = {**copyreg.dispatch_table, type(env): reduced}
    pickler.dump(state)
    return out.getvalue()


def _here() -> Any:
    raise RuntimeError("only `restore` knows which environment this is")


class _Unpickler(pickle.Unpickler):
    def __init__(self, env: Env, body: bytes) -> None:
        super().__init__(io.BytesIO(body))
        self._env = env

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return (lambda: self._env) if found is _here else found
