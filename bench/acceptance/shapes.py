"""`edgespec bench shapes`: which draft to make of a target, measured rather than guessed.

Drafts of several depths are trained for the same number of steps on the same text, exported, and
led along the target's answers to the held-out prompts, as `edgespec bench acceptance` does. Each is
timed against the target in the same run, and judged by the tokens a second that it promises under
streaming (`bench.acceptance.lockstep_rounds.expected_speed`).
Drafts that are there already may be put beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench.acceptance.lockstep_rounds import LENGTHS, accepted, expected_speed
from bench.acceptance.run import encode
from bench.acceptance.step_times import medians
from bench.acceptance.teacher_forcing import ROWS, Answer, listen, write
from bench.lab.builtin import builtin_bundle, weights_file
from bench.lab.prompts import first_of_each, read_prompts
from calibration.decoder import load
from calibration.distillation.batches import batch, most_used
from calibration.distillation.distill import DistillSettings, distill, typical
from calibration.distillation.layers import leave_out
from calibration.distillation.training import Schedule
from calibration.quantisation.packed import write_checkpoint
from calibration.target import prepare, same_settings
from edgespec.errors import UsageError
from edgespec.manifest import Bundle
from edgespec.sampling import Sampling
from edgespec.text import Codec
from engines.base import Engine, Row, final_choices
from engines.drafters.base import draft_tokens
from engines.drafters.ngram import NgramDrafter
from engines.machine.doctor import describe
from engines.onnxruntime_backend.engine import OrtSettings, device_settings, load_draft, load_target
from engines.step_times import PAST_TOKENS, RepeatedStep, Step
from export.bundle import ExportSettings, export
from export.sources.open import open_checkpoint

UNSURE = 0.3
"""Confidence below which prompt lookup is asked instead of the draft."""


@dataclass(frozen=True)
class ShapesSettings:
    work: Path
    """Drafts and bundles are kept here; what is there is not made again."""
    corpus: Path | None = None
    tokens: int = 1_000_000
    depths: tuple[int, ...] = (4, 8, 12, 16, 20)
    drafts: tuple[tuple[str, Path], ...] = ()
    """(name, folder) of drafts to compare with."""
    words: tuple[int, ...] = ()
    """Sizes to which the vocabulary of each of `drafts` is trimmed too."""
    profiles: tuple[str, ...] = ("cpu-int8", "cpu-int4")
    steps: int = 30
    rate: float = 5e-4
    limit: int | None = None
    max_tokens: int = 64
    threads: int = 1


@dataclass(frozen=True)
class Shape:
    """A row of the table. Agreements are shares of the held-out answers' tokens, greedy."""

    name: str
    layers: str
    profile: str
    words: int
    megabytes: float
    """The layers' weights and the head's; the embedding is not counted."""
    agreement: float
    with_ngram: float
    """With prompt lookup asked where the draft is unsure."""
    accepted: float
    """Tokens a round at `length`."""
    length: int
    step_ms: float
    step_ratio: float
    """To the target's own single-token step, in the same run."""
    tokens_per_s: float
    """Expected, under streaming."""


def run(settings: ShapesSettings, *, as_json: bool) -> None:
    """Measures, prints a table, and with `as_json` one last line."""
    _check(settings)
    bundle = builtin_bundle()
    target = load_target(bundle, OrtSettings(settings.threads, slots=ROWS + 2))
    verify = _verify_ms(target)
    answers = _answers(bundle, target, settings)
    alone = 1000 / verify[0]
    rows = []
    for name, folder in _drafts(settings):
        made = _exported(settings, name, folder)
        for chosen in settings.profiles:
            rows.append(_measure(name, made, chosen, target, answers, verify, settings))
            Console(stderr=True).print(rows[-1])
    _print(rows, alone)
    if as_json:
        figures: dict[str, Any] = {"shapes": [asdict(row) for row in rows]}
        figures |= {"target_tokens_per_s": alone, "verify_ms": verify, "steps": settings.steps}
        print(json.dumps(figures | {"machine": describe().as_dict()}))


def _check(settings: ShapesSettings) -> None:
    """Before hours of work. Raises `UsageError`."""
    layers = open_checkpoint(str(weights_file())).architecture.layers
    wrong = [depth for depth in settings.depths if not 1 <= depth <= layers]
    if wrong:
        raise UsageError(f"--depths {wrong[0]} is none of the target's 1 to {layers} layers")
    if not settings.depths and not settings.drafts:
        raise UsageError("there is nothing to compare; pass --depths or --draft NAME=FOLDER")
    for name, _ in settings.drafts:
        if not name or "/" in name:
            raise UsageError(f"--draft {name!r} is no name; use letters, as in mine=FOLDER")
    asked: dict[str, object] = {
        "steps": settings.steps,
        "rate": settings.rate,
        "tokens": settings.tokens,
        "drafts": {name: str(path.resolve()) for name, path in settings.drafts},
    }
    same_settings(settings.work, "shapes.json", asked, f"{settings.work}", "--work")


def _drafts(settings: ShapesSettings) -> Iterator[tuple[str, Path]]:
    """Named checkpoints: trained ones by depth, then the user's."""
    source = open_checkpoint(str(weights_file()))
    missing = [d for d in settings.depths if not (settings.work / f"depth-{d}").exists()]
    order: list[int] = []
    if missing:
        decoder, cpu = load(source), torch.device("cpu")
        corpus = prepare(source, decoder, settings.corpus, None, settings.tokens, 0, cpu)
        order = leave_out(decoder, batch(typical(corpus), cpu, answers=True), min(missing))
        del decoder
    everything = range(source.architecture.layers)
    for depth in settings.depths:
        folder = settings.work / f"depth-{depth}"
        if depth in missing:
            gone = order[: len(everything) - depth]
            schedule = Schedule(hours=100, steps=settings.steps, rate=settings.rate)
            wanted = DistillSettings(
                folder,
                layers=tuple(layer for layer in everything if layer not in gone),
                corpus=settings.corpus,
                tokens=settings.tokens,
                schedule=schedule,
                device="cpu",
            )
            for _ in distill(source, wanted):
                pass
        yield f"{depth} layers", folder
    for name, folder in settings.drafts:
        yield name, folder
        for words in settings.words:
            yield f"{name}, {words} words", _trimmed(settings, name, folder, words)


def _trimmed(settings: ShapesSettings, name: str, draft: Path, words: int) -> Path:
    """A copy of `draft` that drafts only the words which the target uses most."""
    folder = settings.work / f"{name}-{words}-words"
    if not folder.exists():
        source = open_checkpoint(str(weights_file()))
        model = open_checkpoint(str(draft), base=source)
        corpus = prepare(
            source, load(source), settings.corpus, None, settings.tokens, 0, torch.device("cpu")
        )
        samples = list(corpus.samples(held_out=False))
        blocks = {name: one for name in model.names() if (one := model.blocks(name)) is not None}
        kept = most_used(samples, source.architecture.vocabulary, words)
        write_checkpoint(folder, load(model), model.tokenizer, kept_ids=kept, blocks=blocks)
    return folder


def _exported(settings: ShapesSettings, name: str, draft: Path) -> Bundle:
    """The draft in a bundle of its own; the target in it is not run, so it is a small one."""
    folder = settings.work / f"bundle-{name.replace(' ', '-')}"
    if folder.exists():
        return Bundle.open(folder)
    drafts = tuple((chosen, str(draft)) for chosen in settings.profiles)
    return export(ExportSettings(str(weights_file()), folder, drafts=drafts))


def _verify_ms(target: Engine) -> list[float]:
    """The target's step for 1, 2, … tokens of one row, in turn."""
    slot = target.open()
    ids = [number % target.vocabulary for number in range(100, 101 + PAST_TOKENS + len(LENGTHS))]
    final_choices(target, [Row(slot, 0, ids[:PAST_TOKENS], 0)])
    steps: dict[str, Step] = {
        str(count): partial(
            final_choices,
            target,
            [Row(slot, PAST_TOKENS, ids[PAST_TOKENS : PAST_TOKENS + count], count)],
        )
        for count in range(1, len(LENGTHS) + 2)
    }
    times = medians(steps)
    target.close(slot)
    return list(times.values())


def _answers(bundle: Bundle, target: Engine, settings: ShapesSettings) -> list[Answer]:
    prompts = first_of_each(read_prompts(None), settings.limit)
    ids = encode(bundle, Codec(bundle), prompts, settings.max_tokens)
    ends = bundle.manifest.text.end_ids
    written = write(target, ids, lambda _: [Sampling()], settings.max_tokens, ends)
    return [answer for answer, _ in written]


def _measure(
    name: str,
    bundle: Bundle,
    chosen: str,
    target: Engine,
    answers: Sequence[Answer],
    verify: Sequence[float],
    settings: ShapesSettings,
) -> Shape:
    engine = load_draft(bundle, chosen, device_settings(chosen, settings.threads, slots=2))
    right, helped, slot = [], [], engine.open()
    for answer in answers:
        engine.truncate(slot, 0)
        (guesses,) = listen(engine, slot, answer, {}).values()
        right.append(guesses.right.tolist())
        helped.append(_with_ngram(answer, guesses.right.tolist(), guesses.confidences))
    times = medians({"draft": RepeatedStep(engine), "target": RepeatedStep(target)})
    scale = verify[0] / times["target"]  # the machine may run faster or slower than it did then
    rounds = [[n for flags in right for n in accepted(flags, length)] for length in LENGTHS]
    speed, length = expected_speed(rounds, times["draft"] * scale, verify)
    draft = bundle.draft(chosen)
    folder = f"draft/{chosen}/"
    sizes = {p: f.size for p, f in bundle.manifest.files.items() if p.startswith(folder)}
    kept = accepted_mean(rounds[length - 1])
    whole = bundle.manifest.target.architecture.layers
    return Shape(
        name=name,
        layers=f"{draft.architecture.layers} of {whole}",
        profile=chosen,
        words=draft.vocabulary,
        megabytes=sum(s for p, s in sizes.items() if "embedding" not in p) / 1e6,
        agreement=_share(right),
        with_ngram=_share(helped),
        accepted=kept,
        length=length,
        step_ms=times["draft"],
        step_ratio=times["draft"] / times["target"],
        tokens_per_s=speed,
    )


def accepted_mean(rounds: Sequence[int]) -> float:
    return sum(rounds) / max(len(rounds), 1)


def _with_ngram(answer: Answer, right: list[bool], confidence: np.ndarray[Any, Any]) -> list[bool]:
    """Where prompt lookup names a token and the draft is unsure, lookup's token is taken."""
    drafter, text = NgramDrafter(), [*answer.prompt, *answer.tokens]
    flags = []
    for i, position in enumerate(range(len(answer.prompt), len(text))):
        found = (
            draft_tokens(drafter, text[:position], 1, Sampling()) if confidence[i] < UNSURE else []
        )
        flags.append(found == [text[position]] if found else right[i])
    return flags


def _share(flags: Sequence[Sequence[bool]]) -> float:
    return sum(map(sum, flags)) / max(sum(map(len, flags)), 1)


def _print(rows: Sequence[Shape], alone: float) -> None:
    table = Table(title=f"drafts by expected tokens/s under streaming (target alone: {alone:.1f})")
    for column in ("draft", "layers", "profile", "words", "MB", "agreement", "with n-gram",
                   "accepted", "length", "step ms", "of target", "tokens/s"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("draft", "profile") else "right")
    best = max(rows, key=lambda row: row.tokens_per_s)
    for row in rows:
        table.add_row(
            row.name, row.layers, row.profile, str(row.words), f"{row.megabytes:.1f}",
            f"{row.agreement:.3f}", f"{row.with_ngram:.3f}", f"{row.accepted:.2f}",
            str(row.length), f"{row.step_ms:.2f}", f"{row.step_ratio:.2f}",
            f"{row.tokens_per_s:.1f}", style="bold" if row is best else "",
        )  # fmt: skip
    console = Console()
    console.print(table, width=max(console.width, 128), crop=False)
