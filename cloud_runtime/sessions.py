"""A session as the cloud keeps it, in parts that each have one writer.

    part         what it holds                             changed by
    state        committed tokens (`edgespec.session`)     `commit`, when a verify step ends
    terms        how the device wants to be served         `session_table`; `stop_cloud_draft`
    connection   the device and whether it is reachable    `session_table`, when packets come
    cache        the KV-cache slot and its length          `memory` (the slot), `stepping` (length)
    drafts       candidate paths, acceptance, arrivals     its own methods, one for each event
    progress     whether a step runs, and since when not   `stepping`
    turn         whether the scheduler leaves it out       `stepping`, from the scheduler's plan

What a running step works on rides in its batch (`steps.BatchRow`).
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from cloud_runtime.paths import CandidatePath
from cloud_runtime.session_drafts import SessionDrafts
from cloud_runtime.session_logprobs import SessionLogprobs
from cloud_runtime.status.tally import Record
from edgespec.adjustments import Adjustments
from edgespec.grammars import GrammarMask
from edgespec.policies import SchedulerPolicy
from edgespec.protocol import Draft, Terms, Verdict
from edgespec.sampling import Sampling
from edgespec.session import Session

TOKEN_MEMORY_BYTES = 40
"""Memory of a committed token."""


@dataclass(slots=True)
class Connection:
    """The device that a session belongs to. Times are seconds of the cloud's clock."""

    peer: bytes
    heard_at: float
    """Time of the device's last message about this session, or of its last ping."""
    acted_at: float = field(init=False)
    """Time of the device's last message about this session."""
    away: bool = False
    """True if messages do not reach the device. The session rests until the device sends one."""

    def __post_init__(self) -> None:
        self.acted_at = self.heard_at

    def heard(self, peer: bytes, now: float) -> None:
        self.peer, self.heard_at, self.acted_at = peer, now, now


class Owner(NamedTuple):
    """The device that may resume, change and close a session."""

    key: bytes
    """CURVE key (Z85) of the connection that opened it; empty on a link without encryption."""
    secret: bytes
    """Secret of its Open, which decides where there is no key."""

    def admits(self, key: bytes, secret: bytes) -> bool:
        """True if a message by this key, with this secret, comes from the owner."""
        if self.key or key:
            return hmac.compare_digest(self.key, key)
        return hmac.compare_digest(self.secret, secret)


class SessionCache:
    """The KV-cache slot of a session. Invariant: `0 <= length <= committed tokens`."""

    __slots__ = ("_committed", "length", "lost_tokens", "slot")

    def __init__(self, committed: Sequence[int]) -> None:
        self._committed = committed
        self.slot: int | None = None
        self.length = 0
        """Cached positions; committed tokens from there on have yet to be run."""
        self.lost_tokens = 0
        """Positions that were cached when the slot was taken away."""

    def give(self, slot: int, length: int) -> None:
        """Sets a slot in which `length` positions are cached."""
        self.slot, self.lost_tokens = slot, 0
        self.advance(length)

    def take(self, *, evicted: bool = False) -> None:
        """Removes the slot. `evicted`: the session goes on and has to run its tokens again."""
        if evicted:
            self.lost_tokens = max(self.lost_tokens, self.length)
        self.slot, self.length = None, 0

    def advance(self, length: int) -> None:
        """Sets the cached length. Lower than before is a rollback."""
        assert 0 <= length <= len(self._committed)
        self.length = length


class FirstVerdict(NamedTuple):
    at: float
    """Time at which it was sent, in seconds."""
    length: int
    """Committed tokens after it."""


@dataclass(slots=True)
class Progress:
    ended_at: float
    """Time at which the last step of the session ended; before any, when it was opened."""
    running: bool = False
    """True while a step of the target runs a row of the session."""
    first_verdict: FirstVerdict | None = None


class Turn(NamedTuple):
    """The scheduler's choice to leave a ready session out of steps."""

    paused: bool = False
    """Left out while it is early and other sessions are late."""
    left_out: bool = False
    """Left out while other sessions of its device run."""
    since: float = 0.0
    """Time at which `left_out` last changed, in seconds."""

    @property
    def idle(self) -> bool:
        return self.paused or self.left_out


class Outcome(NamedTuple):
    """Result of a verify step for one session, before it is applied."""

    path: CandidatePath | None
    """The path of the verified draft tokens."""
    verified: int
    """Draft tokens that the step verified."""
    confirmed: int
    """Verified draft tokens that are the target's own."""
    tokens: list[int]
    """The confirmed tokens, then the target's next one."""
    logprobs: bytes = b""
    """Records of their log-probabilities; empty if the session asked for none."""


@dataclass(eq=False)
class CloudSession:
    """One answer that the cloud's target writes."""

    id: int
    state: Session
    sampling: Sampling
    terms: Terms
    connection: Connection
    opened_at: float
    policy: SchedulerPolicy = field(default=SchedulerPolicy(), repr=False)
    turn: Turn = field(default_factory=Turn)
    owner: Owner = field(default_factory=lambda: Owner(b"", b""))
    adjustments: Adjustments | None = None
    """Adjustments of the logits; None: its sampling parameters ask for none, and no grammar."""
    logprobs: SessionLogprobs | None = None
    """Log-probabilities of its tokens; None: it asked for none."""
    grammar: GrammarMask | None = None
    """One of its adjustments: the grammar that the answer follows."""
    domain: bytes = b""
    """Key of the device whose sessions may share prefixes with it; empty: the domain of all."""

    def __post_init__(self) -> None:
        self.cache = SessionCache(self.state.tokens)
        self.drafts = SessionDrafts(self.state.tokens, self.policy)
        self.progress = Progress(self.opened_at)
        self.record = Record(opened=self.opened_at)
        self._masked: tuple[int, CandidatePath | None, int] | None = None
        """The row whose masks are here."""

    @property
    def length(self) -> int:
        """Committed tokens."""
        return len(self.state.tokens)

    @property
    def kept_tokens(self) -> float:
        """Committed tokens; their log-probabilities count as tokens of the same memory."""
        records = len(self.logprobs.records) if self.logprobs is not None else 0
        return self.length + records / TOKEN_MEMORY_BYTES

    @property
    def pending(self) -> int:
        """Committed tokens that are not cached: one, unless the prompt is still being run."""
        return self.length - self.cache.length

    @property
    def opened(self) -> bool:
        """True after the first verdict, which needs no draft."""
        return self.progress.first_verdict is not None

    @property
    def ready(self) -> bool:
        """True if the target could run a row for it now."""
        if self.progress.running or self.connection.away or self.state.finish:
            return False
        if not self.masked:
            return False
        terms = self.terms
        return terms.decoding or not terms.drafting or self.drafts.waiting or not self.opened

    @property
    def ready_since(self) -> float:
        """Time since which the target could have served it, in seconds."""
        ended_at, waiting_since = self.progress.ended_at, self.drafts.waiting_since
        return ended_at if ended_at > waiting_since else waiting_since

    @property
    def idle(self) -> bool:
        """True if its slot will not run for a while."""
        return self.turn.idle or self.connection.away

    def abandoned(self, now: float, timeout_s: float) -> bool:
        """True if its device was silent, or left the session waiting for it, for `timeout_s`.

        Pings alone do not keep a session that waits for its device.
        """
        if self.progress.running:
            return False
        moved_at = max(self.connection.acted_at, self.progress.ended_at)
        stalled = not self.ready and now - moved_at > timeout_s
        return stalled or now - self.connection.heard_at > timeout_s

    @property
    def has_deadline(self) -> bool:
        """True if its device asked for a target rate and the first verdict was sent."""
        return self.terms.target_rate > 0 and self.opened

    @property
    def due(self) -> float:
        """Deadline of the next token by the target rate; without one, `ready_since`."""
        first = self.progress.first_verdict
        if first is None or self.terms.target_rate <= 0:
            return self.ready_since
        return first.at + (self.length + 1 - first.length) / self.terms.target_rate

    def best_path(self) -> CandidatePath | None:
        """The path of draft tokens to verify or to continue."""
        return self.drafts.best(drafting=self.terms.drafting)

    @property
    def ahead(self) -> int:
        """Draft tokens beyond the committed ones, along the best path."""
        path = self.best_path()
        return path.end - self.length if path is not None else 0

    @property
    def draft_prefix(self) -> list[int]:
        """The committed tokens and those of the best path, which the cloud draft continues."""
        path = self.best_path()
        return [*self.state.tokens, *(path.ahead(self.length) if path is not None else [])]

    @property
    def unread(self) -> int:
        """Tokens that the cloud draft has yet to read before it can draft."""
        return max(1, self.length + self.ahead - self.drafts.read_tokens)

    def may_cloud_draft(self, *, shared: bool) -> bool:
        """True if the cloud draft may draft for it. `shared`: other sessions are in the step.

        In a shared step it may not while the device's drafts are mostly in time: verifying a
        longer draft gains less than the other sessions lose.
        """
        served = self.terms.drafting and self.drafts.in_time_share > self.policy.in_time_share
        return self.terms.cloud_draft and self.opened and not (served and shared)

    def add_draft(self, draft: Draft, now: float) -> None:
        """Adds draft tokens of the device."""
        self.drafts.add(draft, now, lockstep=self.terms.lockstep)

    def add_cloud_token(self, token: int, confidence: float) -> None:
        """Adds a token of the cloud draft."""
        self.drafts.add_cloud_token(token, confidence, drafting=self.terms.drafting)

    def stop_cloud_draft(self) -> None:
        """The cloud draft has no token for it; it is not asked again under these terms."""
        self.terms = msgspec.structs.replace(self.terms, cloud_draft=False)

    @property
    def masked(self) -> bool:
        """True if the masks of its next row are here, or it has no grammar."""
        return self.grammar is None or self._masked == self._row_state

    @property
    def _row_state(self) -> tuple[int, CandidatePath | None, int]:
        """What the next row depends on: the committed tokens and the draft."""
        path = self.best_path()
        return self.length, path, path.end if path is not None else 0

    def prepare_masks(self, max_draft: int) -> bool:
        """Asks for the masks of its next row; returns `masked`. Does not wait."""
        if self.grammar is None or self.masked:
            return True
        if self._prepare(max_draft) and self._draft_forced():
            self._prepare(max_draft)
        return self.masked

    def _prepare(self, max_draft: int) -> bool:
        assert self.grammar is not None
        most = max(0, min(max_draft, self.state.remaining - 1))
        draft = self.draft_prefix[self.length :][:most]
        if not self.grammar.prepare([*self.state.answer, *draft], len(draft)):
            return False
        if not self.grammar.refusal:
            self._masked = self._row_state
        return self.masked

    def _draft_forced(self) -> bool:
        """Adds the tokens that the grammar forces next, if there is no draft. True: it does."""
        if self.terms.lockstep or self.ahead or not self.opened:
            return False
        assert self.grammar is not None and self.adjustments is not None
        self.adjustments.follow(self.state.tokens)
        forced = self.grammar.forced()[: max(0, self.state.remaining - 1)]
        for token in forced:
            self.add_cloud_token(token, 1.0)
        return bool(forced)

    def commit(self, outcome: Outcome, now: float) -> Verdict:
        """Applies the result of a verify step; returns the verdict for the device."""
        base, path = self.length, outcome.path
        taken = self.state.commit(outcome.tokens)
        confirmed = min(outcome.confirmed, len(taken))
        self.cache.advance(base + confirmed)
        number, accepted = 0, 0
        if path is not None:
            accepted = path.device_tokens(base, base + confirmed)
            if path.device_tokens(base, base + outcome.verified):
                number = path.round
        records = (
            self.logprobs.add(outcome.logprobs, len(taken)) if self.logprobs is not None else b""
        )
        self.drafts.settle(now, in_time=number > 0)
        if self.progress.first_verdict is None:
            self.progress.first_verdict = FirstVerdict(now, self.length)
        return Verdict(
            self.id, number, base, outcome.verified, confirmed, accepted, taken, self.state.finish,
            records,
        )  # fmt: skip
