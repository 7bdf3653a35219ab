"""Which hosts a box may reach: the list of a `NetPolicy`, read strictly and judged on the host.

"pypi.org"          this host, ports 80 and 443
"*.debian.org"      every host below it, not itself
"10.0.0.5:8000"     this address and port; private and loopback addresses only as such entries
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_PORTS = (80, 443)
CONNECT_TIMEOUT_S = 10.0
_NAME = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """What the box hears instead of an answer; `status` is an HTTP status line."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an allow-list."""

    host: str
    """A name, `*.` and a name, or an address in its canonical form."""
    ports: tuple[int, ...] = DEFAULT_PORTS

    def covers(self, host: str, port: int) -> bool:
        """Whether `host`, lower case and without a final dot, may be reached at `port`."""
        below = self.host.startswith("*.") and host.endswith(self.host[1:])
        return port in self.ports and (below or host == self.host)


def parse_allow(allow: Sequence[str]) -> tuple[Entry, ...]:
    """The entries that a policy lists.

    Raises:
        ValueError: the list is empty, or an entry is neither a host nor `*.host` nor `host:port`.
    """
    entries = tuple(_entry(text) for text in allow)
    if not entries:
        raise ValueError("NetPolicy('proxy') without a host reaches nothing; use NetPolicy('none')")
    return entries


def _entry(text: str) -> Entry:
    if "/" not in text and "@" not in text:
        with contextlib.suppress(ValueError):
            host, port = split_authority(text, 0)
            if _address(host) or _NAME.fullmatch(host):
                return Entry(host, (port,) if port else DEFAULT_PORTS)
    raise ValueError(
        f"an entry of NetPolicy.allow is a host, '*.host' or 'host:port', got {text!r}"
    )


def split_authority(text: str, port: int) -> tuple[str, int]:
    """(host in its one spelling, port) of `host`, `host:port`, `[v6]` or `[v6]:port`.

    Raises:
        ValueError: it is none of these.
    """
    if bare := _address(text):
        return str(bare), port
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+)(?::(\d{1,5}))?", text)
    if not match or not 0 < int(match[2] or port or 1) < 65_536:
        raise ValueError(f"not a host and a port: {text!r:.200}")
    host = match[1].strip("[]").lower().rstrip(".")
    return str(_address(host) or host), int(match[2] or port)


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether `address` lies in the Internet, whatever form its IPv4 part is wrapped in."""
    inner = [address]
    if isinstance(address, ipaddress.IPv6Address):
        inner += [part for part in (address.ipv4_mapped, address.sixtofour) if part]
        inner += address.teredo or ()
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped
    judged = inner[1:] if mapped else inner
    return all(part.is_global and not part.is_multicast for part in judged)


class Policy:
    """Which connections an allow-list permits.

    Args:
        allow: see `NetPolicy`.
        look_up: as `socket.getaddrinfo`; asked only for names that are listed.
    """

    def __init__(
        self, allow: Sequence[str], look_up: Callable[..., Any] = socket.getaddrinfo
    ) -> None:
        self.entries, self.look_up = parse_allow(allow), look_up
        self.listed = ", ".join(allow)

    def dial(self, host: str, port: int) -> socket.socket:
        """A connection to `host`, which is looked up only if it is listed.

        Raises:
            Refused: it is not listed, leads to a private address, or does not answer.
        """
        if not any(entry.covers(host, port) for entry in self.entries):
            why = f"{host}:{port} is not on this box's list: {self.listed}"
            raise Refused("403 Forbidden", why)
        status, why = "502 Bad Gateway", f"{host} has no address"
        for family, address in self._look_up(host, port):
            if not self._may_reach(address[0], port):
                status = "403 Forbidden"
                why = f"{host} leads to the private address {address[0]}, which is not listed"
                continue
            made = socket.socket(family, socket.SOCK_STREAM)
            made.settimeout(CONNECT_TIMEOUT_S)
            try:
                made.connect(address)
                return made
            except OSError as error:
                made.close()
                status = "502 Bad Gateway"
                why = f"{host}:{port} does not answer: {error.strerror or error}"
        raise Refused(status, why)

    def _look_up(self, host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
        try:
            found = self.look_up(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Refused("502 Bad Gateway", f"{host} cannot be looked up: {error}") from None
        return [(family, (str(where[0]), int(where[1]))) for family, _, _, _, where in found]

    def _may_reach(self, text: str, port: int) -> bool:
        address = _address(text.partition("%")[0])
        if address is None:
            return False
        listed = any(entry.covers(str(address), port) for entry in self.entries)
        return listed or is_public(address)
