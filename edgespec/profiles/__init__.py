"""Profiles: hardware and precision, one JSON file each beside this one.

A draft is exported for a profile, an engine is built for one, and a device runs what fits. The file
says how the weights are stored, which back end runs them and with what settings, which operators
its runtime has, and where those numbers come from.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import msgspec

from edgespec.errors import UsageError
from edgespec.manifest import MAIN_OPSET, Precision, Precisions

ONNX_RUNTIME = {24: (1, 25), 21: (1, 20)}
"""The first ONNX Runtime that runs graphs of an opset on a CPU. 24: 1.23.2 stops at IR 11, 1.24.1
has no TensorScatter, 1.25.0 runs them (tried with SmolLM2's int8 draft)."""


def runs_graphs(version: str, opset: int = MAIN_OPSET) -> bool:
    """Whether an ONNX Runtime of that version is new enough; no for what is no version."""
    parts = version.split(".")[:2]
    return all(map(str.isdigit, parts)) and tuple(map(int, parts)) >= ONNX_RUNTIME[opset]


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    purpose: str
    """Which hardware it is for, as a noun phrase."""
    backend: Literal["onnxruntime", "tensorrt"] = "onnxruntime"
    layers: Precision
    head: Precision | None = None
    embedding: Precision | None = None
    opset: int = MAIN_OPSET
    """The newest that its runtimes take; below `MAIN_OPSET` graphs are written with plain
    operators."""
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """ONNX Runtime execution providers, those that are there are used."""
    arena: bool = True
    """Whether ORT keeps its peak memory for reuse."""
    threads: int = 0
    """Of a draft; 0: every core that the process may use."""
    capacities: tuple[int, ...] = (256, 512, 1024, 2048)
    """Positions that a slot may hold, ascending; beyond the last, multiples of it."""
    sources: dict[str, str]
    """Where its numbers come from, by field."""

    @property
    def precisions(self) -> Precisions:
        return precisions(self.layers, head=self.head, embedding=self.embedding)


@cache
def names() -> tuple[str, ...]:
    """Of all profiles: generic ones first, then hardware."""
    there = [file.name for file in resources.files(__name__).iterdir()]
    found = [name.removesuffix(".json") for name in there if name.endswith(".json")]
    return tuple(sorted(found, key=lambda name: (not name.startswith(("cpu-", "gpu-")), name)))


@cache
def profile(name: str) -> Profile:
    """Raises `UsageError` for a name that there is not, as in a bundle of a newer edgespec."""
    if name not in names():
        raise UsageError(f"there is no profile {name!r}; choose from {', '.join(names())}")
    text = resources.files(__name__).joinpath(f"{name}.json").read_bytes()
    return msgspec.json.decode(text, type=Profile)


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
