"""Which requests are served: by their API key, the host that they name, and the page they are from.

The path is the one that the routes compare. `Request.url` is not asked: old versions of Starlette
build it from the header `Host`, so that `Host: x/?` makes every path `/`.
"""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import Scope

from edge_runtime.api import errors
from edge_runtime.api.errors import ApiError
from edgespec.allowed_hosts import AllowedHosts, is_malformed

_OPEN = ("/", "/health")
"""Paths that need no API key. The page asks for one."""


class Callers:
    """Whom the API serves."""

    def __init__(self, host: str, api_key: str) -> None:
        """`host`: the listening address. `api_key` empty: clients of this machine need none."""
        self._hosts = AllowedHosts(host)
        self._api_key = api_key

    def refusal(self, scope: Scope) -> ApiError | None:
        """Why a request must not be served; None if it may."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if is_malformed(host):
            return ApiError(400, "the header Host is neither HOST nor HOST:PORT")
        if self._api_key:
            return self._without_key(scope, headers)
        if not self._hosts.admits(host):
            return ApiError(
                403,
                "this host name is not allowed here; start the server with an API key to allow any",
            )
        return None

    def _without_key(self, scope: Scope, headers: Headers) -> ApiError | None:
        given, wanted = headers.get("authorization", ""), f"Bearer {self._api_key}"
        if scope["path"] in _OPEN or hmac.compare_digest(given.encode(), wanted.encode()):
            return None
        return ApiError(
            401, "this server needs an API key: Authorization: Bearer KEY",
            errors.UNAUTHORISED, code="invalid_api_key",
        )  # fmt: skip
