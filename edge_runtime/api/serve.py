"""`edgespec serve`: the API on a port of this machine, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import uvicorn

from edge_runtime.api.app import Api, ApiSettings
from edge_runtime.api.connector import Connector
from edge_runtime.api.dialer import Dialer
from edge_runtime.api.http import Exhaustion, bounded_protocol
from edge_runtime.api.live import LiveSpans
from edge_runtime.observer import Observer
from edgespec.config import EdgeSettings
from edgespec.errors import LinkError, UsageError
from edgespec.manifest import Bundle
from edgespec.policies import ApiPolicy
from edgespec.transport import is_loopback

_SHORTEST_KEY = 8


def serve(
    bundle: Bundle,
    edge: EdgeSettings,
    *,
    api: ApiSettings,
    port: int,
    drain_timeout: float,
    policy: ApiPolicy = ApiPolicy(),
) -> None:
    """Serves until a signal. `api.model` empty: the name of the bundle's target.

    If the cloud does not answer yet, requests get the status 503 until it does. Raises `UsageError`
    for a bad address or a missing API key, `LinkError` if the port is taken, `BundleError` or
    `EngineError` for a bundle or a draft that cannot be opened here.
    """
    if not is_loopback(f"tcp://{_bracketed(api.host)}:{port}") and not api.api_key:
        raise UsageError(
            f"{api.host} can be reached from other machines, so clients must show a key: pass "
            "--api-key FILE, or set EDGESPEC_API_KEY"
        )
    target = bundle.manifest.target
    api = replace(
        api,
        model=api.model or target.origin.name,
        offline=edge.offline == "draft",
        fingerprint=bundle.manifest.target_fingerprint[:16],
    )
    spans = LiveSpans()
    connect = Dialer(bundle, edge, Observer(trace=spans))
    listening = _listen(api.host, port)
    first = None
    try:
        first = connect()
    except LinkError as error:
        click.echo(f"edgespec: {error}; requests get the status 503 until then", err=True)
    connector = Connector(connect, first)
    endpoints = Api(connector, api, spans, policy)
    application = endpoints.application(partial(_running, connector, api, listening))
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            http=bounded_protocol(policy),
            ws="none",
            backlog=policy.accepted_at_once,
            timeout_keep_alive=round(policy.idle_s),
            timeout_graceful_shutdown=max(1, round(drain_timeout)),
        )
    )
    endpoints.ending = lambda: server.should_exit
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn ends in order, then raises it again
        signal.signal(number, signal.SIG_IGN)
    server.run(sockets=[listening])


@asynccontextmanager
async def _running(
    connector: Connector, api: ApiSettings, listening: socket.socket, app: object
) -> AsyncIterator[None]:
    """Says where the API is, and closes the client at the end."""
    del app
    asyncio.get_running_loop().set_exception_handler(Exhaustion())
    host, port = listening.getsockname()[:2]
    address = f"http://{_bracketed(host)}:{port}"
    click.echo(f"a page to chat and to watch: {address}/", err=True)
    click.echo(f"serving {api.model} at {address}/v1", err=True)
    try:
        yield
    finally:
        await connector.close()


def read_api_key(file: Path | None, environment: str | None) -> str:
    """The key in a file, or in the environment; empty without either. Raises `UsageError`."""
    if file is None:
        key, place = (environment or "").strip(), "EDGESPEC_API_KEY"
    else:
        try:
            key, place = file.read_text(encoding="utf-8").strip(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read as an API key: {error}") from error
        if not key:
            raise UsageError(f"{file} is empty; write a random key into it")
    if key and (len(key) < _SHORTEST_KEY or not key.isascii() or len(key.split()) != 1):
        raise UsageError(
            f"the API key in {place} must be one word of at least {_SHORTEST_KEY} ASCII characters"
        )
    return key


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LinkError(
            f"cannot listen on {host} port {port}: {reason}; choose another --host or --port"
        ) from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
