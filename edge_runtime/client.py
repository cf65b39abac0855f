"""The client: answers of a target in the cloud, drafted on this device, for programs.

    import edgespec

    with edgespec.connect("bundle", "tcp://127.0.0.1:5555") as client:
        for piece in client.chat([{"role": "user", "content": "Why is the sky blue?"}]):
            print(piece.text, end="")

One client has one link, one drafter and one thread. Threads or tasks may ask for any number of
answers at once; each is a session of its own, and the draft steps of all of them share batches.
"""

from __future__ import annotations

import asyncio
import operator
import reprlib
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, get_args

import msgspec

from edge_runtime.answer import Answer
from edge_runtime.completion import AsyncCompletion, Completion
from edge_runtime.connection import Connection, Messages, chat_tokens
from edge_runtime.figures import DeviceFigures
from edge_runtime.observer import UNOBSERVED, Observer
from edgespec.chat_template import ToolStyle
from edgespec.config import LOOPBACK, EdgeSettings, Mode, Request
from edgespec.errors import UsageError
from edgespec.grammar import Grammar, chosen_grammar
from edgespec.manifest import Bundle
from edgespec.protocol import Token, Welcome
from edgespec.sampling import Sampling
from edgespec.sampling_parameters import biases
from edgespec.text import Codec
from engines.drafters.base import Drafter

DEFAULT = EdgeSettings()
Schema = str | bool | Mapping[str, Any]
C = TypeVar("C", Completion, AsyncCompletion)


class _Asking(Generic[C]):
    """The two ways to ask for an answer."""

    def _connected(self) -> Connection:
        raise NotImplementedError

    def _read(self, answer: Answer) -> C:
        raise NotImplementedError

    def chat(
        self,
        messages: Messages,
        *,
        system: str = "",
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        json_schema: Schema | None = None,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> C:
        """Starts the assistant's answer to `messages`, which have `role` and `content`.

        The bundle's chat template is applied; `system` becomes the first message. Temperature 0 is
        greedy; otherwise `seed` decides the text. `logit_bias` has numbers by token id. The answer
        ends before a text in `stop`. `edgespec.sampling` has the order in which the parameters are
        applied. With `logprobs`, 0 to 20, pieces have the log-probability of their token and of
        that many likeliest ones.

        The answer follows one of `json_schema` (an object, `True` for any JSON, or the text of
        either), `regex` and `grammar` (Lark as llguidance has it, or GBNF); this needs the extra
        `grammar` here and in the cloud.

        Raises `UsageError` for a request that cannot be carried out.
        """
        prompt = self.chat_tokens(messages, system)
        sampling = Sampling(
            temperature, top_p, top_k, seed, min_p,
            presence_penalty, frequency_penalty, repetition_penalty, biases(logit_bias or {}),
        )  # fmt: skip
        chosen = chosen_grammar(json_schema, regex, grammar)
        return self._begin(prompt, max_tokens, sampling, stop, logprobs, chosen)

    def complete(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        json_schema: Schema | None = None,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> C:
        """Starts a continuation of `prompt`, a text or its token ids. See `chat` for the rest."""
        sampling = Sampling(
            temperature, top_p, top_k, seed, min_p,
            presence_penalty, frequency_penalty, repetition_penalty, biases(logit_bias or {}),
        )  # fmt: skip
        chosen = chosen_grammar(json_schema, regex, grammar)
        tokens = self.prompt_tokens(prompt)
        return self._begin(tokens, max_tokens, sampling, stop, logprobs, chosen)

    def start(self, request: Request) -> C:
        """Starts the answer to a request in tokens. Raises `UsageError` if it does not fit."""
        return self._read(self._connected().answer(request))

    def chat_tokens(
        self, messages: Messages, system: str = "", tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """The prompt of a chat, in tokens. `system` becomes its first message; `tools` are the
        functions that the model may call, in OpenAI's form."""
        codec = self._connected().codec
        return chat_tokens(codec, messages, system, tools, self.welcome.context)

    @property
    def tool_style(self) -> ToolStyle:
        """How the bundle's chat template lets the model call tools; empty: it does not."""
        return self._connected().codec.tool_style

    def prompt_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        """The tokens of a text, or the given ones, checked. Raises `UsageError`."""
        if isinstance(prompt, str):
            return self._connected().codec.encode(prompt, most_tokens=self.welcome.context)
        return _token_ids(prompt)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return self._connected().codec.decode(tokens)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; those of one character may be in several tokens."""
        return self._connected().codec.token_bytes(token)

    @property
    def end_ids(self) -> Collection[int]:
        """Tokens that end an answer."""
        return self._connected().end_ids

    def text_tokens(self, text: str) -> list[int]:
        """The tokens of a text inside of others, without special tokens around it; of a text that
        is too long for the context, a part is left out."""
        codec, context = self._connected().codec, self.welcome.context
        return codec.encode(text[: context * codec.longest_token_characters], chat=True)[:context]

    def _begin(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        stop: str | Sequence[str],
        logprobs: int | None,
        grammar: Grammar | None,
    ) -> C:
        if max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}; it must be at least 1")
        request = Request(
            tuple(prompt), max_tokens, sampling, _stops(stop), logprobs=logprobs, grammar=grammar
        )
        return self.start(request)

    @property
    def welcome(self) -> Welcome:
        """What the cloud said of itself when this client connected: context, step times, draft."""
        return self._connected().loop.welcome

    @property
    def arithmetic(self) -> str:
        """Back end, processor and precision of the cloud's target; empty if the cloud does not say.

        Clouds with the same bundle and the same arithmetic compute the same bits.
        """
        return self._connected().loop.arithmetic

    @property
    def connected(self) -> bool:
        """True while there is a connection to the cloud."""
        return self._connected().loop.connected

    @property
    def mode(self) -> str:
        """Current mode, as `--explain` shows it."""
        return self._connected().loop.modes.name

    @property
    def figures(self) -> DeviceFigures:
        """Measurements so far, over all answers: times, agreement, bytes, mode and its reason."""
        return self._connected().loop.figures


def _token_ids(prompt: Sequence[int]) -> list[int]:
    try:
        return msgspec.convert([operator.index(token) for token in prompt], list[Token])
    except (TypeError, msgspec.ValidationError) as error:
        raise UsageError(
            f"the prompt is {reprlib.repr(prompt)}; pass a text, or a list of token ids"
        ) from error


def _stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, Collection) or not all(isinstance(each, str) for each in stops):
        raise UsageError(f"stop is {reprlib.repr(stop)}; pass a text, or a list of texts")
    return tuple(stops)


class Client(_Asking[Completion]):
    """A connection to a cloud. Close it, or use it in a `with` statement."""

    def __init__(
        self,
        bundle: Bundle,
        settings: EdgeSettings = DEFAULT,
        observer: Observer = UNOBSERVED,
        codec: Codec | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """Loads the drafter and greets the cloud. Most programs use `connect` instead.

        `observer` is called in the client's thread. `codec` and `drafter` are the bundle's, if they
        were opened before (`edge_runtime.connection.drafter_for`).
        """
        self._connection = Connection(bundle, settings, observer, codec, drafter)
        # Also at the exit of the interpreter, or when no reference is left.
        self._finalizer = weakref.finalize(self, self._connection.close)

    def _connected(self) -> Connection:
        return self._connection

    @property
    def running(self) -> bool:
        """False once the client is closed or has failed; it starts no answers then."""
        return self._connection.background.running

    def _read(self, answer: Answer) -> Completion:
        return Completion(self._connection.background, answer)

    def close(self) -> None:
        """Ends all answers, here and at the cloud, and the link. Waits until that is done."""
        self._finalizer()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient(_Asking[AsyncCompletion]):
    """A connection to a cloud for `async with`, which connects without blocking the event loop."""

    def __init__(self, open_client: Callable[[], Client]) -> None:
        """`open_client` is called in another thread. Most programs use `connect_async` instead."""
        self._open = open_client
        self._client: Client | None = None

    def _connected(self) -> Connection:
        if self._client is None:
            raise UsageError("the client is not connected; use it in an 'async with' statement")
        return self._client._connected()

    def _read(self, answer: Answer) -> AsyncCompletion:
        return AsyncCompletion(self._connected().background, answer)

    @property
    def running(self) -> bool:
        """True while answers can be started."""
        return self._client is not None and self._client.running

    async def close(self) -> None:
        """Ends all answers, here and at the cloud, and the link."""
        if self._client:
            await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> AsyncClient:
        self._client = await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def connect(
    bundle: str | Path | Bundle,
    endpoint: str = LOOPBACK,
    *,
    server_key: str | Path | None = None,
    key: str | Path | None = None,
    drafter: str = "",
    mode: Mode = "auto",
    threads: int = 0,
    target_rate: float = 0.0,
    settings: EdgeSettings = DEFAULT,
) -> Client:
    """A client of the cloud at `endpoint`, with the drafts and the tokenizer of `bundle`.

    Args:
        bundle: folder that `edgespec export` wrote; the target's files need not be in it.
        endpoint: `tcp://HOST:PORT`, as given to `edgespec cloud-run --bind`.
        server_key: file with the cloud's public key; needed beyond this machine.
        key: file with this device's secret key; for clouds that admit known devices only.
        drafter: a profile of the bundle, `ngram` or `none`; empty: the first that runs here.
        mode: what drafts: `auto`, `edge`, `cloud-draft` or `cloud`. The text is the same.
        threads: threads of the draft model; 0: what its profile says.
        target_rate: tokens per second that are enough; 0: as fast as possible.
        settings: everything else.

    Raises:
        UsageError, BundleError, EngineError: the bundle or its drafter cannot be opened.
        LinkError: the cloud does not reply, or refuses.
    """
    if mode not in get_args(Mode):
        raise UsageError(f"mode is {mode!r}; choose one of {', '.join(get_args(Mode))}")
    changed = replace(
        settings,
        connect=endpoint,
        server_key=Path(server_key) if server_key else None,
        key=Path(key) if key else None,
        drafter=drafter,
        mode=mode,
        threads=threads,
        target_rate=target_rate,
    )
    return Client(bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle)), changed)


def connect_async(
    bundle: str | Path | Bundle,
    endpoint: str = LOOPBACK,
    *,
    server_key: str | Path | None = None,
    key: str | Path | None = None,
    drafter: str = "",
    mode: Mode = "auto",
    threads: int = 0,
    target_rate: float = 0.0,
    settings: EdgeSettings = DEFAULT,
) -> AsyncClient:
    """A client for `async with`. Arguments and errors are those of `connect`."""
    return AsyncClient(
        lambda: connect(
            bundle,
            endpoint,
            server_key=server_key,
            key=key,
            drafter=drafter,
            mode=mode,
            threads=threads,
            target_rate=target_rate,
            settings=settings,
        )
    )
