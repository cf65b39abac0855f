"""`/v1/responses` as OpenAI's own package reads it."""

import json
import os
import signal
import threading

import httpx
import openai
import pytest

from bench.lab.processes import cloud_process
from edgespec.sampling import Sampling
from tests.edge_runtime.api.test_serve import serving

PROMPT = "user: Why is the sky blue?\n"


@pytest.fixture(scope="module")
def url(bundle, endpoint):
    with serving(bundle, endpoint) as (url, process):
        yield url
    assert not [line for line in process.log if "Traceback" in line]


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_a_response_is_the_targets_own(client, text):
    response = client.responses.create(
        model="", input="Why is the sky blue?", max_output_tokens=24, temperature=0,
        metadata={"trace": "7"},
    )  # fmt: skip
    assert response.output_text == text(PROMPT, 24, chat=True)
    assert response.status == "incomplete" and response.error is None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == 24 and response.metadata == {"trace": "7"}
    assert response.usage.total_tokens == 24 + response.usage.input_tokens
    assert response.output[0].role == "assistant" and response.object == "response"


def test_instructions_and_messages_make_the_chat(client, text):
    response = client.responses.create(
        model="",
        instructions="Be short.",
        input=[
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Hello."}]},
            {"role": "developer", "content": [{"type": "input_text", "text": "In German."}]},
        ],
        max_output_tokens=16,
        temperature=0.8,
        top_p=0.9,
        extra_body={"seed": 3},
    )
    prompt = "system: Be short.\nuser: Hi\nassistant: Hello.\nsystem: In German.\n"
    assert response.output_text == text(prompt, 16, Sampling(0.8, 0.9, 0, 3), chat=True)


def test_the_events_of_a_stream(client, text):
    wanted = text(PROMPT, 24, chat=True)
    with client.responses.stream(
        model="", input="Why is the sky blue?", max_output_tokens=24, temperature=0
    ) as stream:
        events = list(stream)
    final = events[-1].response
    kinds = [event.type for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added", *["response.output_text.delta"] * len(deltas),
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.incomplete",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in deltas) == wanted and len(deltas) > 3
    assert events[len(deltas) + 4].text == final.output_text == wanted
    assert len({event.item_id for event in deltas} | {final.output[0].id}) == 1


def test_the_plain_iteration_works_too(client, text):
    written = ""
    for event in client.responses.create(
        model="", input="Why is the sky blue?", max_output_tokens=8, temperature=0, stream=True
    ):
        if event.type == "response.output_text.delta":
            written += event.delta
    assert written == text(PROMPT, 8, chat=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("prompt", {"id": "pmpt_1"}),
        ("background", True),
        ("include", ["message.output_text.logprobs"]),
        ("reasoning", {"effort": "low"}),
        ("text", {"format": {"type": "json_object"}}),
        ("tools", [{"type": "web_search"}]),
        ("tool_choice", "required"),
        ("top_logprobs", 3),
        ("truncation", "auto"),
        ("max_output_tokens", 0),
        ("input", [{"type": "function_call_output", "call_id": "1", "output": "2"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]),
        ("input", []),
        ("temperature", -1),
    ],
)
def test_what_is_not_offered_is_refused_by_name(url, field, value):
    body = {"input": "a", "max_output_tokens": 4} | {field: value}
    reply = httpx.post(f"{url}/responses", json=body)
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] in (field, None)
    assert error["param"] == field or field in ("input", "temperature")


def test_a_stream_that_fails_says_so_in_its_last_event(bundle):
    give_up = ("--give-up", "1.5")
    with (
        cloud_process(bundle.folder) as cloud,
        serving(bundle, cloud.endpoint, *give_up) as (
            url,
            _,
        ),
    ):
        httpx.get(url.removesuffix("/v1") + "/health")
        os.kill(cloud.pid, signal.SIGSTOP)
        resume = threading.Timer(8, os.kill, [cloud.pid, signal.SIGCONT])
        resume.start()
        body = {"input": "a", "max_output_tokens": 4, "stream": True}
        reply = httpx.post(f"{url}/responses", json=body, timeout=30)
        last = json.loads(reply.text.strip().split("\n\n")[-1].split("\ndata: ")[1])
        resume.join()
    assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
    assert "silent" in last["response"]["error"]["message"]
