"""Receivers of what a device's loop reports: sentences for the user, and the trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.handshake import Tell
from edgespec.trace import SpanReceiver, What

if TYPE_CHECKING:
    from edge_runtime.answer import Answer


@dataclass(frozen=True)
class Observer:
    """All receivers are optional."""

    explain: Tell | None = None
    """Receives every change of mode, and the reason."""
    report: Tell | None = None
    """Receives why an answer does not go on."""
    trace: SpanReceiver | None = None

    @property
    def tracing(self) -> bool:
        """True if the trace wants spans now."""
        return self.trace is not None and self.trace.wanted

    def waiting(self, endpoint: str) -> Callable[[], None] | None:
        """A function that reports that the cloud is silent; None if there is no `report`."""
        report = self.report
        return report and (lambda: report(f"waiting for the cloud at {endpoint} …"))

    def explained(self, sentence: str) -> None:
        if self.explain:
            self.explain(sentence)

    def reported(self, sentence: str) -> None:
        if self.report:
            self.report(sentence)

    def note(self, what: What, answer: Answer, start: float, end: float, **about: Any) -> None:
        """Adds an event of an answer to the trace, with its times in seconds."""
        if self.trace and self.trace.wanted:
            self.trace.add(what, start, end, session=answer.session_id, **about)


UNOBSERVED = Observer()
