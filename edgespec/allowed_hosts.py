"""The host names by which an HTTP port of this machine may be addressed."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


_FOREIGN = re.compile(r"[/?#@\\\s\x00-\x1f\x7f]")
"""What neither a host nor a port has. In a URL the host ends before such a character, or begins
after it."""


def is_malformed(header: str) -> bool:
    """True if a `Host` header has characters that would change a URL made of it."""
    return _FOREIGN.search(header) is not None


class AllowedHosts:
    """The hosts by which clients may address the port.

    A web page whose name an attacker points at this machine (DNS rebinding) makes the browser send
    that name, so other names are refused.
    """

    def __init__(self, bound: str, names: Iterable[str] = ()) -> None:
        """`bound`: the host of the listening address. A wildcard admits every IP address."""
        self._names = {*LOOPBACK_HOSTS, bound.lower(), *(name.lower() for name in names)}
        self._any_address = _is_wildcard(bound)

    def admits(self, header: str) -> bool:
        """True if a `Host` header, HOST or HOST:PORT, names an allowed host."""
        if is_malformed(header):
            return False
        try:
            host = (urlsplit(f"//{header}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return host in self._names or (self._any_address and _is_address(host))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_wildcard(host: str) -> bool:
    return _is_address(host) and ipaddress.ip_address(host).is_unspecified
