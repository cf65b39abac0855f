"""The first exchange of a connection: versions and fingerprints are compared."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_runtime.costs import Speeds
from cloud_runtime.devices import ConnectedDevice, Devices
from cloud_runtime.events import Events
from edgespec.config import CloudSettings
from edgespec.plain_text import plain
from edgespec.protocol import (
    LONGEST_NAME,
    VERSION,
    Error,
    ErrorCode,
    Hello,
    Message,
    Welcome,
    version_difference,
)


@dataclass(frozen=True)
class Identity:
    """The target and tokenizer that a device must share, and the target's exit heads."""

    target: str
    """Fingerprint of the target's weights."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    exits: tuple[int, ...]
    """Layers that are followed by an exit head."""
    arithmetic: str = ""
    """Fingerprint of the target's arithmetic, for the Welcome; empty: unknown."""


class Handshake:
    """Answers Hello."""

    def __init__(
        self,
        identity: Identity,
        settings: CloudSettings,
        speeds: Speeds,
        devices: Devices,
        events: Events,
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._speeds = speeds
        self._devices = devices
        self._events = events

    def hello(self, device: ConnectedDevice, hello: Hello, context: int) -> Message:
        """Welcomes a device, or says what differs. `context`: positions that a session may have."""
        device.name = hello.device
        error = self._difference(hello)
        if error is not None:
            return error
        first = not device.greeted
        self._devices.greet(device, hello)
        if first:
            self._events.greeted(device, hello)
        return self._welcome(context)

    def _difference(self, hello: Hello) -> Error | None:
        identity = self._identity
        checks: list[tuple[bool, ErrorCode, str]] = [
            (
                hello.version == VERSION,
                "version",
                version_difference(hello.version, VERSION),
            ),
            (
                hello.tokenizer == identity.tokenizer,
                "tokenizer",
                "its tokenizer differs from the device's, so token ids would mean different text; "
                "export both from one target",
            ),
            (
                hello.target == identity.target,
                "bundle",
                "its target differs from the one in the device's bundle; "
                "copy the cloud's bundle to the device",
            ),
        ]
        return next((Error(code, sentence) for same, code, sentence in checks if not same), None)

    def _welcome(self, context: int) -> Welcome:
        costs, cloud_draft = self._speeds.costs, self._speeds.cloud_draft
        return Welcome(
            version=VERSION,
            target=self._identity.target,
            tokenizer=self._identity.tokenizer,
            context=context,
            max_draft=self._settings.max_draft,
            exits=list(self._identity.exits) if self._settings.hints else [],
            step_ms=1e3 * costs.step(1),
            token_ms=1e3 * (costs.step(3) - costs.step(2)),  # an engine may pad one token to two
            draft_ms=1e3 * cloud_draft.step(1) if cloud_draft is not None else 0.0,
            hint_ms=1e3 * self._speeds.hints_s,
            arithmetic=plain(self._identity.arithmetic, LONGEST_NAME),
        )
