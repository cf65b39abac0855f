"""Streamed text equals decoded text, and stop strings are found wherever they fall."""

import hashlib
import itertools
import json
import threading
import time

import msgspec
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgespec.errors import BundleError, UsageError
from edgespec.manifest import Bundle, File
from edgespec.text import TOKENIZER, Codec, TextStream


@pytest.fixture(scope="module")
def codec():
    """One token for every byte, so that characters and stop strings straddle tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    codec = Codec.__new__(Codec)
    codec.tokenizer = tokenizer
    return codec


def stream(codec, text, *stops):
    """The pieces that come out, and how many tokens went in."""
    ids = codec.encode(text)
    out = TextStream(codec, codec.encode("Q: "), stops)
    pieces = []
    for token in ids:
        pieces.append(out.push(token))
        if out.stopped:
            return pieces, len(pieces)
    pieces.append(out.flush())
    return pieces, len(ids)


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語 🎉 done", " leading space"])
def test_pieces_join_to_the_text(codec, text):
    pieces, _ = stream(codec, text)
    assert "".join(pieces) == text


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one END two", ["END"], "one "),
        ("one ENEND two", ["END"], "one EN"),
        ("abab abc", ["abc"], "abab "),
        ("one two", ["two", "ne"], "o"),
        ("no such", ["xyz"], "no such"),
        ("ends with EN", ["END"], "ends with EN"),
        ("ünü", ["ü"], ""),
        ("one", [""], "one"),
    ],
)
def test_stop_strings(codec, text, stops, shown):
    pieces, taken = stream(codec, text, *stops)
    assert "".join(pieces) == shown
    ends = [text.find(s) + len(s) for s in stops if s and s in text]
    assert taken == len(codec.encode(text[: min(ends)] if ends else text))


def test_nothing_of_a_stop_string_is_shown_early(codec):
    pieces, _ = stream(codec, "aENb", "END")
    assert list(itertools.accumulate(pieces)) == ["a", "a", "a", "aENb", "aENb"]


def test_chat_without_a_template_is_refused(codec):
    codec._template = None
    with pytest.raises(UsageError, match="no chat template"):
        codec.render([{"role": "user", "content": "hi"}])


EVIL = {"Regex": "(a|a)*(a|a)*(a+)+$"}
SPLIT = {"type": "Split", "pattern": EVIL, "behavior": "Isolated", "invert": False}


@pytest.fixture
def with_tokenizer(tiny_bundle, tmp_path):
    """Makes the bundle with another tokenizer.json, whose checksum is right."""

    def made(content):
        (tmp_path / "tokenizer").mkdir()
        (tmp_path / TOKENIZER).write_bytes(content)
        file = File(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        manifest = msgspec.structs.replace(tiny_bundle.manifest, files={TOKENIZER: file})
        return Bundle(tmp_path, manifest)

    return made


@pytest.mark.parametrize("content", [b"", b'{"version":"1.0"}', b"\xff", b'{"a":' + b"[" * 200_000])
def test_a_tokenizer_that_cannot_be_read_is_refused(with_tokenizer, content):
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be used \(.*export the bundle"):
        Codec(with_tokenizer(content))


def test_a_tokenizer_that_panics_is_refused(tiny_bundle, with_tokenizer):
    document = json.loads(tiny_bundle.path(TOKENIZER).read_text())
    document["pre_tokenizer"] = SPLIT
    codec = Codec(with_tokenizer(json.dumps(document).encode()))
    with pytest.raises(BundleError, match=r"cannot be used \(.*retry-limit"):
        codec.encode("a" * 30 + "!")


def test_a_text_that_is_certainly_too_long_is_refused_unread(codec):
    assert codec.longest_token_characters == 1
    assert len(codec.encode("abcd", most_tokens=4)) == 4
    with pytest.raises(UsageError, match="5 characters, and a context of 4 tokens has at most 4"):
        codec.encode("abcde", most_tokens=4)


def test_other_threads_run_while_a_text_is_tokenized(codec):
    text, done = "a" * 1_000_000, threading.Event()

    def work():
        codec.encode(text)
        done.set()

    began = time.monotonic()
    thread = threading.Thread(target=work)
    thread.start()
    looks = 0
    while not done.wait(0.001):
        looks += 1
    thread.join()
    assert looks > 10, f"{looks} in {time.monotonic() - began:.2f} s"
