"""The bundle: the folder that `export` writes and both runtimes read.

    manifest.json                 what is here, how it was made, and a SHA-256 for every file
    manifest.json.sig             its signature, if the bundle was signed
    tokenizer/tokenizer.json      and chat_template.jinja where the model has one
    draft/<profile>/model.onnx    ids in, choices out; or model.gguf for llama.cpp
    target/segment-NN.onnx        embedding and layers [0, a), then [a, b), …
    target/exit-NN.onnx           hidden state after segment NN -> features
    target/head.onnx              features -> logits, arg-max, top-k; shared by the exit heads
    …/*.data                      the weights, in the folder of the graphs that use them
    …/<graph>-<capacity>.engine   a TensorRT engine of a graph, if one was built

A bundle is written under a hidden name and then renamed, so a folder with a manifest is complete.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgespec.architecture import LARGEST_LAYERS, LARGEST_SIZE, Architecture, Size
from edgespec.bundle_paths import check_paths
from edgespec.errors import BundleError, UsageError
from edgespec.signing import verify

SCHEMA = 3
MANIFEST = "manifest.json"
SELF_DRAFT = "self"

MAIN_OPSET = 24
"""ONNX opset of the graphs, for ONNX Runtime 1.25 and TensorRT 11 or later."""
COMPAT_OPSET = 21
"""ONNX opset of the same graphs in plain operators, for older runtimes."""

Precision = Literal["fp32", "fp16", "int8", "int4"]
TensorrtApi = Literal["tensorrt", "tensorrt_rtx"]
HalfFloat = Literal["fp16", "bf16"]
Index = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_SIZE)]
"""A token id, a number of rows, or 0 for none."""
Layer = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_LAYERS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Range = tuple[Index, Index, Index]
"""Smallest, usual and largest value."""


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Precisions(_Struct, frozen=True):
    """Precisions of stored weights. Activations are fp16 if the layers are fp16, else fp32."""

    layers: Precision
    head: Precision
    embedding: Precision

    def __str__(self) -> str:
        return f"{self.layers} (head {self.head}, embedding {self.embedding})"


class File(_Struct, frozen=True):
    sha256: str
    size: Count


class Origin(_Struct, frozen=True):
    """Source of a model: its name, and the hub's commit or an empty text."""

    name: str
    revision: str


class Calibration(_Struct, frozen=True):
    """Measured agreement of a draft or an exit head with the target, and its confidences.

    The confidence of its likeliest token is `sigmoid(slope * log_odds + offset)`; see
    `edgespec.confidence`. Measured on `tokens` held-out tokens.
    """

    agreement: float
    slope: float
    offset: float
    error: float
    """Expected calibration error of the confidences."""
    tokens: Count


class Segment(_Struct, frozen=True):
    """Layers `[start, end)`; `exit` is the graph of the exit head after it, if any."""

    start: Layer
    end: Layer
    graph: str
    exit: str = ""
    calibration: Calibration | None = None
    """Calibration of the exit head."""


class Target(_Struct, frozen=True):
    origin: Origin
    architecture: Architecture
    precisions: Precisions
    segments: list[Segment]
    head: str
    opset: Index = MAIN_OPSET
    agreement: float | None = None
    """Share of tokens that equal the original model's at these precisions; None: not measured."""

    @property
    def exits(self) -> list[int]:
        """Layers that are followed by an exit head."""
        return [s.end for s in self.segments if s.exit]


class DraftInfo(_Struct, frozen=True):
    origin: Origin
    architecture: Architecture
    precisions: Precisions
    graph: str
    """ONNX graph, or the GGUF file of a draft for llama.cpp."""
    vocabulary: Size
    """Rows of the head; fewer than the architecture's vocabulary if the draft was trimmed."""
    opset: Index = MAIN_OPSET
    calibration: Calibration | None = None

    @property
    def is_graph(self) -> bool:
        return not self.graph.endswith(".gguf")


class Shapes(_Struct, frozen=True):
    """Input shapes that one optimisation profile of an engine accepts."""

    batch: Range
    tokens: Range
    """New tokens per row, padding included."""
    selected: Range
    """Tokens for which the head computes logits."""

    def take(self, batch: int, tokens: int, selected: int = 1) -> bool:
        given = ((self.batch, batch), (self.tokens, tokens), (self.selected, selected))
        return all(span[0] <= size <= span[2] for span, size in given)


class Built(_Struct, frozen=True):
    """An engine that one TensorRT version built from one graph, for one capacity and machine."""

    graph: str
    file: str
    capacity: Index
    """Tokens in a slot; 0 for a graph without a KV cache."""
    profile: str
    """Hardware profile that the engine was built for."""
    sources: dict[str, str]
    """SHA-256 of the graph and its data files, by path."""
    api: TensorrtApi
    version: str
    capability: str
    """CUDA compute capability of the GPU, as in 8.7; empty: any."""
    platform: str
    """Operating system and architecture, as in linux-aarch64."""
    floats: HalfFloat
    """Type of activations, caches and float weights in the engine, independent of the graph."""
    shapes: list[Shapes]
    """Shapes of the optimisation profiles, in order."""


class TokenizerInfo(_Struct, frozen=True):
    """Facts about the tokenizer that its file does not hold."""

    fingerprint: str
    vocabulary: Size
    bos: str
    eos: str
    end_ids: list[Index]


class Manifest(_Struct, frozen=True):
    schema: int
    made_by: str
    """Name and version of the program that wrote it."""
    context: Size
    """Positions in the rotary tables."""
    text: TokenizerInfo
    target: Target
    drafts: dict[str, DraftInfo]
    """Drafts by profile."""
    files: dict[str, File]
    """Files by path relative to the bundle."""
    engines: list[Built] = []
    """Engines that `edgespec build` made; `files` lists them too."""
    seal: str = ""
    """SHA-256 of the manifest without this field."""

    def sealed(self) -> Manifest:
        """The manifest with its seal, ready to be written."""
        bare = msgspec.structs.replace(self, seal="")
        digest = hashlib.sha256(msgspec.json.encode(bare)).hexdigest()
        return msgspec.structs.replace(self, seal=digest)

    @property
    def default_draft(self) -> str:
        """Profile of the draft that was exported first; empty without a draft."""
        return next(iter(self.drafts), "")

    @property
    def target_fingerprint(self) -> str:
        """Fingerprint of the target's weights: bundles with the same one give the same answers.

        Exit heads do not count, since hints never decide a token. Engines do not count, since they
        are built from files that do.
        """
        digest = hashlib.sha256()
        left_out = {segment.exit for segment in self.target.segments}
        left_out |= {engine.file for engine in self.engines}
        for path in sorted(self.files):
            if path.startswith("target/") and path not in left_out:
                digest.update(f"{path} {self.files[path].sha256}\n".encode())
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk with its manifest. `check` verifies files before they are used."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path, verify_key: Path | None = None) -> Bundle:
        """Reads the manifest. With `verify_key`, its signature must be by that key's owner.

        Raises `UsageError` if there is no folder, and `BundleError` if the manifest is missing,
        damaged, of another schema, not signed by the key or names files outside the bundle.
        """
        path = folder / MANIFEST
        if not folder.exists():
            raise UsageError(f"there is no bundle at {folder}; make one with 'edgespec export'")
        if not path.is_file():
            raise BundleError(f"{folder} is no bundle: it has no {MANIFEST}")
        try:
            content = path.read_bytes()
            if verify_key is not None:
                verify(folder, content, verify_key)
            schema = msgspec.json.decode(content, type=_SchemaOnly).schema
            if schema != SCHEMA:
                raise BundleError(
                    f"{path} has schema {schema} and this edgespec reads {SCHEMA}; "
                    "export the bundle again"
                )
            manifest = msgspec.json.decode(content, type=Manifest)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, OSError) as error:
            raise BundleError(
                f"{path} cannot be read ({error}); export the bundle again"
            ) from error
        if manifest.seal != manifest.sealed().seal:
            raise BundleError(f"{path} is damaged or was edited; copy or export the bundle again")
        check_paths(folder, manifest)
        return cls(folder, manifest)

    def path(self, name: str) -> Path:
        return self.folder / name

    def check(self, *folders: str, engines: bool = False) -> None:
        """Compares size and SHA-256 of all files in `folders`, or in the bundle without any.

        Engines are optional at run time, so they are checked only if `engines` is set. Raises
        `BundleError` with the name of the first file that is missing or differs.
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

    def draft(self, profile: str) -> DraftInfo:
        """The draft of a profile. Raises `UsageError` that names the existing profiles."""
        if profile not in self.manifest.drafts:
            there = ", ".join(sorted(self.manifest.drafts)) or "none"
            raise UsageError(
                f"{self.folder} has no draft for profile {profile!r} (it has: {there})"
            )
        return self.manifest.drafts[profile]


class _SchemaOnly(msgspec.Struct):
    schema: int


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
