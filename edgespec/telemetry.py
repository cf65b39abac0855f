"""Figures of one answer, for users and as JSON."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from edgespec.energy_report import Energy
from edgespec.session import Finish


class HintCount(msgspec.Struct):
    """Positions at which an exit head was compared with the target, and at which it was right."""

    right: int = 0
    total: int = 0

    @property
    def accuracy(self) -> float:
        return self.right / self.total if self.total else 0.0


ENDINGS = {
    "": "interrupted",
    "end": "the answer is complete",
    "length": "the token limit is reached",
    "stop": "a stop text was found",
}
"""Why an answer ended, in words."""


def speed(answers: Iterable[AnswerStats]) -> float:
    """Tokens per second over all answers, the first token of each left out; 0 for no answers."""
    tokens, spent = 0, 0.0
    for stats in answers:
        tokens += stats.tokens - 1
        spent += stats.seconds - stats.first_token_seconds
    return tokens / spent if spent > 0 else 0.0


class AnswerStats(msgspec.Struct, kw_only=True):
    """Figures of one answer.

    Times are in seconds. Bytes are those of all messages on the link while the answer was written,
    without ZeroMQ's framing.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    rounds: int = 0
    """Verdicts that added tokens; each is a step of the target."""
    drafted: int = 0
    """Drafted tokens that the device sent."""
    verified: int = 0
    """Drafted tokens, of the device or of the cloud, that the target verified."""
    confirmed: int = 0
    """Verified tokens that were the target's."""
    accepted: int = 0
    """Confirmed tokens that the device had drafted."""
    longest_draft: int = 0
    """Most drafted tokens that one step of the target verified."""
    acceptances: dict[int, int] = msgspec.field(default_factory=dict)
    """Steps that verified drafted tokens, by the number that they confirmed."""
    prediction_tokens: int = 0
    """Tokens of the prediction that the request had."""
    predicted: int = 0
    """Accepted tokens that were drafted from it."""
    drafting_seconds: float = 0.0
    waiting_seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    resumed: int = 0
    """Requests for lost verdicts, and sessions opened again."""
    restored: int = 0
    """Tokens of the answer that an earlier session had committed; `tokens` leaves them out."""
    unverified: int = 0
    """Tokens at the end of the answer that only the device's draft model has written."""
    finish: Finish = ""
    hits: dict[str, int] = msgspec.field(default_factory=dict)
    """Verdicts by what they left of the drafted tree: `full`, the main path; `branch`; `hint`, a
    branch that an exit head opened; `miss`, nothing."""
    mode: str = ""
    """Mode in which the answer ended."""
    stalls: list[float] = msgspec.field(default_factory=list)
    """Silences of the link of a second or more, in seconds."""
    hints: dict[int, HintCount] = msgspec.field(default_factory=dict)
    """Accuracy of the exit heads, by layer."""
    token_ids: list[int] = msgspec.field(default_factory=list)
    energy: Energy | None = None
    """Energy of this machine while the answer was written; None: not measured."""

    def count_draft(self, verified: int, confirmed: int) -> None:
        """Counts a verdict on `verified` drafted tokens, of which `confirmed` are the target's."""
        self.verified += verified
        self.confirmed += confirmed
        if verified:
            self.longest_draft = max(self.longest_draft, verified)
            self.acceptances[confirmed] = self.acceptances.get(confirmed, 0) + 1

    @property
    def tokens_per_second(self) -> float:
        """Rate after the first token, whose time is that of the prompt."""
        spent = self.seconds - self.first_token_seconds
        return (self.tokens - 1) / spent if self.tokens > 1 and spent > 0 else 0.0

    @property
    def loop_seconds(self) -> float:
        """Time that the device spent neither drafting nor waiting: policy, packets, text."""
        return max(0.0, self.seconds - self.drafting_seconds - self.waiting_seconds)

    @property
    def accepted_per_round(self) -> float:
        return self.accepted / self.rounds if self.rounds else 0.0

    def as_json(self) -> str:
        """One line, derived figures included."""
        figures = msgspec.to_builtins(self, str_keys=True) | {
            "tokens_per_second": round(self.tokens_per_second, 3),
            "accepted_per_round": round(self.accepted_per_round, 4),
        }
        del figures["energy"]
        if self.energy:
            figures["energy"] = self.energy.figures()
        return msgspec.json.encode(figures).decode()

    @property
    def warning(self) -> str:
        """What a user must know about the answer's end; empty if all of it is the target's."""
        if not self.unverified:
            return ""
        return f"the last {self.unverified} tokens are the draft's own; no target verified them"

    def __str__(self) -> str:
        return self.as_text()

    def as_text(self) -> str:
        """A report for the user, one fact per line."""
        rate = f", then {self.tokens_per_second:.1f} tokens per second" if self.tokens > 1 else ""
        if self.restored and not self.tokens:
            return f"{self.restored} tokens, written earlier; {ENDINGS[self.finish]}"
        alone = ", without a cloud" if self.unverified else ""
        lines = [
            f"{self.tokens} tokens in {self.seconds:.2f} s: the first after "
            f"{self.first_token_seconds * 1e3:.0f} ms{rate}; {ENDINGS[self.finish]}{alone}"
        ]
        if self.restored:
            lines.append(f"{self.restored} tokens before them were written earlier")
        if self.unverified:
            lines.append(self.warning)
        verified = self.tokens - self.unverified
        if self.rounds:
            lines.append(
                f"{self.rounds} replies of the target, {verified / self.rounds:.2f} tokens each"
            )
        if self.drafted:
            lines.append(
                f"{self.drafted} tokens drafted on this device, alternatives and late ones "
                f"included; {self.accepted} accepted"
            )
        if self.prediction_tokens:
            lines.append(f"{self.predicted} of them came from the prediction")
        if self.confirmed > self.accepted:
            lines.append(f"{self.confirmed - self.accepted} tokens drafted in the cloud accepted")
        if self.hits:
            ready = 1 - self.hits.get("miss", 0) / sum(self.hits.values())
            lines.append(f"the next draft was ready after {ready:.0%} of the replies")
        lines.append(
            f"{self.drafting_seconds:.2f} s spent drafting, {self.waiting_seconds:.2f} s waiting; "
            f"{self.bytes_up} bytes sent, {self.bytes_down} received"
        )
        for layer, count in sorted(self.hints.items()):
            lines.append(
                f"exit head after layer {layer}: {count.right} of {count.total} tokens right "
                f"({count.accuracy:.0%})"
            )
        if self.stalls:
            lines.append(
                f"the link was silent {len(self.stalls)} times, {max(self.stalls):.1f} s at most"
            )
        if self.resumed:
            lines.append(f"resumed {self.resumed} times after silence or a lost session")
        lines += self.energy.lines() if self.energy else []
        return "\n".join(lines)
