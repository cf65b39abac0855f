"""Profiles: hardware and precision, one JSON file each beside this one.

A draft is exported for a profile, an engine is built for one, and a device runs what fits. The file
says how the weights are stored, which back end runs them and with what settings, which operators
its runtime has, by what signs `edgespec doctor` recognises the hardware, and where those numbers
come from. Generic profiles have no signs. The folder `refused` holds hardware that cannot be
served, and why.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import msgspec

from edgespec.errors import UsageError
from edgespec.manifest import MAIN_OPSET, Precision, Precisions

ONNX_RUNTIME = {24: (1, 25), 21: (1, 19)}
"""The first ONNX Runtime that runs graphs of an opset on a CPU. 24: 1.23.2 stops at IR 11, 1.24.1
has no TensorScatter, 1.25.0 runs them (tried with SmolLM2's int8 draft). 21: 1.18.1 has no blocked
DequantizeLinear, 1.19.2 runs them (tried with SmolLM2 in fp32, int8 and int4)."""

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
"""ONNX Runtime's execution providers, by its names."""
CLOUD = "cuda"
"""The profile whose machines run targets too."""

_GENERIC = ("cpu-", "gpu-")


def runs_graphs(version: str, opset: int = MAIN_OPSET) -> bool:
    """Whether an ONNX Runtime of that version is new enough; no for what is no version."""
    parts = version.split(".")[:2]
    return all(map(str.isdigit, parts)) and tuple(map(int, parts)) >= ONNX_RUNTIME[opset]


class Signs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """By what a machine is recognised. Every sign that is given must be there."""

    boards: tuple[str, ...] = ()
    """One of them is part of the device tree's `model` or of an entry of its `compatible`."""
    release: tuple[str, str] = ("", "")
    """Of Jetson Linux: the first one, and the first that is too new; empty for no bound."""
    capability: str = ""
    """The least CUDA compute capability of a GPU that is there."""
    gpus: tuple[str, ...] = ()
    """Where its driver does not tell the capability: one of them is part of the GPU's name."""
    features: tuple[str, ...] = ()
    """Flags of `/proc/cpuinfo`, all of them."""
    memory_mb: int = 0
    """At least, where the system tells."""


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
    providers: tuple[str, ...] = (CPU,)
    """ONNX Runtime execution providers, those that are there are used."""
    arena: bool = True
    """Whether ORT keeps its peak memory for reuse."""
    threads: int = 0
    """Of a draft; 0: every core that the process may use."""
    capacities: tuple[int, ...] = (256, 512, 1024, 2048)
    """Positions that a slot may hold, ascending; beyond the last, multiples of it. TensorRT has an
    engine for each and nothing beyond the last."""
    tensorrt: str = ""
    """The first version that builds and runs its engines."""
    batch: tuple[int, int, int] = (1, 1, 3)
    """Rows that an engine takes: fewest, usual, most."""
    tokens: tuple[int, int, int] = (1, 2, 64)
    """Tokens of a row that an engine takes: fewest, usual, most (a chunk of a prompt)."""
    workspace_mb: int = 0
    """Scratch memory that building an engine may take, in MB; 0: as much as TensorRT likes."""
    signs: Signs = Signs()
    instead: tuple[str, ...] = ()
    """Generic profiles whose drafts the same hardware runs, best first."""
    sources: dict[str, str]
    """Where its numbers come from, by field."""

    @property
    def precisions(self) -> Precisions:
        return precisions(self.layers, head=self.head, embedding=self.embedding)


class Refused(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hardware whose software is too old, and what to use instead."""

    purpose: str
    signs: Signs
    why: str
    """A sentence, from the hardware's name on."""
    sources: dict[str, str]


@cache
def names() -> tuple[str, ...]:
    """Of all profiles: generic ones first, then hardware."""
    return tuple(sorted(_files(""), key=lambda name: (not name.startswith(_GENERIC), name)))


@cache
def refused() -> dict[str, Refused]:
    """By name."""
    read = {name: _read(f"refused/{name}.json") for name in sorted(_files("refused"))}
    return {name: msgspec.json.decode(text, type=Refused) for name, text in read.items()}


@cache
def profile(name: str) -> Profile:
    """Raises `UsageError` for a name that there is not, as in a bundle of a newer edgespec, and for
    hardware that is refused."""
    if name in refused():
        raise UsageError(f"there is no profile {name!r}: {refused()[name].why}")
    if name not in names():
        raise UsageError(f"there is no profile {name!r}; choose from {', '.join(names())}")
    return msgspec.json.decode(_read(f"{name}.json"), type=Profile)


def _files(folder: str) -> list[str]:
    there = [file.name for file in resources.files(__name__).joinpath(folder).iterdir()]
    return [name.removesuffix(".json") for name in there if name.endswith(".json")]


def _read(path: str) -> bytes:
    return resources.files(__name__).joinpath(path).read_bytes()


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
