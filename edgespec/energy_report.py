"""What a measurement came to: a value for JSON, sentences for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

WHOLE = 1e-3
"""Of its window, that a figure may lack and still be called complete."""


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy and heat of one window. Joules are of everything on the rails, whoever used it, what
    the machine takes when idle included."""

    joules: float | None = None
    """None: not measured."""
    seconds: float = 0.0
    """Of the window."""
    tokens: int = 0
    """Committed in it."""
    covers: str = ""
    leaves_out: str = ""
    unmeasured_seconds: float = 0.0
    """Without a credible reading of the rail that lacks most; the energy is then a lower bound."""
    samples: int = 0
    reading_seconds: float = 0.0
    """That the meter itself took."""
    rails: dict[str, float] = msgspec.field(default_factory=dict)
    """Joules that add up."""
    inside: dict[str, float] = msgspec.field(default_factory=dict)
    """Joules of rails that are part of others, where they were read all the time."""
    why: list[str] = msgspec.field(default_factory=list)
    """What could not be read, a sentence each."""
    celsius: float | None = None
    """Of the warmest sensor, at the last look."""
    highest_celsius: float | None = None
    hottest: str = ""
    throttled: bool | None = None
    """Slowed by heat or a lack of power; None: nothing tells."""
    throttling: dict[str, int] = msgspec.field(default_factory=dict)
    """Why, and how often; 0: that is not counted."""
    throttled_before: list[str] = msgspec.field(default_factory=list)
    """Marks that stood when the window began."""

    @property
    def complete(self) -> bool:
        return self.joules is not None and self.unmeasured_seconds <= WHOLE * self.seconds

    @property
    def watts(self) -> float | None:
        known = self.joules is not None and self.seconds > 0
        return self.joules / self.seconds if known and self.joules is not None else None

    @property
    def joules_per_token(self) -> float | None:
        return self.joules / self.tokens if self.joules is not None and self.tokens else None

    def figures(self) -> dict[str, Any]:
        """Ready for JSON; a struct again by `msgspec.convert`."""
        derived = {
            "measured": self.joules is not None,
            "complete": self.complete,
            "joules_per_token": self.joules_per_token,
            "watts": self.watts,
        }
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return derived | fields

    def lines(self) -> list[str]:
        """Two sentences: energy, and heat."""
        return [f"energy: {self._energy()}", f"heat: {self._heat()}"]

    def _energy(self) -> str:
        if self.joules is None:
            return f"not measured: {'; '.join(self.why) or 'nothing was read'}"
        least = "" if self.complete else "at least "
        each = self.joules_per_token
        said = [f"{least}{self.joules:.4g} J"]
        said += [f"{each:.3g} J a token"] if each is not None else []
        said += [f"{self.watts:.3g} W on average"] if self.watts is not None else []
        text = f"{', '.join(said)}; {self.covers}, {self.samples} samples, idle power included"
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
    """Several windows of one machine as one. A figure that any of them lacks is lacking."""
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
    total: dict[str, Amount] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total[name] + amount if name in total else amount
    return total


def different(words: Iterable[str]) -> list[str]:
    """Each once, in the order of their first coming, the empty ones left out."""
    return [word for word in dict.fromkeys(words) if word]


def _times(reason: tuple[str, int]) -> str:
    name, count = reason
    return f"{name} ({count} times)" if count else name
