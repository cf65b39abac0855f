"""The status port: metrics, health and the fleet of a cloud over HTTP, from a thread of its own.

The thread never touches the loop's state. It serves the last snapshot that the loop has published,
an immutable value made at most twice a second.

    /metrics        Prometheus
    /health         200 while the loop turns, else 503 and the reason
    /health/ready   200 while new sessions are accepted, else 503 and the reason
    /fleet          JSON, the content of `edgespec top` (`edgespec/fleet.py`)

A request for a host name that is not allowed gets 403.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from cloud_runtime.service import Service
from cloud_runtime.status.metrics import exposition
from cloud_runtime.status.snapshot import Recent, view
from cloud_runtime.status.tally import Tally
from edgespec.allowed_hosts import AllowedHosts
from edgespec.errors import LinkError, UsageError
from edgespec.fleet import Fleet
from engines.machine.energy.meter import EnergyMeter

log = logging.getLogger("edgespec.cloud")
SNAPSHOT_INTERVAL_S = 0.5
STUCK_S = 30.0
"""Time without a turn of the loop after which `/health` reports 503."""
CLIENT_TIMEOUT_S = 5.0
"""Time that a client may take to send its request and read the reply, in all."""
REQUESTS_COUNT = 16
"""Requests at once. A further one cuts the oldest."""
CUT_S = 0.2
"""Time for a request that is cut to end, after which the further one is closed unanswered."""


FOREIGN = "this host name is not allowed here; start the cloud with --status-host NAME to allow it"


Request = socket.socket | tuple[bytes, socket.socket]
"""A connection as `socketserver` types it; over TCP a socket."""


class Snapshot(NamedTuple):
    fleet: Fleet
    tally: Tally


class Reply(NamedTuple):
    code: int
    kind: str
    body: bytes


class Status:
    """The snapshots that the loop publishes, and the replies of the port made from them."""

    def __init__(self, target: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._target = target
        self._began = clock()
        self._beat: float | None = None
        self._published = 0.0
        self._recent = Recent()
        self._endpoint = ""
        self.meter: EnergyMeter | None = None
        """Energy meter of this machine; None if energy is not measured."""
        self.snapshot = Snapshot(Fleet(target=target, state="loading"), Tally())

    def listening(self, service: Service, endpoint: str) -> None:
        """Publish that the cloud accepts sessions from now on."""
        self._endpoint = endpoint
        self._publish(service, self._clock())

    def turned(self, service: Service, now: float) -> None:
        """Note a turn of the loop, and publish a snapshot if the last one is old."""
        self._beat = self._clock()
        if not 0 <= self._beat - self._published < SNAPSHOT_INTERVAL_S:
            self._publish(service, now)

    def _publish(self, service: Service, now: float) -> None:
        self._published = self._clock()
        fleet = view(service, self._recent, now, self._target, self._endpoint)
        energy = self.meter.energy(service.tally.tokens) if self.meter else None
        uptime = self._published - self._began
        fleet = msgspec.structs.replace(fleet, uptime=uptime, energy=energy)
        self.snapshot = Snapshot(fleet, service.tally.copy())

    def reply(self, path: str, accept: str = "") -> Reply:
        """Return the reply to a GET request. Safe to call from any thread."""
        if path == "/metrics":
            kind, body = exposition(*self.snapshot, accept)
            return Reply(200, kind, body)
        if path == "/fleet":
            return Reply(200, "application/json", msgspec.json.encode(self.snapshot.fleet) + b"\n")
        if path in ("/health", "/health/ready"):
            trouble = self._stuck() or (self._unready() if path == "/health/ready" else "")
            return _words(503 if trouble else 200, trouble or self.snapshot.fleet.state)
        return _words(404, "there are /metrics, /health, /health/ready and /fleet")

    def _stuck(self) -> str:
        silent = self._clock() - self._beat if self._beat is not None else 0.0
        return f"the loop has not turned for {silent:.0f} s" if silent > STUCK_S else ""

    def _unready(self) -> str:
        state = self.snapshot.fleet.state
        return "" if state == "ready" else f"the cloud is {state}"


def _words(code: int, sentence: str) -> Reply:
    return Reply(code, "text/plain; charset=utf-8", sentence.encode() + b"\n")


class _Server(ThreadingHTTPServer):
    """An HTTP server with bounds of requests at once and of their time, each in its own thread."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._places = threading.Semaphore(REQUESTS_COUNT)
        self._began: dict[Request, float] = {}
        """The open requests, the oldest first, and when they began."""
        super().__init__(address, handler)

    def process_request(self, request: Request, client_address: object) -> None:
        """Answer a request in a new thread, if there is a place for it."""
        if not self._places.acquire(blocking=False):
            for oldest in list(self._began)[:1]:
                _cut(oldest)
            if not self._places.acquire(timeout=CUT_S):
                self.shutdown_request(request)
                return
        self._began[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Request) -> None:
        """Close a connection and give its place back, if it had one."""
        super().shutdown_request(request)
        if self._began.pop(request, None) is not None:
            self._places.release()

    def service_actions(self) -> None:
        """Cut overdue requests. The loop of the server calls this at least twice a second."""
        now = time.monotonic()
        for request, began in list(self._began.items()):
            if now - began > CLIENT_TIMEOUT_S:
                _cut(request)

    def handle_error(self, *_: object) -> None:
        """Log errors, except for clients that closed the connection."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            log.error("the status port failed on a request: %r", error)


def _cut(request: Request) -> None:
    """End a connection's reads and writes, so that its thread ends."""
    assert isinstance(request, socket.socket)
    with contextlib.suppress(OSError):  # it is closed already
        request.shutdown(socket.SHUT_RDWR)


class StatusServer:
    """The HTTP server of the status port. It also replies while the cloud loads its model."""

    def __init__(self, address: str, status: Status, names: Iterable[str] = ()) -> None:
        """`address`: HOST:PORT. `names`: further host names by which clients may address it.

        Raises `UsageError` for another form, `LinkError` if the port cannot be opened.
        """
        host, port = _parse(address)
        handler = type(
            "Handler", (_Handler,), {"status": status, "hosts": AllowedHosts(host, names)}
        )
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            reason = error.strerror or error
            raise LinkError(f"cannot serve the status on {address}: {reason}") from error
        self.url = f"http://{host}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="status", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    status: Status
    hosts: AllowedHosts
    timeout = CLIENT_TIMEOUT_S
    server_version = "edgespec"
    sys_version = ""

    def do_GET(self) -> None:
        foreign = [host for host in self.headers.get_all("Host", []) if not self.hosts.admits(host)]
        if foreign:
            reply = _words(403, FOREIGN)
        else:
            reply = self.status.reply(urlsplit(self.path).path, self.headers.get("Accept", ""))
        self.send_response(reply.code)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""


def _parse(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port is not None and parts.netloc == address:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise UsageError(f"--status {address!r} is no HOST:PORT, as in 127.0.0.1:5556")
