"""The cloud's state behind its loop, without a socket, a clock or a model.

`Service` puts the parts together and directs each packet to the part that answers it. The loop
(`cloud_runtime.server`) carries packets and runs the steps that `Service.stepping` picks.
"""

from __future__ import annotations

from collections.abc import Callable

from cloud_runtime.costs import Speeds
from cloud_runtime.devices import ConnectedDevice, Devices
from cloud_runtime.events import Events
from cloud_runtime.handshake import Handshake, Identity
from cloud_runtime.memory.ledger import Memory
from cloud_runtime.memory.limits import default_limit
from cloud_runtime.quotas import Quotas
from cloud_runtime.session_table import Outgoing, SessionTable
from cloud_runtime.status.tally import Tally
from cloud_runtime.stepping import Stepping
from edgespec.config import CloudSettings
from edgespec.errors import ProtocolError
from edgespec.grammars import Grammars
from edgespec.logs import Note
from edgespec.protocol import (
    REQUEST_HEADER_BYTES,
    AnyMessage,
    Close,
    Draft,
    Drain,
    Error,
    Hello,
    Message,
    Open,
    Packet,
    Ping,
    Pong,
    Resume,
    Serve,
    unpack,
)
from edgespec.session import alias
from edgespec.transport import Fate
from engines.base import Engine

__all__ = ["Identity", "Service"]


class Service:
    """One target's devices, sessions and steps."""

    def __init__(
        self,
        identity: Identity,
        engine: Engine,
        settings: CloudSettings,
        speeds: Speeds | None = None,
        quotas: Quotas | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        """`engine` lends slots and is asked for its sizes; it is never run here. `grammars`: None
        refuses sessions with a grammar."""
        self.speeds = speeds or Speeds(policy=settings.scheduler)
        self.tally = Tally()
        self.observer: Callable[[AnyMessage, float], None] | None = None
        """Called with each decoded message and its time."""
        self.devices = Devices(settings.limits)
        self.memory = Memory(engine, settings.kv_memory or default_limit(), settings.eviction)
        self._quotas = quotas or Quotas(limits=settings.limits)
        self._events = Events(self.tally, settings.limits)
        self._handshake = Handshake(identity, settings, self.speeds, self.devices, self._events)
        self.sessions = SessionTable(
            engine,
            self.memory,
            settings,
            self.devices,
            self._events,
            self.tally,
            self._quotas,
            grammars,
        )
        self.stepping = Stepping(
            engine, self.memory, settings, self.speeds, self.sessions, self.tally
        )

    def notes(self) -> list[Note]:
        """Log lines since the last call."""
        return self._events.take_notes()

    def receive(self, peer: bytes, packet: Packet, now: float, key: bytes = b"") -> Outgoing:
        """Handles one packet; never raises. What cannot be served is answered with an error.

        `key` is the CURVE key (Z85) of the connection; empty where it is not encrypted.

        Packets above a device's budget are dropped without being decoded.
        """
        device = self.devices.heard(peer, now)
        device.key = key
        if not self._quotas.of(device, now).take_packet(sum(map(len, packet)), now):
            self._events.trouble(device, "flood", now)
            return []
        try:
            message = unpack(packet, REQUEST_HEADER_BYTES)
        except ProtocolError as error:
            if error.code == "version":
                refusal = Error("version", str(error))
                self._events.refused(device, refusal, now)
                return [(peer, refusal)]
            self._events.trouble(device, "garbage", now, reason=str(error))
            return [(peer, Error("malformed", str(error)))]
        if self.observer is not None:
            self.observer(message, now)
        reply = self._handle(device, message, now)
        if reply is None:
            return []
        if device.away:  # if the reply does not reach it, `lost` is called again
            device.away = None
            self.sessions.back(peer)
        if isinstance(reply, Error):
            self._events.refused(device, reply, now)
        return [(peer, reply)]

    def _handle(self, device: ConnectedDevice, message: AnyMessage, now: float) -> Message | None:
        """The reply to a message; None: it has none."""
        if isinstance(message, Hello):
            return self._handshake.hello(device, message, self.memory.context)
        if isinstance(message, Ping):
            self.sessions.heard(device.peer, now)
            return Pong(message.nonce, self.stepping.mean_batch_rows)
        if not device.greeted:
            return Error("hello", "say hello first", getattr(message, "session", 0), True)
        if isinstance(message, Open):
            return self.sessions.open(device, message, now)
        if isinstance(message, Draft | Serve | Resume | Close):
            return self.sessions.receive(device, message, now)
        return Error("invalid", f"a device does not send {type(message).__name__}")

    def lost(self, peer: bytes, fate: Fate, now: float) -> None:
        """A message did not leave: the device's sessions rest until it asks for something."""
        device = self.devices.get(peer) or ConnectedDevice(peer, now)
        device.away = fate
        ids = [alias(session.id) for session in self.sessions.away(peer)]
        self._events.trouble(device, fate, now, quiet=not ids, sessions=ids)

    def drain(self) -> Outgoing:
        """Admits no new sessions from now on; tells all devices."""
        self.sessions.draining = True
        return [(device.peer, Drain()) for device in self.devices]
