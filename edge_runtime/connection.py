"""The parts of a client that write answers: tokenizer, drafter and a loop in the background."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge_runtime.answer import Answer
from edge_runtime.background import BackgroundLoop
from edge_runtime.drafters import open_drafter
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edge_runtime.observer import UNOBSERVED, Observer
from edge_runtime.wakeable_link import WakeableLink
from edgespec.config import NGRAM, NO_DRAFTER, EdgeSettings, Request
from edgespec.errors import UsageError
from edgespec.grammars import Grammars
from edgespec.logprobs import MAX_TOP_LOGPROBS
from edgespec.manifest import Bundle
from edgespec.text import Codec, TextStream
from edgespec.transport import is_loopback
from engines.drafters.base import Drafter
from engines.drafters.none import NoDrafter
from engines.machine.doctor import brief

Messages = Sequence[Mapping[str, Any]]
"""Messages of a chat, each with `role` and `content`."""


class Connection:
    """A link to a cloud, and everything of the bundle that runs on the device."""

    def __init__(
        self,
        bundle: Bundle,
        settings: EdgeSettings,
        observer: Observer = UNOBSERVED,
        codec: Codec | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """Loads the drafter, unless one is given, and greets the cloud; `observer` is called in the
        loop's thread.

        Raises `UsageError`, `BundleError` or `EngineError` for what cannot be opened, `LinkError`
        if the cloud cannot be reached or refuses.
        """
        if settings.drafter == NO_DRAFTER and settings.mode == "auto":
            settings = replace(settings, mode="cloud")
        self.codec = codec or Codec(bundle)
        self.end_ids = bundle.manifest.text.end_ids
        self._grammars = Grammars.of(bundle, settings.grammars)
        self._vocabulary = bundle.manifest.target.architecture.vocabulary
        drafter = drafter or drafter_for(bundle, settings)
        if settings.offline == "draft" and drafter.name in (NGRAM, NO_DRAFTER):
            raise UsageError(
                "writing offline needs a draft model on this device; choose a drafter that is one "
                "(--drafter PROFILE), and no mode that leaves drafting to the cloud"
            )
        identity = DeviceIdentity.of(bundle, socket.gethostname(), drafter.name, brief())
        link = WakeableLink(settings)
        try:
            self.loop = EdgeLoop.connect(link, drafter, identity, settings, observer)
            if settings.mode == "cloud-draft" and not self.loop.welcome.draft_ms:
                raise UsageError(
                    f"the cloud at {settings.connect} has no draft; start it with "
                    "'edgespec cloud-run --draft PROFILE', or choose another --mode"
                )
        except BaseException:
            link.close()
            raise
        self.background = BackgroundLoop(self.loop, link)

    def answer(self, request: Request) -> Answer:
        """A new answer to a prompt in tokens, not yet submitted. Raises `UsageError` for a request
        that cannot be carried out."""
        request.sampling.check()
        if request.logprobs is not None and not 0 <= request.logprobs <= MAX_TOP_LOGPROBS:
            raise UsageError(
                f"log-probabilities of {request.logprobs} likeliest tokens were asked for; from 0 "
                f"to {MAX_TOP_LOGPROBS} are possible"
            )
        for token, _ in request.sampling.logit_bias:
            if token >= self._vocabulary:
                raise UsageError(
                    f"logit bias names the token id {token}; the target has {self._vocabulary}"
                )
        text = TextStream(self.codec, request.prompt, request.stops)
        if request.grammar is None:
            return self.loop.start(request, text)
        grammar = self._grammars.start(request.grammar, self.end_ids)
        try:
            return self.loop.start(request, text, grammar)
        except BaseException:
            grammar.close()
            raise

    def close(self) -> None:
        """Ends all answers and the link, and the process that follows grammars."""
        self.background.close()
        self._grammars.close()


def chat_tokens(
    codec: Codec,
    messages: Messages,
    system: str = "",
    tools: Sequence[Mapping[str, Any]] = (),
    most_tokens: int | None = None,
) -> list[int]:
    """The prompt of a chat, in tokens. `system` becomes its first message.

    Raises `UsageError` without messages, for those without `role` and `content`, and for a text
    that is certainly longer than `most_tokens`.
    """
    if not (
        isinstance(messages, Sequence)
        and messages
        and all(isinstance(each, Mapping) and {"role", "content"} <= set(each) for each in messages)
    ):
        raise UsageError("a chat is a list of messages {'role': …, 'content': …}, at least one")
    first = [{"role": "system", "content": system}] if system else []
    text = codec.render([*first, *messages], tools)
    return codec.encode(text, chat=True, most_tokens=most_tokens)


def drafter_for(bundle: Bundle, settings: EdgeSettings) -> Drafter:
    """Opens the drafter that the mode needs. Raises `UsageError` if the two do not fit."""
    if settings.mode in ("cloud", "cloud-draft"):
        return NoDrafter()
    if settings.mode == "edge" and settings.drafter == NO_DRAFTER:
        raise UsageError("--mode edge means that this device drafts; it cannot with --drafter none")
    answers = settings.drafting.cached_answers
    alone = not is_loopback(settings.connect)
    return open_drafter(bundle, settings.drafter, settings.threads, answers, alone=alone)
