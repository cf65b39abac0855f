"""Statistics of a simulated fleet: answers by device, steps of the cloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.simulation.engine import TargetStep
from edgespec.telemetry import AnswerStats


@dataclass
class SimulatedAnswer:
    """One answer, incomplete if the run ended first. Times in virtual seconds."""

    start: float
    stats: AnswerStats
    """Statistics of the answer, complete once `done`."""
    times: list[float] = field(default_factory=list)
    """Times at which the device committed each token."""
    done: bool = False

    def first_token(self, until: float) -> float:
        """Seconds from the request to the first token, or to `until` if none came."""
        return (self.times[0] if self.times else until) - self.start


@dataclass
class DeviceStats:
    answers: list[SimulatedAnswer] = field(default_factory=list)

    def rate(self, since: float, until: float) -> float:
        """Tokens/s between `since` and `until`, without each answer's first token; 0 for none."""
        tokens, spent = 0, 0.0
        for answer in self.answers:
            if answer.times:
                begin = max(answer.times[0], since)
                end = min(answer.times[-1], until) if answer.done else until
                tokens += sum(begin <= time <= end for time in answer.times[1:])
                spent += max(0.0, end - begin)
        return tokens / spent if spent > 0 else 0.0

    def first_tokens(self, since: float, until: float) -> list[float]:
        """Seconds to the first token of each answer requested between `since` and `until`."""
        return [a.first_token(until) for a in self.answers if since <= a.start <= until]


@dataclass(frozen=True)
class FleetStats:
    devices: list[DeviceStats]
    steps: list[TargetStep]
    drafted: list[tuple[float, float]]
    """(start, duration) of each cloud draft step, in virtual seconds."""
    handled: list[tuple[float, float]]
    """(start, duration) of the cloud's message handling, in virtual seconds."""
    since: float
    """Start of the measured part of the run, in virtual seconds."""
    until: float
    """End of the measured part of the run, in virtual seconds."""

    @property
    def rates(self) -> list[float]:
        """Tokens/s of each device."""
        return [device.rate(self.since, self.until) for device in self.devices]

    @property
    def first_tokens(self) -> list[float]:
        """Seconds to the first token, of all answers."""
        return [
            seconds
            for device in self.devices
            for seconds in device.first_tokens(self.since, self.until)
        ]

    @property
    def busy(self) -> float:
        """Share of the time that the cloud spent in target steps."""
        return self._share([(step.start, step.seconds) for step in self.steps])

    @property
    def drafting(self) -> float:
        """Share of the time that the cloud spent in cloud draft steps."""
        return self._share(self.drafted)

    @property
    def handling(self) -> float:
        """Share of the time that the cloud spent on messages."""
        return self._share(self.handled)

    @property
    def mean_batch_rows(self) -> float:
        """Mean rows of a target step."""
        inside = [len(s.widths) for s in self.steps if self.since <= s.start <= self.until]
        return sum(inside) / len(inside) if inside else 0.0

    def served(self, target_rate: float, first_token_s: float) -> float:
        """Share of the devices that reached `target_rate` tokens/s and whose mean time to the
        first token was at most `first_token_s`."""
        served = 0
        for device in self.devices:
            waits = device.first_tokens(self.since, self.until)
            in_time = sum(waits) <= first_token_s * len(waits)
            served += in_time and device.rate(self.since, self.until) >= target_rate
        return served / len(self.devices)

    def _share(self, spans: Sequence[tuple[float, float]]) -> float:
        inside = (
            max(0.0, min(start + seconds, self.until) - max(start, self.since))
            for start, seconds in spans
        )
        return sum(inside) / (self.until - self.since)
