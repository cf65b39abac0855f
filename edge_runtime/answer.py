"""The device's side of one answer: pure state, told what came, saying what to send.

Nothing here waits, draws or reads a clock. A message that is stale, repeated or about another
session changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.config import Request
from edgespec.errors import LinkError, UsageError
from edgespec.protocol import Close, Draft, Error, Hint, Message, Open, Resume, Verdict, Welcome
from edgespec.sampling import agreeing
from edgespec.session import Session
from edgespec.telemetry import AnswerStats, HintCount


class Answer:
    """One session, in lock-step: a draft goes out, a verdict comes back."""

    def __init__(
        self, session: int, request: Request, welcome: Welcome, end_ids: Sequence[int],
        *, drafting: bool,
    ) -> None:  # fmt: skip
        """Raises `UsageError` for a prompt that the target's context cannot hold."""
        length = len(request.prompt)
        if not length:
            raise UsageError("the prompt is empty; give at least one token of text")
        if length >= welcome.context:
            raise UsageError(
                f"the prompt has {length} tokens and the target's context is {welcome.context}; "
                "shorten the prompt"
            )
        self.session_id = session
        self.drafting = drafting
        self.stats = AnswerStats(prompt_tokens=length)
        self._request = request
        self._hints: dict[int, list[int]] = {}
        self._round = 0
        self._outstanding: Message | None = None
        self.state = Session(
            list(request.prompt),
            length,
            min(request.max_tokens, welcome.context - length),
            frozenset(end_ids),
        )

    @property
    def done(self) -> bool:
        return bool(self.state.finish)

    @property
    def may_draft(self) -> bool:
        """Whether the cloud waits for a draft."""
        return self.drafting and self._outstanding is None and not self.done

    def open(self) -> Open:
        """Starts the session, or starts it again from what is committed, here or elsewhere."""
        self._hints.clear()
        self._outstanding = Open(
            session=self.session_id,
            prompt_length=self.state.prompt_length,
            max_tokens=self.state.max_tokens,
            sampling=self._request.sampling,
            end_ids=sorted(self.state.end_ids),
            drafting=self.drafting,
            tokens=list(self.state.tokens),
        )
        return self._outstanding

    def draft(self, tokens: Sequence[int]) -> Draft:
        """A round. The last token that may be committed is the target's, so one fewer is sent."""
        tokens = tokens[: self.wanted(len(tokens))]
        self._round += 1
        self._hints.clear()
        self.stats.rounds += 1
        self.stats.drafted += len(tokens)
        self._outstanding = Draft(
            self.session_id, self._round, len(self.state.tokens), list(tokens)
        )
        return self._outstanding

    def wanted(self, draft_length: int) -> int:
        """Tokens worth drafting now."""
        return min(draft_length, max(0, self.state.remaining - 1))

    def on_hint(self, hint: Hint) -> None:
        if hint.session == self.session_id and hint.base == len(self.state.tokens):
            self._hints[hint.layer] = hint.tokens

    def on_verdict(self, verdict: Verdict) -> tuple[int, list[int]]:
        """Accepted length and tokens that the verdict adds; (0, []) for one that adds nothing.

        The caller commits them one by one, since a stop string may end the answer among them.
        """
        base = len(self.state.tokens)
        if self.done or verdict.session != self.session_id or verdict.base > base:
            return 0, []
        fresh = verdict.tokens[base - verdict.base :]
        if not fresh:
            return 0, []
        accepted = 0
        if verdict.base == base:
            accepted = verdict.accepted
            self._count_hints(verdict)
        self._outstanding = None
        self.stats.accepted += accepted
        return accepted, fresh

    def missed(self, verdict: Verdict) -> bool:
        """Whether the verdict stands on tokens that never arrived here."""
        return verdict.session == self.session_id and verdict.base > len(self.state.tokens)

    def on_error(self, error: Error) -> Open | None:
        """What to send after an error; nothing if it is about a session that is over.

        Raises `LinkError` where sending something would not help.
        """
        if error.session not in (0, self.session_id):
            return None
        if error.code in ("session", "hello") and error.session == self.session_id:
            self.stats.resumed += 1
            return self.open()
        raise LinkError(
            f"the cloud refused: {error.message}", code=error.code, retryable=error.retryable
        )

    def resume(self) -> Resume:
        """After silence: asks for what was committed since."""
        self.stats.resumed += 1
        return Resume(self.session_id, len(self.state.tokens))

    def repeat(self, verdict: Verdict) -> Message | None:
        """What must be sent again, given a verdict that brought nothing new: a reply to `resume`,
        or to an `open` of a session that the cloud still has."""
        if verdict.session != self.session_id or verdict.base != len(self.state.tokens):
            return None
        if isinstance(self._outstanding, Draft) and verdict.round < self._outstanding.round:
            return self._outstanding
        if isinstance(self._outstanding, Open) and self.state.answer:
            self._outstanding = None  # the cloud waits for a draft
        return None

    def close(self) -> Close:
        return Close(self.session_id)

    def _count_hints(self, verdict: Verdict) -> None:
        for layer, tokens in self._hints.items():
            count = self.stats.hints.setdefault(layer, HintCount())
            count.total += min(len(tokens), len(verdict.tokens))
            count.right += agreeing(tokens, verdict.tokens)
        self._hints.clear()
