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
from bench.fleet.generator import Generator, quick_switches
from bench.fleet.profile import FleetProfile
from bench.fleet.settings import FleetSettings
from bench.lab.methods import CLOUD, EDGESPEC
from bench.lab.processes import cloud_process, cores, pinned
from bench.lab.recording import Recording, draft_of
from edgespec.errors import UsageError
from edgespec.manifest import Bundle

PARTS = ("offenders", "overhead", "churn", "model")
SPARE_SESSIONS_COUNT = 64
"""Sessions that the cloud admits beyond those of the polite devices."""
IDLE_TIMEOUT_S = 3600
"""Timeout of the cloud, above any run: the idle sessions wait for devices that only send pings."""
STATUS_TIMEOUT_S = 10.0
"""Time in which a cloud must answer a request for its metrics."""


@dataclass(frozen=True)
class CrowdSettings:
    parts: tuple[str, ...] = PARTS
    profile: Path | None = None
    """Profile of the polite devices; None: the built-in one."""
    recording: Path | None = None
    """None: the profile's."""
    seconds: float = 15.0
    """Length of a window."""
    polite: int = 15
    """Polite devices next to an offender."""
    connected: int = 256
    """Open sessions of `overhead`."""
    active: int = 64
    """Sessions of `overhead` whose devices ask for answers."""
    sessions: int = 20_000
    """Short sessions of `churn`."""

    def check(self) -> None:
        """Raises `UsageError` for what would fail only later."""
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UsageError(f"--seconds {self.seconds:g} is no time to measure for")
        if self.active > self.connected:
            raise UsageError(f"of {self.connected} sessions {self.active} cannot be active")


@dataclass(frozen=True)
class Served:
    """A running cloud, and the load generator for it."""

    generator: Generator
    endpoint: str
    pid: int
    status: str
    """URL of its status pages."""
    lines: list[str]
    """Its log lines, as they come."""

    def sample(self) -> Sample:
        """Its metrics, at most half a second old."""
        with urllib.request.urlopen(f"{self.status}/metrics", timeout=STATUS_TIMEOUT_S) as reply:
            return metrics(reply.read().decode())


@dataclass(frozen=True)
class Crowd:
    bundle: Bundle
    profile: FleetProfile
    recording: Recording
    settings: CrowdSettings

    @contextmanager
    def cloud(self, seconds: float = 0.0, arrive_s: float | None = None) -> Iterator[Served]:
        """A new cloud on its core, with this process on the other.

        A window lasts `seconds` (0: the setting's), and devices come within `arrive_s` seconds
        (None: the profile's).
        """
        settings = self.settings
        options = ["--status", "127.0.0.1:0", "--log-format", "json"]
        options += [
            "--max-sessions",
            str(2 * max(settings.connected, settings.polite) + SPARE_SESSIONS_COUNT),
        ]
        options += ["--idle-timeout", str(IDLE_TIMEOUT_S)]
        if draft := draft_of(self.recording, self.bundle):
            options += ["--draft", draft]
        profile = self.profile
        if arrive_s is not None:
            profile = msgspec.structs.replace(profile, arrive_s=arrive_s)
        fleet = FleetSettings(
            most=max(settings.polite + 1, settings.active),
            seconds=seconds or settings.seconds,
            methods=(EDGESPEC,),
        )
        generator = Generator(self.bundle, profile, self.recording, fleet)
        started = cloud_process(self.bundle.folder, *options)
        with started as process, pinned(cores()[0]), quick_switches():
            generator.clouds = {CLOUD: process}
            url = process.logged("status on")
            yield Served(generator, process.endpoint, process.pid, url, process.log)

    @property
    def texts(self) -> list[tuple[list[int], list[int]]]:
        """The recorded prompts and their answers, as token ids."""
        answers = ([each.token for each in answer] for answer in self.recording.answers)
        return list(zip(self.recording.prompt_ids, answers, strict=True))


def tell(sentence: str) -> None:
    """Print what is measured now on standard error."""
    print(sentence, file=sys.stderr, flush=True)
