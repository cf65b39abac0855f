"""Which requests are served: by their API key, the host that they name, and the page they are from.

The path is the one that the routes compare. `Request.url` is not asked: old versions of Starlette
build it from the header `Host`, so that `Host: x/?` makes every path `/`.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import Scope

from edge_runtime.api import errors
from edge_runtime.api.errors import ApiError
from edgespec.allowed_hosts import AllowedHosts, is_malformed

_OPEN = ("/", "/health")
"""Paths that need no API key. The page asks for one."""
_JSON = re.compile(r"\s*application/([\w.+-]+\+)?json\s*(;.*)?", re.IGNORECASE)


class Callers:
    """Decision which requests the API serves."""

    def __init__(self, host: str, api_key: str, cors: Iterable[str] = ()) -> None:
        """`host`: the listening address. `api_key` empty: clients of this machine need none.
        `cors`: origins of pages that may use the API; `*` is all."""
        self._hosts = AllowedHosts(host)
        self._api_key = api_key
        self._cors = frozenset(cors)

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
        return self._from_a_page(scope, headers)

    def _from_a_page(self, scope: Scope, headers: Headers) -> ApiError | None:
        """Why a browser's request must not be served without a key.

        A page of any site may send what an HTML form could (GET, or POST with a text), and a
        browser then only hides the reply. A link to this server's page may be anywhere.
        """
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if (origin is None and site is None) or (scope["path"] == "/" and scope["method"] == "GET"):
            return None
        if origin is None:
            own = site != "cross-site"
        else:
            own = origin.partition("://")[2].lower() == headers.get("host", "").lower()
        if not own and not self._cors.intersection({origin, "*"}):
            return ApiError(
                403, "pages of other sites may not use this server; name theirs with --cors ORIGIN"
            )
        if scope["method"] == "POST" and not _JSON.fullmatch(headers.get("content-type", "")):
            return ApiError(415, "a page must send its request with Content-Type: application/json")
        return None

    def _without_key(self, scope: Scope, headers: Headers) -> ApiError | None:
        given, wanted = headers.get("authorization", ""), f"Bearer {self._api_key}"
        if scope["path"] in _OPEN or hmac.compare_digest(given.encode(), wanted.encode()):
            return None
        return ApiError(
            401, "this server needs an API key: Authorization: Bearer KEY",
            errors.UNAUTHORISED, code="invalid_api_key",
        )  # fmt: skip
