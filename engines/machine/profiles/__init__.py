"""Profiles: hardware and precision, one JSON file each in this folder.

A draft is exported for a profile, and an engine is built for one. The file names the precision of
the weights, the back end and its settings, the operators of its runtime, the signs by which
`edgespec doctor` recognises the hardware, and the sources of the numbers. Generic profiles have no
signs. The folder `refused` holds hardware that is not supported, with the reason.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import msgspec

from edgespec.errors import UsageError
from edgespec.manifest import MAIN_OPSET, Precision, Precisions

ONNX_RUNTIME = {24: (1, 25), 21: (1, 19)}
"""First version of ONNX Runtime that runs graphs of an opset on a CPU. Opset 24: 1.23.2 stops at IR
11, 1.24.1 has no TensorScatter, 1.25.0 runs SmolLM2's int8 draft. Opset 21: 1.18.1 has no blocked
DequantizeLinear, 1.19.2 runs SmolLM2 in fp32, int8 and int4."""

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
"""Names of ONNX Runtime's execution providers."""
CLOUD = "cuda"
"""Profile whose machines run targets too."""

_GENERIC = ("cpu-", "gpu-", "llamacpp-")


def runs_graphs(version: str, opset: int = MAIN_OPSET) -> bool:
    """Return True if this version of ONNX Runtime runs graphs of an opset; False if it is not a
    version."""
    parts = version.split(".")[:2]
    return all(map(str.isdigit, parts)) and tuple(map(int, parts)) >= ONNX_RUNTIME[opset]


class Signs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Signs of a machine. It must show every sign that is given."""

    boards: tuple[str, ...] = ()
    """Texts, one of which is in the device tree's `model` or in an entry of its `compatible`."""
    release: tuple[str, str] = ("", "")
    """First release of Jetson Linux, and the first that is too new; empty for no bound."""
    capability: str = ""
    """Smallest CUDA compute capability of the GPU."""
    gpus: tuple[str, ...] = ()
    """Texts, one of which is in the GPU's name; used if the driver does not report a capability."""
    features: tuple[str, ...] = ()
    """Flags of `/proc/cpuinfo`, all of which are required."""
    memory_mb: int = 0
    """Smallest total memory, checked if the system reports it."""


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hardware, and how drafts and engines are made and run for it."""

    purpose: str
    """Hardware that the profile is for, as a noun phrase."""
    backend: Literal["onnxruntime", "tensorrt", "llamacpp"] = "onnxruntime"
    layers: Precision
    head: Precision | None = None
    embedding: Precision | None = None
    opset: int = MAIN_OPSET
    """Newest opset that its runtimes take; below `MAIN_OPSET`, graphs have plain operators."""
    providers: tuple[str, ...] = (CPU,)
    """Execution providers of ONNX Runtime; those that are installed are used."""
    arena: bool = True
    """True if ORT keeps its peak memory for reuse."""
    threads: int = 0
    """Threads of a draft; 0 for every core that the process may use."""
    capacities: tuple[int, ...] = (256, 512, 1024, 2048)
    """Capacities of a slot in positions, ascending; above the last, multiples of it. TensorRT has
    one engine for each, and none above the last."""
    tensorrt: str = ""
    """First version of TensorRT that builds and runs its engines."""
    batch: tuple[int, int, int] = (1, 1, 3)
    """Rows that an engine takes: fewest, usual, most."""
    tokens: tuple[int, int, int] = (1, 2, 64)
    """Tokens of a row that an engine takes: fewest, usual, most (a chunk of a prompt)."""
    workspace_mb: int = 0
    """Scratch memory for building an engine in MB; 0 for no limit."""
    signs: Signs = Signs()
    instead: tuple[str, ...] = ()
    """Generic profiles whose drafts the same hardware runs, best first."""
    sources: dict[str, str]
    """Sources of the numbers, by field."""

    @property
    def precisions(self) -> Precisions:
        return precisions(self.layers, head=self.head, embedding=self.embedding)


class Refused(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hardware whose software is too old."""

    purpose: str
    signs: Signs
    why: str
    """A sentence with the reason, and with other hardware to use."""
    sources: dict[str, str]


@cache
def names() -> tuple[str, ...]:
    """Returns the names of all profiles: generic ones first, then those of hardware."""
    return tuple(sorted(_files(""), key=lambda name: (not name.startswith(_GENERIC), name)))


@cache
def refused() -> dict[str, Refused]:
    """Returns refused hardware by name."""
    read = {name: _read(f"refused/{name}.json") for name in sorted(_files("refused"))}
    return {name: msgspec.json.decode(text, type=Refused) for name, text in read.items()}


@cache
def profile(name: str) -> Profile:
    """Returns a profile.

    Raises `UsageError` for refused hardware and for an unknown name, such as one in a bundle of a
    newer edgespec.
    """
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
    """Returns precisions with defaults: a head in int8 or finer, and a float embedding (only the
    rows of used ids are read)."""
    quantised = layers in ("int8", "int4")
    return Precisions(
        layers=layers,
        head=head or ("int8" if quantised else layers),
        embedding=embedding or ("fp16" if quantised else layers),
    )
