"""The first exchange as the device sees it, with clouds of other versions."""

import itertools

import msgspec
import pytest

from edge_runtime.handshake import greet
from edgespec.config import EdgeSettings
from edgespec.errors import LinkError
from edgespec.link_state import LinkState
from edgespec.protocol import VERSION, Hello, unpack

WELCOME_OF_PROTOCOL_3 = bytes.fromhex(
    "9ba777656c636f6d6503a174a16bcd200020920a14cb4036800000000000cb3ff8000000000000"
    "cb4010000000000000cb3fe6666666666666"
)
ERROR_OF_PROTOCOL_3 = (
    b"\x96\xa5error\xa7version\xd9Hit speaks protocol 3 and the device 4; install the same "
    b"edgespec on both\x00\xc2\xcb\x00\x00\x00\x00\x00\x00\x00\x00"
)
"""Packets that edgespec wrote when its protocol was number 3."""


class Recorded:
    """A link whose cloud replies with one packet."""

    bytes_up = bytes_down = 0
    state = LinkState()

    def __init__(self, packet):
        self._packet = packet

    def send(self, message):
        pass

    def receive(self, timeout):
        return [unpack([self._packet])]


WELCOME_OF_THE_NEXT = msgspec.msgpack.encode(["welcome", VERSION + 1, *"abcdefghijklmno"])


@pytest.mark.parametrize(
    ("packet", "cloud", "older"),
    [
        (WELCOME_OF_PROTOCOL_3, 3, "cloud"),
        (ERROR_OF_PROTOCOL_3, 3, "cloud"),
        (WELCOME_OF_THE_NEXT, VERSION + 1, "device"),
    ],
)
def test_a_cloud_of_another_version_is_named_with_the_side_to_update(packet, cloud, older):
    hello, ticks = Hello(VERSION, "t", "k", "a device"), itertools.count()
    with pytest.raises(LinkError) as caught:
        greet(Recorded(packet), hello, EdgeSettings(), clock=lambda: next(ticks) * 1e-3)
    assert caught.value.code == "version"
    sentence = (
        f"the device speaks protocol {VERSION} and this cloud {cloud}: update edgespec on the"
    )
    assert str(caught.value).endswith(f"{sentence} {older}")
