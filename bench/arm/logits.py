"""Logits of a draft after a prompt: `python -m bench.arm.logits BUNDLE PROFILE FILE ID...`.

This module also runs on the device, and needs only the lean install.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.manifest import Bundle
from engines.base import Row, final_choices
from engines.onnxruntime_backend.engine import device_settings, load_draft


def draft_logits(bundle: Bundle, profile: str, ids: Sequence[int]) -> npt.NDArray[Any]:
    """[vocabulary] logits after `ids`, computed on one thread."""
    engine = load_draft(bundle, profile, device_settings(profile, 1))
    (choices,) = final_choices(engine, [Row(engine.open(), 0, list(ids))])
    assert choices is not None
    found: npt.NDArray[Any] = choices.logits[0].astype(np.float32)
    return found


if __name__ == "__main__":
    folder, profile, file, *ids = sys.argv[1:]
    np.save(file, draft_logits(Bundle.open(Path(folder)), profile, [int(word) for word in ids]))
