"""What a simulated fleet did: of each device its answers, of the cloud its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.simulation.models import TargetStep
from edgespec.telemetry import AnswerStats


@dataclass
class Answered:
    """One answer, or as much of it as there was when the run ended. Times in virtual seconds."""

    start: float
    stats: AnswerStats
    """Complete once it is done."""
    times: list[float] = field(default_factory=list)
    """When each token was committed on the device."""
    done: bool = False

    def first_token(self, until: float) -> float:
        """Seconds from the request to the first token; so far, where there is none yet."""
        return (self.times[0] if self.times else until) - self.start


@dataclass
class DeviceStats:
    answers: list[Answered] = field(default_factory=list)

    def rate(self, since: float, until: float) -> float:
        """Tokens a second after each answer's first, in that part of the run; 0 without any."""
        tokens, spent = 0, 0.0
        for answer in self.answers:
            if answer.times:
                begin = max(answer.times[0], since)
                end = min(answer.times[-1], until) if answer.done else until
                tokens += sum(begin <= time <= end for time in answer.times[1:])
                spent += max(0.0, end - begin)
        return tokens / spent if spent > 0 else 0.0

    def first_tokens(self, since: float, until: float) -> list[float]:
        """Seconds to the first token of each answer that was asked for in that part of the run."""
        return [a.first_token(until) for a in self.answers if since <= a.start <= until]


@dataclass(frozen=True)
class FleetStats:
    devices: list[DeviceStats]
    steps: list[TargetStep]
    drafted: list[tuple[float, float]]
    """When each step of the draft beside the target began, and its seconds."""
    handled: list[tuple[float, float]]
    """When the cloud handled messages, and the seconds."""
    since: float
    until: float

    @property
    def rates(self) -> list[float]:
        """Tokens a second of each device."""
        return [device.rate(self.since, self.until) for device in self.devices]

    @property
    def first_tokens(self) -> list[float]:
        """Seconds, of all answers."""
        return [
            seconds
            for device in self.devices
            for seconds in device.first_tokens(self.since, self.until)
        ]

    @property
    def busy(self) -> float:
        """Share of the time that the cloud spent in steps of the target."""
        return self._share([(step.start, step.seconds) for step in self.steps])

    @property
    def drafting(self) -> float:
        """Share of the time that the cloud spent in its own draft."""
        return self._share(self.drafted)

    @property
    def handling(self) -> float:
        """Share of the time that the cloud spent on messages."""
        return self._share(self.handled)

    @property
    def rows(self) -> float:
        """Of a step of the target, on average."""
        inside = [len(s.widths) for s in self.steps if self.since <= s.start <= self.until]
        return sum(inside) / len(inside) if inside else 0.0

    def served(self, rate: float, first_token: float) -> float:
        """Share of the devices that had so many tokens a second, and waited no more than so many
        seconds for an answer's first, on average."""
        served = 0
        for device in self.devices:
            waits = device.first_tokens(self.since, self.until)
            prompt = sum(waits) <= first_token * len(waits)
            served += prompt and device.rate(self.since, self.until) >= rate
        return served / len(self.devices)

    def _share(self, spans: Sequence[tuple[float, float]]) -> float:
        inside = (
            max(0.0, min(start + seconds, self.until) - max(start, self.since))
            for start, seconds in spans
        )
        return sum(inside) / (self.until - self.since)
