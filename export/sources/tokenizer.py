"""The tokenizer of a checkpoint, as one complete `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from edgespec.checkpoint import TokenizerSource
from edgespec.errors import CheckpointError
from export.sources.json_file import located, read_json, read_text

GENERATION = "generation_config.json"


def tokenizer_from_folder(folder: Path, config: Mapping[str, Any]) -> TokenizerSource:
    """Read `tokenizer.json`, and special tokens and chat template from the files next to it."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; make one with transformers: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    text = read_text(path)
    tokenizer = parse_tokenizer(text, str(path))
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        text = tokenizer.to_str()
    settings = {
        **read_json(folder / "special_tokens_map.json", optional=True),
        **read_json(folder / "tokenizer_config.json", optional=True),
    }
    generation = read_json(folder / GENERATION, optional=True)
    eos = _token_text(settings.get("eos_token"))
    named = tokenizer.token_to_id(eos) if eos is not None else None
    return TokenizerSource(
        json=text,
        chat_template=_chat_template(folder, settings),
        bos=_token_text(settings.get("bos_token")),
        eos=eos,
        end_ids=end_ids(generation.get("eos_token_id"), config.get("eos_token_id"), named),
    )


def parse_tokenizer(text: str, where: str) -> tokenizers.Tokenizer:
    """Parse JSON text. Raises `CheckpointError` that names `where`."""
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the Rust library raises nothing narrower
        raise CheckpointError(
            f"{where} is not a tokenizer that this version of tokenizers reads ({error})"
        ) from error


def end_ids(*declared: int | list[int] | None) -> tuple[int, ...]:
    """Return the union of ids and lists of ids, ascending."""
    ids: set[int] = set()
    for entry in declared:
        values = entry if isinstance(entry, list) else [] if entry is None else [entry]
        if not all(isinstance(value, int) for value in values):
            raise CheckpointError(f"eos_token_id must be an id or a list of ids, not {entry!r}")
        ids.update(values)
    return tuple(sorted(ids))


def check_embedding(source: TokenizerSource, rows: int, field: str) -> None:
    """Raise `CheckpointError` for a token id beyond the embedding's `rows`, stated by `field`."""
    tokens = tokenizers.Tokenizer.from_str(source.json).get_vocab()
    largest = max(tokens.values(), default=0)
    if largest >= rows:
        raise CheckpointError(
            f"{field} gives the embedding {rows} rows, but the tokenizer has ids up to {largest}; "
            "take the tokenizer that the model was trained with"
        )


def check_end_ids(folder: Path, rows: int) -> None:
    """Raise `CheckpointError` for an `eos_token_id` that is not below `rows`."""
    for file in ("config.json", GENERATION):
        with located(folder / file):
            for token in end_ids(read_json(folder / file, optional=True).get("eos_token_id")):
                if not 0 <= token < rows:
                    raise CheckpointError(
                        f"eos_token_id {token} is outside the vocabulary of {rows} ids; "
                        "set it to the id of the token that ends an answer"
                    )


def _token_text(token: Any) -> str | None:
    """Return the text of a special token, stored as text or as a mapping with `content`."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_text(file)
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None
