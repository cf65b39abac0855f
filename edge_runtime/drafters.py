"""Who drafts on the device: a model of the bundle, the text itself (prompt lookup), or nobody."""

from __future__ import annotations

import logging

from edgespec.config import NGRAM, NO_DRAFTER
from edgespec.errors import EngineError, UsageError
from edgespec.manifest import Bundle
from engines.backends import open_draft
from engines.drafters.base import Drafter
from engines.drafters.model import SESSION_BRANCHES, ModelDrafter
from engines.drafters.ngram import NgramDrafter
from engines.drafters.none import NoDrafter
from engines.machine import profiles

log = logging.getLogger("edgespec.edge")


def open_drafter(bundle: Bundle, name: str, threads: int) -> Drafter:
    """The drafter of that name: a profile of the bundle, `ngram` or `none`; without a name,
    `default_drafter`. `threads` 0 is what the profile says.

    Raises:
        UsageError: there is no draft of that name.
        EngineError: the draft cannot run here; without a name, no draft of the bundle can.
    """
    if not name:
        return default_drafter(bundle, threads)
    if name == NGRAM:
        return NgramDrafter()
    if name == NO_DRAFTER:
        return NoDrafter()
    if name not in bundle.manifest.drafts:
        there = ", ".join([*sorted(bundle.manifest.drafts), NGRAM, NO_DRAFTER])
        raise UsageError(f"{bundle.folder} has no draft for {name!r}; choose one of: {there}")
    engine = open_draft(bundle, name, threads, SESSION_BRANCHES)
    return ModelDrafter(engine, name, bundle.draft(name).calibration)


def default_drafter(bundle: Bundle, threads: int) -> Drafter:
    """The first draft of the bundle that can be opened here, or prompt lookup where it has none.

    A draft of a TensorRT profile needs TensorRT, a GPU and engines that match both; any other needs
    an ONNX Runtime that runs its opset. Why a draft was passed over is a warning in the log, which
    Python shows on standard error. Raises `EngineError` where no draft can be opened.
    """
    drafts = bundle.manifest.drafts
    if not drafts:
        return NgramDrafter()
    reasons: dict[str, str] = {}
    for name in drafts:
        try:
            _refuse_too_old(bundle, name)
            drafter = open_drafter(bundle, name, threads)
        except EngineError as error:
            reasons[name] = str(error)
            continue
        for other, reason in reasons.items():
            log.warning("draft %s is taken instead of %s: %s", name, other, reason)
        return drafter
    first = next(iter(drafts))
    raise EngineError(
        f"no draft of {bundle.folder} ({', '.join(drafts)}) runs here; use --drafter {NGRAM}, or "
        f"see to the first: {reasons[first]}"
    )


def _refuse_too_old(bundle: Bundle, name: str) -> None:
    """Before its files are read, which takes a while."""
    if profiles.profile(name).backend != "onnxruntime":
        return
    import onnxruntime  # only where a model drafts

    from engines.onnxruntime_backend.graph import too_old

    draft = bundle.draft(name)
    path = bundle.path(draft.graph)
    if sentence := too_old(onnxruntime.__version__, path, draft.opset, "draft"):
        raise EngineError(sentence)
