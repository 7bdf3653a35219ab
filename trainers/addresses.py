"""Servers by their addresses: which names are addresses, and which of them are one server."""

from __future__ import annotations

from urllib.parse import urlsplit

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})
"""Hosts by which this machine is named from within."""
BLACK_BOX = "openai:"
"""Begins the name of a teacher that is served elsewhere and answers in text."""
PORTS = {"http": 80, "https": 443}


def is_address(name: str) -> bool:
    """Whether a model is named by the address of a server that holds it."""
    return name.startswith(("http://", "https://"))


def is_black_box(name: str) -> bool:
    """Whether a teacher is named that answers in text alone."""
    return name.startswith(BLACK_BOX)


def is_served(name: str) -> bool:
    """Whether a model is served elsewhere: there is no folder of it here."""
    return is_address(name) or is_black_box(name)


def addresses_in(engine: str) -> list[str]:
    """Return the addresses of an `engine`, which has commas between them."""
    return engine.replace(",", " ").split()


def same_servers(one: str, other: str) -> list[str]:
    """Return the addresses in `one` of servers that are in `other`, too, however it is written."""
    theirs = {_server_at(address) for address in addresses_in(other)}
    return [address for address in addresses_in(one) if _server_at(address) in theirs]


def repeated(engine: str) -> list[str]:
    """Return the addresses in `engine` of servers that were named before, however written."""
    seen, again = set(), []
    for address in addresses_in(engine):
        server = _server_at(address)
        again += [address] if server in seen else []
        seen.add(server)
    return again


def _server_at(address: str) -> tuple[str, int | None, str]:
    """Return host, port and path: equal for what surely is one server."""
    try:
        parts = urlsplit(address)
        port = parts.port or PORTS.get(parts.scheme)
    except ValueError:  # no address; who asks it says so
        return address, None, ""
    host = (parts.hostname or "").rstrip(".")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return "localhost" if host in LOOPBACK else host, port, path
