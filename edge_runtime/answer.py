"""The device's side of one answer: pure state, told what came, saying what to draft and to send.

Nothing here waits, draws or reads a clock. A message that is stale, repeated or about another
session changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edge_runtime.modes import Measurements
from edge_runtime.policy import choose
from edge_runtime.tree import DraftedPath, Hit, Tree
from edgespec.config import EdgeSettings, Request, Tactics
from edgespec.errors import LinkError, UsageError
from edgespec.protocol import (
    Close,
    Draft,
    Error,
    Hint,
    Open,
    Resume,
    Serve,
    Terms,
    Verdict,
    Welcome,
)
from edgespec.sampling import agreeing
from edgespec.session import Session
from edgespec.telemetry import AnswerStats, HintCount
from engines.drafters.base import Guess

AHEAD = 24
"""Ids that a path may have beyond the committed text."""
HINT_RIGHT = 0.5
"""How often an exit head is right where the bundle does not say."""


class Answer:
    """One session: its committed text, the tree drafted beyond it, and what the cloud knows."""

    def __init__(
        self, session: int, request: Request, welcome: Welcome, end_ids: Sequence[int],
        settings: EdgeSettings, terms: Terms, meter: Measurements, exits: Mapping[int, float],
    ) -> None:  # fmt: skip
        """`exits` tells, by layer, how often an exit head is right.

        Raises `UsageError` for a prompt that the target's context cannot hold.
        """
        length = len(request.prompt)
        if not length:
            raise UsageError("the prompt is empty; give at least one token of text")
        if length >= welcome.context:
            raise UsageError(
                f"the prompt has {length} tokens and a session of this cloud at most "
                f"{welcome.context}; shorten the prompt"
            )
        self.session_id = session
        self.stats = AnswerStats(prompt_tokens=length)
        self.terms = terms
        self._request = request
        self._tactics: Tactics = settings.tactics
        self._draft_length = min(settings.draft_length, welcome.max_draft)
        self._ahead = min(AHEAD, welcome.max_draft)
        self._meter = meter
        self._exits = exits
        self._hints: dict[int, list[int]] = {}
        self._outstanding: Draft | None = None
        """The last draft sent since the last verdict."""
        self._asking = False
        """Whether a `Resume` is on its way."""
        self.state = Session(
            list(request.prompt),
            length,
            min(request.max_tokens, welcome.context - length),
            frozenset(end_ids),
        )
        self.tree = Tree(self.state.tokens, meter.estimate)

    @property
    def done(self) -> bool:
        return bool(self.state.finish)

    def open(self) -> Open:
        """Starts the session, or starts it again from what is committed, here or elsewhere."""
        self._forget()
        return Open(
            session=self.session_id,
            prompt_length=self.state.prompt_length,
            max_tokens=self.state.max_tokens,
            sampling=self._request.sampling,
            end_ids=sorted(self.state.end_ids),
            terms=self.terms,
            tokens=list(self.state.tokens),
        )

    def serve(self, terms: Terms) -> Serve:
        """Other terms from now on."""
        self._forget()
        self.terms = terms
        return Serve(self.session_id, terms)

    def _forget(self) -> None:
        self._hints.clear()
        self._outstanding = None
        self.tree.restart()

    def steps(self) -> list[DraftedPath]:
        """The paths that the draft should make longer now, in one step; none while nothing is
        worth drafting, or in lock-step nothing is allowed."""
        if not self.terms.drafting or self.done:
            return []
        # The last token that may be committed is the target's.
        most = min(self._ahead, self.state.remaining - 1)
        if not self._tactics.streaming:
            return self._in_lockstep(min(most, self._draft_length))[:1]
        pace = self._meter.pace
        if self.terms.lockstep:  # a cloud that waits is never ahead
            pace = replace(pace, round_trip=0.0)
        chosen = choose(self.tree, pace, most=most, branches=self._tactics.branches)
        return [path if place is None else self.tree.fork(path, place) for _, path, place in chosen]

    def _in_lockstep(self, most: int) -> list[DraftedPath]:
        main = self.tree.main
        if self._outstanding is None:
            paths = [main]
        elif self._tactics.pre_draft == "exits":
            paths = [path for path in self.tree.paths if path.via == "hint"]
            most += len(main.ahead) + 1
        else:
            paths = []
        return [path for path in paths if not path.stuck and len(path.ahead) < most]

    def grow(self, paths: Sequence[DraftedPath], guesses: Sequence[Guess | None]) -> None:
        for path, guess in zip(paths, guesses, strict=True):
            self.tree.grow(path, guess)

    def pending(self, *, idle: bool) -> int:
        """Drafted ids that the cloud could be sent. `idle`: there is nothing more to draft."""
        if not self.terms.drafting or self.done:
            return 0
        end = len(self.state.tokens)
        paths = self.tree.unsent()
        if not self._tactics.streaming:  # a round at a time, when it is full
            free = idle and self._outstanding is None
            paths = [path for path in paths if free and path is self.tree.main]
        unsent = sum(end + len(path.ahead) - path.sent for path in paths)
        # A cloud that waits must be asked, if need be with an empty draft.
        return unsent or int(idle and self.terms.lockstep and self._outstanding is None)

    def packets(self) -> list[Draft]:
        """Everything drafted that the cloud lacks; in lock-step a round, which may be empty."""
        paths = self.tree.unsent() if self._tactics.streaming else []
        packets = [self.tree.packet(self.session_id, path) for path in paths or [self.tree.main]]
        self._outstanding = packets[-1]
        self.stats.drafted += sum(len(packet.tokens) for packet in packets)
        return packets

    def on_hint(self, hint: Hint) -> None:
        if hint.session != self.session_id or hint.base != len(self.state.tokens):
            return
        self._hints[hint.layer] = hint.tokens
        if self.terms.hints and self._tactics.pre_draft != "none":
            right = self._exits.get(hint.layer, HINT_RIGHT)
            self.tree.hinted(hint.round, hint.base, hint.tokens, right)

    def on_verdict(self, verdict: Verdict) -> tuple[int, list[int]]:
        """Accepted length and tokens that the verdict adds; (0, []) for one that adds nothing.

        The caller commits them one by one, since a stop string may end the answer among them, and
        then calls `settle`.
        """
        base = len(self.state.tokens)
        if self.done or verdict.session != self.session_id or verdict.base > base:
            return 0, []
        self._asking = False
        fresh = verdict.tokens[base - verdict.base :]
        if not fresh:
            return 0, []
        accepted = max(0, verdict.accepted - (base - verdict.base))
        if verdict.base == base:
            self._count_hints(verdict)
        self.stats.rounds += 1
        self.stats.verified += verdict.verified
        self.stats.confirmed += verdict.confirmed
        self.stats.accepted += accepted
        return accepted, fresh

    def settle(self) -> Hit | None:
        """After tokens were committed: what they leave of the tree. None: not drafting."""
        drafting = self.terms.drafting and not self.done
        self._hints.clear()
        self._outstanding = None
        hit = self.tree.commit()
        if not drafting:
            return None
        self.stats.hits[hit] = self.stats.hits.get(hit, 0) + 1
        return hit

    def missed(self, verdict: Verdict) -> bool:
        """Whether the verdict stands on tokens that never arrived here."""
        return verdict.session == self.session_id and verdict.base > len(self.state.tokens)

    def deferred(self, error: Error) -> bool:
        """Whether the cloud asks to open this session again later: it is full, or shuts down."""
        if error.session != self.session_id or error.code not in ("busy", "drained"):
            return False
        if error.retryable:
            self._forget()
        return error.retryable

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

    def resume(self, *, silence: bool = False) -> Resume | None:
        """Asks for what was committed since: after silence, or once where a verdict is missing."""
        if self._asking and not silence:
            return None
        self._asking = True
        self.stats.resumed += 1
        return Resume(self.session_id, len(self.state.tokens))

    def stands(self, verdict: Verdict) -> None:
        """A verdict brought nothing new: a reply to `resume`, or to an `open` of a session that the
        cloud still has. A cloud that waits has then not understood what was sent: it was lost, or
        went on from something that was. So drafting begins anew."""
        here = verdict.session == self.session_id and verdict.base == len(self.state.tokens)
        if here and self.terms.lockstep:
            self._forget()

    def close(self) -> Close:
        return Close(self.session_id)

    def _count_hints(self, verdict: Verdict) -> None:
        for layer, tokens in self._hints.items():
            count = self.stats.hints.setdefault(layer, HintCount())
            count.total += min(len(tokens), len(verdict.tokens))
            count.right += agreeing(tokens, verdict.tokens)
