"""`edgespec bench plan --record`: runs a pair's models once and records it, to be replayed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console

from bench.acceptance.run import encode
from bench.acceptance.teacher_forcing import BATCH_ROWS
from bench.lab.builtin import builtin_bundle
from bench.lab.prompts import first_of_each, read_prompts
from bench.lab.recording import Recording, record
from edge_runtime.drafters import open_drafter
from edgespec.errors import EdgespecError, UsageError
from edgespec.manifest import Bundle
from edgespec.progress import progress
from edgespec.text import Codec
from engines.onnxruntime_backend.engine import OrtSettings, load_target


@dataclass(frozen=True)
class RecordSettings:
    file: Path
    bundle: Path | None = None
    """None: the built-in pair."""
    limit: int = 4
    """Prompts of each category of the held-out set."""
    max_tokens: int = 64


def run(settings: RecordSettings) -> None:
    """Records a pair into a file. Raises `UsageError` if the bundle has no draft or the file has no
    folder, and `EdgespecError` if the file cannot be written."""
    file = settings.file
    if not file.parent.is_dir() or file.is_dir():
        raise UsageError(f"--record {file} is no file in a folder that is there")
    bundle = Bundle.open(settings.bundle) if settings.bundle else builtin_bundle()
    recording = record_bundle(bundle, settings)
    try:
        file.write_bytes(msgspec.json.encode(recording))
    except OSError as error:
        raise EdgespecError(f"{file} cannot be written: {error.strerror}") from error
    Console().print(
        f"{recording.pair}: {len(recording.answers)} answers, agreement "
        f"{recording.agreement:.3f}, written to {file}"
    )


def record_bundle(bundle: Bundle, settings: RecordSettings) -> Recording:
    """Raises `UsageError` if the bundle has no draft."""
    profile = bundle.manifest.default_draft
    if not profile:
        raise UsageError(f"{bundle.folder} has no draft to record; export it with --draft")
    chosen = first_of_each(read_prompts(None), settings.limit)
    prompts = encode(bundle, Codec(bundle), chosen, settings.max_tokens)
    target = load_target(bundle, OrtSettings(threads=1, slots=BATCH_ROWS + 1))
    drafter = open_drafter(bundle, profile, 1)
    answers = {}
    with progress("answers", len(prompts), unit="answers") as advance:
        ends = bundle.manifest.text.end_ids
        for number, positions in record(target, drafter, prompts, settings.max_tokens, ends):
            answers[number] = positions
            advance(1)
    pair = f"{bundle.manifest.target.origin.name} with {profile}"
    in_order = [answers[number] for number in range(len(prompts))]
    return Recording(pair, [len(prompt) for prompt in prompts], in_order, prompts)
