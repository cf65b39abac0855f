"""Settings of `edgespec bench link`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bench.lab.methods import ABLATION, CLOUD, KNOWN, METHODS, RTTS_MS, USELESS, Method
from bench.link.shape import LinkShape
from edgespec.errors import UsageError

NO_SHAPE = LinkShape()


@dataclass(frozen=True)
class LinkSettings:
    rtts_ms: tuple[float, ...] = RTTS_MS
    shape: LinkShape = NO_SHAPE
    """Jitter, bandwidth and stalls; its round-trip time is not used."""
    methods: tuple[str, ...] = ()
    """Names; empty: the baselines and edgespec."""
    ablation: bool = False
    """Measure edgespec without each of its parts too."""
    useless: bool = False
    """Measure edgespec with a draft that is never right too."""
    draft: str = ""
    """Profile of the draft, on both sides. Empty: the bundle's default."""
    draft_length: int = 4
    """Tokens drafted in a round of lockstep and exits."""
    prompts: Path | None = None
    """JSON lines; None: the built-in prompts."""
    limit: int = 2
    """Prompts of each category."""
    max_tokens: int = 64
    temperature: float = 0.0
    plot: Path | None = None
    """Folder for plots and the trace."""
    energy: Path | None = None
    """Root of the file tree that this machine's energy is read from; None: not measured."""

    @property
    def chosen(self) -> dict[str, Method]:
        """The methods by name. Raises `UsageError` for an unknown name."""
        for name in self.methods:
            if name not in KNOWN:
                raise UsageError(f"there is no method {name!r}; choose from: {', '.join(KNOWN)}")
        if self.methods:
            names = dict.fromkeys((CLOUD, *self.methods))
            return {name: KNOWN[name] for name in names}
        more = (ABLATION if self.ablation else {}) | (USELESS if self.useless else {})
        return METHODS | more

    def shape_at(self, rtt_ms: float) -> LinkShape:
        return replace(self.shape, rtt_ms=rtt_ms)

    def check(self) -> None:
        """Raises `UsageError` for an unknown method or a link that cannot exist."""
        _ = self.chosen
        for rtt in self.rtts_ms:
            self.shape_at(rtt).check()
