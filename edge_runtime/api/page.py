"""`GET /`: the page, one file without foreign parts.

Its policy allows the browser nothing but this file's own script and style, named by their hashes,
and requests to this server.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import Response

_FILE = Path(__file__).with_name("page.html")


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    """The file, and the headers that it is sent with."""
    html = _FILE.read_bytes()
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(html, b"script"),
        "style-src": _hashes(html, b"style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return html, {
        "content-type": "text/html; charset=utf-8",
        "cache-control": "no-cache",
        "content-security-policy": "; ".join(" ".join(each) for each in policy.items()),
        "cross-origin-opener-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def _hashes(html: bytes, element: bytes) -> str:
    """The sources of a policy that allow the inline elements of that name."""
    found = re.findall(b"<%b>(.*?)</%b>" % (element, element), html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(each).digest()).decode() for each in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def page() -> Response:
    html, headers = _page()
    return Response(html, headers=headers)
