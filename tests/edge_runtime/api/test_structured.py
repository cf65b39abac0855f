"""Structured output of `edgespec serve`, asked for with OpenAI's package and others' fields."""

import json
from typing import Annotated, Literal

import jsonschema
import openai
import pydantic
import pytest

from edgespec.grammar import Grammar, json_grammar
from edgespec.sampling import Sampling
from tests.edge_runtime.api.test_serve import CHAT, RENDERED, serving


@pytest.fixture(scope="module")
def client(bundle, endpoint):
    with (
        serving(bundle, endpoint) as (url, _),
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        yield client


class Animal(pydantic.BaseModel):
    kind: Literal["fox", "dog"]
    name: Annotated[str, pydantic.Field(max_length=5)]
    ages: Annotated[list[Annotated[int, pydantic.Field(ge=0, le=30)]], pydantic.Field(max_length=3)]


class Yard(pydantic.BaseModel):
    animals: Annotated[list[Animal], pydantic.Field(max_length=2)]
    open: bool


def test_a_pydantic_model_is_parsed_and_the_text_is_the_targets_own(client, text):
    reply = client.chat.completions.parse(
        model="", messages=CHAT, response_format=Yard, temperature=0.8, seed=3, max_tokens=400
    )
    message = reply.choices[0].message
    assert isinstance(message.parsed, Yard) and reply.choices[0].finish_reason == "stop"
    schema = openai.lib._pydantic.to_strict_json_schema(Yard)
    sampling = Sampling(0.8, seed=3)
    grammar = json_grammar(schema)
    assert message.content == text(RENDERED, 400, sampling, chat=True, grammar=grammar)


def test_a_stream_with_a_schema_is_the_same_text(client):
    asked = {"model": "", "messages": CHAT, "temperature": 0.8, "seed": 3, "max_tokens": 400}
    whole = client.chat.completions.parse(response_format=Yard, **asked)
    with client.chat.completions.stream(response_format=Yard, **asked) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == whole.choices[0].message.parsed
    assert final.choices[0].message.content == whole.choices[0].message.content


def test_a_json_object(client):
    reply = client.chat.completions.create(
        model="", messages=CHAT, response_format={"type": "json_object"}, temperature=0.9, seed=2,
        max_tokens=60, logit_bias={"94": 8},
    )  # fmt: skip
    assert reply.choices[0].message.content.startswith("{")
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content), dict)


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"structured_outputs": {"choice": ["fox", "lazy dog"]}}, 'start: "fox" | "lazy dog"\n'),
        ({"grammar": 'root ::= "the " [a-z] "."'}, 'root ::= "the " [a-z] "."'),
        ({"guided_grammar": "start: /[ab]{5}/\n"}, "start: /[ab]{5}/\n"),
    ],
)
def test_grammars_of_other_servers(client, text, fields, grammar):
    found = client.completions.create(
        model="", prompt="the quick", temperature=0, max_tokens=40, extra_body=fields
    )
    expected = text("the quick", 40, grammar=Grammar("lark", grammar))
    assert found.choices[0].text == expected and found.choices[0].finish_reason == "stop"


def test_the_choices_of_a_request_follow_the_same_grammar(client):
    schema = {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 2, "maxItems": 4}
    reply = client.chat.completions.create(
        model="", messages=CHAT, n=3, seed=1, max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )  # fmt: skip
    for choice in reply.choices:
        jsonschema.validate(json.loads(choice.message.content), schema)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"not": {}},
        {"$ref": "#/nowhere"},
        {"pattern": "(", "type": "string"},
    ],
)
def test_an_invalid_schema_is_refused_in_one_sentence(client, schema, stream):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="", messages=CHAT, max_tokens=9, stream=stream,
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        )  # fmt: skip
    message = refused.value.body["message"]
    assert "JSON schema cannot be used" in message and "\n" not in message
    assert client.chat.completions.create(model="", messages=CHAT, max_tokens=2)
