"""`edgespec calibrate`: training exit heads, fitting confidences, recommending a split.

The bundle is not changed here; the caller installs the results.
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
from calibration.exit_heads.report import CalibrationReport, ExitReport
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
"""Folder of an unfinished run, inside the output folder."""


@dataclass(frozen=True)
class CalibrateSettings:
    """Settings of a calibration."""

    target: str
    """The user's name of the target, for the recommended command."""
    corpus: Path | None = None
    """Folder of a corpus; None: the target's corpus in the cache."""
    tokens: int = 200_000
    """Tokens to train on; a shorter corpus is extended."""
    out: Path | None = None
    """Output folder; None: `<bundle>-calibration`."""
    device: str = "auto"
    seed: int = 0


class Calibrated(NamedTuple):
    """The results: files to install in the bundle, and the report."""

    heads: Path
    report: CalibrationReport
    pictures: list[Path]
    """Plots; empty without matplotlib."""


class _Measured(NamedTuple):
    """Measurements of a head or a draft on the held-out text."""

    evidence: Evidence
    calibration: Calibration
    reliability: list[Reliability]


def run(checkpoint: Checkpoint, bundle: Bundle, settings: CalibrateSettings) -> Calibrated:
    """Train, measure and write the results. Continues a killed run.

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
    """Raise `UsageError` that names a difference between a checkpoint and a bundle's target."""
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
    for what, of_checkpoint, of_bundle in pairs:
        if of_checkpoint != of_bundle:
            raise UsageError(
                f"{bundle.folder} was not exported from {checkpoint.name}: its target has {what} "
                f"{of_bundle} and this one {of_checkpoint}; give the target that the bundle was "
                "made of"
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
) -> CalibrationReport:
    """Replay rounds of the bundle's first draft on the held-out text.

    Without a draft, a round is the target's next token alone.
    """
    drafted = drafts.get(bundle.manifest.default_draft)
    length = EdgeSettings().draft_length if drafted else 0
    target = next(iter(exits.values())).evidence.answers("target")
    own = drafted.evidence.answers("tokens") if drafted else target

    def predicted(guesses: Sequence[Ids]) -> Bools:
        rounds = zip(guesses, own, target, strict=True)
        return np.concatenate([foreseen(g, d, t, length) for g, d, t in rounds])

    right = {layer: predicted(found.evidence.answers("tokens")) for layer, found in exits.items()}
    guessed = predicted(own) if drafted else np.zeros_like(next(iter(right.values())))
    price = costs(bundle, length)
    best = recommend(right, guessed, price)
    return CalibrationReport(
        target=bundle.manifest.target.origin.name,
        layers=price.layers,
        exits=[
            ExitReport(
                layer=layer,
                untrained=plain[layer],
                calibration=found.calibration,
                remaining=price.remaining_ms(layer) / price.verify_ms,
                foreseen=float((right[layer] & ~guessed).sum() / max(1, len(guessed))),
                gain_ms=best.alone_ms[layer],
            )
            for layer, found in exits.items()
        ],
        drafts={name: found.calibration for name, found in drafts.items()},
        verify_ms=price.verify_ms,
        head_ms=price.head_ms,
        draft_ms=price.draft_ms if drafted else 0.0,
        draft_length=length,
        split=best.split,
        gain_ms=best.gain_ms,
    )


def _command(settings: CalibrateSettings, bundle: Bundle, heads: Path, split: Sequence[int]) -> str:
    """Return the command that exports the target as recommended, in its present precision."""
    chosen = bundle.manifest.target.precisions
    words = ["edgespec", "export", settings.target, "--out", f"{bundle.folder}-split"]
    if split:
        words += ["--split", ",".join(map(str, split)), "--exit-heads", str(heads)]
    if chosen != precisions("fp32"):
        words += ["--precision", chosen.layers, "--head-precision", chosen.head]
        words += ["--embedding-precision", chosen.embedding]
    return shlex.join(words)


def _draw(
    out: Path,
    report: CalibrationReport,
    exits: Mapping[int, _Measured],
    drafts: Mapping[str, _Measured],
) -> list[Path]:
    """Draw the plots; none without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    layers, reliable = out / "agreement-by-layer.png", out / "reliability.png"
    agreement_by_layer(
        layers,
        {one.layer: one.untrained for one in report.exits},
        {one.layer: one.calibration.agreement for one in report.exits},
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
