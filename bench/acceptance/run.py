"""`edgespec bench acceptance`: how often a draft predicts the target's token, and what that yields.

The bundle's own engines run in this process. The target writes an answer to each prompt, greedy and
sampled. The draft then predicts each token of it (teacher forcing), by the same rule with the same
noise. Agreement is the share of tokens that it predicts; rounds of every draft length follow from
them (`bench.acceptance.lockstep_rounds`). Exit heads are measured likewise. Confidences use the
manifest's calibration of each head (the model's own probabilities if there is none) and are
compared with whether the head's likeliest token is the target's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console

from bench.acceptance.figures import AcceptanceFigures, AnswerFigures, Judged, summary
from bench.acceptance.judging import LoadedPair, judge, load_pair
from bench.acceptance.step_times import lookup_step, medians
from bench.acceptance.tables import print_tables
from bench.lab.builtin import builtin_bundle
from bench.lab.plots import check_plot_file
from bench.lab.prompts import CategoryPrompt, first_of_each, read_prompts
from bench.lab.report import print_json
from edgespec.config import NGRAM
from edgespec.errors import EdgespecError, UsageError
from edgespec.manifest import Bundle
from edgespec.progress import progress
from edgespec.sampling import Sampling
from edgespec.text import CHAT_TEMPLATE, Codec
from engines.machine.doctor import describe
from engines.step_times import RepeatedStep

SAMPLED_TEMPERATURE, SAMPLED_TOP_P = 0.7, 0.9


@dataclass(frozen=True)
class AcceptanceSettings:
    prompts: Path | None = None
    """None: the built-in prompts."""
    drafter: str = ""
    """A profile of the bundle or `ngram`; empty: the bundle's default draft."""
    max_tokens: int = 64
    limit: int | None = None
    """Most prompts of each category; None: all."""
    threads: int = 1
    temperature: float | None = None
    """None: greedy, then `SAMPLED_TEMPERATURE` with `SAMPLED_TOP_P`."""
    exits: bool = True
    training: Path | None = None
    """A corpus that must not share text with the prompts."""
    plot: Path | None = None

    def samplings(self, seed: int) -> list[Sampling]:
        """Sampling parameters of the answers to one prompt; `seed` is the prompt's number, so the
        noise differs between prompts."""
        if self.temperature is None:
            return [
                Sampling(seed=seed),
                Sampling(SAMPLED_TEMPERATURE, SAMPLED_TOP_P, seed=seed),
            ]
        top_p = SAMPLED_TOP_P if self.temperature else 1.0
        return [Sampling(self.temperature, top_p, seed=seed)]


def run(bundle: Path | None, settings: AcceptanceSettings, *, as_json: bool) -> None:
    """Measures and prints; with `as_json`, one JSON object is the last line.

    Raises `UsageError` for prompts or a drafter that cannot be used, and `EdgespecError` if a
    prompt shares text with the training text.
    """
    settings.samplings(0)[-1].check()
    prompts = first_of_each(read_prompts(settings.prompts), settings.limit)
    check_plot_file(settings.plot)
    opened = Bundle.open(bundle) if bundle else builtin_bundle()
    figures = measure(opened, prompts, settings)
    print_tables(Console(), figures, opened)
    if settings.plot:
        from bench.acceptance.plots import plot_acceptance

        plot_acceptance(settings.plot, figures)
    if as_json:
        print_json(figures)


def measure(
    bundle: Bundle, prompts: Sequence[CategoryPrompt], settings: AcceptanceSettings
) -> AcceptanceFigures:
    """Raises `UsageError` for a drafter or prompts that the bundle cannot use, and `EdgespecError`
    if a prompt shares text with the training text."""
    drafter = settings.drafter or bundle.manifest.default_draft
    if not drafter:
        raise UsageError(
            f"{bundle.folder} has no draft; export it with --draft, or pass --drafter {NGRAM}"
        )
    codec = Codec(bundle)
    training = settings.training
    shared = _check_training(prompts, training, codec) if training else msgspec.UNSET
    ids = encode(bundle, codec, prompts, settings.max_tokens)
    pair = load_pair(bundle, drafter, settings.threads)
    first, *others = _answer_figures(pair, [p.category for p in prompts], ids, settings)
    draft = RepeatedStep(pair.draft) if pair.draft else lookup_step()
    times = medians({"draft": draft, "target": RepeatedStep(pair.target)})
    return AcceptanceFigures(
        **msgspec.structs.asdict(first),
        drafter=drafter,
        prompts=len(prompts),
        max_tokens=settings.max_tokens,
        threads=settings.threads,
        training_overlap=shared,
        sampled=others[0] if others else msgspec.UNSET,
        draft_step_ms=round(times["draft"], 4),
        target_step_ms=round(times["target"], 4),
        step_ratio=round(times["draft"] / times["target"], 4),
        machine=describe(),
    )


def _check_training(prompts: Sequence[CategoryPrompt], folder: Path, codec: Codec) -> int:
    """Returns 0, the number of prompts that share an n-gram with the training text. Raises
    `EdgespecError` if any does."""
    from bench.acceptance.training_overlap import GRAM_WORDS, overlap, training_texts

    shares = overlap([p.text for p in prompts], training_texts(folder, codec.tokenizer))
    known = [(share, prompt) for share, prompt in zip(shares, prompts, strict=True) if share]
    if known:
        share, prompt = known[0]
        raise EdgespecError(
            f"{len(known)} of {len(prompts)} prompts share {GRAM_WORDS} words in a row with the "
            f"training text in {folder}; the first is {prompt.place}, with {share:.0%} of its "
            "n-grams; write other prompts, or train without such text"
        )
    Console().print(
        f"0 of {len(prompts)} prompts share {GRAM_WORDS} words in a row with the training text"
    )
    return 0


def encode(
    bundle: Bundle, codec: Codec, prompts: Sequence[CategoryPrompt], max_tokens: int
) -> list[list[int]]:
    """Token ids of each prompt, through the chat template if there is one.

    Raises `UsageError` for a prompt that does not fit the context with `max_tokens` more tokens.
    """
    chat = bundle.path(CHAT_TEMPLATE).is_file()
    encoded = []
    for text, _, place in prompts:
        rendered = codec.render([{"role": "user", "content": text}]) if chat else text
        encoded.append(codec.encode(rendered, chat=chat))
        if len(encoded[-1]) + max_tokens > bundle.manifest.context:
            raise UsageError(
                f"{place} has {len(encoded[-1])} tokens, which with --max-tokens {max_tokens} are "
                f"more than the bundle's context of {bundle.manifest.context}; shorten either"
            )
    return encoded


def _answer_figures(
    pair: LoadedPair,
    categories: Sequence[str],
    prompts: Sequence[Sequence[int]],
    settings: AcceptanceSettings,
) -> list[AnswerFigures]:
    """Figures for each set of sampling parameters."""
    samplings = settings.samplings(0)
    judged: list[dict[int, Judged]] = [{} for _ in samplings]
    with progress("answers", len(prompts) * len(samplings), unit="answers") as advance:
        for answer, result in judge(
            pair,
            categories,
            prompts,
            settings.samplings,
            settings.max_tokens,
            exits=settings.exits,
        ):
            judged[answer.sampling_number][answer.prompt_number] = result
            advance(1)
    return [
        summary(sampling, [results[number] for number in range(len(prompts))])
        for sampling, results in zip(samplings, judged, strict=True)
    ]
