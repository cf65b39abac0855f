"""Profiles: hardware and precision. A draft is exported for one; a device runs what fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgespec.errors import UsageError
from edgespec.manifest import Precision, Precisions

ONNX_RUNTIME = (1, 25)
"""The first ONNX Runtime whose CPU kernels run the graphs: 1.23.2 stops at IR 11, 1.24.1 has no
TensorScatter, 1.25.0 runs them (tried with SmolLM2's int8 draft)."""


def runs_graphs(version: str) -> bool:
    """Whether an ONNX Runtime of that version is new enough; no for what is no version."""
    parts = version.split(".")[:2]
    return all(map(str.isdigit, parts)) and tuple(map(int, parts)) >= ONNX_RUNTIME


@dataclass(frozen=True)
class Profile:
    precisions: Precisions
    providers: tuple[str, ...]
    """ONNX Runtime execution providers."""
    arena: bool
    """Whether ORT keeps its peak memory for reuse."""
    threads: int
    """Of a draft; 0: every core that the process may use."""
    purpose: str


def profile(name: str) -> Profile:
    """Raises `UsageError` for a name that there is not, as in a bundle of a newer edgespec."""
    if name not in PROFILES:
        raise UsageError(f"there is no profile {name!r}; choose from {', '.join(PROFILES)}")
    return PROFILES[name]


def precisions(
    layers: Precision, *, head: Precision | None = None, embedding: Precision | None = None
) -> Precisions:
    """Fills in what is usual: a head no coarser than int8, and an embedding that stays a float
    (only the rows that are read are ever touched)."""
    quantised = layers in ("int8", "int4")
    return Precisions(
        layers=layers,
        head=head or ("int8" if quantised else layers),
        embedding=embedding or ("fp16" if quantised else layers),
    )


_CPU = ("CPUExecutionProvider",)
_CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")
PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "cpu-fp32": Profile(precisions("fp32"), _CPU, True, 0, "any CPU; the reference"),
        "cpu-int8": Profile(precisions("int8"), _CPU, True, 0, "CPUs with int8 dot products"),
        "cpu-int4": Profile(
            precisions("int4"), _CPU, False, 0, "CPUs short of memory or bandwidth"
        ),
        "gpu-fp16": Profile(precisions("fp16"), _CUDA, True, 1, "CUDA and TensorRT"),
    }
)
