"""Result of an energy measurement: a value for JSON, and sentences for users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec

COMPLETE_SHARE = 1e-3
"""Largest share of its window that may be unmeasured in a figure that counts as complete."""
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""Number of things or bytes, in a range in which it can be a float."""


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy and heat of one window. The energy is that of all loads on the measured rails, idle
    power and other programs included."""

    joules: float | None = None
    """Energy; None: not measured."""
    seconds: float = 0.0
    """Length of the window."""
    tokens: Count = 0
    """Tokens committed in the window."""
    covers: str = ""
    leaves_out: str = ""
    unmeasured_seconds: float = 0.0
    """Time without a credible reading of the worst rail; the energy is then a lower bound."""
    samples: Count = 0
    reading_seconds: float = 0.0
    """Time that the meter itself used."""
    rails: dict[str, float] = msgspec.field(default_factory=dict)
    """Joules by rail; they add up to `joules`."""
    inside: dict[str, float] = msgspec.field(default_factory=dict)
    """Joules of rails that are part of others, if they were read during the complete window."""
    why: list[str] = msgspec.field(default_factory=list)
    """Sentences about sensors that could not be read."""
    celsius: float | None = None
    """Last temperature of the warmest sensor."""
    highest_celsius: float | None = None
    hottest: str = ""
    throttled: bool | None = None
    """True if heat or lack of power slowed the machine; None: no sensor tells."""
    throttling: dict[str, Count] = msgspec.field(default_factory=dict)
    """Reasons of throttling and how often; 0: not counted."""
    throttled_before: list[str] = msgspec.field(default_factory=list)
    """Throttling marks that were set before the window began."""

    @property
    def complete(self) -> bool:
        return self.joules is not None and self.unmeasured_seconds <= COMPLETE_SHARE * self.seconds

    @property
    def watts(self) -> float | None:
        known = self.joules is not None and self.seconds > 0
        return self.joules / self.seconds if known and self.joules is not None else None

    @property
    def joules_per_token(self) -> float | None:
        return self.joules / self.tokens if self.joules is not None and self.tokens else None

    def figures(self) -> dict[str, Any]:
        """Fields and derived figures for JSON. `msgspec.convert` makes a struct of them again."""
        derived = {
            "measured": self.joules is not None,
            "complete": self.complete,
            "joules_per_token": self.joules_per_token,
            "watts": self.watts,
        }
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return derived | fields

    def lines(self) -> list[str]:
        """Two sentences, about energy and about heat."""
        return [f"energy: {self._energy()}", f"heat: {self._heat()}"]

    def _energy(self) -> str:
        if self.joules is None:
            return f"not measured: {'; '.join(self.why) or 'nothing was read'}"
        least = "" if self.complete else "at least "
        each = self.joules_per_token
        facts = [f"{least}{self.joules:.4g} J"]
        facts += [f"{each:.3g} J a token"] if each is not None else []
        facts += [f"{self.watts:.3g} W on average"] if self.watts is not None else []
        text = f"{', '.join(facts)}; {self.covers}, {self.samples} samples, idle power included"
        if not self.complete:
            text += f"; {self.unmeasured_seconds:.1f} of {self.seconds:.1f} s were not measured"
        text += f"; without {self.leaves_out}" if self.leaves_out else ""
        return text + "".join(f"; {sentence}" for sentence in self.why)

    def _heat(self) -> str:
        degrees, slowed = self.highest_celsius, self.throttled
        text = "not measured" if degrees is None else f"at most {degrees:.1f} °C ({self.hottest})"
        text += {
            None: "; nothing here tells whether it was throttled",
            False: "; not throttled",
            True: f"; throttled: {', '.join(map(_times, self.throttling.items()))}",
        }[slowed]
        if self.throttled_before:
            text += f"; before: {', '.join(self.throttled_before)}"
        return text


def combined(windows: Sequence[Energy]) -> Energy:
    """Several windows of one machine as one. A figure that one window lacks is None."""
    known = [each.joules for each in windows if each.joules is not None]
    degrees = [(each.highest_celsius, each.hottest) for each in windows if each.hottest]
    slowed = [each.throttled for each in windows]
    hottest = max(((d, name) for d, name in degrees if d is not None), default=(None, ""))
    return Energy(
        joules=sum(known) if known and len(known) == len(windows) else None,
        seconds=sum(each.seconds for each in windows),
        tokens=sum(each.tokens for each in windows),
        covers=" / ".join(different(each.covers for each in windows)),
        leaves_out=" / ".join(different(each.leaves_out for each in windows)),
        unmeasured_seconds=sum(each.unmeasured_seconds for each in windows),
        samples=sum(each.samples for each in windows),
        reading_seconds=sum(each.reading_seconds for each in windows),
        rails=added(each.rails for each in windows),
        inside=added(each.inside for each in windows),
        why=different(sentence for each in windows for sentence in each.why),
        celsius=windows[-1].celsius if windows else None,
        highest_celsius=hottest[0],
        hottest=hottest[1],
        throttled=True if True in slowed else None if None in slowed or not slowed else False,
        throttling=added(each.throttling for each in windows),
        throttled_before=list(windows[0].throttled_before) if windows else [],
    )


Amount = TypeVar("Amount", int, float)


def added(parts: Iterable[Mapping[str, Amount]]) -> dict[str, Amount]:
    """Sums by name."""
    total: dict[str, Amount] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total[name] + amount if name in total else amount
    return total


def different(words: Iterable[str]) -> list[str]:
    """Distinct non-empty words, in the order of their first appearance."""
    return [word for word in dict.fromkeys(words) if word]


def _times(reason: tuple[str, int]) -> str:
    name, count = reason
    return f"{name} ({count} times)" if count else name
