"""Every message survives the wire; nothing else does."""

import random

import msgspec
import pytest

from edgespec.errors import ProtocolError
from edgespec.protocol import (
    MAX_DRAFT,
    AnyMessage,
    Close,
    Draft,
    Drain,
    Error,
    Hello,
    Hint,
    Open,
    Ping,
    Pong,
    Resume,
    Verdict,
    Welcome,
    pack,
    unpack,
)
from edgespec.sampling import Sampling

MESSAGES = [
    Hello(1, "target", "tokenizer", "robot-7 cpu-int8"),
    Welcome(1, "target", "tokenizer", 8192, 32, [10, 20]),
    Open(2**60, 2, 10, Sampling(0.7, 0.9, 40, 5), [2, 0], True, [1, 2, 3, 49151]),
    Draft(2**60, 3, 100, [1, 2, 3]),
    Draft(2**60, 3, 100, []),
    Hint(2**60, 3, 100, 20, [1, 2, 3, 4]),
    Verdict(2**60, 3, 100, 2, [1, 2, 9], "end"),
    Resume(2**60, 100),
    Close(2**60),
    Ping(5),
    Pong(5),
    Drain(),
    Error("busy", "later", 2**60, True),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_round_trip(message):
    assert unpack(pack(message)) == message


def test_every_message_of_the_union_is_tested():
    assert {type(m) for m in MESSAGES} == set(AnyMessage.__args__)


def test_a_draft_of_eight_tokens_is_well_under_100_bytes():
    assert sum(map(len, pack(Draft(2**62, 100, 4000, [49151] * 8)))) < 60


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_truncated_and_extended_packets_are_refused(message):
    header, *buffers = pack(message)
    for length in range(len(header)):
        with pytest.raises(ProtocolError):
            unpack([header[:length], *buffers])
    with pytest.raises(ProtocolError):
        unpack([header, *buffers, b"more"])
    with pytest.raises(ProtocolError):
        unpack([header + b"\0", *buffers])


@pytest.mark.parametrize(
    "packet",
    [
        [],
        [b""],
        [msgspec.msgpack.encode(["nothing", 1])],
        [msgspec.msgpack.encode({"type": "ping", "nonce": 1})],
        [msgspec.msgpack.encode(["ping", "one"])],
        [msgspec.msgpack.encode(["ping", -1])],
        [msgspec.msgpack.encode(["ping", 1, 2])],
        [msgspec.msgpack.encode(["draft", 1, 1, 1, [1] * (MAX_DRAFT + 2)])],
        [msgspec.msgpack.encode(["draft", 1, 1, 1, [1.5]])],
        [msgspec.msgpack.encode(["draft", 1, 1, 1, [-1]])],
        [msgspec.msgpack.encode(["error", "made-up", "x"])],
        [b"\x91" * 5000],
        [pack(MESSAGES[2])[0]],
        [pack(MESSAGES[2])[0], b""],
        [pack(MESSAGES[2])[0], b"123"],
        [pack(MESSAGES[2])[0], b"\xff\xff\xff\xff"],
        [msgspec.msgpack.encode(["open", 1, 1, 1, [0, 1, 0, 0], [], True, [7]]), b"\0\0\0\0"],
    ],
)
def test_wrong_packets_are_refused(packet):
    with pytest.raises(ProtocolError) as caught:
        unpack(packet)
    assert caught.value.code == "malformed"


def test_random_bytes_never_get_further_than_the_decoder():
    generator = random.Random(1)
    headers = [pack(message)[0] for message in MESSAGES]
    for _ in range(5000):
        packet = bytearray(generator.choice(headers))
        for _ in range(generator.randint(1, 4)):
            packet[generator.randrange(len(packet))] = generator.randrange(256)
        try:
            message = unpack([bytes(packet)])
        except ProtocolError:
            continue
        assert unpack(pack(message)) == message
