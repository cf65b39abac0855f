"""The drafts that could be made, and what can be known of them without training.

- Copies of the target at int8 and int4. Nothing has to be trained: a copy is exported, and its
  agreement is measured on held-out text of the corpus. Training an int4 copy raises that; its
  agreement is then estimated.
- Cuts: drafts of fewer layers. Their step does not depend on the weights, so it is measured on the
  target's first layers, untrained. Their agreement is estimated.

A draft that exceeds the bounds is not measured.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from bench.choice.estimates import INT8_SHARE, DepthCurve, trained_copy
from bench.choice.ranking import Draft
from calibration.decoder import load
from calibration.quantisation.packed import write_checkpoint
from edgespec.architecture import Architecture
from edgespec.checkpoint import Checkpoint
from edgespec.errors import UsageError
from edgespec.manifest import SELF_DRAFT, Bundle
from engines.machine.profiles import profile
from export.bundle import ExportSettings, export

DEPTH_SHARES = (0.2, 0.4, 0.6, 0.8)
"""Default depths of cuts, as shares of the target's layers."""
HELD_RATIOS = {"int8": 1.24, "int4": 1.4}
"""Memory of ONNX Runtime for a matrix, relative to its file (`bench/memory/load.py`)."""
KV_POSITIONS = 2048
"""Positions of the KV cache that a draft's memory includes; fewer for a shorter context."""
TRAINED_COPY = "int4 copy, trained"


class Bounds(NamedTuple):
    """What a draft may take on the device, in bytes; 0: anything."""

    memory: int = 0
    disk: int = 0

    def excess(self, draft: Draft) -> str:
        """What a draft exceeds, as a phrase; empty if it fits."""
        for what, size, most in (
            ("of disk", draft.disk_bytes, self.disk),
            ("of memory", draft.memory_bytes, self.memory),
        ):
            if most and size > most:
                return f"{size / 1e6:.0f} MB {what}, more than {most / 1e6:.0f} MB"
        return ""


class Measured(NamedTuple):
    """What an exported draft does here."""

    agreement: float
    step_ms: float


Measure = Callable[[Bundle, str, bool], Measured]
"""Measures the draft of a profile; its agreement too if the last argument is True, else it is 0."""


@dataclass(frozen=True)
class Space:
    """The candidates for one target and one device."""

    target: str
    """The user's name of the target."""
    checkpoint: Checkpoint
    profile: str
    depths: tuple[int, ...]
    """Layers of the cuts; empty: `DEPTH_SHARES` of the target's."""
    curve: DepthCurve
    bounds: Bounds
    work: Path
    """Folder for bundles, which the caller removes."""

    def profiles(self) -> list[str]:
        """The device's profile, and others that it runs, for copies at int8 and int4."""
        chosen = {profile(self.profile).layers: self.profile}
        for name in profile(self.profile).instead:
            if profile(name).layers in HELD_RATIOS:
                chosen.setdefault(profile(name).layers, name)
        return list(chosen.values())

    def layers(self) -> list[int]:
        """Layers of the cuts. Raises `UsageError` for depths that the target has not."""
        have = self.checkpoint.architecture.layers
        for depth in self.depths:
            if depth >= have:
                raise UsageError(
                    f"--depths {depth} is none of 1 to {have - 1}, as the target has {have} layers"
                )
        shares = {max(1, round(have * share)) for share in DEPTH_SHARES}
        return sorted(set(self.depths) or {depth for depth in shares if depth < have})


def check_profile(name: str) -> None:
    """Raises `UsageError` for a profile that is unknown or needs engines of its own machine."""
    if profile(name).backend == "tensorrt":
        others = ", ".join(profile(name).instead)
        raise UsageError(
            f"--for {name}: a draft for it runs as a TensorRT engine, which 'edgespec build' makes "
            f"on that machine; choose for another profile that it runs: {others}"
        )


def exported(space: Space) -> Bundle:
    """The target with its copies as drafts."""
    drafts = tuple((name, SELF_DRAFT) for name in space.profiles())
    return export(ExportSettings(space.target, space.work / "bundle", drafts=drafts))


def drafts(space: Space, bundle: Bundle, measure: Measure) -> Iterator[tuple[Draft, str]]:
    """Each candidate, and what it exceeds of the bounds; empty if it fits and was measured.

    `bundle` is that of `exported`. A draft that was not measured has a step of 0 ms.
    """
    copies: dict[str, Draft] = {}
    for name in space.profiles():
        copy = _copy(space, bundle, name)
        excess = space.bounds.excess(copy)
        if not excess:
            figures = measure(bundle, name, True)
            copy = replace(copy, agreement=figures.agreement, step_ms=figures.step_ms)
        copies[profile(name).layers] = copy
        yield copy, excess
    if "int4" in copies and copies["int4"].step_ms:
        trained = _trained(space, copies["int4"], copies.get("int8", copies["int4"]))
        yield trained, space.bounds.excess(trained)
        copies["int4"] = trained
    same = copies[profile(space.profile).layers]
    most = same.agreement if same.step_ms else 1.0
    for depth in space.layers():
        shallow = _cut(space, depth)
        cut = _shallow(space, shallow, depth, most)
        excess = space.bounds.excess(cut)
        if not excess:
            cut = replace(cut, step_ms=measure(shallow, space.profile, False).step_ms)
        yield cut, excess


def _cut(space: Space, depth: int) -> Bundle:
    """The target's first layers as a draft. A bundle has a target, so they are that too, as small
    as the draft."""
    folder, chosen = space.work / f"cut-{depth}", profile(space.profile)
    write_checkpoint(folder, load(space.checkpoint, range(depth)), space.checkpoint.tokenizer)
    return export(
        ExportSettings(
            str(folder),
            space.work / f"bundle-{depth}",
            precisions=chosen.precisions,
            drafts=((space.profile, SELF_DRAFT),),
        )
    )


def _copy(space: Space, bundle: Bundle, name: str) -> Draft:
    disk, memory = _sizes(bundle, name)
    return Draft(
        name=f"{profile(name).layers} copy",
        profile=name,
        layers=space.checkpoint.architecture.layers,
        disk_bytes=disk,
        memory_bytes=memory,
        agreement=0.0,
        estimate="",
        step_ms=0.0,
        commands=(_export(space, SELF_DRAFT, name),),
    )


def _trained(space: Space, int4: Draft, int8: Draft) -> Draft:
    """An int4 copy after training, some of whose matrices are stored at int8."""

    def between(few: float, many: float) -> float:
        return few + INT8_SHARE * (many - few)

    folder = "draft-int4"
    return Draft(
        name=TRAINED_COPY,
        profile=int4.profile,
        layers=int4.layers,
        disk_bytes=round(between(int4.disk_bytes, int8.disk_bytes)),
        memory_bytes=round(between(int4.memory_bytes, int8.memory_bytes)),
        agreement=trained_copy(int4.agreement),
        estimate="the rounded copy",
        step_ms=between(int4.step_ms, int8.step_ms or int4.step_ms),
        commands=(
            _command("distill", space.target, "--depth", "all", "--out", folder),
            _export(space, folder, int4.profile),
        ),
    )


def _shallow(space: Space, bundle: Bundle, depth: int, most: float) -> Draft:
    """A draft of fewer layers. It agrees no more often than a copy of the same precision,
    trained if it is int4."""
    share = depth / space.checkpoint.architecture.layers
    disk, memory = _sizes(bundle, space.profile)
    commands = [_command("distill", space.target, "--depth", str(depth), "--out", "draft")]
    folder = "draft"
    if profile(space.profile).layers == "int4":
        folder = "draft-int4"
        commands.append(_command("quantise", "draft", "--target", space.target, "--out", folder))
    return Draft(
        name=f"{depth} layers",
        profile=space.profile,
        layers=depth,
        disk_bytes=disk,
        memory_bytes=memory,
        agreement=min(most, space.curve.agreement(share)),
        estimate=space.curve.source,
        step_ms=0.0,
        commands=(*commands, _export(space, folder, space.profile)),
    )


def _export(space: Space, draft: str, name: str) -> str:
    return _command("export", space.target, "--draft", draft, "--profile", name, "--out", "bundle")


def _command(*words: str) -> str:
    return shlex.join(["edgespec", *words])


def _sizes(bundle: Bundle, name: str) -> tuple[int, int]:
    """Bytes of a draft's files with the tokenizer, and of its weights and KV cache in memory."""
    files = {path: file.size for path, file in bundle.manifest.files.items()}
    draft = {path: size for path, size in files.items() if path.startswith(f"draft/{name}/")}
    tokenizer = sum(size for path, size in files.items() if path.startswith("tokenizer/"))
    ratio = HELD_RATIOS.get(profile(name).layers, 1.0)
    held = sum(size * (1.0 if "embedding" in path else ratio) for path, size in draft.items())
    shapes = bundle.draft(name).architecture
    positions = min(KV_POSITIONS, bundle.manifest.context)
    return sum(draft.values()) + tokenizer, round(held + _kv_bytes(shapes, positions))


def _kv_bytes(shapes: Architecture, positions: int) -> int:
    """Keys and values in float32."""
    return 2 * 4 * shapes.layers * shapes.kv_heads * shapes.head_dim * positions
