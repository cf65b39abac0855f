"""Replacing exit heads and figures in an existing bundle, without another export."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy.typing as npt
import onnx_ir as ir

from edgespec.errors import BundleError
from edgespec.manifest import Bundle, Calibration, File, Manifest, Segment
from engines.external_data import numbers
from export.heads import FINAL_NORM, ExitHeads, exit_graph, read_heads
from export.publish import described, republish, staging_folder


def install(
    bundle: Bundle,
    heads: Path | None,
    drafts: Mapping[str, Calibration],
    agreement: float | None,
) -> Bundle:
    """Replace what is given in `bundle` and open it again.

    `heads` replaces all exit heads: a border without a head in the file gets the untrained one.
    `drafts` gives figures by profile, `agreement` that of the target with its original. None, or a
    missing profile, keeps the present value.

    Raises:
        CheckpointError: `heads` cannot be read.
        UsageError: the heads belong to another target, or a profile is not in the bundle.
        BundleError: a file of the bundle is missing or damaged, the new bundle cannot be written,
            or another model was exported to the same place in the meantime.
    """
    trained = None if heads is None else read_heads(heads)
    if trained is not None:
        trained.check(bundle.manifest.target.architecture)
    for profile in drafts:
        bundle.draft(profile)
    with staging_folder(bundle) as folder:
        new = {} if trained is None else _write_exits(bundle, trained, folder)
        change = partial(
            _changed, bundle, trained=trained, drafts=drafts, agreement=agreement, new=new
        )
        return republish(bundle, folder, change)


def _changed(
    bundle: Bundle,
    now: Manifest,
    *,
    trained: ExitHeads | None,
    drafts: Mapping[str, Calibration],
    agreement: float | None,
    new: Mapping[str, File],
) -> Manifest:
    """Return the present manifest `now` with the figures measured on `bundle`."""
    before = bundle.manifest
    if _measured(before, drafts) != _measured(now, drafts):
        raise BundleError(
            f"{bundle.folder} was exported again in the meantime, so the figures are out of date; "
            "run the command again"
        )
    for name in sorted(now.files.keys() - new):
        if not bundle.path(name).is_file():
            raise BundleError(f"{bundle.path(name)} is missing; export the bundle again")
    target = msgspec.structs.replace(
        now.target,
        segments=[_segment(segment, trained) for segment in now.target.segments],
        agreement=now.target.agreement if agreement is None else agreement,
    )
    calibrated = {
        profile: msgspec.structs.replace(now.drafts[profile], calibration=figures)
        for profile, figures in drafts.items()
    }
    return msgspec.structs.replace(
        now, target=target, drafts={**now.drafts, **calibrated}, files={**now.files, **new}
    )


def _measured(manifest: Manifest, drafts: Mapping[str, Calibration]) -> object:
    """Return everything that the figures depend on: the target, its exits, and these drafts."""
    engines = {engine.file for engine in manifest.engines}
    places = tuple(f"draft/{profile}/" for profile in drafts)
    files = {
        name: file
        for name, file in manifest.files.items()
        if name.startswith(places) and name not in engines
    }
    exits = [(segment.end, segment.graph, segment.exit) for segment in manifest.target.segments]
    return manifest.target_fingerprint, exits, files, drafts.keys() - manifest.drafts


def _segment(segment: Segment, trained: ExitHeads | None) -> Segment:
    if trained is None or not segment.exit:
        return segment
    return msgspec.structs.replace(segment, calibration=trained.calibration.get(segment.end))


def _write_exits(bundle: Bundle, trained: ExitHeads, folder: Path) -> dict[str, File]:
    """Write the graphs of all exits below `folder`. Return their files by path in the bundle."""
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
    """Read the target's final norm [hidden] from an existing exit."""
    single = {exit: bundle.manifest.files[exit]}
    Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, files=single)).check()
    norm = ir.load(bundle.path(exit)).graph.initializers.get(FINAL_NORM)
    if norm is None or norm.const_value is None:
        raise BundleError(f"{bundle.path(exit)} has no {FINAL_NORM}; export the bundle again")
    return numbers(norm.const_value)
