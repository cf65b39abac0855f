"""Log-probabilities in OpenAI's forms."""

import math

import pytest

from edge_runtime.api.errors import ApiError
from edge_runtime.api.logprobs import LEAST_LOGPROB, ChoiceLogprobs
from edge_runtime.pieces import Piece
from edgespec.logprobs import TokenLogprobs
from tests.edge_runtime.api.test_requests import chat, completion

WORDS = {1: b"a", 2: b" b", 3: b"\xc3", 4: b"\xa9", 5: b"</s>"}


def piece(token, logprob=-0.5, top=(), origin="target"):
    return Piece(token, "", origin, 0.0, None, TokenLogprobs(logprob, top))


def of(*pieces, chat):
    found = ChoiceLogprobs(WORDS.get, {5}, chat=chat)
    for each in pieces:
        found.add(each)
    return found


def test_a_chat_lists_tokens_with_bytes_and_alternatives():
    found = of(piece(1, top=((1, -0.5), (3, -math.inf))), chat=True)
    assert found.take() == {
        "content": [
            {
                "token": "a", "logprob": -0.5, "bytes": [97],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.5, "bytes": [97]},
                    {"token": "\ufffd", "logprob": LEAST_LOGPROB, "bytes": [0xC3]},
                ],
            }
        ],
        "refusal": None,
    }  # fmt: skip
    assert found.take() is None


def test_a_text_completion_has_columns_and_the_offsets_of_a_whole_text():
    found = of(piece(1, top=((2, -0.1),)), piece(3), piece(4), chat=False)
    assert found.take() == {
        "tokens": ["a", "bytes:\\xc3", "bytes:\\xa9"],
        "token_logprobs": [-0.5] * 3,
        "top_logprobs": [{" b": -0.1, "a": -0.5}, {"bytes:\\xc3": -0.5}, {"bytes:\\xa9": -0.5}],
        "text_offset": [0, 1, 1],
    }
    found.add(piece(2))
    assert found.take()["text_offset"] == [2]


def test_the_end_and_what_no_target_has_seen_are_left_out():
    unverified = Piece(1, "a", "unverified", 0.0)
    assert of(unverified, piece(5), chat=True).take() is None
    assert of(chat=False).take() is None


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        (lambda: chat(), None),
        (lambda: chat(logprobs=False, top_logprobs=0), None),
        (lambda: chat(logprobs=True), 0),
        (lambda: chat(logprobs=True, top_logprobs=20), 20),
        (lambda: completion(), None),
        (lambda: completion(logprobs=False), None),
        (lambda: completion(logprobs=0), 0),
        (lambda: completion(logprobs=5), 5),
    ],
)
def test_how_many_alternatives_are_asked_for(asked, count):
    assert asked().alternatives == count


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (lambda: chat(logprobs=True, top_logprobs=21), "top_logprobs is 21; it must be from 0"),
        (lambda: chat(top_logprobs=2), "top_logprobs needs logprobs"),
        (lambda: chat(logprobs=2), "logprobs is true or false in a chat"),
        (lambda: completion(logprobs=True), "logprobs is a number in a text completion"),
        (lambda: completion(logprobs=-1), "logprobs is -1"),
    ],
)
def test_what_is_no_number_of_alternatives(asked, sentence):
    with pytest.raises(ApiError, match=sentence) as raised:
        _ = asked().alternatives
    assert raised.value.status == 400
