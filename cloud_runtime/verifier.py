"""From what a head says to what a device is told: hints, and verdicts that commit."""

from __future__ import annotations

from cloud_runtime.sessions import SMOOTH, CloudSession
from edgespec.protocol import Hint, Verdict
from edgespec.sampling import choose, guess, verify
from engines.base import Choices


def hint(seat: CloudSession, layer: int, choice: Choices, vocabulary: int) -> Hint:
    """An exit head's tokens at the draft's positions and the one after, from its top candidates."""
    tokens = [
        guess(ids, logits, seat.sampling, seat.length + number, vocabulary)
        for number, (ids, logits) in enumerate(zip(choice.top_ids, choice.top_logits, strict=True))
    ]
    number = seat.in_flight.round if seat.in_flight is not None else 0
    return Hint(seat.session, number, seat.length, layer, tokens)


def verdict(seat: CloudSession, choice: Choices, now: float) -> Verdict:
    """Verifies the drafted ids of the seat's row and commits what follows."""
    base, draft, path = seat.length, seat.draft, seat.in_flight
    confirmed, tokens = verify(draft, _tokens(seat, choice))
    taken = seat.state.commit(tokens)
    confirmed = min(confirmed, len(taken))
    seat.cached = base + confirmed
    number = path.round if path is not None and path.theirs(base, base + len(draft)) else 0
    accepted = path.theirs(base, base + confirmed) if path is not None else 0
    seat.in_time += SMOOTH * ((number > 0) - seat.in_time)
    seat.settle()
    seat.arrivals.sent(seat.length, now)
    path = seat.paths.best()
    seat.asked = path is not None and path.end > seat.length
    if seat.began is None:
        seat.began = now, seat.length
    seat.verdict = Verdict(
        seat.session, number, base, len(draft), confirmed, accepted, taken, seat.state.finish
    )
    return seat.verdict


def _tokens(seat: CloudSession, choice: Choices) -> list[int]:
    """The target's tokens at the draft's positions and the one after."""
    if seat.sampling.greedy:
        return [int(token) for token in choice.argmax]
    return [
        choose(logits, seat.sampling, seat.length + number)
        for number, logits in enumerate(choice.logits)
    ]
