"""Errors as OpenAI's API reports them: a status, and a JSON object with one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgespec.errors import EdgespecError, LinkError, UsageError

RETRY_AFTER_S = 5
"""Seconds after which a client may try again, in the header `Retry-After`."""
INVALID, UNAUTHORISED = "invalid_request_error", "authentication_error"
OVERLOADED, FAILED = "overloaded_error", "server_error"


class ApiError(Exception):
    """A request that gets no answer, or not all of it."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        *,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        """`param`: the field that is wrong. `code`: a word that programs may compare."""
        super().__init__(message)
        self.status = status
        self._kind, self._param, self._code = kind, param, code

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": str(self),
                "type": self._kind,
                "param": self._param,
                "code": self._code,
            }
        }

    def headers(self) -> Mapping[str, str]:
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(RETRY_AFTER_S)} if self.status in (429, 503) else {}


def of(error: EdgespecError) -> ApiError:
    """What a client of the API is told of an error of edgespec's."""
    if isinstance(error, UsageError):
        return ApiError(400, str(error))
    if isinstance(error, LinkError):
        if error.code == "busy":
            return ApiError(429, str(error), OVERLOADED, code="cloud_busy")
        if error.code == "invalid":
            return ApiError(400, str(error))
        return ApiError(503, str(error), FAILED, code="cloud_unavailable")
    return ApiError(500, str(error), FAILED)
