"""Shared by distillation, quantisation and calibration: a target's identity and its corpus."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer

from calibration.corpus import Conversation, Corpus, CorpusSettings, Writer, extend
from calibration.decoder import Decoder
from calibration.prompts import default_prompts, read_prompts
from edgespec.checkpoint import Checkpoint
from edgespec.config import cache_folder
from edgespec.errors import EdgespecError, UsageError
from edgespec.progress import progress
from edgespec.tokenizer import fingerprint

_SETTINGS = "corpus.json"


def device(name: str) -> torch.device:
    """Return the device named `auto`, `cpu` or `cuda`. Raises `UsageError` for missing CUDA."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def identity(checkpoint: Checkpoint) -> str:
    """Return 16 hex digits from a target's tokenizer, shapes and a sample of its weights."""
    norm = np.asarray(checkpoint.tensor("model.norm.weight"), np.float32)
    digest = hashlib.sha256(fingerprint(Tokenizer.from_str(checkpoint.tokenizer.json)).encode())
    digest.update(msgspec.json.encode(checkpoint.architecture))
    digest.update(norm.tobytes())
    last = checkpoint.architecture.layers - 1
    for layer in sorted({0, last // 2, last}):
        rows = checkpoint.rows(f"model.layers.{layer}.self_attn.q_proj.weight", 0, 4)
        digest.update(np.asarray(rows, np.float32).tobytes())
    return digest.hexdigest()[:16]


def default_corpus(checkpoint: Checkpoint) -> Path:
    """Return the default folder of a target's corpus."""
    return cache_folder() / "corpus" / identity(checkpoint)


def written_by(folder: Path) -> str:
    """Return the identity of the target that wrote a corpus; empty if it is not recorded."""
    try:
        return str(json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))["target"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def prepare(
    checkpoint: Checkpoint,
    decoder: Decoder,
    folder: Path | None,
    prompts: Path | None,
    tokens: int,
    seed: int,
    device: torch.device,
) -> Corpus:
    """Extend the corpus in `folder` until a draft can learn from `tokens` tokens of it.

    Raises `UsageError` for a corpus of another target, other prompts or another seed.
    """
    folder = folder or default_corpus(checkpoint)
    source = read_prompts(prompts) if prompts else default_prompts()
    settings = CorpusSettings(
        seed=seed, longest=min(CorpusSettings.longest, checkpoint.architecture.context)
    )
    asked = {
        "target": identity(checkpoint),
        "prompts": source.digest(),
        **{k: v for k, v in asdict(settings).items() if k != "rows"},
    }
    corpus = Corpus(folder)
    have = corpus.tokens()
    if prompts is None and have >= tokens:
        del asked["prompts"]  # nothing is written, so any prompts fit
    same_settings(folder, _SETTINGS, asked, f"the corpus {folder}", "--corpus")
    if have >= tokens:
        return corpus
    decoder = decoder.to(device)
    if device.type == "cpu":
        settings = CorpusSettings(**{**asdict(settings), "rows": _rows(tokens - have)})
    writer = Writer(decoder, Conversation(checkpoint.tokenizer), source, settings)
    with progress("the target writes", tokens, unit="tokens") as advance:
        advance(have)
        for now in extend(corpus, writer, tokens):
            advance(now - have)
            have = now
    return corpus


def _rows(tokens: int) -> int:
    """Return the number of answers to write at once: few for few tokens.

    Unfinished answers are dropped at the end.
    """
    return max(8, min(128, tokens // 500))


def same_settings(
    folder: Path, name: str, asked: dict[str, object], what: str, option: str
) -> None:
    """Store the settings of a folder of work, or compare them with the stored ones.

    Raises `UsageError` that names the first difference, and `EdgespecError` if a write fails.
    """
    path = folder / name
    asked = json.loads(json.dumps(asked))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
            partial.rename(path)
            return
        begun = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgespecError(f"cannot write to {folder}: {error.strerror or error}") from error
    except ValueError as error:
        raise EdgespecError(f"{path} is damaged; remove {folder} to begin again") from error
    for key in asked:
        if begun.get(key) != asked[key]:
            raise UsageError(
                f"{what} was begun with {key} {begun.get(key)} and now {key} is {asked[key]}; "
                f"pass the same {key}, remove {folder}, or choose another {option}"
            )
