"""The wire: every message that device and cloud exchange, and nothing else.

A packet is one ZeroMQ multipart message: a msgpack header, which is an array whose first element
names the message, and for `Open` one raw buffer of little-endian uint32 token ids, and one with the
text of a grammar if there is one. Otherwise packets carry token ids, never text. Draft, Hint and
Verdict name session, round and base position (the position of their first token), so that stale
and repeated packets are recognised.

    device                     cloud
    Hello            ->                     versions and fingerprints are compared
                     <-        Welcome
    Open + prompt    ->                     prefill
                     <-        Admitted     the session has a slot now, or after `wait_ms`
    Draft*           ->                     whenever tokens are drafted, without waiting for replies
                     <-        Hint*        an exit head's tokens, while the target still runs
                     <-        Verdict*     after every step of the target
    Serve            ->                     new terms of the session
    Resume           ->                     after silence: asks for the committed tokens
                     <-        Verdict      all committed tokens from the given base on
    Close            ->
    Ping             ->        Pong
                     <-        Drain        the cloud accepts no new sessions
                     <-        Error        typed; `retryable` tells whether to try again, and
                                            `retry_ms` when

A **round** is one run of drafted ids. Its first packet names the parent round and the position at
which the new round branches off. Later packets name the round itself and make it longer. The device
so streams a tree of ids. A branch holds the continuation for the case that the target rejects the
parent's token there and chooses the branch's first token instead. The cloud keeps the branches, and
continues with one as soon as a verdict of its own chooses that branch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np

from edgespec.errors import ProtocolError
from edgespec.grammar import MAX_GRAMMAR_BYTES, Grammar
from edgespec.logprobs import MAX_TOP_LOGPROBS
from edgespec.plain_text import PLAIN, plain
from edgespec.sampling import Sampling
from edgespec.session import Finish

VERSION = 5
_GREETING = re.compile(
    rb"(?:[\x90-\x9f]|\xdc..)(\xa5hello|\xa7welcome)(?:([\x00-\x7f])|\xcc(.)|\xcd(..))", re.DOTALL
)
"""Start of a Hello or Welcome of any version: an array, the tag, the version (7, 8 or 16 bits)."""
MAX_PACKET = 1 << 20
"""Bytes of a packet; the socket drops larger ones. A prompt of 262 000 tokens fits."""
HEADER_BYTES = 1 << 16
"""Bytes that `largest_packet` allows for a header."""
REQUEST_HEADER_BYTES = 1 << 13
"""Bytes that a header of a device may have; the cloud does not decode larger ones."""
MAX_FRAMES = 64
"""Frames above which a packet ends its connection. Valid packets have one or two."""
MAX_DRAFT = 64
"""Tokens of one draft packet, and of one round."""
MAX_END_IDS = 64
MAX_LAYERS = 256
"""Layers of a target that may have an exit head."""
MAX_VERDICT_TOKENS = 1 << 17
MAX_LOGPROB_BYTES = 1 << 18
"""Bytes of the log-probabilities in a verdict. A reply to a Resume that would have more leaves its
last tokens out; the device asks again."""
LONGEST_NAME = 200
"""Characters of a name."""
LONGEST_ERROR = 1000
"""Characters of an error's message."""

SECRET_BYTES = 16
Secret = Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
"""Random bytes that only the device of a session knows; see `docs/security.md`."""
Identifier = Annotated[int, msgspec.Meta(ge=0, lt=(1 << 63) - 1)]
Position = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Token = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Layer = Annotated[int, msgspec.Meta(ge=0, lt=MAX_LAYERS)]
Tokens = Annotated[list[Token], msgspec.Meta(max_length=MAX_DRAFT + 1)]
Name = Annotated[str, msgspec.Meta(max_length=LONGEST_NAME, pattern=PLAIN)]
"""Plain text: `unpack` refuses control characters."""
TopLogprobs = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, lt=1e9)]
Rate = Annotated[float, msgspec.Meta(ge=0, lt=1e6)]
"""Tokens a second, or another non-negative number."""

ErrorCode = Literal[
    "malformed",  # bytes that are not a message
    "version",  # another protocol version
    "bundle",  # another target
    "tokenizer",  # another tokenizer
    "hello",  # a session before any hello
    "invalid",  # a message whose content cannot be served
    "busy",  # no room now; `retry_ms` says when to try again
    "drained",  # the cloud stops; the session may continue in another cloud
    "session",  # a session that the cloud does not have, or has no longer
    "internal",  # the cloud failed; its log has the details
]


class Message(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag_field="type"
):
    """Base of all messages; only its subclasses cross the wire."""


class Hello(Message, frozen=True, tag="hello"):
    version: int
    target: Name
    """Fingerprint of the target's weights in the device's bundle."""
    tokenizer: Name
    device: Name
    """Name of the device, for logs and `edgespec top`."""
    drafter: Name = ""
    """Name of its draft, for the same."""
    hardware: Name = ""
    """Name of its hardware, for the same."""

    def __post_init__(self) -> None:
        """Makes the names plain text, so that a device with an odd host name can connect."""
        for field in ("device", "drafter", "hardware"):
            name = plain(getattr(self, field), LONGEST_NAME)
            msgspec.structs.force_setattr(self, field, name)


class Welcome(Message, frozen=True, tag="welcome"):
    version: int
    target: Name
    tokenizer: Name
    context: Position
    """Most tokens of a session, prompt included."""
    max_draft: Position
    """Most draft tokens that the cloud verifies in one round."""
    exits: Annotated[list[Layer], msgspec.Meta(max_length=MAX_LAYERS)]
    """Layers that are followed by an exit head."""
    step_ms: Milliseconds
    """Time of a target step for one session and one token, measured when the cloud started."""
    token_ms: Milliseconds
    """Time that each further token adds to a step."""
    draft_ms: Milliseconds
    """Time of a step of the cloud draft; 0 if the cloud has no draft."""
    hint_ms: Milliseconds
    """Time that exit heads add to a target step."""
    arithmetic: Name = ""
    """Fingerprint of the target's arithmetic, such as "onnxruntime 1.31.1, x86_64 avx2, fp32".
    Clouds with the same one compute the same bits. Empty: unknown."""


class Terms(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How the cloud serves a session. The terms never change the answer."""

    drafting: bool = True
    """The device drafts."""
    cloud_draft: bool = False
    """The cloud may draft for this session, if it has a draft."""
    decoding: bool = True
    """The target decodes without a draft until one arrives. False: lockstep."""
    hints: bool = False
    """The cloud runs exit heads for this session."""
    target_rate: Rate = 0.0
    """Tokens a second that the device asks for; 0: as fast as possible."""

    @property
    def lockstep(self) -> bool:
        """True if the target waits for each draft instead of decoding without one."""
        return not self.decoding


class Open(Message, frozen=True, tag="open"):
    """Starts a session, or continues one in another cloud. The buffer holds the tokens."""

    session: Identifier
    secret: Secret
    """Proof of ownership: messages that resume, change, close or reopen the session repeat it."""
    prompt_length: Position
    max_tokens: Position
    sampling: Sampling
    end_ids: Annotated[list[Token], msgspec.Meta(max_length=MAX_END_IDS)]
    terms: Terms
    tokens: Annotated[Sequence[Token], msgspec.Meta(max_length=0)] = []
    """Empty in the header; `pack` and `unpack` use the buffer for it. `unpack` gives a view of the
    buffer, so that a refused session costs no list."""
    logprobs: TopLogprobs | None = None
    """Number of likeliest tokens whose log-probabilities verdicts add to each token's own; None:
    verdicts have none."""
    grammar: Grammar | None = None
    """Grammar that the answer follows. Its text is empty in the header; `pack` and `unpack` use the
    second buffer for it."""


class Admitted(Message, frozen=True, tag="admitted"):
    session: Identifier
    wait_ms: Milliseconds = 0.0
    """Estimated time until the session starts; 0: at once."""


class Draft(Message, frozen=True, tag="draft"):
    """Drafted ids from position `base` on. Without ids it asks for the target's own token."""

    session: Identifier
    round: Position
    """Number of the round, from 1."""
    parent: Position
    """Round of the id before `base`: the parent in a round's first packet, the round itself in
    later ones; 0: the committed tokens."""
    base: Position
    tokens: Tokens
    confidences: Annotated[bytes, msgspec.Meta(max_length=MAX_DRAFT + 1)] = b""
    """Probability, in units of 1/255, that each id is the target's if all ids before it are."""


class Hint(Message, frozen=True, tag="hint"):
    """Tokens that an exit head chooses at `base`, `base + 1`, …, for accepted and rejected drafts.

    `base` is the number of committed tokens, and `round` is the round that is being verified.
    """

    session: Identifier
    round: Position
    base: Position
    layer: Layer
    tokens: Tokens


class Verdict(Message, frozen=True, tag="verdict"):
    """Committed tokens from `base` on: `confirmed` drafted tokens, then the target's own token."""

    session: Identifier
    round: Position
    """Round of the device's draft; 0: none of the device's ids were verified."""
    base: Position
    verified: Position
    """Number of drafted ids that the step verified."""
    confirmed: Position
    """Number of verified ids that are the target's own."""
    accepted: Position
    """Number of confirmed ids that the device drafted; the cloud drafted the others."""
    tokens: Annotated[list[Token], msgspec.Meta(max_length=MAX_VERDICT_TOKENS)]
    finish: Finish = ""
    logprobs: Annotated[bytes, msgspec.Meta(max_length=MAX_LOGPROB_BYTES)] = b""
    """Records of the tokens' log-probabilities (`edgespec.logprobs`), if the Open asked for them.
    """


class Serve(Message, frozen=True, tag="serve"):
    session: Identifier
    secret: Secret
    terms: Terms


class Resume(Message, frozen=True, tag="resume"):
    session: Identifier
    secret: Secret
    base: Position


class Close(Message, frozen=True, tag="close"):
    session: Identifier
    secret: Secret


class Ping(Message, frozen=True, tag="ping"):
    nonce: Identifier


class Pong(Message, frozen=True, tag="pong"):
    nonce: Identifier
    mean_batch_rows: Rate = 0.0
    """Sessions in a recent step of the target, on average."""


class Drain(Message, frozen=True, tag="drain"):
    pass


class Error(Message, frozen=True, tag="error"):
    code: ErrorCode
    message: Annotated[str, msgspec.Meta(max_length=LONGEST_ERROR, pattern=PLAIN)]
    session: Identifier = 0
    """Session that the error is about; 0: the connection."""
    retryable: bool = False
    retry_ms: Milliseconds = 0.0
    """Time after which to try again."""

    def __post_init__(self) -> None:
        """Makes the message plain text within the limit."""
        msgspec.structs.force_setattr(self, "message", plain(self.message, LONGEST_ERROR))


AnyMessage = (
    Hello
    | Welcome
    | Open
    | Admitted
    | Draft
    | Serve
    | Hint
    | Verdict
    | Resume
    | Close
    | Ping
    | Pong
    | Drain
    | Error
)
Packet = list[bytes]


def largest_packet(context: int) -> int:
    """Bytes of the largest packet of a session with at most `context` positions."""
    return min(MAX_PACKET, HEADER_BYTES + 4 * context)


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def pack(message: Message) -> Packet:
    """The packet of a message: a header, and for `Open` one or two buffers."""
    if not isinstance(message, Open):
        return [_encoder.encode(message)]
    tokens, grammar = np.asarray(message.tokens, "<u4").tobytes(), message.grammar
    header = msgspec.structs.replace(message, tokens=[])
    if grammar is None:
        return [_encoder.encode(header), tokens]
    header = msgspec.structs.replace(header, grammar=Grammar(grammar.kind, ""))
    return [_encoder.encode(header), tokens, grammar.text.encode()]


def version_difference(device: int, cloud: int) -> str:
    """The sentence about two different protocol versions; it says which side to update."""
    older = "device" if device < cloud else "cloud"
    return (
        f"the device speaks protocol {device} and this cloud {cloud}: update edgespec on the "
        f"{older}"
    )


def _check_version(header: bytes) -> None:
    """Raises `ProtocolError` if a header is a Hello or Welcome of another protocol version.

    Reads the first bytes only, since the fields after them differ between versions.
    """
    greeting = _GREETING.match(header)
    if greeting is None:
        return
    theirs = int.from_bytes(next(filter(None, greeting.groups()[1:])), "big")
    if theirs == VERSION:
        return
    versions = (theirs, VERSION)
    device, cloud = versions if greeting[1].endswith(b"hello") else versions[::-1]
    raise ProtocolError(version_difference(device, cloud), code="version")


def unpack(packet: Sequence[bytes], header_bytes: int = MAX_PACKET) -> AnyMessage:
    """The message of a packet. `header_bytes`: longest header that is decoded.

    Raises `ProtocolError` for anything that `pack` cannot produce. Its code is "version" for a
    Hello or Welcome of another version that does not decode, else "malformed".
    """
    if not packet:
        raise ProtocolError("an empty packet", code="malformed")
    if len(packet[0]) > header_bytes:
        raise ProtocolError(f"a header of {len(packet[0])} bytes", code="malformed")
    try:
        message = _decoder.decode(packet[0])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        _check_version(packet[0])
        # The reason may quote the packet.
        raise ProtocolError(f"not a message: {plain(str(error))}", code="malformed") from error
    if not isinstance(message, Open):
        if len(packet) != 1:
            raise ProtocolError(
                f"{len(packet)} frames for a {type(message).__name__}", code="malformed"
            )
        return message
    if len(packet) < 2 or len(packet[1]) % 4 or not packet[1]:
        raise ProtocolError("an Open needs one buffer of uint32 token ids", code="malformed")
    grammar = _grammar(message.grammar, packet[2:])
    tokens = np.frombuffer(packet[1], "<u4")
    if int(tokens.max()) >= 1 << 31:
        raise ProtocolError("a token id of 2**31 or more", code="malformed")
    return msgspec.structs.replace(
        message, tokens=tokens.astype("u4", copy=False).data, grammar=grammar
    )


def _grammar(header: Grammar | None, buffers: Sequence[bytes]) -> Grammar | None:
    """The grammar of an Open, from its header and its buffers after the tokens."""
    if len(buffers) != (header is not None):
        raise ProtocolError("an Open has one buffer for each grammar", code="malformed")
    if header is None:
        return None
    if header.text or not 0 < len(buffers[0]) <= MAX_GRAMMAR_BYTES:
        raise ProtocolError(
            f"the text of a grammar is a buffer of 1 to {MAX_GRAMMAR_BYTES} bytes", code="malformed"
        )
    try:
        return Grammar(header.kind, bytes(buffers[0]).decode())
    except UnicodeDecodeError as error:
        raise ProtocolError("the text of a grammar is not UTF-8", code="malformed") from error
