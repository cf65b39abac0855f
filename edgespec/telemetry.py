"""What a run is remembered by: counters of one answer, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from edgespec.energy_report import Energy


class HintCount(msgspec.Struct):
    """How often an exit head named the target's token, over positions where that is known."""

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
    """Tokens a second after each answer's first, over all of them; 0 where there are none."""
    tokens, spent = 0, 0.0
    for stats in answers:
        tokens += stats.tokens - 1
        spent += stats.seconds - stats.first_token_seconds
    return tokens / spent if spent > 0 else 0.0


class AnswerStats(msgspec.Struct, kw_only=True):
    """One answer. Times in seconds; bytes are those of messages, without ZeroMQ's framing."""

    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    rounds: int = 0
    """Verdicts that brought tokens: steps of the target."""
    drafted: int = 0
    """Ids that the device sent."""
    verified: int = 0
    """Drafted ids, the device's and the cloud's own, that the target looked at."""
    confirmed: int = 0
    """Of those, the target's."""
    accepted: int = 0
    """Of those, drafted by the device."""
    drafting_seconds: float = 0.0
    waiting_seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    resumed: int = 0
    """Times that silence or a lost session had to be mended."""
    finish: str = ""
    hits: dict[str, int] = msgspec.field(default_factory=dict)
    """Verdicts after which the device could go on with what it had: by full acceptance, by a
    branch, by one that a hint had opened; or not: a miss."""
    mode: str = ""
    """In which the answer ended."""
    stalls: list[float] = msgspec.field(default_factory=list)
    """Silences of a second or more, in seconds."""
    hints: dict[int, HintCount] = msgspec.field(default_factory=dict)
    """By layer."""
    token_ids: list[int] = msgspec.field(default_factory=list)
    energy: Energy | None = None
    """Of the machine that wrote this, while the answer was written; None: nobody asked."""

    @property
    def tokens_per_second(self) -> float:
        """After the first token, which is the prompt's cost."""
        spent = self.seconds - self.first_token_seconds
        return (self.tokens - 1) / spent if self.tokens > 1 and spent > 0 else 0.0

    @property
    def loop_seconds(self) -> float:
        """What the device spent neither drafting nor waiting: policy, packets, text."""
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

    def __str__(self) -> str:
        return self.as_text()

    def as_text(self) -> str:
        """A report for the user, one fact per line."""
        rate = f", then {self.tokens_per_second:.1f} tokens per second" if self.tokens > 1 else ""
        lines = [
            f"{self.tokens} tokens in {self.seconds:.2f} s: the first after "
            f"{self.first_token_seconds * 1e3:.0f} ms{rate}; {ENDINGS[self.finish]}"
        ]
        if self.rounds:
            lines.append(
                f"{self.rounds} replies of the target, {self.tokens / self.rounds:.2f} tokens each"
            )
        if self.drafted:
            lines.append(
                f"{self.drafted} tokens drafted on this device, {self.accepted} accepted "
                f"({self.accepted / self.drafted:.0%})"
            )
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
