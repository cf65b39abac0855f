"""The wire: every message that device and cloud exchange, and nothing else.

A packet is one ZeroMQ multipart message: a msgpack header, which is an array whose first element
names the message, and for `Open` one raw buffer of little-endian uint32 token ids. Text never
crosses; ids do. Every packet of a session names the session, its round and the base position (where
its first token stands), so what is stale or repeated is recognised.

    device                     cloud
    Hello            ->                     versions and fingerprints are compared
                     <-        Welcome
    Open + prompt    ->                     prefill
                     <-        Admitted     it has a place, or will have in so many milliseconds
    Draft*           ->                     whenever tokens are drafted; nobody waits
                     <-        Hint*        an exit head's guess, while the target still runs
                     <-        Verdict*     after every step of the target
    Serve            ->                     other terms from now on
    Resume           ->                     after silence: where are we?
                     <-        Verdict      everything committed from the named base on
    Close            ->
    Ping             ->        Pong
                     <-        Drain        no new sessions here
                     <-        Error        typed; `retryable` says whether the same may work later,
                                            `retry_ms` when

A **round** is one run of drafted ids. Its first packet names the round that it branches off and
the position where; later ones name the round itself, and make it longer. So the device streams a
tree of ids: a branch holds what to go on with if the target rejects its parent there and names the
branch's first token instead. The cloud keeps the branches, and goes on along one as soon as its own
verdict names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np

from edgespec.errors import ProtocolError
from edgespec.sampling import Sampling
from edgespec.session import Finish

VERSION = 3
MAX_PACKET = 1 << 20
"""Bytes; a larger packet is dropped by the socket. Holds a prompt of 262 000 tokens."""
HEADER_BYTES = 1 << 16
"""Bytes that a header may have; larger ones are dropped with the connection."""
MAX_FRAMES = 2
"""Frames of a packet: header and buffer."""
MAX_DRAFT = 64

Identifier = Annotated[int, msgspec.Meta(ge=0, lt=(1 << 63) - 1)]
Position = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Token = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Tokens = Annotated[list[Token], msgspec.Meta(max_length=MAX_DRAFT + 1)]
LONGEST_NAME = 200
Name = Annotated[str, msgspec.Meta(max_length=LONGEST_NAME)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, lt=1e9)]
Rate = Annotated[float, msgspec.Meta(ge=0, lt=1e6)]
"""Tokens a second, or another number that is not negative."""

ErrorCode = Literal[
    "malformed",  # bytes that are no message
    "version",  # another protocol version
    "bundle",  # another target
    "tokenizer",  # another tokenizer
    "hello",  # a session before any hello
    "invalid",  # a message whose content cannot be served
    "busy",  # no room now; `retry_ms` says when there may be
    "drained",  # the cloud stops; the session may go on elsewhere
    "session",  # a session that is not (or no longer) here
    "internal",  # the cloud failed; its log says how
]


class Message(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag_field="type"
):
    """Base of the union; its subclasses are the only things that cross the wire."""


class Hello(Message, frozen=True, tag="hello"):
    version: int
    target: Name
    """Fingerprint of the target's weights in the device's bundle."""
    tokenizer: Name
    device: Name
    """For people: its name."""
    drafter: Name = ""
    """For people: what drafts there."""
    hardware: Name = ""
    """For people."""


class Welcome(Message, frozen=True, tag="welcome"):
    version: int
    target: Name
    tokenizer: Name
    context: Position
    """Positions that a session may have, prompt included."""
    max_draft: Position
    exits: list[Position]
    """Layers that are followed by an exit head."""
    step_ms: Milliseconds
    """A step of the target for one session and one token, measured when the cloud started."""
    token_ms: Milliseconds
    """What each further token adds to it."""
    draft_ms: Milliseconds
    """A step of the draft beside the target; 0 where the cloud has none."""
    hint_ms: Milliseconds
    """What exit heads add to a step of the target."""


class Terms(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a session is served. Any change of terms gives the same text."""

    drafting: bool = True
    """The device drafts."""
    cloud_draft: bool = False
    """The cloud may draft beside the target, if it has a draft."""
    decoding: bool = True
    """The target decodes by itself while no draft has arrived. False: lockstep."""
    hints: bool = False
    """Exit heads run for this session."""
    target_rate: Rate = 0.0
    """Tokens a second that the device asked for; 0: as fast as possible."""

    @property
    def lockstep(self) -> bool:
        """Whether the target waits for a draft instead of decoding by itself."""
        return not self.decoding


class Open(Message, frozen=True, tag="open"):
    """Starts a session, or starts it again elsewhere: the buffer holds prompt and committed ids."""

    session: Identifier
    prompt_length: Position
    max_tokens: Position
    sampling: Sampling
    end_ids: Annotated[list[Token], msgspec.Meta(max_length=64)]
    terms: Terms
    tokens: Annotated[list[Token], msgspec.Meta(max_length=0)] = []
    """Empty in the header; `pack` and `unpack` carry it in the buffer."""


class Admitted(Message, frozen=True, tag="admitted"):
    session: Identifier
    wait_ms: Milliseconds = 0.0
    """Until it is begun, as far as can be told; 0: at once."""


class Draft(Message, frozen=True, tag="draft"):
    """Ids from position `base` on. No ids: the device has none, and asks for the target's token."""

    session: Identifier
    round: Position
    """From 1."""
    parent: Position
    """The round that holds the id before `base`: the one that this branches off, or itself once it
    has begun; 0: the committed text."""
    base: Position
    tokens: Tokens
    confidences: Annotated[bytes, msgspec.Meta(max_length=MAX_DRAFT + 1)] = b""
    """For each id the probability, in 1/255, that it is the target's, if those before it are."""


class Hint(Message, frozen=True, tag="hint"):
    """The tokens that an exit head would choose at `base`, `base + 1`, …, draft accepted or not.

    `base` is the number of committed tokens, and `round` the draft that is being verified.
    """

    session: Identifier
    round: Position
    base: Position
    layer: Position
    tokens: Tokens


class Verdict(Message, frozen=True, tag="verdict"):
    """Committed tokens from `base` on: `confirmed` drafted ones, then the target's own."""

    session: Identifier
    round: Position
    """Of the device's draft; 0: none of its ids were verified."""
    base: Position
    verified: Position
    """Drafted ids that the step looked at."""
    confirmed: Position
    """Of those, the target's own."""
    accepted: Position
    """Of those, the device's; the others were drafted beside the target."""
    tokens: Annotated[list[Token], msgspec.Meta(max_length=1 << 17)]
    finish: Finish = ""


class Serve(Message, frozen=True, tag="serve"):
    session: Identifier
    terms: Terms


class Resume(Message, frozen=True, tag="resume"):
    session: Identifier
    base: Position


class Close(Message, frozen=True, tag="close"):
    session: Identifier


class Ping(Message, frozen=True, tag="ping"):
    nonce: Identifier


class Pong(Message, frozen=True, tag="pong"):
    nonce: Identifier
    mean_batch_rows: Rate = 0.0
    """Sessions that share a step of the target, on average lately."""


class Drain(Message, frozen=True, tag="drain"):
    pass


class Error(Message, frozen=True, tag="error"):
    code: ErrorCode
    message: Annotated[str, msgspec.Meta(max_length=1000)]
    session: Identifier = 0
    """0: about the connection, not a session."""
    retryable: bool = False
    retry_ms: Milliseconds = 0.0
    """When to try again."""


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
    if isinstance(message, Open):
        header = msgspec.structs.replace(message, tokens=[])
        return [_encoder.encode(header), np.asarray(message.tokens, "<u4").tobytes()]
    return [_encoder.encode(message)]


def unpack(packet: Sequence[bytes]) -> AnyMessage:
    """Raises `ProtocolError` for anything that `pack` would not have made."""
    if not packet:
        raise ProtocolError("an empty packet", code="malformed")
    try:
        message = _decoder.decode(packet[0])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a message: {error}", code="malformed") from error
    if not isinstance(message, Open):
        if len(packet) != 1:
            raise ProtocolError(
                f"{len(packet)} frames for a {type(message).__name__}", code="malformed"
            )
        return message
    if len(packet) != 2 or len(packet[1]) % 4 or not packet[1]:
        raise ProtocolError("an Open needs one buffer of uint32 token ids", code="malformed")
    tokens = np.frombuffer(packet[1], "<u4")
    if int(tokens.max()) >= 1 << 31:
        raise ProtocolError("a token id of 2**31 or more", code="malformed")
    return msgspec.structs.replace(message, tokens=tokens.tolist())
