"""Who drafts on the device: a model of the bundle, the text itself (prompt lookup), or nobody."""

from __future__ import annotations

from edgespec.config import NGRAM, NO_DRAFTER
from edgespec.errors import EngineError, UsageError
from edgespec.manifest import Bundle
from edgespec.profiles import runs_graphs
from engines.backends import open_draft
from engines.drafting import SLOTS, Drafter, ModelDrafter, NgramDrafter, NoDrafter

COMPAT = "cpu-compat"
"""The profile whose drafts an old ONNX Runtime runs."""


def open_drafter(bundle: Bundle, name: str, threads: int) -> Drafter:
    """The drafter of that name: a profile of the bundle, `ngram` or `none`.

    `threads` 0 is what the profile says. An empty name takes the first draft of the bundle that the
    installed ONNX Runtime runs, or `ngram` where it has no draft.

    Raises:
        UsageError: there is no draft of that name.
        EngineError: no draft of the bundle runs here.
    """
    name = name or default_drafter(bundle)
    if name == NGRAM:
        return NgramDrafter()
    if name == NO_DRAFTER:
        return NoDrafter()
    if name not in bundle.manifest.drafts:
        there = ", ".join([*sorted(bundle.manifest.drafts), NGRAM, NO_DRAFTER])
        raise UsageError(f"{bundle.folder} has no draft for {name!r}; choose one of: {there}")
    engine = open_draft(bundle, name, threads, SLOTS)
    return ModelDrafter(engine, name, bundle.draft(name).calibration)


def default_drafter(bundle: Bundle) -> str:
    """Whom `open_drafter` takes without a name. Raises `EngineError` where no draft runs here."""
    drafts = bundle.manifest.drafts
    if not drafts:
        return NGRAM
    import onnxruntime  # only where a model drafts

    version = onnxruntime.__version__
    for name, draft in drafts.items():
        if runs_graphs(version, draft.opset):
            return name
    raise EngineError(
        f"ONNX Runtime {version} is too old for the drafts of {bundle.folder} "
        f"({', '.join(drafts)}); export one more with --profile {COMPAT}, "
        f"or use --drafter {NGRAM}"
    )
