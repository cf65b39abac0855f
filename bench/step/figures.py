"""Figures of `bench step`."""

from __future__ import annotations

import msgspec

from bench.lab.report import jsonable
from bench.step.settings import Precision, Role
from engines.machine.doctor import Machine


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model of one precision, loaded with a number of threads."""

    role: Role
    precision: Precision
    threads: int
    nodes: int
    """Nodes that ONNX Runtime runs in a one-token step of one row."""
    operators: dict[str, int]
    """The nodes by operator, most frequent first."""
    weights_mb: float
    """Weights that a step reads, as they are on the disk."""
    load_s: float
    """Time to load it, with the checksums of its files."""
    first_step_ms: float
    """Time of the first one-token step of a slot, after reading a prompt."""


class TimedStep(msgspec.Struct, frozen=True, kw_only=True):
    """One measured step."""

    role: Role
    precision: Precision
    threads: int
    rows: int
    tokens: int
    """New tokens of each row."""
    past_tokens: int
    """Cached positions of each row; 0 for a prompt."""
    ms: float
    python_ms: float
    """The part outside of the calls of ONNX Runtime or llama.cpp."""
    read_mb: float
    """Weights, keys and values that the step reads."""
    bandwidth_share: float
    """`read_mb` a step, relative to the memory bandwidth of as many threads in the same run."""
    llama_ms: float | None = None
    """Time of llama.cpp for the same tokens and the same weights; None if it was not measured."""
    ratio_to_llama: float | None = None
    """Median over the turns of llama.cpp's time, relative to this step's. Above 1: this step is
    faster."""

    @property
    def python_share(self) -> float:
        return self.python_ms / self.ms

    @property
    def tokens_per_s(self) -> float:
        return self.rows * self.tokens / self.ms * 1e3

    @property
    def one_token(self) -> bool:
        return self.rows == self.tokens == 1


class LlamaBuild(msgspec.Struct, frozen=True):
    """The llama.cpp that was measured."""

    build: str
    """Number and commit, if it knows them."""
    model_mb: dict[str, float]
    """Size of its model by precision."""


class StepFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Result of `bench step`."""

    shape: str
    machine: Machine
    load_average: float
    """Programs that ran or waited for a core, on average over the minute before."""
    bandwidth_gb_s: dict[int, float]
    """Speed of reading memory, by threads."""
    models: list[LoadedModel]
    steps: list[TimedStep]
    llama: LlamaBuild | None = None

    def one_token(self, role: Role) -> list[TimedStep]:
        return [step for step in self.steps if step.role == role and step.one_token]

    def ratios(self, role: Role) -> dict[str, dict[str, float]]:
        """`ratio_to_llama` of the one-token steps, by precision and threads."""
        found: dict[str, dict[str, float]] = {}
        for step in self.one_token(role):
            if step.ratio_to_llama is not None:
                found.setdefault(step.precision, {})[str(step.threads)] = step.ratio_to_llama
        return found

    def as_json(self) -> dict[str, object]:
        """All figures in one object; `ratio_to_llama` is that of the drafts in ONNX Runtime."""
        shares = [{"python_share": round(step.python_share, 4)} for step in self.steps]
        steps = [jsonable(step) | more for step, more in zip(self.steps, shares, strict=True)]
        return {
            **jsonable(self),
            "steps": steps,
            "ratio_to_llama": self.ratios("draft"),
            "llamacpp_ratio_to_llama": self.ratios("llamacpp draft"),
            "target_ratio_to_llama": self.ratios("target"),
        }
