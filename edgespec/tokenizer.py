"""Fingerprint of a tokenizer: equal for equal vocabularies and equal ids of fixed probes."""

from __future__ import annotations

import hashlib
import json

import tokenizers

_PROBES = (
    "",
    "Hello, world!",
    "In 2024, 12345 + 678 = 13023.0 and 1e-05",
    "  two  spaces   and a tail  ",
    "line one\nline two\n\n\tindented\r\n \n  \n",
    "def f(x):\n    return {'a': x ** 2}  # squared\n",
    "I'LL don't WE'VE it's HTMLParser fooBarBaz",
    "Ünïcödé façade, naïve œuvre",
    "e\u0301 cafe\u0301 \ufb01ne \u212b",
    "日本語の文章と中文字符 한국어 ไทย العربية ١٢٣ ½²Ⅷ",
    "smile 🙂👍🏽 flag 🇫🇷 \u200d\ufe0f\u3000\u00a0",
    'x=1;y+=22;z<=333 $4.50 ~|^`\\ "quoted" <b>&amp;</b>',
    "<s>a</s> <unk> ▁low <0x0A> [INST] <pad>",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <think> <tool_call>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
)


def fingerprint(tokenizer: tokenizers.Tokenizer) -> str:
    """SHA-256 (hex) of the vocabulary, added tokens included, and of the ids of fixed probes.

    The formatting of `tokenizer.json` does not matter; any different token, id or rule does.
    Padding of the model's embedding is not part of a tokenizer.
    """
    vocabulary = sorted(tokenizer.get_vocab(with_added_tokens=True).items())
    ids = [tokenizer.encode(text).ids for text in _PROBES]
    return hashlib.sha256(json.dumps([vocabulary, ids]).encode()).hexdigest()
