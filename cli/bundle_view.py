"""`edgespec inspect`: the content of a bundle, as tables or as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from edgespec.manifest import Bundle, Calibration, DraftInfo, File, Manifest, Origin, Target
from edgespec.plain_text import plain
from edgespec.progress import progress
from edgespec.text import CHAT_TEMPLATE


def inspect(folder: Path, *, verify: bool, as_json: bool, verify_key: Path | None = None) -> None:
    """Prints the bundle at `folder` to standard output.

    `verify` first compares every file with its checksum; `verify_key` first checks the signature,
    and then the same. Raises `BundleError` for an incomplete or damaged bundle, or another
    signature.
    """
    bundle = Bundle.open(folder, verify_key)
    verify = verify or verify_key is not None
    manifest = bundle.manifest
    if verify:
        _verify(bundle)
    if as_json:
        document = msgspec.to_builtins(manifest)
        document["target_fingerprint"] = manifest.target_fingerprint
        print(json.dumps(document | ({"verified": True} if verify else {})))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(f"{folder}: {_megabytes(manifest, '')}, made by {plain(manifest.made_by)}")
    for title, table in (
        ("target", _target(manifest)),
        ("segments", _segments(manifest.target)),
        ("drafts", _drafts(manifest)),
        ("tokenizer", _tokenizer(manifest)),
    ):
        console.print(f"\n{title}", style="bold")
        console.print(table)
    if manifest.engines:
        console.print("\nengines", style="bold")
        console.print(_engines(manifest))
    if verify:
        console.print(f"\nall {len(_here(bundle))} files agree with their checksums")
    if verify_key is not None:
        console.print(f"signed by the owner of {verify_key}")
    if not bundle.path("target").exists():
        console.print("the target's files are not here: enough for a device, not for a cloud")


def _here(bundle: Bundle) -> dict[str, File]:
    """Files that must exist: all, or on a device without `target/` all others."""
    files = bundle.manifest.files
    if bundle.path("target").exists():
        return files
    return {name: file for name, file in files.items() if not name.startswith("target/")}


def _verify(bundle: Bundle) -> None:
    files = _here(bundle)
    with progress("verifying", sum(file.size for file in files.values())) as advance:
        for name, file in sorted(files.items()):
            single = msgspec.structs.replace(bundle.manifest, files={name: file})
            Bundle(bundle.folder, single).check(engines=True)
            advance(file.size)


def _target(manifest: Manifest) -> Table:
    target, shapes = manifest.target, manifest.target.architecture
    agreement = []
    if target.agreement is not None:
        agreement = [("agreement", f"{target.agreement:.1%} with the original")]
    return _facts(
        ("origin", _origin(target.origin)),
        ("family", shapes.family),
        ("precision", str(target.precisions)),
        *agreement,
        ("opset", str(target.opset)),
        ("layers", str(shapes.layers)),
        ("hidden", f"{shapes.hidden} (feed-forward {shapes.intermediate})"),
        ("heads", f"{shapes.heads} of {shapes.head_dim}, {shapes.kv_heads} for keys and values"),
        ("vocabulary", f"{shapes.vocabulary} ({'tied' if shapes.tied else 'untied'} head)"),
        ("context", f"{manifest.context} positions, {shapes.context} in the model"),
        ("fingerprint", manifest.target_fingerprint),
        ("size", _megabytes(manifest, "target/")),
    )


def _segments(target: Target) -> Table:
    figures = _figures([segment.calibration for segment in target.segments])
    table = _table("layers", "graph", "exit head", *figures)
    for segment in target.segments:
        layers = f"[{segment.start}, {segment.end})"
        shown = _figures([segment.calibration]).values() or [""] * len(figures)
        table.add_row(layers, segment.graph, segment.exit or "none", *shown)
    table.add_row("head", target.head, "")
    return table


def _drafts(manifest: Manifest) -> Table:
    drafts = sorted(manifest.drafts.items())
    figures = _figures([draft.calibration for _, draft in drafts])
    trimmed = any(draft.vocabulary < draft.architecture.vocabulary for _, draft in drafts)
    heads = ["head rows"] if trimmed else []
    table = _table("profile", "origin", "precision", "layers", "opset", "size", *heads, *figures)
    for profile, draft in drafts:
        rows = [str(draft.vocabulary)] if trimmed else []
        shown = _figures([draft.calibration]).values() or [""] * len(figures)
        size = _megabytes(manifest, f"draft/{profile}/")
        table.add_row(profile, *_draft(draft), size, *rows, *shown)
    table.add_row("ngram", "prompt lookup", "", "", "", "needs no model")
    return table


def _engines(manifest: Manifest) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("engine", no_wrap=True)
    table.add_column("")
    for engine in manifest.engines:
        room = [f"{engine.capacity} positions"] if engine.capacity else []
        gpu = [f"compute capability {engine.capability}"] if engine.capability else []
        facts = [
            *room, engine.floats, f"profile {engine.profile}", f"{engine.api} {engine.version}",
            engine.platform, *gpu, _megabytes(manifest, engine.file),
        ]  # fmt: skip
        table.add_row(engine.file, ", ".join(facts))
    return table


def _figures(calibrations: Sequence[Calibration | None]) -> dict[str, str]:
    """Column titles and figures of the first calibration that is not None; empty without one."""
    for one in calibrations:
        if one is not None:
            return {"agreement": f"{one.agreement:.1%}", "calibration error": f"{one.error:.3f}"}
    return {}


def _draft(draft: DraftInfo) -> tuple[str, str, str, str]:
    layers = str(draft.architecture.layers)
    opset = str(draft.opset) if draft.is_graph else "GGUF"
    return _origin(draft.origin), str(draft.precisions), layers, opset


def _tokenizer(manifest: Manifest) -> Table:
    text = manifest.text
    return _facts(
        ("fingerprint", text.fingerprint),
        ("vocabulary", str(text.vocabulary)),
        ("end ids", ", ".join(map(str, text.end_ids)) or "none"),
        ("chat template", "yes" if CHAT_TEMPLATE in manifest.files else "no"),
    )


def _origin(origin: Origin) -> str:
    return plain(f"{origin.name} @ {origin.revision}" if origin.revision else origin.name)


def _megabytes(manifest: Manifest, prefix: str) -> str:
    size = sum(file.size for name, file in manifest.files.items() if name.startswith(prefix))
    return f"{size / 1e6:.1f} MB"


def _facts(*facts: tuple[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for fact in facts:
        table.add_row(*fact)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
