"""New exit heads and new figures for a bundle that is there, without exporting it again.

The bundle is republished as a whole: what stays is linked into the new folder, so neither time nor
space is spent on weights, and devices that read the old one go on reading it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy.typing as npt
import onnx_ir as ir

from edgespec.errors import BundleError
from edgespec.manifest import MANIFEST, Bundle, Calibration, Draft, File, Segment
from export.heads import FINAL_NORM, ExitHeads, exit_graph, read_heads
from export.publish import described, published_bundle, write_manifest


def install(
    bundle: Bundle,
    heads: Path | None,
    drafts: Mapping[str, Calibration],
    agreement: float | None,
) -> Bundle:
    """Replaces what is given in `bundle` and opens it again.

    `heads` replaces all exit heads: a border for which the file has none gets the untrained one.
    `drafts` gives figures by profile, `agreement` the target's with its original. None, or a
    profile that is not named, leaves what is there.

    Raises:
        CheckpointError: `heads` cannot be read.
        UsageError: the heads are another target's, or a profile is not in the bundle.
        BundleError: a file of the bundle is missing or damaged, or the new one cannot be written.
    """
    manifest = bundle.manifest
    trained = None if heads is None else read_heads(heads)
    if trained is not None:
        trained.check(manifest.target.architecture)
    measured = {profile: bundle.draft(profile) for profile in drafts}
    with published_bundle(bundle.folder.resolve(), force=True) as folder:
        new = {} if trained is None else _write_exits(bundle, trained, folder)
        for name in manifest.files.keys() - new:
            link(bundle.path(name), folder / name)
        _keep_the_rest(bundle, folder)
        target = msgspec.structs.replace(
            manifest.target,
            segments=[_segment(segment, trained) for segment in manifest.target.segments],
            agreement=manifest.target.agreement if agreement is None else agreement,
        )
        write_manifest(
            folder,
            msgspec.structs.replace(
                manifest,
                target=target,
                drafts={**manifest.drafts, **_calibrated(measured, drafts)},
                files={**manifest.files, **new},
            ),
        )
    return Bundle.open(bundle.folder)


def _calibrated(
    drafts: Mapping[str, Draft], figures: Mapping[str, Calibration]
) -> dict[str, Draft]:
    return {
        profile: msgspec.structs.replace(draft, calibration=figures[profile])
        for profile, draft in drafts.items()
    }


def _segment(segment: Segment, trained: ExitHeads | None) -> Segment:
    if trained is None or not segment.exit:
        return segment
    return msgspec.structs.replace(segment, calibration=trained.calibration.get(segment.end))


def _write_exits(bundle: Bundle, trained: ExitHeads, folder: Path) -> dict[str, File]:
    """The graphs of all exits below `folder`, and what they are."""
    target, files = bundle.manifest.target, {}
    for segment in target.segments:
        if segment.exit:
            model = exit_graph(
                target.architecture,
                target.precisions,
                segment.end,
                _final_norm(bundle, segment.exit),
                trained.adapters.get(segment.end),
                file=Path(segment.exit).stem,
                opset=target.opset,
            )
            path = folder / segment.exit
            path.parent.mkdir(parents=True, exist_ok=True)
            ir.save(model, path)
            files[segment.exit] = described(path)
    return files


def _final_norm(bundle: Bundle, exit: str) -> npt.NDArray[Any]:
    """The target's final norm [hidden], from the exit that is there."""
    single = {exit: bundle.manifest.files[exit]}
    Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, files=single)).check()
    norm = ir.load(bundle.path(exit)).graph.initializers.get(FINAL_NORM)
    if norm is None or norm.const_value is None:
        raise BundleError(f"{bundle.path(exit)} has no {FINAL_NORM}; export the bundle again")
    return norm.const_value.numpy()


def _keep_the_rest(bundle: Bundle, folder: Path) -> None:
    """What users keep inside a bundle is theirs, and moves over."""
    for path in bundle.folder.resolve().rglob("*"):
        place = folder / path.relative_to(bundle.folder.resolve())
        if path.is_file() and path.name != MANIFEST and not place.exists():
            link(path, place)


def link(source: Path, place: Path) -> None:
    """A second name for the file where the disk has such, a copy elsewhere."""
    if not source.is_file():
        raise BundleError(f"{source} is missing; export the bundle again")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)
