"""The HTTP application: endpoints, admission and errors. `edgespec serve` runs it.

POST /v1/chat/completions, /v1/completions, /v1/responses
                                               whole, or as server-sent events
GET  /v1/models, /v1/models/NAME
GET  /health, /props, /metrics
GET  /, /v1/edgespec/live                      the page, and what it shows of the device
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from edge_runtime.api import errors
from edge_runtime.api.admission import Admission
from edge_runtime.api.callers import Callers
from edge_runtime.api.connector import Connector
from edge_runtime.api.errors import ApiError
from edge_runtime.api.live import LiveSpans, LiveStream
from edge_runtime.api.metrics import Metrics
from edge_runtime.api.page import page
from edge_runtime.api.replies import Reply
from edge_runtime.api.requests import ChatRequest, CompletionRequest, read
from edge_runtime.api.responses import ResponsesReply
from edge_runtime.api.responses_request import ResponsesRequest
from edge_runtime.api.tools import ToolUse
from edge_runtime.api.writing import Writing
from edge_runtime.client import AsyncClient
from edgespec.config import Request as Asked
from edgespec.errors import EdgespecError
from edgespec.policies import ApiPolicy
from engines.machine.energy.files import ROOT

log = logging.getLogger("edgespec.serve")

T = TypeVar("T")
_CLOSED = 499
"""Status in the metrics of a request whose client left before the reply."""


@dataclass(frozen=True)
class ApiSettings:
    """What the application needs to know besides the client."""

    model: str = ""
    """Name of the model, as clients may give it."""
    fingerprint: str = ""
    """Fingerprint of the target."""
    host: str = "127.0.0.1"
    """Listening address; without an API key, requests to other host names are refused."""
    api_key: str = ""
    """Key that clients must send; empty: none."""
    offline: bool = False
    """Answers are written without the cloud too, unverified."""
    sensors: Path = ROOT
    """Root of the file tree with the energy sensors."""
    cors: tuple[str, ...] = ()
    """Origins of web pages that may use the API."""
    answers: int = 64
    """Answers written at once."""
    queue: int = 256
    """Requests that may wait for a place."""
    body_bytes: int = 4 << 20
    """Largest body of a request."""


class Api:
    """The endpoints."""

    def __init__(
        self,
        connector: Connector,
        settings: ApiSettings,
        spans: LiveSpans,
        policy: ApiPolicy = ApiPolicy(),
    ) -> None:
        """`spans` receives those of the connector's clients."""
        self._connector = connector
        self._settings = settings
        self.callers = Callers(settings.host, settings.api_key, settings.cors)
        self._policy = policy
        self._tokenizing = anyio.CapacityLimiter(policy.tokenizing_threads)
        self._began = int(time.time())
        self.metrics = Metrics()
        self._admission = Admission(settings.answers, settings.queue, self.metrics)
        self.ending: Callable[[], bool] = lambda: False
        """Says whether the server shuts down."""
        self._live = LiveStream(
            connector, spans, settings.sensors, settings.offline, lambda: self.ending()
        )

    def application(self, lifespan: Lifespan[Starlette] | None = None) -> Starlette:
        """The ASGI application; `lifespan` runs around its life."""
        middleware = [Middleware(_Guard, api=self)]
        if self._settings.cors:
            middleware.insert(
                0,
                Middleware(
                    CORSMiddleware,
                    allow_origins=list(self._settings.cors),
                    allow_methods=["GET", "POST"],
                    allow_headers=["Authorization", "Content-Type"],
                ),
            )
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/responses", self._respond, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/health", self._health),
            Route("/props", self._props),
            Route("/metrics", self._metrics),
            Route("/v1/edgespec/live", self._watch),
            Route("/", self._page),
        ]
        return Starlette(
            routes=routes,
            lifespan=lifespan,
            middleware=middleware,
            exception_handlers={
                ApiError: _refused,
                EdgespecError: _failed,
                404: _no_such_path,
                405: _no_such_method,
                500: _bug,
            },
        )

    # Answers

    async def _chat(self, request: Request) -> Response:
        asked = read(ChatRequest, await self._body(request))
        self._check_model(asked.model)
        client = await self._connector.client()
        style, use = client.tool_style, asked.tool_use
        if use is not None:
            use.check(style)
        if not style and any(message.of_tools for message in asked.messages):
            raise ApiError(
                400, "the chat template of this model has no messages of tools", param="messages"
            )
        messages = [message.plain() for message in asked.messages]
        tools = use.described if use is not None else ()
        prompt = await self._apart(partial(client.chat_tokens, messages, tools=tools))
        reply = Reply("chat", self._settings.model, self._settings.fingerprint, asked.count)
        return await self._answer(client, [prompt], asked, asked.limit, reply, use)

    async def _complete(self, request: Request) -> Response:
        asked = read(CompletionRequest, await self._body(request))
        self._check_model(asked.model)
        client = await self._connector.client()
        given = asked.prompts()
        prompts = await self._apart(lambda: [client.prompt_tokens(prompt) for prompt in given])
        reply = Reply("text", self._settings.model, self._settings.fingerprint, asked.count)
        return await self._answer(client, prompts, asked, asked.limit, reply)

    async def _respond(self, request: Request) -> Response:
        asked = read(ResponsesRequest, await self._body(request))
        self._check_model(asked.model)
        client = await self._connector.client()
        prompt = await self._apart(partial(client.chat_tokens, asked.messages()))
        limit = asked.max_output_tokens
        most = client.welcome.context if limit is None else limit
        reply = ResponsesReply(asked, self._settings.model)
        write = reply.stream if asked.stream else reply.write
        wanted = [Asked(tuple(prompt), most, asked.sampling())]
        return self._admission.reply(client, wanted, write, reply, stream=bool(asked.stream))

    async def _answer(
        self,
        client: AsyncClient,
        prompts: Sequence[Sequence[int]],
        asked: ChatRequest | CompletionRequest,
        limit: int | None,
        reply: Reply,
        use: ToolUse | None = None,
    ) -> Response:
        """The response to a request; its answers start once there are places."""
        style = client.tool_style if use is not None else ""
        stops = asked.stops + (use.stops(style) if use is not None else ())
        grammar = use.grammar(style) if use is not None else asked.constraint
        most = client.welcome.context if limit is None else limit
        if most < 1:
            raise ApiError(400, f"max_tokens is {most}; it must be at least 1", param="max_tokens")
        expected: list[int] = []
        if asked.prediction:
            expected = await self._apart(partial(client.text_tokens, asked.prediction.text))
        wanted = [
            Asked(
                tuple(prompt),
                most,
                sampling,
                stops,
                logprobs=asked.alternatives,
                grammar=grammar,
                prediction=tuple(expected),
            )
            for prompt in prompts
            for sampling in asked.samplings()
        ]
        logprobs = [reply.logprobs(client.token_bytes, client.end_ids) for _ in wanted]
        calls = [use.parser(style) if use is not None else None for _ in wanted]
        writing = Writing(asked, reply, logprobs, calls)
        write = writing.stream if asked.stream else writing.whole
        return self._admission.reply(client, wanted, write, reply, stream=bool(asked.stream))

    async def _apart(self, tokenize: Callable[[], T]) -> T:
        """The result of a function that may take seconds, in another thread."""
        return await run_sync(tokenize, limiter=self._tokenizing)

    async def _body(self, request: Request) -> bytes:
        """The body. Raises `ApiError` if it is too large, before it is read to the end."""
        body, body_s = bytearray(), self._policy.body_s
        try:
            with anyio.fail_after(body_s):
                async for part in request.stream():
                    body += part
                    if len(body) > self._settings.body_bytes:
                        raise ApiError(
                            413, f"the body is larger than {self._settings.body_bytes} bytes"
                        )
        except TimeoutError as error:
            raise ApiError(408, f"the body did not arrive within {body_s:g} s") from error
        except ClientDisconnect as error:
            raise ApiError(400, "the body is incomplete") from error
        return bytes(body)

    def _check_model(self, name: str | None) -> None:
        if name and name != self._settings.model:
            raise ApiError(
                404, f"there is no model {name!r}; this server has {self._settings.model!r}",
                param="model", code="model_not_found",
            )  # fmt: skip

    # Facts

    def _card(self) -> dict[str, Any]:
        client = self._connector.present
        card = {"id": self._settings.model, "object": "model", "created": self._began}
        length = {"max_model_len": client.welcome.context} if client else {}
        return card | {"owned_by": "edgespec"} | length

    async def _models(self, request: Request) -> Response:
        del request
        return _json({"object": "list", "data": [self._card()]})

    async def _model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return _json(self._card())

    async def _health(self, request: Request) -> Response:
        del request
        client = await self._connector.client()
        if not (client.connected or self._settings.offline):
            raise ApiError(503, "the cloud is away", errors.FAILED, code="cloud_unavailable")
        return _json({"status": "ok" if client.connected else "offline"})

    async def _props(self, request: Request) -> Response:
        del request
        client = await self._connector.client()
        return _json(
            {
                "model_alias": self._settings.model,
                "total_slots": self._settings.answers,
                "default_generation_settings": {"n_ctx": client.welcome.context},
                "edgespec": {"mode": client.mode, "arithmetic": client.arithmetic},
            }
        )

    async def _watch(self, request: Request) -> Response:
        del request
        return self._live.reply()

    async def _page(self, request: Request) -> Response:
        del request
        return page()

    async def _metrics(self, request: Request) -> Response:
        del request
        kind, body = self.metrics.exposition()
        return Response(body, headers={"content-type": kind})


class _Guard:
    """Refuses requests without the API key, or to foreign host names, and counts what is asked."""

    def __init__(self, app: ASGIApp, api: Api) -> None:
        self._app = app
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status, complete = _CLOSED, False

        async def noted(message: Message) -> None:
            nonlocal status, complete
            status = message.get("status", status)
            complete = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        error = self._api.callers.refusal(scope)
        await (_response(error) if error else self._app)(scope, receive, noted)
        if scope["method"] == "POST":
            self._api.metrics.finished(status if complete else _CLOSED, time.monotonic() - began)


def _json(data: object, status: int = 200, headers: Any = None) -> Response:
    return Response(msgspec.json.encode(data), status, headers, media_type="application/json")


def _response(error: ApiError) -> Response:
    return _json(error.body(), error.status, error.headers())


def _refused(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, ApiError)
    return _response(error)


def _failed(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, EdgespecError)
    return _response(errors.of(error))


def _no_such_path(request: Request, error: Exception) -> Response:
    del error
    return _response(ApiError(404, f"there is no {request.url.path} here"))


def _no_such_method(request: Request, error: Exception) -> Response:
    del error
    return _response(ApiError(405, f"{request.url.path} does not take {request.method}"))


def _bug(request: Request, error: Exception) -> Response:
    log.error("%s failed", request.url.path, exc_info=error)
    return _response(ApiError(500, "the server failed; its log has the details", errors.FAILED))
