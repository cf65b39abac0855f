"""From what a head says to what a device is told: hints, and verdicts that commit."""

from __future__ import annotations

from cloud_runtime.seats import Seat
from edgespec.protocol import Hint, Verdict
from edgespec.sampling import choose, guess, verify
from engines.base import Choices


def hint(seat: Seat, layer: int, choice: Choices, vocabulary: int) -> Hint:
    """An exit head's tokens at the draft's positions and the one after, from its top candidates."""
    base = len(seat.state.tokens)
    tokens = [
        guess(ids, logits, seat.sampling, base + number, vocabulary)
        for number, (ids, logits) in enumerate(zip(choice.top_ids, choice.top_logits, strict=True))
    ]
    return Hint(seat.session, seat.draft_round, base, layer, tokens)


def verdict(seat: Seat, choice: Choices, now: float) -> Verdict:
    """Verifies the seat's draft against the target's choices and commits what follows."""
    assert seat.draft is not None
    base = len(seat.state.tokens)
    accepted, tokens = verify(seat.draft, _tokens(seat, choice))
    taken = seat.state.commit(tokens)
    accepted = min(accepted, len(taken))
    seat.cached = base + accepted
    seat.round = seat.draft_round if seat.drafting else seat.round + 1
    seat.draft = None if seat.drafting else []
    seat.ready_since = now
    seat.verdict = Verdict(seat.session, seat.round, base, accepted, taken, seat.state.finish)
    return seat.verdict


def _tokens(seat: Seat, choice: Choices) -> list[int]:
    """The target's tokens at the draft's positions and the one after."""
    if seat.sampling.greedy:
        return [int(token) for token in choice.argmax]
    base = len(seat.state.tokens)
    return [
        choose(logits, seat.sampling, base + number) for number, logits in enumerate(choice.logits)
    ]
