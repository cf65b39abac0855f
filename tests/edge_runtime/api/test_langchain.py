"""The API as LangChain uses it."""

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI

from tests.edge_runtime.api.test_serve import serving

CHAT = [SystemMessage("Be short."), HumanMessage("Hi"), AIMessage("Hello."), HumanMessage("Why?")]
RENDERED = "system: Be short.\nuser: Hi\nassistant: Hello.\nuser: Why?\n"


@pytest.fixture(scope="module")
def url(bundle, endpoint):
    with serving(bundle, endpoint) as (url, process):
        yield url
    assert not [line for line in process.log if "Traceback" in line]


def model(url, **settings):
    return ChatOpenAI(
        base_url=url, api_key="none", model="", temperature=0, max_tokens=24, max_retries=0,
        **settings,
    )  # fmt: skip


def test_a_chat_and_its_usage(url, text):
    reply = model(url).invoke(CHAT)
    assert reply.content == text(RENDERED, 24, chat=True)
    assert reply.usage_metadata["output_tokens"] == 24
    assert reply.response_metadata["finish_reason"] == "length"


def test_a_stream_and_its_usage(url, text):
    chunks = list(model(url, stream_usage=True).stream(CHAT))
    assert "".join(chunk.content for chunk in chunks) == text(RENDERED, 24, chat=True)
    assert len([chunk for chunk in chunks if chunk.content]) > 3
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_responses_api(url, text, streaming):
    asked = model(url, use_responses_api=True)
    replies = list(asked.stream(CHAT)) if streaming else [asked.invoke(CHAT)]
    written = "".join(reply.text for reply in replies)
    assert written == text(RENDERED, 24, chat=True)


def test_a_batch_and_a_text_completion(url, text):
    replies = model(url).batch(["Why?", "How?"])
    assert [reply.content for reply in replies] == [
        text(f"user: {word}?\n", 24, chat=True) for word in ("Why", "How")
    ]
    plain = OpenAI(base_url=url, api_key="none", model="", temperature=0, max_tokens=12)
    assert plain.invoke("Roses are") == text("Roses are", 12)
