"""Tools of `edgespec serve`, with OpenAI's package, for chat templates of two styles."""

import shutil
from typing import Annotated, Literal

import msgspec
import openai
import pydantic
import pytest

from edgespec.chat_template import render_chat, tool_style
from edgespec.manifest import Bundle
from edgespec.sampling import Sampling
from export.publish import described, write_manifest
from tests.edge_runtime.api.test_serve import CHAT, RENDERED, serving

TURNS = """{% for message in messages %}{% if message.tool_calls %}\
{% for call in message.tool_calls %}CALL
{% endfor %}{% else %}{{ message.role }}: {{ message.content }}
{% endif %}{% endfor %}"""
CALLS = {
    "hermes": '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}\n</tool_call>",
    "llama": '{"name": "{{ call.function.name }}", "parameters": '
    "{{ call.function.arguments | tojson }}}",
}
LISTED = """{% for tool in tools %}{{ tool.function.name }}\
({{ tool.function.parameters.properties | join(" ") }})
{% endfor %}{% endif %}"""
HEADS = {
    "hermes": "{% if tools %}Answer with <tool_call>. " + LISTED,
    "llama": "{% if tools is defined and tools is not none %}Environment: ipython. Write "
    '{"name": …, "parameters": dictionary …}. ' + LISTED,
}
STYLES = list(CALLS)
TEMPLATES = {style: HEADS[style] + TURNS.replace("CALL", CALLS[style]) for style in STYLES}


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class Place(Strict):
    name: Annotated[str, pydantic.Field(max_length=4)]


class Weather(Strict):
    place: Place
    days: Annotated[list[Annotated[int, pydantic.Field(ge=0, le=9)]], pydantic.Field(max_length=3)]


class Light(Strict):
    state: Literal["on", "off"]


MODELS = {"weather": Weather, "light": Light}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": model.model_json_schema()}}
    for name, model in MODELS.items()
]


@pytest.fixture(scope="module", params=STYLES)
def style(request):
    return request.param


@pytest.fixture(scope="module")
def client(bundle, endpoint, style, tmp_path_factory):
    folder = tmp_path_factory.mktemp(style) / "bundle"
    shutil.copytree(bundle.folder, folder)
    template = folder / "tokenizer/chat_template.jinja"
    template.write_text(TEMPLATES[style])
    files = bundle.manifest.files | {"tokenizer/chat_template.jinja": described(template)}
    write_manifest(folder, msgspec.structs.replace(bundle.manifest, files=files))
    with (
        serving(Bundle.open(folder), endpoint) as (url, _),
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        yield client


def rendered(style, messages, tools=()):
    return render_chat(TEMPLATES[style], messages, bos="", eos="", tools=tools)


def ask(client, **fields):
    asked = {"model": "", "messages": CHAT, "temperature": 0.8, "seed": 3, "max_tokens": 300}
    return client.chat.completions.create(**(asked | fields))


def check(call, names=tuple(MODELS)):
    assert call.id.startswith("call_") and call.type == "function"
    assert call.function.name in names
    MODELS[call.function.name].model_validate_json(call.function.arguments)


def test_the_style_of_a_template_is_recognised(style):
    assert tool_style(TEMPLATES[style]) == style
    assert tool_style("{% for tool in tools %}{{ tool }}{% endfor %}") == "unknown"
    assert tool_style("{{ tools }}<tool_call><function=a>") == "unknown"
    assert tool_style("{{ messages }}<tool_call>") == tool_style("{% if %}") == ""


def test_a_required_call_is_made_and_fits_its_schema(client):
    seen = set()
    for seed in range(4):
        (choice,) = ask(client, tools=TOOLS, tool_choice="required", seed=seed).choices
        if choice.finish_reason == "tool_calls":  # not cut at the limit
            assert choice.message.content is None
            for call in choice.message.tool_calls:
                check(call)
                seen.add(call.function.name)
        assert len(choice.message.tool_calls) >= 1
    assert seen


def test_a_named_tool_is_called_once(client):
    chosen = {"type": "function", "function": {"name": "light"}}
    (choice,) = ask(client, tools=TOOLS, tool_choice=chosen).choices
    (call,) = choice.message.tool_calls
    check(call, ["light"])
    assert choice.finish_reason == "tool_calls"


def test_a_single_call_is_required_without_parallel_calls(client):
    for seed in range(3):
        fields = {"tool_choice": "required", "parallel_tool_calls": False, "seed": seed}
        (choice,) = ask(client, tools=TOOLS, **fields).choices
        assert len(choice.message.tool_calls) == 1
        check(choice.message.tool_calls[0])


def test_a_stream_has_the_same_calls(client):
    asked = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    (choice,) = ask(client, **asked).choices
    (whole,) = choice.message.tool_calls
    parts, reasons = [], []
    for chunk in ask(client, **asked, stream=True):
        (choice,) = chunk.choices
        reasons.append(choice.finish_reason)
        assert not choice.delta.content
        parts += choice.delta.tool_calls or []
    assert {part.index for part in parts} == {0}
    assert [part.function.name for part in parts if part.function.name] == [whole.function.name]
    assert [bool(part.id) for part in parts] == [True] + [False] * (len(parts) - 1)
    assert "".join(part.function.arguments for part in parts) == whole.function.arguments
    assert len(parts) > 3 and reasons[-1] == "tool_calls" and set(reasons[:-1]) == {None}


def test_openais_package_parses_calls_with_pydantic(client):
    tools = [openai.pydantic_function_tool(Weather, name="weather")]
    with client.chat.completions.stream(
        model="", messages=CHAT, tools=tools, tool_choice="required", parallel_tool_calls=False,
        temperature=0.8, seed=5, max_tokens=300,
    ) as stream:  # fmt: skip
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)


def test_a_model_that_may_call_writes_the_targets_own_text(client, style, text):
    prompt = rendered(style, CHAT, TOOLS)
    assert "weather" in prompt
    (choice,) = ask(client, tools=TOOLS, max_tokens=24, temperature=0).choices
    assert choice.message.content == text(prompt, 24, chat=True) and not choice.message.tool_calls
    (choice,) = ask(client, tools=TOOLS, tool_choice="none", max_tokens=24, temperature=0).choices
    assert choice.message.content == text(RENDERED, 24, chat=True)


def test_calls_and_results_are_part_of_the_chat(client, style, text):
    function = {"name": "light", "arguments": '{"state": "on"}'}
    messages = [
        *CHAT,
        {
            "role": "assistant",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]
    decoded = {"function": {"name": "light", "arguments": {"state": "on"}}}
    prompt = rendered(style, [CHAT[0], {"tool_calls": [decoded]}, messages[2]], TOOLS)
    assert '{"state": "on"}' in prompt and "tool: done" in prompt
    (choice,) = ask(client, messages=messages, tools=TOOLS, max_tokens=16, temperature=0).choices
    assert choice.message.content == text(prompt, 16, Sampling(), chat=True)


def test_tools_whose_schemas_cannot_be_followed_are_refused(client):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError, match="cannot be used"):
        ask(client, tools=[tool], tool_choice="required")


def test_a_template_without_tools_says_so(bundle, endpoint):
    result = {"role": "tool", "tool_call_id": "c1", "content": "done"}
    with (
        serving(bundle, endpoint) as (url, _),
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.BadRequestError, match="has no tools; leave tools out"):
            ask(client, tools=TOOLS)
        with pytest.raises(openai.BadRequestError, match="no messages of tools"):
            ask(client, messages=[*CHAT, result])
        assert ask(client, tools=TOOLS, tool_choice="none", max_tokens=2)
