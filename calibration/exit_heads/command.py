"""`edgespec calibrate`: trains exit heads, fits confidences, and says where to cut the target.

The bundle is left as it is; what is found here is installed by whoever calls.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from tokenizers import Tokenizer
from torch import nn

from calibration.corpus import Sample
from calibration.decoder import Decoder, load
from calibration.exit_heads.bundle import costs, draft_evidence, target_agreement
from calibration.exit_heads.confidence import Evidence, calibrate
from calibration.exit_heads.evidence import answered, divide, of_exits
from calibration.exit_heads.exits import HEADS, candidates, replace, write_heads
from calibration.exit_heads.plots import agreement_by_layer, reliability_diagram
from calibration.exit_heads.recommend import Bools, Ids, foreseen, recommend
from calibration.exit_heads.report import Exit, Report
from calibration.exit_heads.training import ExitSettings, ExitTrainer
from calibration.target import device, identity, prepare, same_settings
from edgespec.checkpoint import Checkpoint
from edgespec.confidence import Reliability
from edgespec.config import EdgeSettings
from edgespec.errors import UsageError
from edgespec.manifest import Bundle, Calibration
from edgespec.progress import progress
from edgespec.tokenizer import fingerprint
from engines.machine.profiles import precisions

HELD_OUT_TOKENS = 6_000
WORK = "work"
"""Folder of a run that is not finished, beside what it writes."""


@dataclass(frozen=True)
class CalibrateSettings:
    target: str
    """As the user names it; for the command that is recommended."""
    corpus: Path | None = None
    """None: the target's own in the cache."""
    tokens: int = 200_000
    """Of the target's text; the corpus is written on until it has as many."""
    out: Path | None = None
    """None: beside the bundle."""
    device: str = "auto"
    seed: int = 0


class Calibrated(NamedTuple):
    """What is to be installed in the bundle, and what is to be said."""

    heads: Path
    report: Report
    pictures: list[Path]
    """Empty without matplotlib."""


class _Measured(NamedTuple):
    """A head or a draft over the held-out text."""

    evidence: Evidence
    calibration: Calibration
    reliability: list[Reliability]


def run(checkpoint: Checkpoint, bundle: Bundle, settings: CalibrateSettings) -> Calibrated:
    """Trains, measures and writes. Takes up a run that was killed.

    Raises:
        UsageError: the target is not the bundle's or has one layer, a killed run had other
            settings, or there is too little text.
        EdgespecError: the folder cannot be written.
    """
    check_same(checkpoint, bundle)
    borders = [segment.end for segment in bundle.manifest.target.segments[:-1]]
    layers = candidates(checkpoint.architecture.layers, borders)
    where = device(settings.device)
    out = settings.out or bundle.folder.parent / f"{bundle.folder.name}-calibration"
    asked = ExitSettings(layers=tuple(layers), tokens=settings.tokens, seed=settings.seed)
    same_settings(
        out / WORK,
        "settings.json",
        {"target": identity(checkpoint), **msgspec.to_builtins(asked)},
        f"the calibration in {out / WORK}",
        "--out",
    )
    decoder = load(checkpoint).to(where).eval()
    corpus = prepare(
        checkpoint, decoder, settings.corpus, None, settings.tokens, settings.seed, where
    )
    training, held_out = divide(corpus, settings.tokens, HELD_OUT_TOKENS, bundle.manifest.context)
    heads = _train(decoder, asked, out / WORK, training, held_out)
    with progress("measuring exit heads", len(held_out), unit="samples") as advance:
        evidence, plain = of_exits(decoder, heads, held_out, advance)
    exits = {layer: _Measured(found, *calibrate(found)) for layer, found in evidence.items()}
    drafts = {name: _draft(bundle, name, held_out) for name in bundle.manifest.drafts}
    found = _report(bundle, exits, plain, drafts)
    report = msgspec.structs.replace(
        found,
        tokens=sum(map(answered, training)),
        agreement=target_agreement(bundle, decoder, held_out),
        command=_command(settings, bundle, out / HEADS, found.split),
    )
    figures = {layer: found.calibration for layer, found in exits.items()}
    write_heads(out / HEADS, heads, decoder, checkpoint.name, figures)
    document = msgspec.json.format(msgspec.json.encode(report), indent=1)
    replace(out / "calibration.json", document + b"\n")
    pictures = _draw(out, report, exits, drafts)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return Calibrated(out / HEADS, report, pictures)


def check_same(checkpoint: Checkpoint, bundle: Bundle) -> None:
    """Raises `UsageError` naming what a checkpoint and a bundle's target differ in."""
    target = bundle.manifest.target
    pairs: list[tuple[str, object, object]] = [
        (field, getattr(checkpoint.architecture, field), getattr(target.architecture, field))
        for field in target.architecture.__struct_fields__
    ]
    mark = fingerprint(Tokenizer.from_str(checkpoint.tokenizer.json))
    pairs += [
        ("tokenizer", mark[:12], bundle.manifest.text.fingerprint[:12]),
        ("name", checkpoint.name, target.origin.name),
    ]
    for what, ours, theirs in pairs:
        if ours != theirs:
            raise UsageError(
                f"{bundle.folder} was not exported from {checkpoint.name}: its target has {what} "
                f"{theirs} and this one {ours}; give the target that the bundle was made of"
            )


def _train(
    decoder: Decoder,
    asked: ExitSettings,
    folder: Path,
    training: Sequence[Sample],
    held_out: Sequence[Sample],
) -> nn.ModuleDict:
    trainer = ExitTrainer(decoder, asked, folder)
    trainer.resume()
    windows = trainer.windows(training)
    with progress("exit heads", len(windows), unit="windows") as advance:
        trainer.run(windows, held_out, advance)
    return trainer.heads


def _draft(bundle: Bundle, name: str, samples: Sequence[Sample]) -> _Measured:
    evidence = draft_evidence(bundle, name, samples)
    return _Measured(evidence, *calibrate(evidence))


def _report(
    bundle: Bundle,
    exits: Mapping[int, _Measured],
    plain: Mapping[int, float],
    drafts: Mapping[str, _Measured],
) -> Report:
    """Replays rounds of the bundle's first draft on the held-out text. Without any draft a round
    is the target's next token alone."""
    drafted = drafts.get(bundle.manifest.default_draft)
    length = EdgeSettings().draft_length if drafted else 0
    wanted = next(iter(exits.values())).evidence.answers("target")
    own = drafted.evidence.answers("tokens") if drafted else wanted

    def named(guesses: Sequence[Ids]) -> Bools:
        rounds = zip(guesses, own, wanted, strict=True)
        return np.concatenate([foreseen(g, d, t, length) for g, d, t in rounds])

    right = {layer: named(found.evidence.answers("tokens")) for layer, found in exits.items()}
    known = named(own) if drafted else np.zeros_like(next(iter(right.values())))
    price = costs(bundle, length)
    best = recommend(right, known, price)
    return Report(
        target=bundle.manifest.target.origin.name,
        layers=price.layers,
        exits=[
            Exit(
                layer=layer,
                untrained=plain[layer],
                calibration=found.calibration,
                remaining=price.remaining(layer) / price.verify,
                foreseen=float((right[layer] & ~known).sum() / max(1, len(known))),
                value=best.alone[layer],
            )
            for layer, found in exits.items()
        ],
        drafts={name: found.calibration for name, found in drafts.items()},
        verify_ms=price.verify,
        head_ms=price.head,
        draft_ms=price.need if drafted else 0.0,
        draft_length=length,
        split=best.split,
        value=best.value,
    )


def _command(settings: CalibrateSettings, bundle: Bundle, heads: Path, split: Sequence[int]) -> str:
    """Exports the target as recommended, in the precision that it has, beside the bundle."""
    chosen = bundle.manifest.target.precisions
    words = ["edgespec", "export", settings.target, "--out", f"{bundle.folder}-split"]
    if split:
        words += ["--split", ",".join(map(str, split)), "--exit-heads", str(heads)]
    if chosen != precisions("fp32"):
        words += ["--precision", chosen.layers, "--head-precision", chosen.head]
        words += ["--embedding-precision", chosen.embedding]
    return shlex.join(words)


def _draw(
    out: Path, report: Report, exits: Mapping[int, _Measured], drafts: Mapping[str, _Measured]
) -> list[Path]:
    """The pictures; none without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    layers, reliable = out / "agreement-by-layer.png", out / "reliability.png"
    agreement_by_layer(
        layers,
        {leaving.layer: leaving.untrained for leaving in report.exits},
        {leaving.layer: leaving.calibration.agreement for leaving in report.exits},
        report.split,
        report.layers,
    )
    shown = report.split or sorted(exits)[:: max(1, len(exits) // 3)]
    reliability_diagram(
        reliable,
        {f"exit {layer}": exits[layer].reliability for layer in shown}
        | {f"draft {name}": found.reliability for name, found in drafts.items()},
    )
    return [layers, reliable]
