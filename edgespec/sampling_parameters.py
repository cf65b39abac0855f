"""The parameters of sampling, apart from the rule: importing them does not import numpy."""

from __future__ import annotations

import msgspec

from edgespec.errors import UsageError


class Sampling(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How tokens are chosen. Temperature 0 is greedy and ignores the other parameters."""

    temperature: float = 0.0
    top_p: float = 1.0
    """Keep the likeliest tokens whose probabilities together reach this sum; in (0, 1]."""
    top_k: int = 0
    """Keep the `top_k` likeliest tokens; 0 keeps all."""
    seed: int = 0
    """Key of the noise; 0 <= seed < 2**63."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def check(self) -> None:
        """Raises `UsageError` naming the first parameter out of range."""
        if self.temperature != 0.0 and not 0.01 <= self.temperature <= 100.0:
            raise UsageError(
                f"temperature is {self.temperature}; it must be 0 (greedy) or from 0.01 to 100"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"top-p is {self.top_p}; it must lie above 0 and at most at 1")
        if not 0 <= self.top_k < 2**31:
            raise UsageError(
                f"top-k is {self.top_k}; it must be 0 (all tokens) or more, and below 2**31"
            )
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; it must lie between 0 and 2**63 - 1")
