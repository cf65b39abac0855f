"""A tokenizer rebuilt from a GGUF file's metadata, exact or refused.

`tokenizer.ggml.model` is `gpt2` (byte-level BPE, with the splitting rule `tokenizer.ggml.pre`) or
`llama` (SentencePiece BPE, whose merges follow from the scores). Names and defaults are those of
llama.cpp's `src/llama-vocab.cpp`. Patterns are those of the families' own tokenizer.json, which
split text in the same way. Qwen's text is normalised (NFC) as in its tokenizer.json; llama.cpp does
not do that. A splitting rule that is not in the table is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from edgespec.checkpoint import TokenizerSource
from edgespec.errors import CheckpointError, UnsupportedModel
from export.sources.tokenizer import end_ids

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""Values of `tokenizer.ggml.token_type`."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _SplittingRule:
    """The meaning of one `tokenizer.ggml.pre`: patterns that are applied in turn."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False
    normalizer: normalizers.Normalizer | None = None


_LLAMA3 = _SplittingRule((_CL100K.replace("DIGITS", "{1,3}"),), ignore_merges=True, adds_bos=True)
_PRE: Mapping[str, _SplittingRule] = {
    "default": _SplittingRule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": _SplittingRule((_GPT2,)),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _SplittingRule((_CL100K.replace("DIGITS", ""),), normalizer=normalizers.NFC()),
    "smollm": _SplittingRule((r"\p{N}", _GPT2)),
    "tekken": _SplittingRule((_TEKKEN,), ignore_merges=True, adds_bos=True),
}


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> TokenizerSource:
    """Rebuild the tokenizer that the metadata describes.

    Raises:
        UnsupportedModel: an unknown model of tokenizer or splitting rule.
        CheckpointError: missing or inconsistent lists.
    """
    kind = str(metadata.get("tokenizer.ggml.model"))
    if kind not in _BUILDERS:
        raise UnsupportedModel(
            f"the file's tokenizer is of kind {kind!r}; gpt2 (byte-level BPE) and llama "
            "(SentencePiece BPE) can be rebuilt, so export from the Hugging Face folder instead"
        )
    tokens = _tokens(metadata)
    types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError("the file has not one token type for each token; download it again")
    tokenizer, adds_bos = _BUILDERS[kind](metadata, tokens, types)
    tokenizer.add_tokens(_added(tokens, types))
    bos, eos = (_special(metadata, key, tokens) for key in ("bos", "eos"))
    _post_process(tokenizer, metadata, bos if adds_bos else None, eos)
    ends = (_special(metadata, key, tokens) for key in ("eos", "eot", "eom"))
    template = metadata.get("tokenizer.chat_template")
    return TokenizerSource(
        json=tokenizer.to_str(),
        chat_template=template if isinstance(template, str) else None,
        bos=None if bos is None else tokens[bos],
        eos=None if eos is None else tokens[eos],
        end_ids=end_ids(*ends),
    )


def _byte_level(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]
) -> tuple[Tokenizer, bool]:
    name = str(metadata.get("tokenizer.ggml.pre"))
    if name not in _PRE:
        raise UnsupportedModel(
            f"the file splits text in the way {name!r}; {', '.join(_PRE)} are known, "
            "so export from the Hugging Face folder instead"
        )
    pre = _PRE[name]
    merges = metadata.get("tokenizer.ggml.merges") or []
    pairs = [(merge[:at], merge[at + 1 :]) for merge in merges if (at := merge.find(" ", 1)) > 0]
    tokenizer = _bpe(_vocabulary(tokens, types), pairs, ignore_merges=pre.ignore_merges)
    if pre.normalizer is not None:
        tokenizer.normalizer = pre.normalizer
    splits = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in pre.patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, last])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, bool(metadata.get("tokenizer.ggml.add_bos_token", pre.adds_bos))


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]
) -> tuple[Tokenizer, bool]:
    """Build Llama 2's kind of tokenizer, with a space before the text and after special tokens."""
    scores = metadata.get("tokenizer.ggml.scores") or []
    if len(scores) != len(tokens):
        raise CheckpointError("the file has not one score for each token; download it again")
    vocabulary = _vocabulary(tokens, types)
    tokenizer = _bpe(
        vocabulary,
        _merges(vocabulary, scores, types),
        unk_token=next(
            (t for t, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None
        ),
        fuse_unk=True,
        byte_fallback=_BYTE in types,
    )
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    tail: list[decoders.Decoder] = []
    if prefix:
        spaces.insert(0, normalizers.Prepend("▁"))
        tail.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *tail]
    )
    return tokenizer, bool(metadata.get("tokenizer.ggml.add_bos_token", True))


_BUILDERS: Mapping[
    str,
    Callable[[Mapping[str, Any], Sequence[str], Sequence[int]], tuple[Tokenizer, bool]],
] = {"gpt2": _byte_level, "llama": _sentencepiece}


def _merges(
    vocabulary: Mapping[str, int], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """Return every split of a token into two tokens, best score first, as transformers does."""
    joins = {t: i for t, i in vocabulary.items() if types[i] in (_NORMAL, _USER_DEFINED)}
    ranked = sorted(
        (-scores[index], at, len(token) - at, token)
        for token, index in joins.items()
        for at in range(1, len(token))
        if token[:at] in joins and token[at:] in joins
    )
    return [(token[:at], token[at:]) for _, at, _, token in ranked]


def _bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]], **settings: Any) -> Tokenizer:
    try:
        return Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **settings))
    except Exception as error:  # the Rust library raises nothing narrower
        raise CheckpointError(
            f"the file's vocabulary and merges do not fit together ({error}); download it again"
        ) from error


def _tokens(metadata: Mapping[str, Any]) -> Sequence[str]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError("the file has no list of tokens; download it again")
    return tokens


def _vocabulary(tokens: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    """Map tokens to ids, without the `[PAD123]` entries that converters add as padding."""
    kept = [
        (token, index)
        for index, token in enumerate(tokens)
        if not (types[index] == _UNUSED and token == f"[PAD{index}]")
    ]
    vocabulary = dict(kept)
    if len(vocabulary) != len(kept):
        raise UnsupportedModel(
            "the file gives one token several ids, so text has no single spelling; "
            "export from the Hugging Face folder instead"
        )
    return vocabulary


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[AddedToken]:
    """Return the tokens that are matched before splitting; special ones are left out of output."""
    return [
        AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _special(metadata: Mapping[str, Any], key: str, tokens: Sequence[str]) -> int | None:
    index = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if index is not None and not 0 <= index < len(tokens):
        raise CheckpointError(
            f"tokenizer.ggml.{key}_token_id {index} is outside the file's vocabulary of "
            f"{len(tokens)} tokens; download or convert the file again"
        )
    return index


def _post_process(
    tokenizer: Tokenizer, metadata: Mapping[str, Any], bos: int | None, eos: int | None
) -> None:
    """Make encoding add the first and last token, as the metadata declares."""
    tail = eos if metadata.get("tokenizer.ggml.add_eos_token") else None
    before, after = (
        [] if index is None else [(tokenizer.id_to_token(index), index)] for index in (bos, tail)
    )
    if not before and not after:
        return
    texts = [*(text for text, _ in before), "$A", *(text for text, _ in after)]
    second = [text if text == "$A" else f"{text}:1" for text in texts]
    pair = [*texts, *("$B:1" if text == "$A" else text for text in second)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=texts, pair=pair, special_tokens=[*before, *after]
    )
