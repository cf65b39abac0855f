"""Opening the device's drafter: a model of the bundle, prompt lookup, or none."""

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


def open_drafter(
    bundle: Bundle, name: str, threads: int, answers: int = 1, *, alone: bool = False
) -> Drafter:
    """The drafter of that name: a profile of the bundle, `ngram` or `none`; `default_drafter` if
    the name is empty. `threads` 0 takes the profile's number. `answers` is the number of answers
    whose branches keep slots at once. `alone`: no cloud computes on this machine's cores.

    Raises:
        UsageError: there is no draft of that name.
        EngineError: the draft cannot run here; without a name, no draft of the bundle can.
    """
    if not name:
        return default_drafter(bundle, threads, answers, alone=alone)
    if name == NGRAM:
        return NgramDrafter()
    if name == NO_DRAFTER:
        return NoDrafter()
    if name not in bundle.manifest.drafts:
        known = ", ".join([*sorted(bundle.manifest.drafts), NGRAM, NO_DRAFTER])
        raise UsageError(f"{bundle.folder} has no draft for {name!r}; choose one of: {known}")
    engine = open_draft(bundle, name, threads, answers * SESSION_BRANCHES, alone=alone)
    return ModelDrafter(engine, name, bundle.draft(name).calibration)


def default_drafter(
    bundle: Bundle, threads: int, answers: int = 1, *, alone: bool = False
) -> Drafter:
    """The first draft of the bundle that can be opened here, or prompt lookup if it has none.

    A draft of a TensorRT profile needs TensorRT, a GPU and engines that match both; any other draft
    needs an ONNX Runtime that runs its opset. A warning in the log says why a draft was not taken.
    Raises `EngineError` if no draft can be opened.
    """
    drafts = bundle.manifest.drafts
    if not drafts:
        return NgramDrafter()
    reasons: dict[str, str] = {}
    for name in drafts:
        try:
            _check_opset(bundle, name)
            drafter = open_drafter(bundle, name, threads, answers, alone=alone)
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


def _check_opset(bundle: Bundle, name: str) -> None:
    """Raises `EngineError` if ONNX Runtime is too old for a draft, before its files are read."""
    if profiles.profile(name).backend != "onnxruntime":
        return
    import onnxruntime  # only if a model drafts

    from engines.onnxruntime_backend.graph import too_old

    draft = bundle.draft(name)
    path = bundle.path(draft.graph)
    if sentence := too_old(onnxruntime.__version__, path, draft.opset, "draft"):
        raise EngineError(sentence)
