"""The client as a program uses it, against a cloud in another process."""

import asyncio
import contextlib
import gc
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import edgespec
from bench.lab.processes import cloud, cloud_process
from edgespec.config import Tactics
from edgespec.errors import LinkError, UsageError
from edgespec.grammar import Grammar, json_grammar
from edgespec.sampling import Sampling

CHAT = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "huge pages":  # ends by itself once the draft's weights are moved
            thread.join(10)
    assert set(threading.enumerate()) <= before


def test_log_probabilities_are_the_targets_in_every_mode(bundle, endpoint):
    options = {"max_tokens": 40, "temperature": 0.8, "seed": 3, "presence_penalty": 1.0}
    found = []
    for mode in ("cloud", "edge"):
        with edgespec.connect(bundle, endpoint, mode=mode) as client:
            found.append(list(client.complete("the quick", logprobs=5, **options)))
            assert all(piece.logprobs is None for piece in client.complete("a", max_tokens=4))
    alone, drafted = found
    said = [[(piece.token, piece.logprobs) for piece in pieces] for pieces in (alone, drafted)]
    assert said[0] == said[1], "one target, so the same bits"
    for piece in alone:
        assert piece.logprobs.logprob <= piece.logprobs.top[0][1] < 0
        assert len(piece.logprobs.top) == 5


def test_the_example_of_the_readme(bundle, endpoint, alone, monkeypatch):
    """As a user writes it, with two answers at once."""
    code = """
    import edgespec

    with edgespec.connect("bundle", "ENDPOINT") as client:
        answer = client.chat([{"role": "user", "content": "Why is the sky blue?"}], max_tokens=64)
        other = client.chat([{"role": "user", "content": "the lazy dog"}], max_tokens=64)
        for piece in answer:            # piece.text, piece.token, piece.origin
            print(piece.text, end="")
        print(other.text)
        print(answer.stats)
    """
    monkeypatch.chdir(bundle.folder.parent)
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(textwrap.dedent(code).replace("ENDPOINT", endpoint), names)
    for name, question in (("answer", "Why is the sky blue?"), ("other", "the lazy dog")):
        expected = alone(f"user: {question}\n", 64, chat=True)
        assert names[name].stats.token_ids == expected
        assert names[name].text in printed.getvalue()
    assert "tokens per second" in printed.getvalue()


def test_answers_of_several_threads_at_once(bundle, endpoint, alone):
    texts = ["the quick", "the lazy dog", "brown fox", "over"]
    with edgespec.connect(bundle, endpoint, drafter="cpu-int8", mode="edge") as client:
        found = {}

        def ask(seed, prompt):
            answer = client.complete(prompt, max_tokens=40, temperature=1.0, seed=seed)
            pieces = list(answer)
            assert {piece.origin for piece in pieces} <= {"device", "cloud-draft", "target"}
            found[prompt] = [piece.token for piece in pieces]
            assert "".join(piece.text for piece in pieces) == answer.text
            assert answer.stats.token_ids == found[prompt]

        threads = [threading.Thread(target=ask, args=each) for each in enumerate(texts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.mode
    for seed, prompt in enumerate(texts):
        assert found[prompt] == alone(prompt, 40, Sampling(1.0, seed=seed))


def test_answers_of_several_tasks_at_once(bundle, endpoint, alone):
    texts = ["the quick", "the lazy dog", "brown fox"]

    async def ask(client, prompt):
        answer = client.complete(prompt, max_tokens=30)
        tokens = [piece.token async for piece in answer]
        assert await answer.text() == await client.complete(prompt, max_tokens=30).text()
        return tokens

    async def main():
        async with edgespec.connect_async(bundle, endpoint) as client:
            return await asyncio.gather(*(ask(client, prompt) for prompt in texts))

    assert asyncio.run(main()) == [alone(prompt, 30) for prompt in texts]


def test_a_stop_text_ends_the_answer_before_it(bundle, endpoint):
    with edgespec.connect(bundle, endpoint) as client:
        text = client.complete("the quick", max_tokens=40).text
        stop = text[8:11]
        for stops in (stop, [stop, "never there"]):
            answer = client.complete("the quick", max_tokens=40, stop=stops)
            assert answer.text == text[: text.index(stop)]
            assert answer.stats.finish == "stop"


def test_leaving_the_loop_closing_and_forgetting_end_the_session(bundle, alone):
    """With one place at the cloud, the next answer starts only if the last session is closed."""
    with (
        cloud(bundle.folder, "--max-sessions", "1") as endpoint,
        edgespec.connect(bundle, endpoint, mode="cloud") as client,
    ):
        long = {"max_tokens": 400, "temperature": 1.0}
        for _ in client.complete("the quick", **long):
            break
        answer = client.complete("the quick", **long)
        first = next(iter(answer))
        answer.cancel()
        assert answer.text.startswith(first.text) and answer.stats.finish == ""
        assert 0 < answer.stats.tokens < 400
        forgotten = client.complete("the quick", **long)
        del forgotten
        began = time.monotonic()
        assert client.complete("the quick", max_tokens=5).stats is not None
        answer = client.complete("the quick", max_tokens=5)
        assert [piece.token for piece in answer] == alone("the quick", 5)
        assert time.monotonic() - began < 5


def test_a_task_that_is_cancelled_ends_its_session(bundle):
    async def main():
        with cloud(bundle.folder, "--max-sessions", "1") as endpoint:
            async with edgespec.connect_async(bundle, endpoint, mode="cloud") as client:
                answer = client.complete("the quick", max_tokens=400, temperature=1.0)

                async def read():
                    async for _ in answer:
                        pass

                task = asyncio.create_task(read())
                while not answer.stats.tokens:
                    await asyncio.sleep(0.01)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                await answer.cancel()
                return await client.complete("the quick", max_tokens=3).text()

    assert asyncio.run(main())


def test_errors_raise_where_the_answer_is_read(bundle, endpoint):
    with edgespec.connect(bundle, endpoint) as client:
        with pytest.raises(UsageError, match="at most 512"):
            client.complete("the " * 600)
        with pytest.raises(UsageError, match=r"logit bias is {'the': 1.0}; pass numbers by"):
            client.complete("x", logit_bias={"the": 1.0})
        with pytest.raises(UsageError, match="logit bias names 301 tokens; at most 300"):
            client.complete("x", logit_bias=dict.fromkeys(range(301), 1.0))
        with pytest.raises(UsageError, match="the token id 300; the target has 300"):
            client.complete("x", logit_bias={300: 1.0})
        with pytest.raises(UsageError, match="log-probabilities of 21 likeliest tokens"):
            client.complete("x", logprobs=21)
        with pytest.raises(UsageError, match="temperature is -1"):
            client.complete("x", temperature=-1.0)
        with pytest.raises(UsageError, match="max_tokens is 0"):
            client.complete("x", max_tokens=0)
        unread = client.complete("the quick", max_tokens=400, temperature=1.0)
    with pytest.raises(UsageError, match="the client is closed"):
        list(unread)
    with pytest.raises(UsageError, match="the client is closed"):
        client.complete("x")
    with pytest.raises(UsageError, match="not connected"):
        edgespec.connect_async(bundle, endpoint).complete("x")


def test_a_cloud_that_is_not_there_is_a_link_error(bundle, tmp_path):
    settings = edgespec.EdgeSettings(connect_timeout=0.3)
    with pytest.raises(LinkError, match="nobody answered"):
        edgespec.connect(bundle, f"ipc://{tmp_path}/none", settings=settings)
    with pytest.raises(UsageError, match="must be encrypted"):
        edgespec.connect(bundle, "tcp://192.0.2.1:5555")
    with pytest.raises(UsageError, match="no draft for 'abacus'"):
        edgespec.connect(bundle, f"ipc://{tmp_path}/none", drafter="abacus")


def test_a_cloud_that_dies_ends_every_answer(bundle):
    lockstep = Tactics("none")
    settings = edgespec.EdgeSettings(give_up=1.0, patience=0.3, tactics=lockstep, draft_length=1)
    with (
        cloud_process(bundle.folder) as process,
        edgespec.connect(bundle, process.endpoint, drafter="ngram", settings=settings) as client,
    ):
        answers = [
            client.complete("the quick", max_tokens=480, temperature=1.0, seed=seed)
            for seed in range(2)
        ]
        reading = [iter(answer) for answer in answers]
        for pieces in reading:
            next(pieces)
        os.kill(process.pid, signal.SIGKILL)
        for pieces in reading:
            with pytest.raises(LinkError, match="has been silent"):
                list(pieces)


INTERRUPTED = """
import edgespec, sys
client = edgespec.connect({folder!r}, {endpoint!r}, mode="cloud")
answer = client.complete("the quick", max_tokens=400, temperature=1.0)
for piece in answer:
    print("begun", flush=True)
    {then}
"""


@pytest.mark.parametrize("then", ["import time; time.sleep(60)", "sys.exit(0)", "1 / 0"])
def test_a_program_that_ends_in_the_middle_leaves_no_session(bundle, alone, then):
    """Without `with`: interrupted by Ctrl-C, at exit, and after an exception."""
    with cloud(bundle.folder, "--max-sessions", "1") as endpoint:
        code = INTERRUPTED.format(folder=str(bundle.folder), endpoint=endpoint, then=then)
        program = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert program.stdout.readline() == "begun\n"
        if "sleep" in then:
            program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=20)
        assert program.returncode == 0 or "KeyboardInterrupt" in errors or "ZeroDivision" in errors
        settings = edgespec.EdgeSettings(give_up=3.0)
        with edgespec.connect(bundle, endpoint, mode="cloud", settings=settings) as client:
            answer = client.complete("the quick", max_tokens=3)
            assert [piece.token for piece in answer] == alone("the quick", 3)


def test_importing_edgespec_loads_neither_the_client_nor_numpy():
    code = """
import sys
before = set(sys.modules)
import edgespec
added = {name.partition(".")[0] for name in set(sys.modules) - before}
assert not added & {"edge_runtime", "engines", "numpy", "zmq", "msgspec"}, added
assert len(set(sys.modules) - before) < 60, len(set(sys.modules) - before)
assert "connect" in dir(edgespec)
from edgespec import AsyncClient, Client, Piece, connect
assert Client.__module__ == "edge_runtime.client"
try:
    edgespec.nothing
except AttributeError as error:
    assert "nothing" in str(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def python_examples():
    text = (Path(__file__).parents[2] / "docs/python.md").read_text()
    return [part.partition("```")[0] for part in text.split("```python\n")[1:]]


@pytest.mark.parametrize("code", python_examples())
def test_the_examples_of_the_docs_run(bundle, endpoint, code, monkeypatch, capsys):
    monkeypatch.chdir(bundle.folder.parent)
    exec(code.replace("tcp://127.0.0.1:5555", endpoint), {})
    assert capsys.readouterr().out


def test_wrong_modes_and_messages_are_refused_in_a_sentence(bundle, endpoint):
    with pytest.raises(UsageError, match="choose one of auto, edge, cloud-draft, cloud"):
        edgespec.connect(bundle, endpoint, mode="foo")
    with edgespec.connect(bundle, endpoint) as client:
        for messages in ("hello", [], 3, [3], [{"role": "user"}], [{"text": "hello"}]):
            with pytest.raises(UsageError, match=r"a chat is a list of messages .* at least one"):
                client.chat(messages)


def test_what_is_no_prompt_or_stop_text_is_refused_in_a_sentence(bundle, endpoint):
    with edgespec.connect(bundle, endpoint) as client:
        for prompt in (3, None, [1.5], ["a"], [-1], [1 << 31], [1 << 70]):
            with pytest.raises(UsageError, match=r"the prompt is .*; pass a text, or a list of"):
                client.complete(prompt)
        for stop in (5, None, [5], b"end", ["end", None]):
            with pytest.raises(UsageError, match=r"stop is .*; pass a text, or a list of texts"):
                client.complete("the quick", stop=stop)
        answer = client.complete(np.array([5, 9]), max_tokens=3, stop=("never there",))
        assert len(list(answer)) == 3


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["fox", "dog"]},
        "ages": {"type": "array", "items": {"type": "integer", "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "kind", "ages"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("asked", "grammar"),
    [
        ({"json_schema": SCHEMA}, json_grammar(SCHEMA)),
        ({"json_schema": json.dumps(SCHEMA), "temperature": 1.0}, json_grammar(SCHEMA)),
        ({"regex": "(fox|dog){3,9}", "temperature": 0.9}, Grammar("regex", "(fox|dog){3,9}")),
        ({"grammar": 'start: "fox" | "the dog"'}, Grammar("lark", 'start: "fox" | "the dog"')),
        ({"grammar": 'root ::= "a" [0-9]+ "z"'}, Grammar("lark", 'root ::= "a" [0-9]+ "z"')),
    ],
)
def test_answers_follow_a_grammar_and_are_the_targets_own_in_every_mode(
    bundle, endpoint, alone, asked, grammar
):
    sampling = Sampling(asked.get("temperature", 0.0), seed=7)
    expected = alone("the quick", 150, sampling, grammar=grammar)
    for mode, drafter in (("cloud", ""), ("edge", "cpu-int8"), ("edge", "ngram")):
        with edgespec.connect(bundle, endpoint, mode=mode, drafter=drafter) as client:
            answer = client.complete("the quick", max_tokens=150, seed=7, **asked)
            text = answer.text
            assert answer.stats.token_ids == expected
    if grammar.kind == "json_schema" and answer.stats.finish == "end":
        jsonschema.validate(json.loads(text), SCHEMA)


def test_a_grammar_that_cannot_be_used_is_refused_and_the_client_goes_on(bundle, endpoint):
    with edgespec.connect(bundle, endpoint) as client:
        for asked in ({"json_schema": {"type": "x"}}, {"regex": "(a"}, {"grammar": "start"}):
            with pytest.raises(LinkError, match="cannot be used") as refused:
                client.complete("the", **asked).text  # noqa: B018
            assert refused.value.code == "invalid" and "\n" not in str(refused.value)
        with pytest.raises(UsageError, match="one of"):
            client.complete("the", regex="a", grammar="b")
        assert client.complete("the", regex="fox").text == "fox"
    assert client._connection._grammars._process is None
