"""Draft tokens of one session, of the device and of the cloud, and when further ones arrive."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from cloud_runtime.paths import CandidatePath, CandidatePaths
from edgespec.confidence import AcceptanceEstimate
from edgespec.policies import SchedulerPolicy
from edgespec.protocol import Draft

REMEMBERED_VERDICTS_COUNT = 64


class DraftArrivals:
    """Arrival times of a device's draft tokens, measured from packets without comparing clocks."""

    def __init__(self, policy: SchedulerPolicy = SchedulerPolicy()) -> None:
        self._policy = policy
        self.interval_s = 0.0
        """Seconds between draft tokens; 0: unknown."""
        self.reaction_s = 0.0
        """Seconds from sending a verdict to the first token drafted after it; 0: unknown."""
        self._sent: deque[tuple[int, float]] = deque(maxlen=REMEMBERED_VERDICTS_COUNT)
        """Verdicts: the committed tokens after each, and when it was sent."""

    def verdict_sent(self, length: int, now: float) -> None:
        """Notes that a verdict was sent after which `length` tokens are committed."""
        self._sent.append((length, now))

    def draft_arrived(self, draft: Draft, path: CandidatePath | None, now: float) -> None:
        """Notes that tokens arrived for `path`; None: the packet was dropped."""
        if path is None or not draft.tokens:
            return
        if path.grown_at:
            interval = (now - path.grown_at) / len(draft.tokens)
            self.interval_s = self._blend(self.interval_s, interval)
        elif not draft.parent:
            for length, sent_at in self._sent:
                if length == draft.base:
                    self.reaction_s = self._blend(self.reaction_s, now - sent_at)
        path.grown_at = now

    def expected_s(self, path: CandidatePath | None, length: int, now: float) -> list[float]:
        """Seconds from now until each further token is expected; empty: none is.

        Tokens are expected for `path`. If it is None or ends with the `length` committed tokens,
        they are expected also as the device's reaction to the last verdict.
        """
        next_at = []
        if path is not None and path.grown_at and self.interval_s:
            next_at.append(path.grown_at + self.interval_s)
        if (path is None or path.end == length) and self._sent and self.reaction_s:
            next_at.append(self._sent[-1][1] + self.reaction_s)
        patience = self._policy.arrival_intervals * self.interval_s
        in_time = [when for when in next_at if now <= when + patience]
        if not in_time:
            return []
        first = max(0.0, min(in_time) - now)
        return [first + i * self.interval_s for i in range(self._policy.lookahead_tokens)]

    def _blend(self, old: float, new: float) -> float:
        return new if not old else old + self._policy.arrival_smoothing * (new - old)


class SessionDrafts:
    """Candidate paths of one session, and how often their tokens are right and in time."""

    def __init__(self, committed: Sequence[int], policy: SchedulerPolicy) -> None:
        """`committed` is the session's own list of tokens, which grows."""
        self._committed = committed
        self._policy = policy
        self.paths = CandidatePaths(committed, policy)
        self.arrivals = DraftArrivals(policy)
        self.cloud_path: CandidatePath | None = None
        """The cloud's own draft; None: it has no tokens beyond the committed ones."""
        self.cloud_estimate = AcceptanceEstimate()
        self.in_time_share = 1.0
        """Share of the last steps for which the device had a draft ready."""
        self.read_tokens = 0
        """Tokens that the cloud draft has read."""
        self.waiting = False
        """True if a draft has arrived that no verdict has answered; it may be empty."""
        self.waiting_since = 0.0
        """Time at which the last such draft arrived in lockstep."""

    def add(self, draft: Draft, now: float, *, lockstep: bool) -> None:
        """Adds a packet of the device."""
        path = self.paths.add(draft)
        self.arrivals.draft_arrived(draft, path, now)
        useful = path is not None and not path.dead and path.end >= len(self._committed)
        if useful and not self.waiting:
            self.waiting = True
            if lockstep:
                self.waiting_since = now

    def best(self, *, drafting: bool) -> CandidatePath | None:
        """The path to continue; `drafting`: the device drafts.

        It is the cloud's path where that continues the device's, or where the device's has no
        tokens beyond the committed ones.
        """
        path = self.paths.best() if drafting else None
        cloud, length = self.cloud_path, len(self._committed)
        if cloud is None or cloud.end <= length:
            return path
        if path is None:
            return cloud
        device_ids, cloud_ids = path.ahead(length), cloud.ahead(length)
        return cloud if cloud_ids[: len(device_ids)] == device_ids else path

    def add_cloud_token(self, token: int, confidence: float, *, drafting: bool) -> None:
        """Adds a token of the cloud draft behind the best path."""
        length, path = len(self._committed), self.best(drafting=drafting)
        self.read_tokens = path.end if path is not None else length
        if path is None or path is not self.cloud_path:
            ids = path.ahead(length) if path is not None else []
            confidences = path.confidences_ahead(length) if path is not None else []
            number = path.round if path is not None and ids else 0
            path = self.cloud_path = CandidatePath(
                number, length, ids, confidences, cloud_start=length + len(ids)
            )
        path.tokens.append(token)
        path.confidences.append(confidence)

    def settle(self, now: float, *, in_time: bool) -> None:
        """Compares all paths with newly committed tokens, for which a verdict leaves now.

        `in_time`: the device had a draft ready for the step.
        """
        self.in_time_share += self._policy.in_time_smoothing * (in_time - self.in_time_share)
        length = len(self._committed)
        self.arrivals.verdict_sent(length, now)
        self.paths.settle()
        path = self.paths.best()
        self.waiting = path is not None and path.end > length
        self.read_tokens = min(self.read_tokens, length - 1)
        if self.cloud_path is not None:
            self.cloud_path.compare(self._committed, self.cloud_estimate)
            if self.cloud_path.dead or self.cloud_path.end < length:
                self.cloud_path = None
