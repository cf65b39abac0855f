"""The bytes of tokens, for the kinds of tokenizers that bundles have."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgespec.token_bytes import TokenBytes


def byte_level(merges=()):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(one + other for one, other in merges)]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end▁of|>"])
    return tokenizer


BYTES = byte_level([("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ã", "©")])


@given(st.text(max_size=20))
def test_the_bytes_of_a_byte_level_texts_tokens_are_its_own(text):
    of = TokenBytes(BYTES)
    assert b"".join(map(of, BYTES.encode(text).ids)) == text.encode()


def test_parts_of_characters_spaces_and_special_tokens():
    of = TokenBytes(BYTES)
    named = BYTES.token_to_id
    assert of(named("Ġthe")) == b" the" and of(named("Ã©")) == "é".encode()
    assert of(named("Ã")) == b"\xc3"
    assert of(named("<|end▁of|>")) == "<|end▁of|>".encode()
    assert of(10**6) == b""


def test_a_vocabulary_with_visible_spaces_and_named_bytes():
    names = ["<unk>", "▁the", "é", "<0x0A>", "<0xC3>", "▁"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    of = TokenBytes(tokenizer)
    assert [of(number) for number in range(1, 6)] == [b" the", "é".encode(), b"\n", b"\xc3", b" "]


def test_a_tokenizer_without_a_decoder():
    assert TokenBytes(Tokenizer(models.WordLevel({"a": 0}, "a")))(0) == b"a"
