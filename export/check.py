"""`edgespec export --check`: comparing a bundle with transformers on the exported source.

Transformers runs in fp32 on real prompts and writes a greedy continuation of each. The target and
the drafts run over the same tokens, in ragged chunks as in the cloud. The figures are:

- *difference*: the largest difference between the target's logits and transformers' over a prompt;
- *agreement*: the fraction of the continuation's tokens that are the target's arg-max after the
  same prefix, so that one disagreement does not count for all tokens after it;
- *draft*: the fraction of the target's arg-max tokens that are also the draft's.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from edgespec.config import usable_cores
from edgespec.errors import CheckpointError, EdgespecError
from edgespec.manifest import Bundle
from edgespec.progress import progress
from edgespec.text import Codec
from engines.backends import open_draft
from engines.base import Engine, Row, final_choices
from engines.onnxruntime_backend.engine import OrtSettings, load_target
from export.bundle import ExportSettings

PROMPTS = (
    "The capital of France is Paris, and the river that runs through it is called",
    "Q: A train leaves at 14:05 and arrives at 16:50. How long does the journey take?\nA:",
    "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n    return",
    "Once upon a time, in a village by the sea, there lived an old clockmaker who",
    "Zutaten für vier Personen: 500 g Mehl, 3 Eier, ¼ l Milch. Zubereitung:",
    '{"name": "Ada Lovelace", "born": 1815, "languages": ["English", "French"], "known_for":',
)
CONTINUATION_TOKENS = 32
"""Greedy tokens after each prompt."""
CHUNK_TOKENS = (5, 1, 17, 2, 11)
"""Tokens of successive calls, repeated."""
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, NotImplementedError, ImportError)
"""Errors of transformers for a model that it cannot load, or that needs another package."""
LEAST_AGREEMENT = 0.99
"""Smallest agreement of a correct fp32 target, which can disagree only at ties."""


class Reference(NamedTuple):
    """Output of transformers for one prompt."""

    prompt: list[int]
    continuation: list[int]
    logits: npt.NDArray[np.float32]
    """[len(prompt), vocabulary]"""


class Comparison(NamedTuple):
    """A bundle's target against transformers on one prompt."""

    difference: float
    greedy: npt.NDArray[np.int64]
    """Arg-max of the target at each position of the continuation."""
    agreeing: int


def check(bundle: Bundle, settings: ExportSettings) -> float:
    """Compare `bundle` with the model in `settings`, print the figures, return the agreement.

    Raises `EdgespecError` if transformers cannot run the model, if logits are not finite, or if an
    fp32 target's greedy tokens differ from those of transformers.
    """
    codec, profiles = Codec(bundle), sorted(bundle.manifest.drafts)
    ort = OrtSettings(threads=usable_cores(), slots=1)
    with progress("checking", len(PROMPTS) * (2 + len(profiles)), unit="prompts") as advance:
        references = []
        with _silence():
            model = _reference_model(bundle, settings)
            for text in PROMPTS:
                prompt = codec.encode(text)[: max(1, bundle.manifest.context - CONTINUATION_TOKENS)]
                references.append(_ask(model, prompt, bundle.manifest.context))
                advance(1)
            # Both models together may not fit in memory.
            del model
            gc.collect()
        target = load_target(bundle, ort)
        comparisons = []
        for reference in references:
            comparisons.append(_compare(target, reference))
            advance(1)
        del target
        shares = {}
        for profile in profiles:
            draft, agreeing = open_draft(bundle, profile, ort.threads, 1), 0
            for reference, comparison in zip(references, comparisons, strict=True):
                agreeing += _agreeing(draft, reference, comparison.greedy)
                advance(1)
            shares[profile] = agreeing / sum(len(c.greedy) for c in comparisons)
    _print(references, comparisons, shares)
    _judge(bundle, comparisons)
    return _agreement(comparisons)[0]


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress warnings and progress bars of transformers in the block."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _reference_model(bundle: Bundle, settings: ExportSettings) -> Any:
    """Load the source in fp32 from local files; those of the hub are in its cache."""
    import torch
    from transformers import AutoModelForCausalLM

    path = Path(settings.target).expanduser()
    where, revision = (str(path), None) if path.exists() else (settings.target, _revision(bundle))
    try:
        if path.is_file():
            model = _from_gguf(path)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                where, revision=revision, dtype=torch.float32, local_files_only=True
            )
    except _LOAD_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"transformers cannot load {settings.target}, so it cannot be compared: {reason}"
        ) from error
    vocabulary = bundle.manifest.target.architecture.vocabulary
    if model.config.vocab_size != vocabulary:
        raise EdgespecError(
            f"{settings.target} has a vocabulary of {model.config.vocab_size} and {bundle.folder} "
            f"one of {vocabulary}, so they are not the same model; export it again"
        )
    return model.eval()


def _revision(bundle: Bundle) -> str | None:
    return bundle.manifest.target.origin.revision or None


def _from_gguf(path: Path) -> Any:
    """Load like `from_pretrained(gguf_file=...)`, which also requires the package accelerate."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_config(config)
    # The progress bar of this function ignores the settings of transformers.
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        read = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    missing, _ = model.load_state_dict(read["tensors"], strict=False)
    if set(missing) - ({"lm_head.weight"} if config.tie_word_embeddings else set()):
        raise ValueError(f"it finds no {missing[0]} in the file")
    return model


def _ask(model: Any, prompt: list[int], context: int) -> Reference:
    """Compute the logits over the prompt and the greedy tokens after it with transformers."""
    import torch

    continuation: list[int] = []
    with torch.inference_mode():
        output = model(torch.tensor([prompt]), use_cache=True)
        logits = output.logits[0].float().numpy()
        while True:
            continuation.append(int(output.logits[0, -1].argmax()))
            if len(continuation) == min(CONTINUATION_TOKENS, context - len(prompt) + 1):
                return Reference(prompt, continuation, logits)
            output = model(
                torch.tensor([continuation[-1:]]),
                past_key_values=output.past_key_values,
                use_cache=True,
            )


def _compare(target: Engine, reference: Reference) -> Comparison:
    prompt, continuation, expected = reference
    logits = _run(target, [*prompt, *continuation[:-1]])
    greedy = logits[len(prompt) - 1 :].argmax(axis=-1)
    difference = np.abs(logits[: len(prompt)].astype(np.float32) - expected).max()
    return Comparison(float(difference), greedy, int((greedy == continuation).sum()))


def _agreeing(draft: Engine, reference: Reference, greedy: npt.NDArray[np.int64]) -> int:
    # A smaller draft has no row for a token in the target's padding.
    tokens = [min(token, draft.vocabulary - 1) for token in reference.continuation[:-1]]
    logits = _run(draft, [*reference.prompt, *tokens])
    return int((logits[len(reference.prompt) - 1 :].argmax(axis=-1) == greedy).sum())


def _run(engine: Engine, tokens: Sequence[int]) -> npt.NDArray[Any]:
    """Compute the logits after every token, [tokens, vocabulary], in ragged chunks."""
    slot, parts, start = engine.open(), [], 0
    for length in cycle(CHUNK_TOKENS):
        chunk = tokens[start : start + length]
        [choices] = final_choices(engine, [Row(slot, start, chunk, choice_count=len(chunk))])
        assert choices is not None
        parts.append(choices.logits)
        start += len(chunk)
        if start == len(tokens):
            break
    engine.close(slot)
    return np.concatenate(parts)


def _agreement(comparisons: Sequence[Comparison]) -> tuple[float, int]:
    """Return the fraction of agreeing tokens, and the number of tokens."""
    total = sum(len(comparison.greedy) for comparison in comparisons)
    return sum(comparison.agreeing for comparison in comparisons) / total, total


def _print(
    references: Sequence[Reference], comparisons: Sequence[Comparison], shares: dict[str, float]
) -> None:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("prompt", no_wrap=True)
    for column in ("tokens", "logit difference", "greedy agreement"):
        table.add_column(column, justify="right")
    for text, reference, comparison in zip(PROMPTS, references, comparisons, strict=True):
        table.add_row(
            f"{text.splitlines()[0][:32]}…",
            str(len(reference.prompt)),
            f"{comparison.difference:.2g}",
            f"{comparison.agreeing}/{len(comparison.greedy)}",
        )
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    for profile, share in shares.items():
        console.print(f"draft {profile}: {share:.1%} of the target's greedy tokens")
    share, total = _agreement(comparisons)
    largest = max(comparison.difference for comparison in comparisons)
    console.print(
        f"largest logit difference {largest:.2g}, "
        f"greedy agreement {100 * share:.1f}% over {total} tokens"
    )


def _judge(bundle: Bundle, comparisons: Sequence[Comparison]) -> None:
    if not all(np.isfinite(comparison.difference) for comparison in comparisons):
        raise EdgespecError(
            f"the target in {bundle.folder} computes logits that are not finite; "
            "export it with a wider precision"
        )
    chosen = bundle.manifest.target.precisions
    share, _ = _agreement(comparisons)
    if {chosen.layers, chosen.head, chosen.embedding} == {"fp32"} and share < LEAST_AGREEMENT:
        raise EdgespecError(
            f"the fp32 target in {bundle.folder} writes other tokens than transformers "
            f"({share:.1%} of its greedy tokens agree); report the model, and do not use the bundle"
        )
