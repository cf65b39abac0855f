"""A session as the cloud keeps it, and the rows that it asks of the target."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cloud_runtime.decision import AHEAD, Outlook
from cloud_runtime.paths import CandidatePath, CandidatePaths
from cloud_runtime.status.tally import Record
from edgespec.confidence import AcceptanceEstimate
from edgespec.protocol import Draft, Terms, Verdict
from edgespec.sampling import Sampling
from edgespec.session import Session
from engines.base import Row

IN_TIME = 0.3
SMOOTH = 0.1
READING = 16
"""Tokens at most that the draft beside the target is charged for reading."""
LATE = 1.0
"""Drafting intervals after which an id that has not come is no longer waited for."""


class DraftArrivals:
    """When a device's ids come: measured from packets, without comparing clocks."""

    WEIGHT = 0.25

    def __init__(self) -> None:
        self.interval = 0.0
        """Seconds between drafted ids; 0: unknown."""
        self.reaction = 0.0
        """Seconds from a verdict's leaving to the first id drafted after it; 0: unknown."""
        self._sent: deque[tuple[int, float]] = deque(maxlen=64)

    def sent(self, length: int, now: float) -> None:
        """A verdict left that makes `length` tokens committed."""
        self._sent.append((length, now))

    def came(self, draft: Draft, path: CandidatePath | None, now: float) -> None:
        """Ids came, for that path if they were of use."""
        if path is None or not draft.tokens:
            return
        if path.grown:
            self.interval = self._blend(self.interval, (now - path.grown) / len(draft.tokens))
        elif not draft.parent:
            for length, left in self._sent:
                if length == draft.base:
                    self.reaction = self._blend(self.reaction, now - left)
        path.grown = now

    def coming(self, path: CandidatePath | None, length: int, now: float) -> list[float]:
        """Seconds from now until each further id is expected: of the path, or where it ends with
        the committed text, which has `length` tokens, of whatever the device makes of the last
        verdict."""
        expected = []
        if path is not None and path.grown and self.interval:
            expected.append(path.grown + self.interval)
        if (path is None or path.end == length) and self._sent and self.reaction:
            expected.append(self._sent[-1][1] + self.reaction)
        in_time = [when for when in expected if now <= when + LATE * self.interval]
        if not in_time:
            return []
        return [max(0.0, min(in_time) - now) + i * self.interval for i in range(AHEAD)]

    def _blend(self, old: float, new: float) -> float:
        return new if not old else old + self.WEIGHT * (new - old)


@dataclass
class CloudSession:
    """`cached <= len(state.tokens)`: the committed tokens beyond it have yet to be run."""

    peer: bytes
    session: int
    state: Session
    sampling: Sampling
    terms: Terms
    slot: int | None
    heard: float
    """When the device last spoke of this session."""
    ready_since: float
    """When it could last have been served."""
    cached: int = 0
    lost: int = 0
    """Positions that were cached when its slot was taken away."""
    asked: bool = False
    """A draft has come that no verdict has answered, perhaps an empty one."""
    in_flight: CandidatePath | None = None
    """What the batch in flight verifies of it; `running` says whether there is one."""
    verifying: int = 0
    running: bool = False
    verdict: Verdict | None = None
    """The last one, for a device that missed it."""
    cloud_drafted: CandidatePath | None = None
    """What the cloud has drafted itself."""
    cloud_draft_estimate: AcceptanceEstimate = field(default_factory=AcceptanceEstimate)
    in_time: float = 1.0
    """Share of its steps lately for which the device had ids ready."""
    read: int = 0
    """Tokens of the text that the draft beside the target has read."""
    away: bool = False
    """Nothing reaches its device: nothing is done for it until the device asks again."""
    paused: bool = False
    """Left out while it is early and others are late."""
    left_out: bool = False
    """Left out since its device has others in the step."""
    turn_since: float = 0.0
    """When that last changed."""
    began: tuple[float, int] | None = None
    """When its first verdict left, and the length that it made."""

    def __post_init__(self) -> None:
        self.opened_at = self.ready_since
        self.paths = CandidatePaths(self.state.tokens)
        self.arrivals = DraftArrivals()
        self.record = Record(opened=self.opened_at)

    @property
    def length(self) -> int:
        return len(self.state.tokens)

    @property
    def text(self) -> list[int]:
        """The committed text and the best path behind it: what the draft beside goes on from."""
        path = self.best()
        return [*self.state.tokens, *(path.ahead(self.length) if path is not None else [])]

    @property
    def ready(self) -> bool:
        """Whether the target could do something for it now."""
        if self.running or self.away or self.state.finish:
            return False
        return self.terms.decoding or not self.terms.drafting or self.asked or not self.opened

    @property
    def idle(self) -> bool:
        """Whether its slot will run nothing for a while."""
        return self.paused or self.left_out or self.away

    @property
    def opened(self) -> bool:
        """Whether the opening round, which needs no draft, is over."""
        return self.verdict is not None

    @property
    def promised(self) -> bool:
        """Whether there is a rate to keep."""
        return self.terms.target_rate > 0 and self.began is not None

    @property
    def due(self) -> float:
        """When its next token should leave, by the rate that its device was promised; without one
        it is due since it could be served."""
        if not self.promised or self.began is None:
            return self.ready_since
        since, length = self.began
        return since + (self.length + 1 - length) / self.terms.target_rate

    @property
    def pending(self) -> int:
        """Committed tokens that are not cached: one, but for a prompt."""
        return self.length - self.cached

    @property
    def ahead(self) -> int:
        """Drafted ids beyond the committed text, along the path to go on with."""
        path = self.best()
        return path.end - self.length if path is not None else 0

    @property
    def unread(self) -> int:
        """Tokens that the draft beside the target has yet to read of the text."""
        return max(1, self.length + self.ahead - self.read)

    def may_draft(self, *, shared: bool) -> bool:
        """Whether the draft beside the target may draft for it now. Among others, whose time that
        takes, not while its device mostly is in time: reading after it costs more than it brings.
        """
        device = self.terms.drafting and shared and self.in_time > IN_TIME
        return self.terms.cloud_draft and self.opened and not device

    def best(self) -> CandidatePath | None:
        """The path to go on along: the device's, unless what was drafted here goes further on it,
        or the device's has nothing beyond the committed text."""
        path = self.paths.best() if self.terms.drafting else None
        cloud_draft = self.cloud_drafted
        if cloud_draft is None or cloud_draft.end <= self.length:
            return path
        if path is None:
            return cloud_draft
        theirs, ours = path.ahead(self.length), cloud_draft.ahead(self.length)
        return cloud_draft if ours[: len(theirs)] == theirs else path

    def drafted(self, token: int, confidence: float) -> None:
        """The draft beside the target names what follows the best path."""
        self.read = self.length + self.ahead
        path = self.best()
        if path is None or path is not self.cloud_drafted:
            ids = path.ahead(self.length) if path is not None else []
            confidences = path.confidences_ahead(self.length) if path is not None else []
            number = path.round if path is not None and ids else 0
            path = self.cloud_drafted = CandidatePath(
                number, self.length, ids, confidences, own=self.length + len(ids)
            )
        path.tokens.append(token)
        path.confidences.append(confidence)

    def outlook(
        self, now: float, most: int, weight: float = 1.0, *, shared: bool = False
    ) -> Outlook:
        """What `decide` needs to know. `most` ids are of use; `weight` is what its tokens count;
        `shared`: it shares the step."""
        path = self.best()
        own = path is not None and path is self.cloud_drafted
        here = path.confidences_ahead(self.length)[:most] if path is not None else []
        estimate = self.cloud_draft_estimate if own else self.paths.estimate
        more = len(here) < most
        coming: list[float] = []
        if more and self.terms.drafting and self.terms.decoding and not own and self.opened:
            coming = self.arrivals.coming(path, self.length, now)
        return Outlook(
            here=[estimate.probability(confidence) for confidence in here],
            coming=coming,
            coming_confidence=self.paths.estimate.acceptance,
            cloud_draft=more and self.may_draft(shared=shared) and self.terms.decoding,
            cloud_draft_confidence=self.cloud_draft_estimate.acceptance,
            # What it reads once serves the whole answer, above all where nobody else drafts.
            unread=min(self.unread, READING if self.terms.drafting else 2),
            pending=self.pending,
            lockstep=self.terms.lockstep,
            weight=weight,
        )

    def row(self, chunk: int, count: int, *, hints: bool) -> Row:
        """Its next row: a chunk of what is not cached, or the rest of it and up to `count` drafted
        ids behind. Marks the seat as running."""
        assert self.slot is not None
        self.running = True
        pending = self.state.tokens[self.cached : self.cached + chunk]
        if self.cached + len(pending) < self.length:
            self.in_flight, self.verifying = None, 0
            return Row(self.slot, self.cached, pending, 0)
        self.in_flight, self.verifying = (self.best(), count) if count else (None, 0)
        ids = self.draft
        self.verifying = len(ids)  # more may come while it runs
        return Row(
            self.slot,
            self.cached,
            [*pending, *ids],
            len(ids) + 1,
            hints and self.terms.hints and bool(ids),
        )

    @property
    def draft(self) -> list[int]:
        """The ids that the batch in flight verifies."""
        path = self.in_flight
        return path.ahead(self.length)[: self.verifying] if path is not None else []

    def settle(self) -> None:
        """After tokens were committed: every path is compared with them."""
        self.paths.settle()
        self.read = min(self.read, self.length - 1)
        if self.cloud_drafted is not None:
            self.cloud_drafted.compare(self.state.tokens, self.cloud_draft_estimate)
            if self.cloud_drafted.dead or self.cloud_drafted.end < self.length:
                self.cloud_drafted = None
