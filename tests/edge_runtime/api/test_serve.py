"""`edgespec serve` as clients see it: OpenAI's own package, and raw bytes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from click.testing import CliRunner

from bench.lab.processes import cloud, word_after
from cli.main import main
from edgespec.sampling import Sampling
from edgespec.text import Codec
from engines.alone import write_alone
from engines.base import Row, final_choices
from engines.onnxruntime_backend.engine import OrtSettings, load_target

KEY = "a-key-of-nine-words"
CHAT = [{"role": "user", "content": "Why is the sky blue?"}]
RENDERED = "user: Why is the sky blue?\n"


@contextlib.contextmanager
def serving(bundle, endpoint, *options, env=None):
    """The URL of a running server, and its process."""
    command = [sys.executable, "-m", "edgespec", "serve", str(bundle.folder), "--connect", endpoint]
    with started([*command, "--port", "0", *options], env) as found:
        yield found


@contextlib.contextmanager
def started(command, env=None):
    environment = {**os.environ, **(env or {})}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    rest = None
    try:
        process.log = []
        for line in process.stderr:
            process.log.append(line)
            if "serving" in line:
                break
        else:
            raise AssertionError("".join(process.log))
        rest = threading.Thread(target=process.log.extend, args=[process.stderr], daemon=True)
        rest.start()
        yield word_after(process.log[-1], "at"), process
    finally:
        process.terminate()
        process.wait(20)
        if rest:
            rest.join()
        process.stderr.close()


@pytest.fixture(scope="module")
def url(bundle, endpoint):
    with serving(bundle, endpoint) as (url, process):
        yield url
        assert process.poll() is None, "".join(process.log)
    assert process.returncode == 0
    assert "Traceback" not in "".join(process.log), "".join(process.log)


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_a_chat_is_the_targets_own(client, text):
    reply = client.chat.completions.create(
        model="", messages=CHAT, max_completion_tokens=24, temperature=0
    )
    (choice,) = reply.choices
    assert choice.message.content == text(RENDERED, 24, chat=True)
    assert choice.finish_reason == "length" and choice.message.role == "assistant"
    usage = reply.usage
    assert usage.completion_tokens == 24 and usage.prompt_tokens > 0
    assert usage.total_tokens == 24 + usage.prompt_tokens
    timings = reply.model_extra["timings"]
    assert timings["draft_n"] >= timings["draft_n_accepted"] >= 0
    drafts = reply.model_extra["metrics"]["speculative_decoding"]
    histogram = drafts["acceptance_histogram"]
    assert sum(n * count for n, count in enumerate(histogram)) == timings["draft_n_accepted"]
    assert drafts["num_draft_tokens"] == timings["draft_n"]
    assert drafts["num_spec_steps"] == sum(histogram)


def test_the_choices_of_a_request_have_seeds_of_their_own(client, text):
    reply = client.chat.completions.create(
        model="", messages=CHAT, max_tokens=16, temperature=0.8, top_p=0.9, seed=5, n=3
    )
    assert [choice.message.content for choice in reply.choices] == [
        text(RENDERED, 16, Sampling(0.8, 0.9, 0, 5 + n), chat=True) for n in range(3)
    ]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    one = client.chat.completions.create(model="", messages=CHAT, max_tokens=1).usage.prompt_tokens
    assert (reply.usage.completion_tokens, reply.usage.prompt_tokens) == (48, one)


def test_penalties_and_biases_make_the_targets_own_text(client, text):
    fields = {"presence_penalty": 1.0, "frequency_penalty": 0.5, "logit_bias": {"40": 2.0}}
    more = {"repetition_penalty": 1.3, "min_p": 0.05}
    texts = set()
    for temperature in (0.0, 0.9):
        reply = client.chat.completions.create(
            model="", messages=CHAT, max_tokens=24, temperature=temperature, seed=3, **fields,
            extra_body=more,
        )  # fmt: skip
        sampling = Sampling(temperature, 1.0, 0, 3, 0.05, 1.0, 0.5, 1.3, ((40, 2.0),))
        texts.add(reply.choices[0].message.content)
        assert reply.choices[0].message.content == text(RENDERED, 24, sampling, chat=True)
    assert len(texts) == 2 and text(RENDERED, 24, chat=True) not in texts


def test_log_probabilities_of_chats(client, bundle, text):
    """They are those of the target's raw logits, whole and streamed."""
    asked = {"model": "", "messages": CHAT, "max_tokens": 24, "temperature": 0.8, "seed": 4}
    asked |= {"logprobs": True, "top_logprobs": 3, "frequency_penalty": 0.7, "n": 2}
    whole = client.chat.completions.create(**asked).choices
    streamed = [[], []]
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.logprobs.content if choice.logprobs else []
    codec, engine = Codec(bundle), load_target(bundle, OrtSettings())
    prompt = codec.encode(RENDERED, chat=True)
    for number, choice in enumerate(whole):
        content = choice.logprobs.content
        assert [each.model_dump() for each in streamed[number]] == [c.model_dump() for c in content]
        sampling = Sampling(0.8, 1.0, 0, 4 + number, frequency_penalty=0.7)
        tokens = write_alone(engine, prompt, 24, sampling, bundle.manifest.text.end_ids)
        assert choice.message.content == text(RENDERED, 24, sampling, chat=True)
        assert len(content) == 24
        (choices,) = final_choices(engine, [Row(engine.open(), 0, [*prompt, *tokens[:-1]], 24)])
        for token, logits, found in zip(tokens, choices.logits, content, strict=True):
            expected = logits - np.log(np.exp(logits.astype(np.float64)).sum())
            assert found.logprob == pytest.approx(expected[token], abs=1e-5)
            assert bytes(found.bytes) == codec.token_bytes(token)
            top = [each.logprob for each in found.top_logprobs]
            assert top == pytest.approx(np.sort(expected)[:-4:-1], abs=1e-5)


def test_log_probabilities_of_text_completions(client):
    asked = {"model": "", "prompt": "the quick", "max_tokens": 12, "temperature": 0, "logprobs": 2}
    (choice,) = client.completions.create(**asked).choices
    found = choice.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == 12
    for token, logprob, top in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert top[token] == logprob == max(top.values()), "greedy takes the likeliest"
    streamed = [c.choices[0].logprobs for c in client.completions.create(**asked, stream=True)]
    for column in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        parts = [getattr(each, column) for each in streamed if each]
        assert [each for part in parts for each in part] == getattr(found, column)
    plain = client.completions.create(**asked | {"logprobs": None})
    assert plain.choices[0].logprobs is None and plain.choices[0].text == choice.text


def test_a_stream_has_the_same_text(client, text):
    stream = client.chat.completions.create(
        model="", messages=CHAT, max_tokens=24, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    *written, usage = chunks
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    first, *middle, last = (chunk.choices[0] for chunk in written)
    assert first.delta.role == "assistant" and first.delta.content == ""
    assert "".join(c.delta.content for c in middle) == text(RENDERED, 24, chat=True)
    assert {c.finish_reason for c in (first, *middle)} == {None}
    assert last.finish_reason == "length" and last.delta.content is None
    assert usage.choices == [] and usage.usage.completion_tokens == 24


def test_text_completions_of_several_prompts(client, text):
    tokens = client.completions.create(model="", prompt=[[7, 8, 9]], max_tokens=4, temperature=0)
    assert tokens.choices[0].text
    asked = {"model": "", "prompt": ["Roses are", "Violets"], "max_tokens": 12, "temperature": 0}
    wanted = [text(prompt, 12) for prompt in asked["prompt"]]
    assert [c.text for c in client.completions.create(**asked).choices] == wanted
    streamed = ["", ""]
    reasons = [[], []]
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
            reasons[choice.index].append(choice.finish_reason)
    assert streamed == wanted
    for each in reasons:
        assert each[-1] in ("length", "stop") and set(each[:-1]) == {None}


def test_an_answer_ends_before_a_stop_text(client, text):
    whole = text(RENDERED, 24, chat=True)
    stop = whole[8:11]
    reply = client.chat.completions.create(
        model="", messages=CHAT, max_tokens=24, temperature=0, stop=[stop]
    )
    assert reply.choices[0].message.content == whole[: whole.index(stop)]
    assert reply.choices[0].finish_reason == "stop"


def test_the_bytes_of_a_stream(url):
    body = {"messages": CHAT, "max_tokens": 3, "temperature": 0, "stream": True, "edgespec": True}
    reply = httpx.post(f"{url}/chat/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and all(e.startswith("data: ") for e in events[:-1])
    chunks = [json.loads(event[6:]) for event in events[:-2]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["delta"] == {}
    pieces = [piece for chunk in chunks for piece in chunk["choices"][0].get("edgespec", ())]
    assert len(pieces) <= 3 and {"text", "origin"} == set(pieces[0])


def test_models_and_their_names(client, url):
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id
    assert model.model_extra["max_model_len"] > 0
    client.completions.create(model=model.id, prompt="a", max_tokens=1)
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-5'") as raised:
        client.completions.create(model="gpt-5", prompt="a")
    assert raised.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("chat/completions", b"{", 400, "not JSON"),
        ("chat/completions", {"messages": []}, 400, "at least one"),
        ("chat/completions", {"messages": CHAT, "temperature": 1e9}, 400, "temperature is"),
        ("chat/completions", {"messages": CHAT, "max_tokens": 0}, 400, "at least 1"),
        ("completions", {"prompt": "a", "logprobs": 21}, 400, "logprobs is 21; it must be from 0"),
        ("chat/completions", {"messages": CHAT, "min_p": 2}, 400, "min-p is 2.0; it must be"),
        ("chat/completions", {"messages": CHAT, "logit_bias": {"999": 1}}, 400, "the token id 999"),
        ("completions", {"prompt": ""}, 400, "the prompt is empty"),
        ("completions", {"prompt": "a " * 100_000}, 400, "shorten the prompt"),
        ("completions", {"prompt": [2**40]}, 400, "the prompt is"),
        ("completions", {"prompt": [999_999]}, 400, ""),
        ("completions", {"prompt": ["a"] * 17}, 400, "17 choices"),
        ("completions", b"x" * (5 << 20), 413, "larger than"),
        ("nothing", {}, 404, "there is no /v1/nothing"),
        ("models", {}, 405, "does not take POST"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_get_a_status_and_a_sentence(url, path, body, status, words, stream):
    if isinstance(body, dict) and stream:
        body = body | {"stream": True}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = httpx.post(f"{url}/{path}", content=content, timeout=30)
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")
    assert words in reply.json()["error"]["message"]


def abandoned(url):
    """Requests whose client left before the reply."""
    lines = httpx.get(url.removesuffix("/v1") + "/metrics").text
    found = re.search(r'^edgespec_api_requests_total{status="499"} (\S+)', lines, re.M)
    return float(found[1]) if found else 0


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_answer(url, stream):
    host, port = re.search(r"//(.*):(\d+)", url).groups()
    asked = {"prompt": "a", "max_tokens": 4000, "temperature": 1, "n": 16, "stream": stream}
    body = json.dumps(asked)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    before = abandoned(url)
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall((head + body).encode())
        time.sleep(0.1)
        if stream:
            assert b"200 OK" in raw.recv(100)
    until(lambda: abandoned(url) == before + 1)


def test_many_streams_at_once_are_each_the_targets_own(url, text):
    wanted = text(RENDERED, 12, chat=True)
    found = []

    def ask():
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            stream = client.chat.completions.create(
                model="", messages=CHAT, max_tokens=12, temperature=0, stream=True
            )
            found.append("".join(c.choices[0].delta.content or "" for c in stream))

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 24


def test_keys_hosts_and_origins(bundle, endpoint):
    with serving(
        bundle, endpoint, "--cors", "https://a.example", env={"EDGESPEC_API_KEY": KEY}
    ) as (
        url,
        _,
    ):
        assert httpx.get(f"{url}/models").status_code == 401
        wrong = httpx.get(f"{url}/models", headers={"Authorization": "Bearer wrong"})
        assert wrong.status_code == 401 and wrong.json()["error"]["code"] == "invalid_api_key"
        good = {"Authorization": f"Bearer {KEY}", "Host": "robot.example"}
        assert httpx.get(f"{url}/models", headers=good).status_code == 200
        assert httpx.get(url.removesuffix("/v1") + "/health").json() == {"status": "ok"}
        asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        allowed = httpx.options(f"{url}/chat/completions", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"


def test_a_foreign_host_name_is_refused_without_a_key(url):
    reply = httpx.get(f"{url}/models", headers={"Host": "attacker.example"})
    assert reply.status_code == 403 and "host name" in reply.json()["error"]["message"]
    assert "access-control-allow-origin" not in reply.headers


def test_a_cloud_that_comes_goes_and_comes_back(bundle, text):
    endpoint = free_endpoint()
    waits = ("--connect-timeout", "0.5", "--give-up", "1")
    bind = ("--bind", endpoint)
    asked = {"messages": CHAT, "max_tokens": 12, "temperature": 0}
    with serving(bundle, endpoint, *waits) as (url, process):
        assert "requests get the status 503" in "".join(process.log)
        away = httpx.post(f"{url}/chat/completions", json=asked, timeout=30)
        assert away.status_code == 503 and away.headers["retry-after"]
        assert away.json()["error"]["code"] == "cloud_unavailable"
        for _ in range(2):
            with cloud(bundle.folder, *bind):
                until(lambda: httpx.get(url.removesuffix("/v1") + "/health").status_code == 200)
                reply = httpx.post(f"{url}/chat/completions", json=asked, timeout=30)
                content = reply.json()["choices"][0]["message"]["content"]
                assert content == text(RENDERED, 12, chat=True)
            until(lambda: httpx.get(url.removesuffix("/v1") + "/health").status_code == 503)
            away = httpx.post(f"{url}/chat/completions", json=asked, timeout=30)
            assert away.status_code == 503


def test_without_a_cloud_the_draft_writes_if_it_may(bundle):
    """Whole, as a plain stream, and with pieces."""
    offline = ("--offline", "draft", "--offline-after", "0.2")
    asked = {"messages": CHAT, "max_tokens": 12, "temperature": 0}
    with serving(bundle, free_endpoint(), *offline) as (url, _):
        whole = httpx.post(f"{url}/chat/completions", json=asked | {"edgespec": True}).json()
        assert httpx.get(url.removesuffix("/v1") + "/health").json() == {"status": "offline"}
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            *chunks, usage = client.chat.completions.create(
                model="", **asked, stream=True, stream_options={"include_usage": True}
            )
        metrics = httpx.get(url.removesuffix("/v1") + "/metrics").text
    (choice,) = whole["choices"]
    assert {piece["origin"] for piece in choice["edgespec"]} == {"unverified"}
    text = choice["message"]["content"]
    assert text and text == "".join(piece["text"] for piece in choice["edgespec"])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert whole["warning"] == usage.model_extra["warning"]
    assert "12 tokens are the draft's own" in whole["warning"]
    assert 'edgespec_api_tokens_total{origin="unverified"} 24.0' in metrics
    assert 'edgespec_api_tokens_total{origin="target"} 0.0' in metrics


def free_endpoint():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


def test_a_signal_lets_answers_end(bundle, endpoint, text):
    with serving(bundle, endpoint) as (url, process):
        body = {"messages": CHAT, "max_tokens": 200, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(20) == 0


def test_the_demo_brings_its_own_cloud(bundle):
    code = (
        "import sys, bench.lab.builtin as b\n"
        "from cli.main import main\n"
        "from edgespec.manifest import Bundle\n"
        f"b.builtin_bundle = lambda: Bundle.open(b.Path({str(bundle.folder)!r}))\n"
        "main(sys.argv[1:])"
    )
    with started([sys.executable, "-c", code, "serve", "--demo", "--port", "0"]) as (url, process):
        asked = {"messages": CHAT, "max_tokens": 4}
        assert httpx.post(f"{url}/chat/completions", json=asked).status_code == 200
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert process.returncode == 0 and not Path(f"/proc/{child}").exists()


def refused(code, words, *arguments, env=None):
    result = CliRunner(env=env or {}).invoke(main, ["serve", *map(str, arguments)])
    assert result.exit_code == code and words in result.stderr, result.stderr


def test_bad_settings_are_refused(bundle, tmp_path, endpoint):
    refused(2, "or --demo, and not both")
    refused(2, "pass --offline draft too", bundle.folder, "--offline-after", "1")
    refused(2, "clients must show a key", bundle.folder, "--host", "0.0.0.0")
    refused(2, "is empty", bundle.folder, "--api-key", empty(tmp_path / "key"))
    refused(2, "cannot be read", bundle.folder, "--api-key", tmp_path / "none")
    refused(2, "at least 8", bundle.folder, env={"EDGESPEC_API_KEY": "short"})
    refused(
        1,
        "cannot listen on",
        bundle.folder,
        "--host",
        "no.such.host",
        env={"EDGESPEC_API_KEY": KEY},
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(
            1, "choose another --host or --port", bundle.folder, "--port", taken.getsockname()[1]
        )


def empty(path):
    path.touch()
    return path


def test_a_prediction_is_counted_and_changes_no_text(bundle, client, url, text):
    wanted = text(RENDERED, 40, chat=True)
    asked = {"model": "", "messages": CHAT, "max_tokens": 40, "temperature": 0}
    create = client.chat.completions.create
    assert create(**asked).usage.completion_tokens_details is None
    for content in (wanted, "nothing of the kind"):
        reply = create(**asked, prediction={"type": "content", "content": content})
        assert reply.choices[0].message.content == wanted
        details = reply.usage.completion_tokens_details
        assert details.accepted_prediction_tokens >= 0
        given = Codec(bundle).encode(content, chat=True)
        total = details.accepted_prediction_tokens + details.rejected_prediction_tokens
        assert total == len(given)
    bad = httpx.post(f"{url}/chat/completions", json=asked | {"prediction": {"content": 3}})
    assert bad.status_code == 400 and bad.json()["error"]["param"] == "prediction.content"
