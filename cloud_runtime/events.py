"""Counters and log lines about devices and sessions."""

from __future__ import annotations

import logging

from cloud_runtime.devices import ConnectedDevice, Trouble
from cloud_runtime.sessions import CloudSession
from cloud_runtime.status.tally import Tally
from edgespec.logs import Note
from edgespec.policies import LinkLimits
from edgespec.protocol import Error, Hello
from edgespec.session import alias

EXPECTED_ERRORS = ("hello", "session")
"""Refusals that are no news: the device has to send its Hello or open its session again."""


class Events:
    """Counts each event in the tally and collects the log lines that are worth writing."""

    def __init__(self, tally: Tally, limits: LinkLimits = LinkLimits()) -> None:
        self._tally = tally
        self._notes: list[Note] = []
        self._sentences: dict[Trouble, str] = {
            "gone": "has gone away",
            "unread": "does not read what it is sent",
            "flood": f"sends more than {limits.packets_per_s:g} packets or "
            f"{limits.bytes_per_s:.0f} bytes a second; the rest is dropped",
            "garbage": "sends packets that are no message",
        }

    def take_notes(self) -> list[Note]:
        """Log lines since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def greeted(self, device: ConnectedDevice, hello: Hello) -> None:
        """A device has sent its first valid Hello."""
        facts = {"drafter": hello.drafter, "hardware": hello.hardware}
        about = "; ".join(f"{name}: {fact}" for name, fact in facts.items() if fact)
        sentence = f"device {device} is here" + (f" ({about})" if about else "")
        self._note(logging.INFO, sentence, device, "device", **facts)

    def trouble(
        self,
        device: ConnectedDevice,
        kind: Trouble,
        now: float,
        *,
        quiet: bool = False,
        **facts: object,
    ) -> None:
        """A packet of a device was dropped, or a message did not reach it. `quiet`: no log line."""
        self._tally.dropped[kind] += 1
        if device.trouble(kind, now, quiet=quiet):
            about = "".join(f"; {name}: {fact}" for name, fact in facts.items() if fact)
            sentence = f"{device} {self._sentences[kind]}{about}"
            self._note(logging.WARNING, sentence, device, kind, **facts)

    def refused(self, device: ConnectedDevice, error: Error, now: float) -> None:
        """A device was refused. Refusals that resolve themselves are only counted."""
        self._tally.refused[error.code] += 1
        if error.code not in EXPECTED_ERRORS and device.trouble("refused", now):
            level = logging.INFO if error.retryable else logging.WARNING
            sentence = f"device {device} is refused ({error.code}): {error.message}"
            self._note(level, sentence, device, "refused", code=error.code)

    def ended(
        self, session: CloudSession, device: ConnectedDevice | None, reason: str, now: float
    ) -> None:
        """A session has ended."""
        record, seconds = session.record, now - session.opened_at
        self._tally.end(record, reason, now)
        facts = {
            "session": alias(session.id),
            "reason": reason,
            "tokens": record.tokens,
            "seconds": round(seconds, 3),
            "verified": record.verified,
            "accepted": record.accepted,
        }
        sentence = (
            f"session {alias(session.id)} of {device or 'a device that left'} ended ({reason}): "
            f"{record.tokens} tokens in {seconds:.1f} s, "
            f"{record.accepted} of them drafted there"
        )
        self._note(logging.INFO, sentence, device, "ended", **facts)

    def _note(
        self, level: int, sentence: str, device: ConnectedDevice | None, event: str, **facts: object
    ) -> None:
        about = {"device": device.name, "peer": device.peer.hex()} if device is not None else {}
        self._notes.append(Note(level, sentence, {"event": event, **about, **facts}))
