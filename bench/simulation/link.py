"""The link in virtual time. A message arrives half a round trip after it was sent and costs both
sides time to handle."""

from __future__ import annotations

from bench.simulation.virtual_time import Process, World
from edgespec.link_state import established
from edgespec.protocol import AnyMessage, Message, Packet, pack, unpack
from edgespec.transport import Hub


class SimulatedHub(Hub):
    """Cloud side of all links."""

    def __init__(self, world: World, message_ms: float, cloud_message_ms: float) -> None:
        """`message_ms`, `cloud_message_ms`: handling time of a message on device and cloud."""
        self.process: Process | None = None
        self.spent: list[tuple[float, float]] = []
        """(start, duration) of the cloud's message handling, in virtual seconds."""
        self._world = world
        self._message_ms, self._cloud_message_ms = message_ms, cloud_message_ms
        self._links: dict[bytes, SimulatedLink] = {}
        self._arrived: list[tuple[bytes, Packet]] = []

    def link(self, process: Process, rtt_ms: float) -> SimulatedLink:
        """Device side of a new link."""
        peer = b"device %d" % len(self._links)
        self._links[peer] = SimulatedLink(self, peer, process, rtt_ms, self._message_ms)
        return self._links[peer]

    def send(self, peer: bytes, message: Message) -> None:
        link, packet = self._links[peer], pack(message)
        link.bytes_down += sum(map(len, packet))
        self._world.at(self._world.now + link.one_way_s, lambda: link.arrive(packet))
        self._pay(1)

    def receive(self, timeout: float) -> list[tuple[bytes, Packet]]:
        if not self._arrived and timeout:
            assert self.process is not None
            self.process.wait(timeout)
        packets, self._arrived = self._arrived, []
        self._pay(len(packets))
        return packets

    def arrive(self, peer: bytes, packet: Packet) -> None:
        self._arrived.append((peer, packet))
        if self.process is not None:
            self.process.notify()

    def _pay(self, messages: int) -> None:
        if messages and self._cloud_message_ms:
            assert self.process is not None
            seconds = messages * self._cloud_message_ms / 1e3
            self.spent.append((self._world.now, seconds))
            self.process.sleep(seconds)


class SimulatedLink:
    """Device side of one link."""

    def __init__(
        self, hub: SimulatedHub, peer: bytes, process: Process, rtt_ms: float, message_ms: float
    ) -> None:
        self.one_way_s = rtt_ms / 2e3
        self.bytes_up = self.bytes_down = 0
        self.state = established()
        self._hub, self._peer, self._process = hub, peer, process
        self._message_ms = message_ms
        self._arrived: list[AnyMessage] = []

    def send(self, message: Message) -> None:
        packet = pack(message)
        self.bytes_up += sum(map(len, packet))
        world = self._process.world
        world.at(world.now + self.one_way_s, lambda: self._hub.arrive(self._peer, packet))
        self._pay(1)

    def receive(self, timeout: float) -> list[AnyMessage]:
        if not self._arrived and timeout:
            self._process.wait(timeout)
        messages, self._arrived = self._arrived, []
        self._pay(len(messages))
        return messages

    def arrive(self, packet: Packet) -> None:
        self._arrived.append(unpack(packet))
        self._process.notify()

    def _pay(self, messages: int) -> None:
        if messages and self._message_ms:
            self._process.sleep(messages * self._message_ms / 1e3)
