"""A bundle whose target's step takes almost no time, so that the server's share can be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bench.lab.random_checkpoint import MODELS, write_checkpoint
from edgespec.manifest import Bundle
from export.bundle import ExportSettings, export

CONTEXT_TOKENS = 1024
WORDS_COUNT = 253
CONFIG: dict[str, Any] = MODELS["1b"] | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": WORDS_COUNT + 3,
    "max_position_embeddings": CONTEXT_TOKENS,
}
TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"


def tiny_bundle(folder: Path) -> Bundle:
    """One layer of random weights, and a tokenizer of as many words as it has ids."""
    checkpoint = folder / "checkpoint"
    write_checkpoint(checkpoint, CONFIG, _unseen)
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {
        f"w{number}": number + 3 for number in range(WORDS_COUNT)
    }
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    return export(ExportSettings(target=str(checkpoint), out=folder / "bundle"))


def _unseen(amount: int, note: str = "", /) -> None:
    """Progress of a few kilobytes."""
    del amount, note
