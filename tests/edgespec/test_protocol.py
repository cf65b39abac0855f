"""Every message survives the wire; nothing else does."""

import itertools
import random

import msgspec
import pytest

from edgespec.errors import ProtocolError
from edgespec.grammar import MAX_GRAMMAR_BYTES, Grammar
from edgespec.protocol import (
    LONGEST_NAME,
    MAX_DRAFT,
    MAX_END_IDS,
    MAX_LAYERS,
    REQUEST_HEADER_BYTES,
    VERSION,
    Admitted,
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
    Serve,
    Terms,
    Verdict,
    Welcome,
    pack,
    unpack,
)
from edgespec.sampling import Sampling
from edgespec.sampling_parameters import MAX_BIASES

SECRET = bytes(16)

MESSAGES = [
    Hello(2, "target", "tokenizer", "robot-7 cpu-int8"),
    Welcome(
        2,
        "target",
        "tokenizer",
        8192,
        32,
        [10, 20],
        22.5,
        1.5,
        4.0,
        0.7,
        "onnxruntime 1.31.1, x86_64 avx2, fp32",
    ),
    Open(
        2**60,
        SECRET,
        2,
        10,
        Sampling(0.7, 0.9, 40, 5, 0.1, 1.5, -0.5, 1.2, ((7, -100.0), (2**31 - 1, 0.5))),
        [2, 0],
        Terms(cloud_draft=True),
        [1, 2, 3, 49151],
        20,
    ),
    Open(
        5,
        SECRET,
        1,
        10,
        Sampling(),
        [2],
        Terms(),
        [1],
        grammar=Grammar("json_schema", '{"const": "ü"}'),
    ),
    Draft(2**60, 3, 0, 100, [1, 2, 3], b"\xff\x80\0"),
    Draft(2**60, 4, 3, 102, [1, 2, 3]),
    Draft(2**60, 3, 0, 100, []),
    Serve(2**60, SECRET, Terms(drafting=False, hints=True)),
    Serve(2**60, SECRET, Terms(decoding=False)),
    Serve(2**60, SECRET, Terms(target_rate=12.5)),
    Hint(2**60, 3, 100, 20, [1, 2, 3, 4]),
    Verdict(2**60, 3, 100, 4, 2, 1, [1, 2, 9], "end"),
    Verdict(2**60, 3, 100, 0, 0, 0, [9], "", b"\x09\0\0\0\0\0\x80\xbf"),
    Resume(2**60, SECRET, 100),
    Close(2**60, SECRET),
    Ping(5),
    Pong(5, 2.5),
    Admitted(7, 40.0),
    Drain(),
    Error("busy", "later", 2**60, True),
]


def listed(message):
    """The message with its tokens as a list; those of an unpacked Open are a view of the packet."""
    if isinstance(message, Open):
        return msgspec.structs.replace(message, tokens=list(message.tokens))
    return message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_round_trip(message):
    assert listed(unpack(pack(message))) == message


def test_a_long_header_is_not_decoded():
    packet = pack(Verdict(1, 0, 0, 0, 0, 0, [1] * 10_000))
    with pytest.raises(ProtocolError, match="a header of 100"):
        unpack(packet, REQUEST_HEADER_BYTES)
    longest = Hello(2, *["\U0001f600" * LONGEST_NAME] * 5)
    assert len(pack(longest)[0]) < REQUEST_HEADER_BYTES
    biases = tuple((2**31 - 1 - token, 0.1) for token in range(MAX_BIASES))
    opening = Open(
        2**62,
        SECRET,
        2**31,
        2**31,
        Sampling(0.7, seed=2**62, logit_bias=biases),
        [2**31 - 1] * MAX_END_IDS,
        Terms(),
        [1],
    )
    assert len(pack(opening)[0]) < REQUEST_HEADER_BYTES


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda packet: packet[:2], "one buffer for each grammar"),
        (lambda packet: [*packet, b"x"], "one buffer for each grammar"),
        (lambda packet: [*packet[:2], b""], "1 to 49152 bytes"),
        (lambda packet: [*packet[:2], b"x" * (MAX_GRAMMAR_BYTES + 1)], "1 to 49152 bytes"),
        (lambda packet: [*packet[:2], b"\xff"], "UTF-8"),
        (lambda packet: [packet[0].replace(b"\xa0", b"\xa1x"), *packet[1:]], "1 to 49152 bytes"),
        (lambda packet: [packet[0].replace(b"regex", b"ragex"), *packet[1:]], "not a message"),
    ],
)
def test_the_text_of_a_grammar_is_bounded_before_it_is_used(change, reason):
    opening = Open(5, SECRET, 1, 10, Sampling(), [2], Terms(), [1], grammar=Grammar("regex", "a+"))
    packet = pack(opening)
    assert listed(unpack(packet)) == opening
    with pytest.raises(ProtocolError, match=reason):
        unpack(change(packet))


def test_every_message_of_the_union_is_tested():
    assert {type(m) for m in MESSAGES} == set(AnyMessage.__args__)


def test_a_draft_of_eight_tokens_with_probabilities_is_well_under_100_bytes():
    draft = Draft(2**62, 1000, 999, 4000, [49151] * 8, bytes(range(200, 208)))
    assert sum(map(len, pack(draft))) < 75


def test_whatever_the_terms_they_arrive_as_they_were():
    flags = (False, True)
    rates = (0.0, 7.5)
    every = [Terms(*terms) for terms in itertools.product(flags, flags, flags, flags, rates)]
    assert [unpack(pack(Serve(1, SECRET, terms))).terms for terms in every] == every


def header(*fields):
    return [msgspec.msgpack.encode(fields)]


WELCOME = ("welcome", VERSION, "t", "k", 100, 32, [1])


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
        header("draft", 1, 1, 0, 1, [1] * (MAX_DRAFT + 2), b""),
        header("draft", 1, 1, 0, 1, [1], b"x" * (MAX_DRAFT + 2)),
        header("draft", 1, 1, 0, 1, [1.5], b""),
        header("draft", 1, 1, 0, 1, [-1], b""),
        header("draft", 1, 1, 0, 1, [1 << 31], b""),
        header("draft", 1, 1, -1, 1, [1], b""),
        header("draft", 1, 1, 0, 1, [1], "x"),
        header("draft", 1, 1, 0, 1),
        header("hint", 1, 1, 4, MAX_LAYERS, [1]),
        *(
            header(*WELCOME[:-1], exits, 1.0, 1.0, 1.0, 1.0)
            for exits in ([-1], [MAX_LAYERS], [1] * (MAX_LAYERS + 1))
        ),
        header("verdict", 1, 1, 4, -1, 0, 0, [1], ""),
        header("verdict", 1, 1, 4, 0, 0, 0, [1], "bored"),
        header("serve", 1, [1, 0, 1, 0]),
        header("serve", 1, [True, False, True, False, True]),
        header("serve", 1, True),
        *(header("serve", 1, [True, False, True, False, rate]) for rate in (-1.0, 1e6, "1")),
        header("serve", 1, [True, False, True, False, float("nan")]),
        *(header("pong", 1, company) for company in (-1.0, float("inf"), True)),
        *(
            header(*WELCOME, *times)
            for times in (
                (1.0, 1.0, 1.0),
                (-1.0, 1.0, 1.0, 1.0),
                (1.0, -1e-9, 1.0, 1.0),
                (1.0, 1.0, float("nan"), 1.0),
                (1.0, 1.0, 1.0, -1.0),
                (1.0, 1.0, 1.0, float("nan")),
                (1.0, 1.0, 1.0, float("inf")),
                (1.0, 1.0, 1.0, 1e9),
                (1.0, 1.0, 1.0, "1"),
            )
        ),
        [msgspec.msgpack.encode(["error", "made-up", "x"])],
        [b"\x91" * 5000],
        [pack(MESSAGES[2])[0]],
        [pack(MESSAGES[2])[0], b""],
        [pack(MESSAGES[2])[0], b"123"],
        [pack(MESSAGES[2])[0], b"\xff\xff\xff\xff"],
        [msgspec.msgpack.encode(["open", 1, 1, 1, [0, 1, 0, 0], [], [], [7]]), b"\0\0\0\0"],
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
        assert listed(unpack(pack(message))) == message


ODD = "\x1b]0;evil\x07[/oops]\nWARNING forged\u202e\x9b2J"


def test_names_and_error_messages_are_sent_as_plain_text():
    hello = unpack(pack(Hello(4, "t", "k", ODD, f"\r{ODD}", "robot\udcff" + "x" * 300)))
    assert hello.device == hello.drafter == "]0;evil [/oops] WARNING forged 2J"
    assert hello.hardware == "robot " + "x" * 194
    assert unpack(pack(Error("busy", ODD + "x" * 2000))).message.startswith("]0;evil [/oops] ")


@pytest.mark.parametrize("odd", ["a\x1b]0;evil\x07", "a\n", "\nb", "a\x7f", "a\x9b", "a\u2028b"])
@pytest.mark.parametrize("kind", [("hello", 4, "t", "k"), ("error", "busy")])
def test_control_characters_of_another_implementation_are_refused(kind, odd):
    with pytest.raises(ProtocolError) as caught:
        unpack([msgspec.msgpack.encode([*kind, odd])])
    assert str(caught.value).isprintable()


def test_the_reason_of_a_refusal_quotes_no_control_characters():
    with pytest.raises(ProtocolError) as caught:
        unpack([msgspec.msgpack.encode([ODD])])
    assert str(caught.value).isprintable()


HELLO_OF_PROTOCOL_3 = (
    b"\x97\xa5hello\x03\xa1t\xa1k\xa7robot-7\xa8cpu-int8\xaeRaspberry Pi 5"  # decodes today
)
WELCOME_OF_PROTOCOL_3 = bytes.fromhex(
    "9ba777656c636f6d6503a174a16bcd200020920a14cb4036800000000000cb3ff8000000000000"
    "cb4010000000000000cb3fe6666666666666"
)
"""Packets that edgespec wrote when its protocol was number 3."""


def test_the_hello_of_protocol_3_reaches_the_comparison_of_versions():
    assert unpack([HELLO_OF_PROTOCOL_3]) == Hello(
        3, "t", "k", "robot-7", "cpu-int8", "Raspberry Pi 5"
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (("hello", 3, "t"), f"the device speaks protocol 3 and this cloud {VERSION}: .* device"),
        (("hello", 3, {"name": 1}, 2), f"protocol 3 and this cloud {VERSION}: .* on the device"),
        (("hello", 90, *"abcdefg"), f"protocol 90 and this cloud {VERSION}: .* on the cloud"),
        (("welcome", 3), f"the device speaks protocol {VERSION} and this cloud 3: .* the cloud"),
        (("hello", 200, "t"), f"the device speaks protocol 200 and this cloud {VERSION}"),
        (("welcome", 40000, "t"), f"the device speaks protocol {VERSION} and this cloud 40000"),
        (("welcome", 90, *"abcdefghijkl"), f"protocol {VERSION} and this cloud 90: .* the device"),
    ],
)
def test_a_greeting_of_another_version_says_which_side_to_update(fields, sentence):
    with pytest.raises(ProtocolError, match=sentence) as caught:
        unpack(header(*fields))
    assert caught.value.code == "version"
