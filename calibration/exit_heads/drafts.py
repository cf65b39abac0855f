"""`edgespec calibrate --drafts-only`: fitting the confidences of a bundle's drafts."""

from __future__ import annotations

from calibration.decoder import load
from calibration.exit_heads.bundle import draft_evidence
from calibration.exit_heads.command import HELD_OUT_TOKENS, CalibrateSettings, check_same
from calibration.exit_heads.confidence import calibrate
from calibration.exit_heads.evidence import divide
from calibration.target import device, prepare
from edgespec.checkpoint import Checkpoint
from edgespec.errors import UsageError
from edgespec.manifest import Bundle, Calibration


def calibrate_drafts(
    checkpoint: Checkpoint, bundle: Bundle, settings: CalibrateSettings
) -> dict[str, Calibration]:
    """The figures of each draft of the bundle, by profile, on text that the target has written.

    Raises `UsageError` if the target is not the bundle's, there is no draft, or too little text.
    """
    check_same(checkpoint, bundle)
    if not bundle.manifest.drafts:
        raise UsageError(f"{bundle.folder} has no draft to calibrate; export it with --draft")
    where = device(settings.device)
    decoder = load(checkpoint).to(where).eval()
    corpus = prepare(
        checkpoint, decoder, settings.corpus, None, settings.tokens, settings.seed, where
    )
    _, held_out = divide(corpus, settings.tokens, HELD_OUT_TOKENS, bundle.manifest.context)
    return {
        name: calibrate(draft_evidence(bundle, name, held_out))[0]
        for name in bundle.manifest.drafts
    }
