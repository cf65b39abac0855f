"""New exit heads and new figures for a bundle that is there, without exporting it again."""

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
from export.publish import beside, described, republish


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
        BundleError: a file of the bundle is missing or damaged, or the new one cannot be written,
            or another model is there meanwhile.
    """
    trained = None if heads is None else read_heads(heads)
    if trained is not None:
        trained.check(bundle.manifest.target.architecture)
    for profile in drafts:
        bundle.draft(profile)
    with beside(bundle) as folder:
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
    """`now`, the manifest that is there, with what was measured of `bundle`."""
    of = bundle.manifest
    if _measured(of, drafts) != _measured(now, drafts):
        raise BundleError(
            f"{bundle.folder} was exported again meanwhile, and the figures are of what was there; "
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
    """What figures depend on: the target, where its exits are, and these drafts."""
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
    return numbers(norm.const_value)
