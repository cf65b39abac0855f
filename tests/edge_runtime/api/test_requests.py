"""What clients may send, and what they are told of the rest."""

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.api import errors
from edge_runtime.api.errors import ApiError
from edge_runtime.api.requests import ChatRequest, CompletionRequest, read
from edgespec.errors import BundleError, LinkError, UsageError
from edgespec.grammar import Grammar
from edgespec.sampling import Sampling

TOOLS = [{"type": "function", "function": {"name": "add"}}]
CHOSEN = {"type": "function", "function": {"name": "add"}}
HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields):
    return read(ChatRequest, json.dumps({"messages": HELLO, **fields}).encode())


def completion(**fields):
    return read(CompletionRequest, json.dumps({"prompt": "Hello", **fields}).encode())


def test_the_defaults_are_those_of_openai():
    asked = chat()
    (sampling,) = asked.samplings()
    assert sampling == Sampling(1.0, 1.0, 0, sampling.seed) and asked.limit is None
    assert chat().samplings() != [sampling], "each request has a seed of its own"
    assert not asked.stream and not asked.wants_usage and asked.stops == ()
    assert completion().limit == 16


def test_each_choice_has_a_seed_of_its_own():
    asked = chat(temperature=0.5, top_p=0.9, top_k=-1, seed=-1, n=3)
    assert asked.samplings() == [Sampling(0.5, 0.9, 0, (n - 1) % 2**63) for n in range(3)]


def test_penalties_and_biases_are_parameters_of_sampling():
    fields = {"min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -0.5}
    asked = completion(**fields, repetition_penalty=1.2, logit_bias={"7": -100, "3": 1.5}, seed=4)
    assert asked.samplings() == [Sampling(1.0, 1.0, 0, 4, 0.1, 1, -0.5, 1.2, ((3, 1.5), (7, -100)))]


@pytest.mark.parametrize(
    ("fields", "limit"),
    [({"max_tokens": 5}, 5), ({"max_tokens": 5, "max_completion_tokens": 7}, 7)],
)
def test_the_limit_of_a_chat(fields, limit):
    assert chat(**fields).limit == limit


def test_content_may_come_in_parts_and_developers_are_systems():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": parts, "name": "x"},
        {"role": "assistant", "content": None},
    ]
    assert [each.plain() for each in chat(messages=messages).messages] == [
        {"role": "system", "content": "ab"},
        {"role": "assistant", "content": ""},
    ]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [2, 3]], ["a", [2, 3]]),
    ],
)
def test_prompts_of_every_form(prompt, prompts):
    assert completion(prompt=prompt).prompts() == prompts


@pytest.mark.parametrize("prompt", [[], [[]], [1.5], [True], [[1, "a"]], [None], [{}]])
def test_what_is_no_prompt(prompt):
    with pytest.raises(ApiError, match="prompt must be") as raised:
        completion(prompt=prompt).prompts()
    assert raised.value.status == 400


def test_what_asks_for_nothing_is_taken():
    chat(
        logprobs=False, top_logprobs=0, logit_bias={}, presence_penalty=0, frequency_penalty=0.0,
        min_p=0, response_format={"type": "text"}, tools=[], tool_choice="auto", user="me",
        prediction={"type": "content", "content": "x"}, unknown=[1, {"a": 2}], store=True,
        repetition_penalty=1.0, stop=None, n=None,
    )  # fmt: skip
    completion(echo=False, suffix=None, best_of=1, logprobs=None)
    completion(n=2, best_of=2)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": "yes"}, "logprobs"),
        ({"logit_bias": {"5": "much"}}, "logit_bias[...]"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"presence_penalty": [0.5]}, "presence_penalty"),
        ({"min_p": "little"}, "min_p"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": {"a": 1}}}, "structured_outputs"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": 5}, "guided_regex"),
        ({"grammar": ["a"]}, "grammar"),
        ({"json_schema": "{"}, "json_schema"),
        ({"json_schema": {"enum": ["x" * 50_000]}}, "json_schema"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [{"type": "web_search", "function": {"name": "a"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": 2 * TOOLS}, "tools"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "b"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "a"}]}, "functions"),
        ({"function_call": {"name": "a"}}, "function_call"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"temperature": []}, "temperature"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"content": "hello"}]}, "messages[0]"),
    ],
)
def test_what_is_refused_is_named(fields, param):
    with pytest.raises(ApiError) as raised:
        chat(**fields)
    error = raised.value
    assert error.status == 400 and error.body()["error"]["param"] == param
    assert error.body()["error"]["type"] == "invalid_request_error" and str(error)


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type":"object"}'),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "strict": True, "schema": {"b": 1, "a": "ü"}},
                }
            },
            "json_schema",
            '{"b":1,"a":"ü"}',
        ),
        (
            {"response_format": {"type": "json_object", "schema": {"a": 1}}},
            "json_schema",
            '{"a":1}',
        ),
        ({"structured_outputs": {"json": '{"a": 1}'}}, "json_schema", '{"a":1}'),
        ({"structured_outputs": {"json_object": True}}, "json_schema", '{"type":"object"}'),
        ({"structured_outputs": {"regex": "a+", "whitespace_pattern": None}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["a", '"']}}, "lark", 'start: "a" | "\\""\n'),
        ({"structured_outputs": {"grammar": "start: A"}}, "lark", "start: A"),
        ({"guided_json": {"a": 1}}, "json_schema", '{"a":1}'),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a"]}, "lark", 'start: "a"\n'),
        ({"guided_grammar": 'root ::= "a"'}, "lark", 'root ::= "a"'),
        ({"grammar": 'root ::= "a"'}, "lark", 'root ::= "a"'),
        ({"json_schema": {"a": 1}}, "json_schema", '{"a":1}'),
    ],
)
def test_the_grammars_of_three_apis(fields, kind, text):
    assert chat(**fields).constraint == completion(**fields).constraint == Grammar(kind, text)


def test_without_a_grammar_any_text_is_written():
    for fields in ({}, {"response_format": None, "grammar": "", "guided_json": None}):
        assert chat(**fields).constraint is None


@pytest.mark.parametrize("n", [0, -1, 17])
def test_choices_are_bounded(n):
    with pytest.raises(ApiError, match="must be from 1 to 16"):
        chat(n=n).samplings()


def test_stop_texts_are_bounded_and_empty_ones_left_out():
    assert chat(stop=["", "a"]).stops == ("a",)
    with pytest.raises(ApiError, match="more than 16"):
        _ = chat(stop=["a"] * 17).stops


def test_messages_of_tools_are_what_templates_expect():
    function = {"name": "add", "arguments": '{"a": [1]}'}
    messages = [
        {
            "role": "assistant",
            "tool_calls": [{"id": "x", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "x", "content": "5"},
    ]
    asked, answered = chat(messages=messages).messages
    assert asked.of_tools and answered.of_tools
    assert answered.plain() == {"role": "tool", "content": "5", "tool_call_id": "x"}
    (plain,) = asked.plain()["tool_calls"]
    assert plain["function"] == {"name": "add", "arguments": {"a": [1]}}


def test_messages_of_tools_that_cannot_be_read():
    (message,) = chat(messages=[{"role": "function", "content": "x"}]).messages
    with pytest.raises(ApiError, match="use 'tool'"):
        message.plain()
    call = {"function": {"name": "add", "arguments": "[1"}}
    (message,) = chat(messages=[{"role": "assistant", "tool_calls": [call]}]).messages
    with pytest.raises(ApiError, match="no JSON object"):
        message.plain()


@pytest.mark.parametrize(
    ("fields", "use"),
    [
        ({}, None),
        ({"tool_choice": "none"}, None),
        ({"tools": TOOLS, "tool_choice": "none"}, None),
        ({"tools": TOOLS}, (False, "", True)),
        ({"tools": TOOLS, "parallel_tool_calls": False}, (False, "", False)),
        ({"tools": TOOLS, "tool_choice": "required"}, (True, "", True)),
        ({"tools": TOOLS, "tool_choice": CHOSEN}, (True, "add", False)),
    ],
)
def test_which_tools_may_be_called(fields, use):
    found = chat(**fields).tool_use
    assert (found and (found.required, found.named, found.parallel)) == use


def test_without_a_template_that_has_tools_they_are_refused():
    use = chat(tools=TOOLS).tool_use
    for style in ("", "unknown"):
        with pytest.raises(ApiError, match="leave tools out") as refused:
            use.check(style)
        assert refused.value.body()["error"]["param"] == "tools"
    use.check("hermes")
    assert use.described == TOOLS and use.grammar("hermes") is None


def test_definitions_of_a_tool_stay_within_reach():
    parameters = {"$defs": {"D": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/D"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    grammar = chat(tools=[tool], tool_choice="required").tool_use.grammar("llama")
    schema = json.loads(grammar.text.splitlines()[1].partition("%json ")[2])
    assert schema["$defs"] == {"D": {"type": "string"}}
    assert "$defs" not in schema["properties"]["parameters"]


def test_tools_that_no_grammar_holds_are_refused():
    parameters = {"enum": ["x" * 50_000]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(ApiError, match="too many"):
        chat(tools=[tool], tool_choice="required").tool_use.grammar("hermes")


def test_an_image_is_refused():
    image = {"type": "image_url", "image_url": {"url": "x"}}
    (message,) = chat(messages=[{"role": "user", "content": [image]}]).messages
    with pytest.raises(ApiError, match="'image_url' is not supported"):
        message.plain()


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"messages": 1}']
)
def test_what_is_no_request(body):
    with pytest.raises(ApiError) as raised:
        read(ChatRequest, body)
    assert raised.value.status == 400


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-2, 2) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(ChatRequest.__struct_fields__ + CompletionRequest.__struct_fields__)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(NAMES, ANY_JSON, max_size=6), st.sampled_from([ChatRequest, CompletionRequest])
)
def test_anything_is_read_or_refused(fields, kind):
    body = json.dumps({"messages": HELLO, "prompt": "a"} | fields).encode()
    with contextlib.suppress(ApiError):
        asked = read(kind, body)
        _ = asked.alternatives
        assert asked.samplings() and isinstance(asked.stops, tuple)
        if isinstance(asked, ChatRequest):
            assert all(each.plain() for each in asked.messages)
        else:
            assert asked.prompts()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("x"), 400),
        (LinkError("x"), 503),
        (LinkError("x", code="busy"), 429),
        (LinkError("x", code="invalid"), 400),
        (BundleError("x"), 500),
    ],
)
def test_errors_of_edgespec_get_a_status(error, status):
    told = errors.of(error)
    assert told.status == status and str(told) == "x"
    assert ("Retry-After" in told.headers()) is (status in (429, 503))


def test_token_ids_of_biases_cannot_slow_the_decoder():
    """Multiples of 2**61 - 1 have one hash as integers: 20 000 of them took a second."""
    keys = ",".join(f'"{(2**61 - 1) * n}":1' for n in range(1, 20_000))
    began = time.process_time()
    with pytest.raises(ApiError, match="names 19999 tokens; at most 300"):
        read(CompletionRequest, f'{{"prompt": [5], "logit_bias": {{{keys}}}}}'.encode())
    assert time.process_time() - began < 0.2


@pytest.mark.parametrize("token", ["", "five", "1_0", " 7", "7.0", "1" * 11, "٣"])
def test_what_is_no_token_id_has_no_bias(token):
    with pytest.raises(ApiError, match="which is no token id"):
        completion(logit_bias={token: 1})
