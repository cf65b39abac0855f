"""The cloud that a crowd connects to, and what all parts of `bench.crowd.run` share."""

from __future__ import annotations

import math
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.crowd.figures import Sample, metrics
from bench.fleet.generator import FleetSettings, Generator, nimble
from bench.fleet.profile import FleetProfile
from bench.lab.methods import CLOUD, EDGESPEC
from bench.lab.processes import cloud_process, cores, pinned, told
from bench.lab.recording import Recording
from edgespec.errors import UsageError
from edgespec.manifest import Bundle

PARTS = ("offenders", "overhead", "churn", "model")
ROOM = 64
"""Sessions beyond those, for whoever comes beside them."""
PATIENCE = 10.0
"""Seconds that a cloud has to tell its figures."""


@dataclass(frozen=True)
class CrowdSettings:
    parts: tuple[str, ...] = PARTS
    profile: Path | None = None
    """Of the polite devices; None: the built-in one."""
    recording: Path | None = None
    """None: what the profile says."""
    seconds: float = 15.0
    """Of a window."""
    polite: int = 15
    """Devices beside an offender."""
    connected: int = 256
    """Sessions of `overhead`."""
    active: int = 64
    """Those of them that write."""
    sessions: int = 20_000
    """Of `churn`."""

    def check(self) -> None:
        """Raises `UsageError` for what would fail only later."""
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UsageError(f"--seconds {self.seconds:g} is no time to measure for")
        if self.active > self.connected:
            raise UsageError(f"of {self.connected} sessions {self.active} cannot be active")


@dataclass(frozen=True)
class Served:
    """A cloud that serves, and devices for it."""

    generator: Generator
    endpoint: str
    pid: int
    status: str
    """URL."""
    lines: list[str]
    """Its log, as it grows."""

    def sample(self) -> Sample:
        """Its figures, half a second old at most."""
        with urllib.request.urlopen(f"{self.status}/metrics", timeout=PATIENCE) as reply:
            return metrics(reply.read().decode())


@dataclass(frozen=True)
class Crowd:
    bundle: Bundle
    profile: FleetProfile
    recording: Recording
    settings: CrowdSettings

    @contextmanager
    def cloud(self, seconds: float = 0.0, arrive_s: float | None = None) -> Iterator[Served]:
        """A new one, on its core, and this process on the other. Windows of the devices last
        `seconds`, and they come within `arrive_s`, where that is not as usual."""
        settings = self.settings
        options = ["--status", "127.0.0.1:0", "--log-format", "json"]
        options += ["--max-sessions", str(2 * max(settings.connected, settings.polite) + ROOM)]
        if self.bundle.manifest.default_draft:
            options += ["--draft", self.bundle.manifest.default_draft]
        profile = self.profile
        if arrive_s is not None:
            profile = msgspec.structs.replace(profile, arrive_s=arrive_s)
        fleet = FleetSettings(
            most=max(settings.polite + 1, settings.active),
            seconds=seconds or settings.seconds,
            methods=(EDGESPEC,),
        )
        generator = Generator(self.bundle, profile, self.recording, fleet)
        lines: list[str] = []
        process = cloud_process(self.bundle.folder, *options, said=lines)
        with process as (endpoint, pid), pinned(cores()[0]), nimble():
            generator.clouds = {CLOUD: (endpoint, pid)}
            url = next(told(line, "status on") for line in lines if "status on" in line)
            yield Served(generator, endpoint, pid, url, lines)

    @property
    def texts(self) -> list[tuple[list[int], list[int]]]:
        """The recorded prompts, and the answers to them."""
        answers = ([said.token for said in answer] for answer in self.recording.answers)
        return list(zip(self.recording.prompt_ids, answers, strict=True))


def tell(sentence: str) -> None:
    """What is measured now."""
    print(sentence, file=sys.stderr, flush=True)
