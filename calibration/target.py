"""What distilling and calibrating share: the target in torch, its identity, and its corpus."""

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
    """`auto`, `cpu` or `cuda`. Raises `UsageError` for CUDA where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def identity(checkpoint: Checkpoint) -> str:
    """Names a target by its tokenizer, its shapes and a sample of its weights, 16 hex digits."""
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
    """Where a target's corpus is kept unless the user names a place."""
    return cache_folder() / "corpus" / identity(checkpoint)


def written_by(folder: Path) -> str:
    """The identity of the target that wrote a corpus; empty where the folder does not say."""
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
    """The corpus in `folder`, written on until a draft can learn from `tokens` tokens of it.

    Raises `UsageError` where the folder holds a corpus of another target, prompts or seed.
    """
    folder = folder or default_corpus(checkpoint)
    source = read_prompts(prompts) if prompts else default_prompts()
    settings = CorpusSettings(seed=seed, longest=min(384, checkpoint.architecture.context))
    asked = {
        "target": identity(checkpoint),
        "prompts": source.digest(),
        **{k: v for k, v in asdict(settings).items() if k != "rows"},
    }
    corpus = Corpus(folder)
    have = corpus.tokens()
    if prompts is None and have >= tokens:
        del asked["prompts"]  # nothing is written, so it may be of any prompts
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
    """Few answers at once where few tokens are wanted: what is unfinished at the end is dropped."""
    return max(8, min(128, tokens // 500))


def same_settings(
    folder: Path, name: str, asked: dict[str, object], what: str, option: str
) -> None:
    """Writes the settings that a folder of work was begun with, or compares them.

    Raises `UsageError` naming the first difference, and `EdgespecError` for an unwritable place.
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
        raise EdgespecError(f"{path} is damaged; remove {folder} to begin anew") from error
    for key in asked:
        if begun.get(key) != asked[key]:
            raise UsageError(
                f"{what} was begun with {key} {begun.get(key)} and now {key} is {asked[key]}; "
                f"pass what it was begun with, remove {folder}, or choose another {option}"
            )
