"""The sentences that end an export: sizes, what int8 would save, and a missing draft."""

from __future__ import annotations

from collections.abc import Iterator

from edgespec.architecture import Architecture
from edgespec.checkpoint import BLOCK_INPUTS
from edgespec.manifest import Bundle, Precision, Precisions
from engines.machine.profiles import precisions

_SCALE_BYTES = 4 / BLOCK_INPUTS
_BYTES_PER_WEIGHT: dict[Precision, float] = {
    "fp32": 4.0,
    "fp16": 2.0,
    "int8": 1.0 + _SCALE_BYTES,
    "int4": 0.5 + _SCALE_BYTES,
}
_LEAST_SAVING = 0.2
"""Fraction of the target's size that int8 must save to be mentioned."""


def sentences(bundle: Bundle, model: str) -> Iterator[str]:
    """Yield what a user should know about a bundle that was exported from `model`."""
    manifest = bundle.manifest
    total = sum(file.size for file in manifest.files.values())
    target = sum(file.size for name, file in manifest.files.items() if name.startswith("target/"))
    smaller = target_bytes(manifest.target.architecture, precisions("int8"), manifest.context)
    saving = ""
    if smaller < (1 - _LEAST_SAVING) * target:
        saving = f"; with --precision int8 the target would be about {_mb(smaller)}"
    yield f"wrote {bundle.folder}: {_mb(total)}, of which target {_mb(target)}{saving}"
    if not manifest.drafts:
        yield (
            "the bundle has no draft, so a device drafts by prompt lookup (--drafter ngram) or not "
            "at all; add a smaller model with the same tokenizer by --draft MODEL, or make one "
            f"with 'edgespec distill {model} --out DRAFT'"
        )


def target_bytes(a: Architecture, chosen: Precisions, context: int) -> int:
    """Estimate the bytes of a target's weights and rotary tables (biases and norms are ignored)."""
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    layer = a.hidden * (2 * queries + 2 * keys + 3 * a.intermediate)
    table = a.vocabulary * a.hidden
    total = a.layers * layer * _BYTES_PER_WEIGHT[chosen.layers]
    total += table * _BYTES_PER_WEIGHT[chosen.embedding]
    if not a.tied or chosen.head != chosen.embedding:
        total += table * _BYTES_PER_WEIGHT[chosen.head]
    return round(total + context * a.head_dim * (2 if chosen.layers == "fp16" else 4))


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
