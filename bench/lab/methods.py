"""The ways of answering that the benches compare, by the names that tables and plots show."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.config import Mode, Tactics

CLOUD, LOCKSTEP, EXITS = "cloud", "lockstep", "exits"
CLOUD_DRAFT, EDGESPEC = "cloud-draft", "edgespec"
WITHOUT = f"{EDGESPEC} without "
"""Beginning of the names of methods that lack one part of edgespec."""
RTTS_MS = (0.0, 10.0, 25.0, 50.0, 100.0, 200.0)
"""Round-trip times that are compared unless others are given."""

DEFAULT_TACTICS = Tactics()


@dataclass(frozen=True)
class Method:
    """A way of answering."""

    mode: Mode
    tactics: Tactics = DEFAULT_TACTICS
    useless: bool = False
    """Replace the draft's tokens by wrong ones, at the same cost."""

    @property
    def drafts_on_device(self) -> bool:
        return self.mode in ("auto", "edge")


METHODS = {
    CLOUD: Method("cloud"),
    LOCKSTEP: Method("edge", Tactics("none", hints=False)),
    EXITS: Method("edge", Tactics("exits", hints=True)),
    CLOUD_DRAFT: Method("cloud-draft"),
    EDGESPEC: Method("auto"),
}
"""The baselines and edgespec. `exits` pre-drafts on exit heads alone, as arXiv 2505.21594 does."""
ABLATION = {
    f"{WITHOUT}streaming": Method("auto", Tactics("none", hints=False, lockstep=False)),
    f"{WITHOUT}target decoding": Method("edge", Tactics(hints=False, lockstep=True)),
    f"{WITHOUT}branches": Method("auto", Tactics(branches=False)),
    f"{EDGESPEC} with hints": Method("auto", Tactics(hints=True)),
    f"{WITHOUT}cloud-draft": Method("edge"),
}
USELESS = {"useless draft": Method("edge", useless=True)}
KNOWN = METHODS | ABLATION | USELESS
