"""`edgespec bench acceptance`: how often a draft names the target's token, and what it is worth.

The bundle's own engines run in this process. The target writes an answer to each prompt, greedy and
sampled; the draft is then led along it and picks a token at each position by the same rule with the
same noise. Agreement is the share it got right, and rounds of any draft length follow from where it
was right (`bench.acceptance.lockstep_rounds`). Exit heads are led along the answers likewise.
Confidences are the manifest's calibration of each head (the model's own probabilities where there
is none), held against whether the head's likeliest token is the target's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench.acceptance.figures import Judged, summary
from bench.acceptance.lockstep_rounds import LENGTHS, accepted, ngram_accepted, ngram_matches
from bench.acceptance.step_times import lookup_step, medians
from bench.acceptance.tables import print_tables
from bench.acceptance.teacher_forcing import ROWS, Answer, Flags, Guesses, listen, write
from bench.lab.builtin import builtin_bundle
from bench.lab.plots import check_plot_file
from bench.lab.prompts import CategoryPrompt, first_of_each, read_prompts
from edgespec.config import NGRAM
from edgespec.errors import EdgespecError, UsageError
from edgespec.manifest import Bundle
from edgespec.progress import progress
from edgespec.sampling import Sampling
from edgespec.text import CHAT_TEMPLATE, Codec
from engines.base import Engine
from engines.machine.doctor import describe
from engines.onnxruntime_backend.engine import OrtSettings, device_settings, load_draft, load_target
from engines.step_times import RepeatedStep

SAMPLED = (0.7, 0.9)
"""Temperature and top-p."""


@dataclass(frozen=True)
class AcceptanceSettings:
    prompts: Path | None = None
    """The built-in set for None."""
    drafter: str = ""
    """A profile of the bundle or `ngram`; the bundle's draft where empty."""
    max_tokens: int = 64
    limit: int | None = None
    """Prompts of each category."""
    threads: int = 1
    temperature: float | None = None
    """None measures greedy and `SAMPLED`."""
    exits: bool = True
    training: Path | None = None
    """A corpus that must not share text with the prompts."""
    plot: Path | None = None

    def ways(self, seed: int) -> list[Sampling]:
        """Noise differs from prompt to prompt: `seed` is the prompt's number."""
        if self.temperature is None:
            return [Sampling(seed=seed), Sampling(*SAMPLED, seed=seed)]
        return [Sampling(self.temperature, SAMPLED[1] if self.temperature else 1.0, seed=seed)]


@dataclass(frozen=True)
class _Pair:
    bundle: Bundle
    drafter: str
    target: Engine
    draft: Engine | None
    """None for prompt lookup."""


def run(bundle: Path | None, settings: AcceptanceSettings, *, as_json: bool) -> None:
    """Measures and prints; with `as_json`, one JSON object is the last line.

    Raises `UsageError` for prompts or a drafter that cannot be used, and `EdgespecError` where a
    prompt shares text with the training text.
    """
    settings.ways(0)[-1].check()
    prompts = first_of_each(read_prompts(settings.prompts), settings.limit)
    check_plot_file(settings.plot)
    opened = Bundle.open(bundle) if bundle else builtin_bundle()
    drafter = settings.drafter or opened.manifest.default_draft
    if not drafter:
        raise UsageError(
            f"{opened.folder} has no draft; export it with --draft, or pass --drafter {NGRAM}"
        )
    codec = Codec(opened)
    figures: dict[str, Any] = {
        "drafter": drafter,
        "prompts": len(prompts),
        "max_tokens": settings.max_tokens,
        "threads": settings.threads,
    }
    if settings.training:
        figures["training_overlap"] = _check_training(prompts, settings.training, codec)
    ids = encode(opened, codec, prompts, settings.max_tokens)
    pair = _load(opened, drafter, settings.threads)
    ways = settings.ways(0)
    judged: list[dict[int, Judged]] = [{} for _ in ways]
    for answer, result in _judge(pair, [p.category for p in prompts], ids, settings):
        judged[answer.way][answer.question] = result
    first, *others = (
        summary(way, [of[number] for number in range(len(ids))])
        for way, of in zip(ways, judged, strict=True)
    )
    figures |= first
    if others:
        (figures["sampled"],) = others
    draft = RepeatedStep(pair.draft) if pair.draft else lookup_step()
    times = medians({"draft": draft, "target": RepeatedStep(pair.target)})
    figures |= {f"{name}_step_ms": round(time, 4) for name, time in times.items()}
    figures["step_ratio"] = round(times["draft"] / times["target"], 4)
    figures["machine"] = describe().as_dict()
    print_tables(Console(), figures, opened)
    if settings.plot:
        from bench.acceptance.plots import plot_acceptance

        plot_acceptance(settings.plot, figures)
    if as_json:
        print(json.dumps(figures))


def _check_training(prompts: Sequence[CategoryPrompt], folder: Path, codec: Codec) -> int:
    """How many prompts share an n-gram with the training text; that is 0, or an error."""
    from bench.acceptance.training_overlap import WORDS, overlap, training_texts

    shares = overlap([p.text for p in prompts], training_texts(folder, codec.tokenizer))
    known = [(share, prompt) for share, prompt in zip(shares, prompts, strict=True) if share]
    if known:
        share, prompt = known[0]
        raise EdgespecError(
            f"{len(known)} of {len(prompts)} prompts share {WORDS} words in a row with the "
            f"training text in {folder}; the first is {prompt.place}, with {share:.0%} of its "
            "n-grams; write other prompts, or train without such text"
        )
    Console().print(
        f"0 of {len(prompts)} prompts share {WORDS} words in a row with the training text"
    )
    return 0


def encode(
    bundle: Bundle, codec: Codec, prompts: Sequence[CategoryPrompt], max_tokens: int
) -> list[list[int]]:
    """Token ids, through the chat template where there is one."""
    chat = bundle.path(CHAT_TEMPLATE).is_file()
    encoded = []
    for text, _, place in prompts:
        asked = codec.render([{"role": "user", "content": text}]) if chat else text
        encoded.append(codec.encode(asked, chat=chat))
        if len(encoded[-1]) + max_tokens > bundle.manifest.context:
            raise UsageError(
                f"{place} has {len(encoded[-1])} tokens, which with --max-tokens {max_tokens} are "
                f"more than the bundle's context of {bundle.manifest.context}; shorten either"
            )
    return encoded


def _load(bundle: Bundle, drafter: str, threads: int) -> _Pair:
    draft = None
    if drafter != NGRAM:
        bundle.draft(drafter)
        draft = load_draft(bundle, drafter, device_settings(drafter, threads, slots=2))
    return _Pair(bundle, drafter, load_target(bundle, OrtSettings(threads, slots=ROWS + 1)), draft)


def _judge(
    pair: _Pair,
    categories: Sequence[str],
    prompts: Sequence[Sequence[int]],
    settings: AcceptanceSettings,
) -> Iterator[tuple[Answer, Judged]]:
    """Every answer as the target finishes it. `prompts` are ids."""
    target = pair.bundle.manifest.target
    hints = settings.exits and bool(target.exits)
    calibrations = {s.end: s.calibration for s in target.segments if s.exit and s.calibration}
    ends = pair.bundle.manifest.text.end_ids
    listener = _listener(pair)
    written = write(pair.target, prompts, settings.ways, settings.max_tokens, ends)
    with progress("answers", len(prompts) * len(settings.ways(0)), unit="answers") as advance:
        for answer, slot in written:
            right, rounds, guesses = listener(answer)
            heard = listen(pair.target, slot, answer, calibrations, hints=True) if hints else {}
            yield answer, Judged(categories[answer.question], right, rounds, guesses, heard)
            advance(1)


_Heard = tuple[Flags, list[list[int]], Guesses | None]


def _listener(pair: _Pair) -> Callable[[Answer], _Heard]:
    """What the draft says along an answer: where it is right, rounds by length, and its guesses."""
    if pair.draft is None:
        return _look_up
    engine = pair.draft
    slot, own = engine.open(), pair.bundle.draft(pair.drafter)
    calibrations = {own.architecture.layers: own.calibration} if own.calibration else {}

    def hear(answer: Answer) -> _Heard:
        engine.truncate(slot, 0)
        (guesses,) = listen(engine, slot, answer, calibrations).values()
        right = guesses.right.tolist()
        return guesses.right, [accepted(right, length) for length in LENGTHS], guesses

    return hear


def _look_up(answer: Answer) -> _Heard:
    right = np.array(ngram_matches(answer.prompt, answer.tokens), bool)
    rounds = [ngram_accepted(answer.prompt, answer.tokens, length) for length in LENGTHS]
    return right, rounds, None
