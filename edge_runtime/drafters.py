"""Who drafts on the device: a model of the bundle, the text itself (prompt lookup), or nobody."""

from __future__ import annotations

from edgespec.config import NGRAM, NO_DRAFTER
from edgespec.errors import UsageError
from edgespec.manifest import Bundle
from engines.drafting import SLOTS, Drafter, ModelDrafter, NgramDrafter, NoDrafter


def open_drafter(bundle: Bundle, name: str, threads: int) -> Drafter:
    """The drafter of that name: a profile of the bundle, `ngram` or `none`.

    `threads` 0 is what the profile says. An empty name takes the bundle's first profile, or `ngram`
    where it has no draft.
    """
    name = name or bundle.manifest.default_draft or NGRAM
    if name == NGRAM:
        return NgramDrafter()
    if name == NO_DRAFTER:
        return NoDrafter()
    if name not in bundle.manifest.drafts:
        there = ", ".join([*sorted(bundle.manifest.drafts), NGRAM, NO_DRAFTER])
        raise UsageError(f"{bundle.folder} has no draft for {name!r}; choose one of: {there}")
    from engines.ort import device_settings, load_draft  # ONNX Runtime only where a model drafts

    engine = load_draft(bundle, name, device_settings(name, threads, slots=SLOTS))
    return ModelDrafter(engine, name, bundle.draft(name).calibration)
