"""Prompts are tokenized beside the event loop."""

import threading

import anyio
import httpx
import pytest

from edge_runtime.api.app import Api, ApiSettings
from edge_runtime.api.live import LiveSpans
from edge_runtime.client import Client
from edgespec.config import EdgeSettings
from edgespec.errors import UsageError

MESSAGES = [{"role": "user", "content": "Hello"}]


class Slow:
    """A client whose tokenizer takes until another request is answered."""

    tool_style = ""
    mode = "cloud"
    arithmetic = ""

    def __init__(self):
        self.other_served = threading.Event()

    @property
    def welcome(self):
        self.other_served.set()
        return type("Welcome", (), {"context": 64})

    def _tokenize(self, *_, **__):
        self.tokenizer_thread = threading.current_thread()
        raise UsageError("served meanwhile" if self.other_served.wait(5) else "alone")

    chat_tokens = prompt_tokens = text_tokens = _tokenize


class SlowAtPredictions(Slow):
    welcome = type("Welcome", (), {"context": 64})
    connected = True

    def prompt_tokens(self, prompt):
        return prompt


class Given:
    """A connector with that client."""

    def __init__(self, client):
        self.present = client

    async def client(self):
        return self.present


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": MESSAGES}),
        ("completions", {"prompt": "Hello"}),
        ("responses", {"input": "Hello"}),
    ],
)
def test_other_requests_are_served_meanwhile(path, body):
    reply = posted(Slow(), path, body, "/props")
    assert reply.json()["error"]["message"] == "served meanwhile"


def posted(client, path, body, other):
    """The reply to a request, and that to another beside it."""
    app = Api(Given(client), ApiSettings(), LiveSpans()).application()
    found = []

    async def both():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as asking:

            async def post():
                found.append(await asking.post(f"/v1/{path}", json=body))

            async with anyio.create_task_group() as group:
                group.start_soon(post)
                await anyio.sleep(0.1)
                assert (await asking.get(other)).status_code == 200

    anyio.run(both)
    return found[0]


def test_predictions_too():
    client = SlowAtPredictions()
    body = {"prompt": [5], "prediction": {"content": "Hello"}}
    threading.Timer(0.3, client.other_served.set).start()
    assert "served meanwhile" in posted(client, "completions", body, "/health").text
    assert client.tokenizer_thread is not threading.main_thread()


def test_the_number_of_choices_is_checked_before_anything_is_tokenized():
    client = SlowAtPredictions()
    client.prompt_tokens = None
    reply = posted(client, "completions", {"prompt": [[5]] * 9, "n": 2}, "/health")
    assert reply.status_code == 400 and "18 choices were asked for" in reply.text


def test_a_text_that_cannot_fit_is_refused_and_a_prediction_is_cut(bundle, endpoint):
    with Client(bundle, EdgeSettings(connect=endpoint)) as client:
        context = client.welcome.context
        text = "a" * 4_000_000
        for ask in (
            client.prompt_tokens,
            lambda text: client.chat([{"role": "user", "content": text}]),
        ):
            with pytest.raises(UsageError, match=f"{context} tokens has at most"):
                ask(text)
        assert len(client.text_tokens(text)) == context
