"""Calls in the text of an answer, however the text is cut."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.api.tool_calls import CallParser, Delta

NAMES = {"weather", "add"}


def parse(style, parts, most=None):
    """The text of an answer, and its calls: names and arguments."""
    parser = CallParser(style, NAMES, most)
    found = [each for part in parts for each in parser.push(part)] + parser.push("", end=True)
    text, calls = "", []
    for each in found:
        if isinstance(each, str):
            text += each
        elif each.id:
            assert each.number == len(calls) and each.id.startswith("call_")
            calls.append([each.name, each.arguments])
        else:
            assert each.number == len(calls) - 1
            calls[-1][1] += each.arguments
    assert parser.calls == len(calls)
    return text, [tuple(call) for call in calls]


RAIN = '{"city": "Köln \\"}{\\" ]", "days": [1, {"a": 2}]}'
HERMES = [
    ("Hello there.\n", "Hello there.\n", []),
    (
        f'<tool_call>\n{{"name": "weather", "arguments": {RAIN}}}\n</tool_call>',
        "",
        [("weather", RAIN)],
    ),
    (
        'I look.\n\n<tool_call>{"name":"add","arguments":{}}</tool_call>\n<tool_call>\n'
        '{"arguments": {"a": 1}, "name": "add"}\n</tool_call>\n',
        "I look.",
        [("add", "{}"), ("add", '{"a": 1}')],
    ),
    ("a < b <tool", "a < b <tool", []),
    ('<tool_call>{"name": "rm", "arguments": {}}</tool_call>', None, []),
    ("<tool_call>\nnothing\n</tool_call> so", None, []),
    ('<tool_call>\n{"name": "add", "arguments": {"a": [1', "", [("add", '{"a": [1')]),
    ('<tool_call>\n{"name": "add", "argum', None, []),
    ('<tool_call>\n{"name": "add", "arguments": {"a": 1}}', "", [("add", '{"a": 1}')]),
]  # fmt: skip
LLAMA = [
    ("Hello {there}.", "Hello {there}.", []),
    (f'{{"name": "weather", "parameters": {RAIN}}}', "", [("weather", RAIN)]),
    (f'<|python_tag|>{{"name": "weather", "parameters": {RAIN}}}', "", [("weather", RAIN)]),
    (
        '{"type": "function", "name": "add", "parameters": {"a": 1}}',
        "",
        [("add", '{"a": 1}')],
    ),
    (
        '{"name": "add", "parameters": {}}; {"name": "add", "parameters": {"b": 2}}',
        "",
        [("add", "{}"), ("add", '{"b": 2}')],
    ),
    ('{"parameters": {"a": 1}, "name": "add"}', "", [("add", '{"a": 1}')]),
    ('{"name": "Ada", "age": 3}', None, []),
    ('{"x": 1}', None, []),
    ('{"name": "add", "parameters": {"a": "', "", [("add", '{"a": "')]),
    ("{", None, []),
    ("", "", []),
]
CASES = [("hermes", *case) for case in HERMES] + [("llama", *case) for case in LLAMA]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CASES), st.lists(st.integers(0, 120), max_size=12))
def test_calls_are_found_however_the_text_is_cut(case, cuts):
    style, text, content, calls = case
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    parts = [text[a:b] for a, b in itertools.pairwise(places)]
    assert parse(style, parts) == (text if content is None else content, calls)


@pytest.mark.parametrize("case", CASES)
def test_calls_are_found_letter_by_letter(case):
    style, text, content, calls = case
    assert parse(style, list(text)) == (text if content is None else content, calls)


def test_arguments_are_passed_on_as_they_come():
    parser = CallParser("hermes", NAMES)
    head = parser.push('<tool_call>\n{"name": "add", "arguments": {"a": ')
    assert [type(each) for each in head] == [Delta, Delta] and head[0].name == "add"
    assert parser.push("12") == [Delta(0, "12")]
    assert parser.push("34}}\n</tool_call>") == [Delta(0, "34}")]


@pytest.mark.parametrize("style", ["hermes", "llama"])
def test_calls_after_the_last_are_dropped(style):
    one = '{"name": "add", "arguments": {}}'
    if style == "hermes":
        one = f"<tool_call>{one}</tool_call>"
    assert parse(style, [one, "; " if style == "llama" else "\n", one], most=1) == (
        "",
        [("add", "{}")],
    )


ANY = st.text(alphabet='<tool_call>/{}" :,nameargumts\n;', max_size=60)


@settings(max_examples=300, deadline=None)
@given(ANY, st.sampled_from(["hermes", "llama"]))
def test_no_text_is_lost_without_calls(text, style):
    found, calls = parse(style, list(text))
    assert calls or found == text


def test_the_form_of_a_call_in_a_stream():
    first, more = Delta(0, "", "call_1", "add"), Delta(0, "{}")
    assert first.as_json() == {
        "index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}
    }  # fmt: skip
    assert more.as_json() == {"index": 0, "function": {"arguments": "{}"}}
    assert json.dumps(first.as_json())
