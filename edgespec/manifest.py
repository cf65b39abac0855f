"""The bundle: the folder that `export` writes and both runtimes read.

    manifest.json                 what is here, how it was made, and a SHA-256 for every file
    tokenizer/tokenizer.json      and chat_template.jinja where the model has one
    draft/<profile>/model.onnx    ids in, choices out
    target/segment-NN.onnx        embedding and layers [0, a), then [a, b), …
    target/exit-NN.onnx           hidden state after segment NN -> features
    target/head.onnx              features -> logits, arg-max, top-k; shared by the exit heads
    …/*.data                      the weights, beside the graphs that use them
    …/<graph>-<capacity>.engine   what TensorRT made of a graph on one machine, where it did

A bundle is written beside its place and renamed into it, so a folder with a manifest is whole.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from edgespec.architecture import Architecture
from edgespec.errors import BundleError, UsageError

SCHEMA = 3
MANIFEST = "manifest.json"
SELF_DRAFT = "self"

MAIN_OPSET = 24
"""Of the graphs that ONNX Runtime 1.25 and TensorRT 11 run."""
COMPAT_OPSET = 21
"""Of the same graphs in plain operators, for what is older."""

Precision = Literal["fp32", "fp16", "int8", "int4"]
TensorrtApi = Literal["tensorrt", "tensorrt_rtx"]
HalfFloat = Literal["fp16", "bf16"]
Range = tuple[int, int, int]
"""Smallest, usual and largest."""


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Precisions(_Struct, frozen=True):
    """How weights are stored. Activations are fp16 where the layers are, fp32 elsewhere."""

    layers: Precision
    head: Precision
    embedding: Precision

    def __str__(self) -> str:
        return f"{self.layers} (head {self.head}, embedding {self.embedding})"


class File(_Struct, frozen=True):
    sha256: str
    size: int


class Origin(_Struct, frozen=True):
    """Where a model came from."""

    name: str
    revision: str


class Calibration(_Struct, frozen=True):
    """How often a draft or an exit head names the target's token, and how well it knows.

    Its confidence is `sigmoid(slope * log_odds + offset)` of its likeliest token: see
    `edgespec.confidence`. Measured on `tokens` tokens that nothing was trained or fitted on.
    """

    agreement: float
    slope: float
    offset: float
    error: float
    """Expected calibration error of the confidences."""
    tokens: int


class Segment(_Struct, frozen=True):
    """Layers `[start, end)`; `exit` is the graph of the exit head after it, if any."""

    start: int
    end: int
    graph: str
    exit: str = ""
    calibration: Calibration | None = None
    """Of the exit head."""


class Target(_Struct, frozen=True):
    origin: Origin
    architecture: Architecture
    precisions: Precisions
    segments: list[Segment]
    head: str
    opset: int = MAIN_OPSET
    agreement: float | None = None
    """Share of tokens on which these precisions name the original's; None: not measured."""

    @property
    def exits(self) -> list[int]:
        """Layers that are followed by an exit head."""
        return [s.end for s in self.segments if s.exit]


class Draft(_Struct, frozen=True):
    origin: Origin
    architecture: Architecture
    precisions: Precisions
    graph: str
    vocabulary: int
    """Rows of its head: fewer than the architecture's where the draft was trimmed to some ids."""
    opset: int = MAIN_OPSET
    calibration: Calibration | None = None


class Shapes(_Struct, frozen=True):
    """The calls that one optimisation profile of an engine takes."""

    batch: Range
    tokens: Range
    """New tokens of each row, pads included."""
    selected: Range
    """Tokens that a head answers for."""

    def take(self, batch: int, tokens: int, selected: int = 1) -> bool:
        given = ((self.batch, batch), (self.tokens, tokens), (self.selected, selected))
        return all(span[0] <= size <= span[2] for span, size in given)


class Built(_Struct, frozen=True):
    """An engine: one graph at one capacity, as one TensorRT built it for one kind of machine."""

    graph: str
    file: str
    capacity: int
    """Positions of a slot; 0 for a graph without a KV cache."""
    profile: str
    """That it was built for."""
    sources: dict[str, str]
    """SHA-256 of the graph and its data files, by path."""
    api: TensorrtApi
    version: str
    capability: str
    """CUDA compute capability of the GPU, as in 8.7; empty: not tied to one."""
    platform: str
    """Operating system and architecture, as in linux-aarch64."""
    floats: HalfFloat
    """The type of activations, caches and float weights, whatever the graph has."""
    shapes: list[Shapes]
    """Of its optimisation profiles, in order."""


class Text(_Struct, frozen=True):
    """What the runtimes must know of the tokenizer besides its file."""

    fingerprint: str
    vocabulary: int
    bos: str
    eos: str
    end_ids: list[int]


class Manifest(_Struct, frozen=True):
    schema: int
    made_by: str
    """edgespec and its version."""
    context: int
    """Positions that the rotary tables hold."""
    text: Text
    target: Target
    drafts: dict[str, Draft]
    """By profile."""
    files: dict[str, File]
    """By path relative to the bundle."""
    engines: list[Built] = []
    """What `edgespec build` made; `files` has them too."""
    seal: str = ""
    """SHA-256 of the rest of the manifest."""

    def sealed(self) -> Manifest:
        """The manifest with its seal, as it is written."""
        bare = msgspec.structs.replace(self, seal="")
        digest = hashlib.sha256(msgspec.json.encode(bare)).hexdigest()
        return msgspec.structs.replace(self, seal=digest)

    @property
    def default_draft(self) -> str:
        """The profile that was exported first; empty without a draft."""
        return next(iter(self.drafts), "")

    @property
    def target_fingerprint(self) -> str:
        """Names the target's weights: two bundles that share it give the same text.

        Exit heads are not among them: a hint never decides anything. Nor are engines, which are
        made of what is.
        """
        digest = hashlib.sha256()
        others = {segment.exit for segment in self.target.segments}
        others |= {engine.file for engine in self.engines}
        for path in sorted(self.files):
            if path.startswith("target/") and path not in others:
                digest.update(f"{path} {self.files[path].sha256}\n".encode())
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest has been read. Files are checked when they are asked for."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Raises `BundleError` where there is no manifest of this schema."""
        path = folder / MANIFEST
        if not folder.exists():
            raise BundleError(f"there is no bundle at {folder}; make one with 'edgespec export'")
        if not path.is_file():
            raise BundleError(f"{folder} is no bundle: it has no {MANIFEST}")
        try:
            schema = msgspec.json.decode(path.read_bytes(), type=_SchemaOnly).schema
            if schema != SCHEMA:
                raise BundleError(
                    f"{path} has schema {schema} and this edgespec reads {SCHEMA}; "
                    "export the bundle again"
                )
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
            raise BundleError(
                f"{path} cannot be read ({error}); export the bundle again"
            ) from error
        if manifest.seal != manifest.sealed().seal:
            raise BundleError(f"{path} is damaged or was edited; copy or export the bundle again")
        return cls(folder, manifest)

    def path(self, name: str) -> Path:
        return self.folder / name

    def check(self, *folders: str, engines: bool = False) -> None:
        """Reads every file below `folders` (all without any) and compares size and SHA-256; built
        engines among them only if asked for, since what runs without them may go without.

        Raises `BundleError` naming the first file that is missing or differs.
        """
        built = set() if engines else {engine.file for engine in self.manifest.engines}
        for name, file in sorted(self.manifest.files.items()):
            if name in built or (
                folders and not name.startswith(tuple(f"{folder}/" for folder in folders))
            ):
                continue
            path = self.path(name)
            if not path.is_file():
                raise BundleError(f"{path} is missing; export the bundle again")
            if path.stat().st_size != file.size or hash_file(path) != file.sha256:
                raise BundleError(
                    f"{path} is damaged: it differs from the manifest's checksum; "
                    "copy or export the bundle again"
                )

    def draft(self, profile: str) -> Draft:
        """Raises `UsageError` naming the profiles that there are."""
        if profile not in self.manifest.drafts:
            there = ", ".join(sorted(self.manifest.drafts)) or "none"
            raise UsageError(
                f"{self.folder} has no draft for profile {profile!r} (it has: {there})"
            )
        return self.manifest.drafts[profile]


class _SchemaOnly(msgspec.Struct):
    schema: int


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
