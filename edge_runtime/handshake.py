"""The first exchange with a cloud: fingerprints are compared and the round trip is measured."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgespec.config import EdgeSettings
from edgespec.errors import LinkError
from edgespec.manifest import Bundle
from edgespec.protocol import VERSION, Error, Hello, Ping, Pong, Welcome, version_difference
from edgespec.transport import Link

_OLD_REFUSAL = re.compile(r"it speaks protocol (\d{1,3}) and the device ")
"""Start of the sentence with which clouds of protocol 3 and older refuse another version."""

Clock = Callable[[], float]
"""Returns seconds since any fixed time."""
Tell = Callable[[str], None]
"""Shows a sentence to the user."""


@dataclass(frozen=True)
class DeviceIdentity:
    """A device's Hello, and the facts of the bundle that its loop needs."""

    hello: Hello
    end_ids: Sequence[int] = ()
    """Tokens that end an answer."""
    exit_agreements: Mapping[int, float] = field(default_factory=dict)
    """Probability that an exit head names the target's token, by layer, where it was measured."""
    context: int = 1 << 31
    """Most tokens of a sequence that the target can hold."""

    @classmethod
    def of(
        cls, bundle: Bundle, device: str, drafter: str = "", hardware: str = ""
    ) -> DeviceIdentity:
        """The identity of a device with this bundle."""
        manifest = bundle.manifest
        names = device, drafter, hardware
        segments = manifest.target.segments
        return cls(
            Hello(VERSION, manifest.target_fingerprint, manifest.text.fingerprint, *names),
            manifest.text.end_ids,
            {s.end: s.calibration.agreement for s in segments if s.exit and s.calibration},
            manifest.context,
        )

    def expected(self, settings: EdgeSettings) -> Welcome:
        """The Welcome to assume until a cloud sends its own: its times are not known."""
        hello = self.hello
        return Welcome(
            VERSION, hello.target, hello.tokenizer, self.context, settings.drafting.ahead_tokens,
            exits=[], step_ms=0.0, token_ms=0.0, draft_ms=0.0, hint_ms=0.0,
        )  # fmt: skip


def greet(
    link: Link,
    hello: Hello,
    settings: EdgeSettings,
    clock: Clock = time.monotonic,
    waiting: Callable[[], None] | None = None,
) -> Welcome:
    """Sends a Hello and returns the cloud's Welcome.

    `waiting` is called once if no reply has come after `settings.limits.stall_s` seconds. Raises
    `LinkError` if the cloud refuses, or does not reply within `settings.connect_timeout` seconds.
    """
    began = clock()
    end = began + settings.connect_timeout
    link.send(hello)
    greeted = max(1, link.state.connections)
    while (left := end - clock()) > 0:
        if link.state.connections > greeted:
            greeted = link.state.connections
            link.send(hello)
        for message in link.receive(min(left, settings.limits.stall_s) if waiting else left):
            if isinstance(message, Welcome):
                _check_version(message.version)
                return message
            if isinstance(message, Error):
                raise LinkError(
                    f"the cloud at {settings.connect} refused: {refusal(message)}",
                    code=message.code,
                    retryable=message.retryable,
                )
        check_admitted(link, settings)
        if waiting and clock() - began >= settings.limits.stall_s:
            waiting()
            waiting = None
    raise LinkError(
        f"nobody answered at {settings.connect} within {settings.connect_timeout:g} s; "
        "is 'edgespec cloud-run' running there, not still loading, and with the same keys?",
        retryable=True,
    )


def greet_if_present(
    link: Link,
    hello: Hello,
    settings: EdgeSettings,
    clock: Clock = time.monotonic,
    waiting: Callable[[], None] | None = None,
) -> Welcome | None:
    """As `greet`; with `offline` "draft", None if no cloud replies in `offline_after` seconds."""
    if settings.offline == "refuse":
        return greet(link, hello, settings, clock, waiting)
    patience = min(settings.connect_timeout, settings.offline_after)
    try:
        return greet(link, hello, replace(settings, connect_timeout=patience), clock, waiting)
    except LinkError as error:
        if not error.retryable:
            raise
        return None


def _check_version(cloud: int) -> None:
    """Raises `LinkError` if a Welcome has another protocol version than this device."""
    if cloud != VERSION:
        raise LinkError(version_difference(VERSION, cloud), code="version")


def refusal(error: Error) -> str:
    """The sentence of an error, for the user.

    Clouds of protocol 3 and older name the two versions without saying which side to update.
    """
    old = _OLD_REFUSAL.match(error.message) if error.code == "version" else None
    return version_difference(VERSION, int(old[1])) if old else error.message


def check_admitted(link: Link, settings: EdgeSettings) -> None:
    """Raises `LinkError` if the cloud refused the last handshake of this link."""
    if not link.state.refused:
        return
    remedy = (
        f"copy {settings.key.with_suffix('.key').name} into the folder that its --clients names"
        if settings.key
        else "make a key with 'edgespec keygen --device NAME', and pass --key"
    )
    raise LinkError(
        f"the cloud at {settings.connect} refused this device's key, since it admits listed "
        f"devices only; {remedy}"
    )


def round_trip(link: Link, settings: EdgeSettings, clock: Clock = time.monotonic) -> float:
    """Seconds that a Ping takes on an idle link, at most about `settings.patience`."""
    began = clock()
    link.send(Ping(0))
    while 0 <= clock() - began < settings.patience:
        if any(isinstance(m, Pong) for m in link.receive(settings.patience)):
            break
    return max(0.0, clock() - began)
