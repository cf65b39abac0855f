"""Writing the answers of one chat or text completion into its reply, whole or as a stream."""

from __future__ import annotations

from collections.abc import Sequence

from edge_runtime.api.logprobs import ChoiceLogprobs
from edge_runtime.api.replies import DONE, Reply
from edge_runtime.api.requests import ChatRequest, CompletionRequest
from edge_runtime.api.streaming import Sender, read_all
from edge_runtime.api.tool_calls import CallParser, Delta, Found
from edge_runtime.api.unverified import HeldText, settled
from edge_runtime.completion import AsyncCompletion
from edge_runtime.pieces import Piece


class Writing:
    """The choices of one request; the sequences have a member for each of them."""

    def __init__(
        self,
        asked: ChatRequest | CompletionRequest,
        reply: Reply,
        logprobs: Sequence[ChoiceLogprobs],
        calls: Sequence[CallParser | None],
    ) -> None:
        """`calls` find the calls of tools in the text, where tools may be called."""
        self._asked = asked
        self._reply = reply
        self._logprobs = logprobs
        self._calls = calls
        self._pieces: list[list[Piece]] = [[] for _ in logprobs]
        """Pieces that were not sent yet, if the client asks for them."""
        self._unverified = [HeldText() for _ in logprobs]
        self._begun: set[int] = set()

    async def whole(self, sender: Sender, answers: Sequence[AsyncCompletion]) -> None:
        """Sends one object when all answers have ended."""

        async def keep(number: int, text: str, piece: Piece | None) -> None:
            del text
            self._keep(number, piece)

        await read_all(answers, keep)
        choices = [
            self._reply.choice(
                number,
                answer.partial_text,
                answer.stats,
                settled(self._pieces[number]) if self._asked.edgespec else None,
                self._logprobs[number].take(),
                self._calls[number],
            )
            for number, answer in enumerate(answers)
        ]
        body = self._reply.whole(choices, [answer.stats for answer in answers])
        await sender.chunk(body, more=False)

    async def stream(self, sender: Sender, answers: Sequence[AsyncCompletion]) -> None:
        """Sends chunks while the answers are written."""

        async def pass_on(number: int, text: str, piece: Piece | None) -> None:
            await self._pass_on(sender, number, text, piece)

        await read_all(answers, pass_on)
        for number, answer in enumerate(answers):
            await self._end(sender, number, answer)
        if self._asked.wants_usage:
            await sender.chunk(self._reply.usage([answer.stats for answer in answers]))
        await sender.chunk(DONE, more=False)

    def _keep(self, number: int, piece: Piece | None) -> None:
        if piece:
            self._logprobs[number].add(piece)
        if piece and self._asked.edgespec:
            self._pieces[number].append(piece)

    async def _begin(self, sender: Sender, number: int) -> None:
        if number not in self._begun:
            self._begun.add(number)
            await sender.chunk(self._reply.first(number))

    async def _pass_on(self, sender: Sender, number: int, text: str, piece: Piece | None) -> None:
        """Sends the text of a piece, or as much of it as may be sent."""
        await self._begin(sender, number)
        self._keep(number, piece)
        parser = self._calls[number]
        if not self._asked.edgespec or parser is not None:  # a call cannot be taken back
            text = self._unverified[number].pass_on(text, piece)
        if parser is not None:
            await self._show_found(sender, number, parser.push(text))
        else:
            withdrawn = bool(piece and piece.correction is not None)
            await self._show(sender, number, text, withdrawn=withdrawn)

    async def _show(
        self, sender: Sender, number: int, text: str | Delta, *, withdrawn: bool = False
    ) -> None:
        if not text and not (withdrawn and self._asked.edgespec):
            return
        shown, self._pieces[number] = self._pieces[number], []
        pieces = shown if self._asked.edgespec else None
        more = self._logprobs[number].take()
        if isinstance(text, Delta):
            await sender.chunk(self._reply.call(number, text, pieces, more))
        else:
            await sender.chunk(self._reply.text(number, text, pieces, more))

    async def _show_found(self, sender: Sender, number: int, found: Found) -> None:
        for each in found:
            await self._show(sender, number, each)

    async def _end(self, sender: Sender, number: int, answer: AsyncCompletion) -> None:
        """Sends what was held back of an answer, and why it has ended."""
        await self._begin(sender, number)
        parser, rest = self._calls[number], self._unverified[number].flush()
        found: Found = [rest] if parser is None else parser.push(rest, end=True)
        await self._show_found(sender, number, found)
        if more := self._logprobs[number].take():  # of tokens without text of their own
            await sender.chunk(self._reply.text(number, "", None, more))
        called = parser is not None and parser.calls > 0
        await sender.chunk(self._reply.last(number, answer.stats, called=called))
