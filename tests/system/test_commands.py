"""The command line as users meet it: real processes, bad input, broken links."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from typing import get_args

import pytest
import zmq
from click.testing import CliRunner

from bench.link.emulator import emulated_link
from bench.link.shape import LinkShape
from cli.main import main
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edge_runtime.observer import Observer
from edgespec.config import Backend, EdgeSettings, Request, Tactics
from edgespec.errors import LinkError
from edgespec.protocol import Hello, Verdict, pack, unpack
from edgespec.sampling import Sampling
from edgespec.trace import read_trace
from edgespec.transport import DealerLink
from engines.alone import write_alone
from engines.backends import TARGETS
from engines.drafters.ngram import NgramDrafter
from engines.drafters.none import NoDrafter
from engines.onnxruntime_backend.engine import OrtSettings, load_target

EDGESPEC = [sys.executable, "-m", "edgespec"]


@contextmanager
def cloud(bundle, *options, bind="tcp://127.0.0.1:*"):
    process = subprocess.Popen(
        [*EDGESPEC, "cloud-run", str(bundle.folder), "--bind", bind, *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    process.said = []
    for line in process.stderr:
        process.said.append(line)
        if "listening on" in line:
            break
    else:
        raise AssertionError(process.said)
    reader = threading.Thread(target=lambda: process.said.extend(process.stderr), daemon=True)
    reader.start()
    process.endpoint = line.split()[-1].rstrip('"}')
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


def edge(bundle, endpoint, *options, **kwargs):
    return subprocess.run(
        [*EDGESPEC, "edge-run", str(bundle.folder), "--connect", endpoint, *options],
        capture_output=True,
        text=True,
        timeout=60,
        **kwargs,
    )


@pytest.fixture(scope="module")
def served(tiny_bundle):
    with cloud(tiny_bundle, "--max-sessions", "4") as process:
        yield process


@pytest.fixture(scope="module")
def alone(tiny_bundle):
    engine = load_target(tiny_bundle, OrtSettings())
    ends = tiny_bundle.manifest.text.end_ids

    def write(prompt, most, sampling=Sampling()):
        return write_alone(engine, prompt, most, sampling, ends)

    return write


def ids(bundle, text):
    from edgespec.text import Codec

    return Codec(bundle).encode(text)


@pytest.mark.parametrize("drafter", ["cpu-int8", "cpu-fp32", "ngram", "none"])
def test_text_goes_to_stdout_and_figures_to_stderr(tiny_bundle, served, alone, drafter):
    options = ["--prompt", "the quick", "--max-tokens", "12", "--drafter", drafter, "--json"]
    if drafter == "cpu-fp32":  # a target as quick as this one would never let it get ahead
        options += ["--lockstep", "--hints"]
    done = edge(tiny_bundle, served.endpoint, *options)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stderr)
    expected = alone(ids(tiny_bundle, "the quick"), 12)
    assert figures["token_ids"] == expected
    from edgespec.text import Codec

    assert done.stdout.rstrip("\n") == Codec(tiny_bundle).decode(expected).rstrip("\n")
    if drafter == "cpu-fp32":
        assert figures["accepted"] > 0
        assert set(figures["hints"]) == {"1", "2"}


def test_standard_input_sampling_and_stop(tiny_bundle, served, alone):
    sampling = ["--temperature", "1.0", "--seed", "5", "--top-p", "0.95", "--top-k", "200"]
    limit = ["--max-tokens", "40", "--json"]
    done = edge(tiny_bundle, served.endpoint, *sampling, *limit, input="the lazy dog")
    whole = done.stdout[:-1]
    prompt = ids(tiny_bundle, "the lazy dog")
    expected = alone(prompt, 40, Sampling(1.0, 0.95, 200, 5))
    assert json.loads(done.stderr)["token_ids"] == expected
    stop = whole[7:10]
    stopped = edge(
        tiny_bundle, served.endpoint, *sampling, *limit, "--stop", stop, input="the lazy dog"
    )
    assert stopped.stdout[:-1] == whole[: whole.index(stop)]
    figures = json.loads(stopped.stderr)
    assert figures["finish"] == "stop"
    assert figures["token_ids"] == expected[: len(figures["token_ids"])]


def test_penalties_on_the_command_line(tiny_bundle, served, alone):
    penalties = ["--presence-penalty", "0.5", "--frequency-penalty", "-0.2"]
    sampling = ["--temperature", "0.8", "--min-p", "0.02", "--repetition-penalty", "1.2"]
    options = ["--prompt", "the quick", "--max-tokens", "24", "--json", *penalties, *sampling]
    done = edge(tiny_bundle, served.endpoint, *options)
    expected = alone(
        ids(tiny_bundle, "the quick"), 24, Sampling(0.8, 1.0, 0, 0, 0.02, 0.5, -0.2, 1.2)
    )
    assert json.loads(done.stderr)["token_ids"] == expected


def invoke(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(code, words, *arguments):
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr, result.stderr
    assert "Traceback" not in result.output
    return result


def test_bad_exports(tmp_path, tiny_llama_folder, tiny_bundle):
    out = ["--out", tmp_path / "b"]
    refused(2, "nowhere", "export", tmp_path / "nowhere", *out)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 50)
    refused(1, "bad.gguf", "export", tmp_path / "bad.gguf", *out)
    (tmp_path / "mixture").mkdir()
    (tmp_path / "mixture/config.json").write_text(
        '{"model_type": "mixtral", "num_local_experts": 8}'
    )
    refused(1, "mixture of experts", "export", tmp_path / "mixture", *out)
    fine = ["export", tiny_llama_folder, *out]
    refused(2, "must lie between 1 and the target's 3", *fine, "--segments", 4)
    refused(2, "--split 2,1 must be ascending", *fine, "--split", "2,1")
    refused(2, "--split is a list of layers", *fine, "--split", "two")
    refused(2, "pass one of them", *fine, "--split", "1", "--segments", "2")
    refused(2, "-1", *fine, "--segments", -1)
    refused(2, "no profile 'abacus'", *fine, "--draft", "self", "--profile", "abacus")
    refused(2, "pass --draft too", *fine, "--profile", "cpu-int8")
    refused(2, "exceeds the 512", *fine, "--context", 513)
    refused(2, "exists already", "export", tiny_llama_folder, "--out", tiny_bundle.folder)
    assert not (tmp_path / "b").exists()
    assert not list(tmp_path.glob(".*partial"))


def test_a_draft_with_another_tokenizer_is_refused(tmp_path, tiny_llama_folder):
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_llama_folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(
        2, "different tokenizers", "export", tiny_llama_folder, "--out", tmp_path / "b",
        "--draft", other,
    )  # fmt: skip


def test_bad_bundles(tmp_path, tiny_bundle):
    refused(2, "there is no bundle", "inspect", tmp_path / "none")
    refused(1, "is no bundle", "inspect", tmp_path)
    (tmp_path / "edited").mkdir()
    text = tiny_bundle.path("manifest.json").read_text().replace('"context": 512', '"context": 511')
    (tmp_path / "edited/manifest.json").write_text(text)
    refused(1, "is damaged or was edited", "inspect", tmp_path / "edited")
    (tmp_path / "manifest.json").write_text("{")
    refused(1, "cannot be read", "inspect", tmp_path)
    refused(2, "there is no bundle", "cloud-run", tmp_path / "none")
    refused(2, "there is no bundle", "edge-run", tmp_path / "none", "--prompt", "x")


def test_bad_requests(tiny_bundle, served):
    run = ["edge-run", tiny_bundle.folder, "--connect", served.endpoint]
    refused(2, "temperature is -1.0", *run, "--prompt", "x", "--temperature", "-1")
    refused(2, "top-p is 2.0", *run, "--prompt", "x", "--top-p", "2")
    refused(2, "min-p is -0.5", *run, "--prompt", "x", "--min-p", "-0.5")
    refused(2, "repetition penalty is 0.0", *run, "--prompt", "x", "--repetition-penalty", "0")
    refused(2, "--max-tokens", *run, "--prompt", "x", "--max-tokens", "-5")
    refused(2, "--draft-length", *run, "--prompt", "x", "--draft-length", "0")
    refused(2, "a session of this cloud at most 512", *run, "--prompt", "the " * 600)
    refused(2, "prompt is empty", *run, "--prompt", "")
    refused(2, "standard input is empty", *run)
    refused(2, "not UTF-8", *run, "--prompt", "\udcff")
    refused(2, "pass --chat too", *run, "--prompt", "x", "--system", "y")
    refused(2, "top-k", *run, "--prompt", "x", "--top-k", 10**30)
    refused(2, "--connect-timeout", *run, "--prompt", "x", "--connect-timeout", "nan")
    refused(2, "--threads", *run, "--prompt", "x", "--threads", 10**9)
    garbage = CliRunner().invoke(main, [str(word) for word in run], input=b"\xff\xfe\x00")
    assert (garbage.exit_code, "not UTF-8" in garbage.stderr) == (2, True)
    refused(2, "no chat template", *run, "--prompt", "x", "--chat")
    refused(2, "no draft for 'abacus'", *run, "--prompt", "x", "--drafter", "abacus")
    refused(
        2, "is no endpoint", "edge-run", tiny_bundle.folder, "--connect", "x:1", "--prompt", "x"
    )
    far = ["--connect", "tcp://192.0.2.1:5555", "--prompt", "x"]
    refused(2, "must be encrypted", "edge-run", tiny_bundle.folder, *far)


def test_ways_that_do_not_fit_are_refused_in_one_sentence(tmp_path, tiny_bundle, served):
    run = ["edge-run", tiny_bundle.folder, "--connect", served.endpoint, "--prompt", "x"]
    refused(2, "this device drafts", *run, "--mode", "edge", "--drafter", "none")
    refused(2, "'abacus' is not one of", *run, "--mode", "abacus")
    refused(2, "'abacus' is not one of", *run, "--pre-draft", "abacus")
    cloud_run = ["cloud-run", tiny_bundle.folder, "--bind", "tcp://127.0.0.1:*"]
    result = refused(2, "cpu-fp32, cpu-int8", *cloud_run, "--draft", "nothing")
    assert "nothing" in result.stderr
    for size in ("5x", "-1", "0", ""):
        refused(2, "is no size, as in 512M or 4G", *cloud_run, "--kv-memory", size)
    refused(2, "0.0 MB of KV cache hold no session", *cloud_run, "--kv-memory", "1k")
    for command in (run, cloud_run):
        result = refused(1, "the trace cannot be written to", *command, "--trace", tmp_path)
        assert len(result.stderr.strip().splitlines()) == 1


def test_it_says_which_mode_and_why(tmp_path, tiny_bundle, served, alone):
    options = ["--prompt", "the quick", "--max-tokens", "60", "--explain"]
    trace = tmp_path / "device.jsonl"
    done = edge(tiny_bundle, served.endpoint, *options, "--trace", str(trace))
    assert done.returncode == 0, done.stderr
    first, *_, last = [line for line in done.stderr.splitlines() if line.startswith("[mode ")]
    assert first.startswith("[mode edge: ")
    for figure in ("round trip", "target step", "draft step", "acceptance rate"):
        assert figure in last
    done = edge(tiny_bundle, served.endpoint, *options, "--mode", "cloud")
    assert "mode cloud: asked for" in done.stderr
    spans = read_trace(trace)
    assert {"draft", "send", "receive"} <= {span.what for span in spans}
    received = [span for span in spans if span.what == "receive"]
    assert sum(span.tokens for span in received) >= 12


def test_bad_addresses(tiny_bundle, served):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        free = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    refused(
        1, "nobody answered", "edge-run", tiny_bundle.folder, "--connect", free, "--prompt", "x",
        "--connect-timeout", "0.3",
    )  # fmt: skip
    taken = ["cloud-run", tiny_bundle.folder, "--bind", served.endpoint]
    refused(1, "another program is listening", *taken)
    refused(2, "must be encrypted", "cloud-run", tiny_bundle.folder, "--bind", "tcp://0.0.0.0:0")
    refused(2, "is no endpoint", "cloud-run", tiny_bundle.folder, "--bind", "nonsense")


def test_a_flipped_byte_is_named_when_the_cloud_and_the_device_load(tmp_path, tiny_bundle):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(tiny_bundle.folder, folder)
    for name, command in (
        ("target/segment-01.data", ["cloud-run", folder, "--bind", "tcp://127.0.0.1:*"]),
        ("tokenizer/tokenizer.json", ["edge-run", folder, "--prompt", "x"]),
    ):
        path = folder / name
        content = bytearray(path.read_bytes())
        content[100] ^= 4
        path.write_bytes(content)
        refused(1, f"{name} is damaged", *command)


def test_another_bundle_is_refused(tmp_path, tiny_llama_folder, served):
    result = invoke("export", tiny_llama_folder, "--out", tmp_path / "b", "--segments", "2")
    assert result.exit_code == 0
    words = "its target differs from the one in the device's bundle"
    refused(1, words, "edge-run", tmp_path / "b", "--connect", served.endpoint, "--prompt", "x")


def test_a_killed_export_leaves_nothing_that_looks_like_a_bundle(tmp_path, tiny_llama_folder):
    code = (
        "import os, export.bundle as b\n"
        "b.describe_all = lambda *_: os.kill(os.getpid(), 9)\n"
        f"b.export(b.ExportSettings({str(tiny_llama_folder)!r}, b.Path({str(tmp_path / 'b')!r})))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert not (tmp_path / "b").exists()
    assert len(list(tmp_path.glob(".b.*.partial"))) == 1
    assert invoke("export", tiny_llama_folder, "--out", tmp_path / "b").exit_code == 0
    assert not list(tmp_path.glob(".b.*"))


def test_an_export_that_is_asked_to_end_removes_what_it_wrote(tmp_path, tiny_llama_folder):
    code = (
        "import os, sys, export.bundle as b\n"
        "from cli.main import main\n"
        "b.describe_all = lambda *_: os.kill(os.getpid(), 15)\n"
        "main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "export", tiny_llama_folder, "--out", tmp_path / "b"]
    assert subprocess.run(command).returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_a_bundle_caught_between_two_renames_is_put_back(tmp_path, tiny_llama_folder):
    fine = ["export", tiny_llama_folder, "--out", tmp_path / "b"]
    assert invoke(*fine).exit_code == 0
    (tmp_path / "b").rename(tmp_path / ".b.4194305.abc.old")
    refused(2, "exists already; pass --force", *fine)
    assert invoke("inspect", tmp_path / "b", "--verify").exit_code == 0
    assert invoke(*fine, "--force", "--segments", "2").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_an_encrypted_link(tmp_path, tiny_bundle, alone):
    assert invoke("keygen", tmp_path / "keys").exit_code == 0
    refused(2, "holds a key already", "keygen", tmp_path / "keys")
    secret, public = tmp_path / "keys/cloud.key_secret", tmp_path / "keys/cloud.key"
    assert secret.stat().st_mode & 0o77 == 0
    options = ["--prompt", "the", "--max-tokens", "5", "--json"]
    with cloud(tiny_bundle, "--key", str(secret)) as process:
        done = edge(tiny_bundle, process.endpoint, *options, "--server-key", str(public))
        assert json.loads(done.stderr)["token_ids"] == alone(ids(tiny_bundle, "the"), 5)
        plain = edge(tiny_bundle, process.endpoint, *options, "--connect-timeout", "1.5")
        assert plain.returncode == 1
        assert "nobody answered" in plain.stderr
    (tmp_path / "bad.key").write_text('curve\n    public-key = "abc"\n')
    refused(
        2, "no valid key", "edge-run", tiny_bundle.folder, "--prompt", "x",
        "--server-key", tmp_path / "bad.key",
    )  # fmt: skip
    refused(2, "no secret key", "cloud-run", tiny_bundle.folder, "--key", public)
    refused(
        2, "stays where it was made", "edge-run", tiny_bundle.folder, "--prompt", "x",
        "--server-key", secret,
    )  # fmt: skip
    refused(2, "is no key file", "cloud-run", tiny_bundle.folder, "--key", tmp_path / "none")
    everywhere = ["cloud-run", tiny_bundle.folder, "--bind", "tcp://0.0.0.0:*", "--key", secret]
    refused(2, "--clients FOLDER, or admit all", *everywhere)
    refused(2, "no folder of device keys", *everywhere, "--clients", tmp_path / "none")


def test_only_devices_on_the_list_are_served(tmp_path, tiny_bundle, alone):
    keys, clients = tmp_path / "keys", tmp_path / "clients"
    clients.mkdir()
    assert invoke("keygen", keys).exit_code == 0
    for name in ("robot", "stranger"):
        assert invoke("keygen", keys, "--device", name).exit_code == 0
    shutil.copy(keys / "robot.key", clients)
    options = ["--prompt", "the", "--max-tokens", "5", "--json", "--connect-timeout", "3"]
    options += ["--server-key", str(keys / "cloud.key")]
    with cloud(
        tiny_bundle, "--key", str(keys / "cloud.key_secret"), "--clients", str(clients)
    ) as process:
        robot = ["--key", str(keys / "robot.key_secret")]
        done = edge(tiny_bundle, process.endpoint, *options, *robot)
        assert json.loads(done.stderr)["token_ids"] == alone(ids(tiny_bundle, "the"), 5)
        for other in ([], ["--key", str(keys / "stranger.key_secret")]):
            refusal = edge(tiny_bundle, process.endpoint, *options, *other)
            assert refusal.returncode == 1
            assert "Traceback" not in refusal.stderr


def test_sigterm_finishes_what_is_in_flight(tiny_bundle, alone):
    with cloud(tiny_bundle) as process, device(tiny_bundle, process.endpoint) as loop:
        prompt = tuple(ids(tiny_bundle, "the quick"))
        request = Request(prompt, 120)
        answer = loop.start(request)
        pieces = loop.write(answer)
        next(pieces)
        process.send_signal(signal.SIGTERM)
        for _ in pieces:
            pass
        assert answer.stats.token_ids == alone(prompt, 120)
        assert process.wait(20) == 0
    assert any("stopped" in line for line in process.said)


@contextmanager
def device(bundle, endpoint, *, drafter=None, report=None, clock=time.monotonic, **settings):
    """In lock-step if nothing else is said, so that the cloud is never ahead of the test."""
    lockstep = {"patience": 0.3, "tactics": Tactics("none"), "draft_length": 1}
    edge = EdgeSettings(connect=endpoint, **{**lockstep, **settings})
    link = DealerLink(endpoint)
    try:
        identity = DeviceIdentity.of(bundle, "test")
        observer = Observer(report=report)
        yield EdgeLoop.connect(link, drafter or NgramDrafter(), identity, edge, observer, clock)
    finally:
        link.close()


def test_a_killed_cloud_that_returns_goes_on_with_the_answer(tiny_bundle, alone):
    prompt = tuple(ids(tiny_bundle, "the quick"))
    request = Request(prompt, 60, Sampling(1.0, seed=3))
    with ExitStack() as stack:
        with cloud(tiny_bundle) as process:
            loop = stack.enter_context(device(tiny_bundle, process.endpoint))
            answer = loop.start(request)
            pieces = loop.write(answer)
            for _ in range(10):
                next(pieces)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        with cloud(tiny_bundle, bind=process.endpoint):
            for _ in pieces:
                pass
    assert answer.stats.token_ids == alone(prompt, 60, Sampling(1.0, seed=3))
    assert answer.stats.resumed > 0


def test_a_cloud_that_stays_away_ends_the_answer_with_a_sentence(tiny_bundle):
    request = Request(tuple(ids(tiny_bundle, "the quick")), 60)
    with ExitStack() as stack:
        with cloud(tiny_bundle) as process:
            loop = stack.enter_context(device(tiny_bundle, process.endpoint, give_up=3.0))
            answer = loop.start(request)
            pieces = loop.write(answer)
            next(pieces)
        with pytest.raises(LinkError, match="has been silent for") as caught:
            list(pieces)
    assert caught.value.retryable


SLOW = LinkShape(rtt_ms=20.0)
"""So that an answer takes a while."""


def test_a_stall_of_the_link_is_waited_out_and_reported(tiny_bundle, served, alone):
    with emulated_link(served.endpoint) as link:
        link.shape(SLOW)
        writing = subprocess.Popen(
            [*EDGESPEC, "edge-run", str(tiny_bundle.folder), "--connect", link.endpoint,
             "--prompt", "the quick", "--max-tokens", "200", "--pre-draft", "none",
             "--draft-length", "1", "--drafter", "ngram", "--temperature", "1", "--seed", "6"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        started = writing.stdout.read(1)
        link.shape(LinkShape(rtt_ms=4000.0))  # what is sent now is two seconds late
        time.sleep(0.3)
        link.shape(SLOW)
        text, report = writing.communicate(timeout=60)
    assert writing.returncode == 0, report
    from edgespec.text import Codec

    expected = alone(ids(tiny_bundle, "the quick"), 200, Sampling(1.0, seed=6))
    # Of a character that the end cut short, nothing is written.
    whole = Codec(tiny_bundle).decode(expected)
    assert (started + text).decode().rstrip("\n\ufffd") == whole.rstrip("\n\ufffd")
    assert b"the link was silent 1 times, " in report
    assert b"resumed" not in report, "two seconds are within the patience"


@pytest.mark.parametrize("pre_draft", ["none", "tree"])
def test_a_connection_that_is_cut_costs_time_only(tiny_bundle, served, alone, pre_draft):
    prompt = tuple(ids(tiny_bundle, "the quick"))
    request = Request(prompt, 150, Sampling(1.0, seed=8))
    with (
        emulated_link(served.endpoint) as link,
        device(tiny_bundle, link.endpoint, tactics=Tactics(pre_draft)) as loop,
    ):
        link.shape(SLOW)
        answer = loop.start(request)
        for number, _ in enumerate(loop.write(answer)):
            if number in (20, 70):
                link.cut()
    assert answer.stats.token_ids == alone(prompt, 150, request.sampling)
    assert answer.stats.resumed > 0 or pre_draft == "tree", "a stream may be through before"


def test_a_clock_that_jumps_by_hours_is_no_error(tiny_bundle, served, alone):
    chance = random.Random(1)
    offset = 0.0

    def clock():
        nonlocal offset
        if chance.random() < 0.05:
            offset = chance.choice([-3600.0, 0.0, 3600.0])
        return time.monotonic() + offset

    prompt = tuple(ids(tiny_bundle, "the quick"))
    request = Request(prompt, 100)
    options = {"tactics": Tactics(), "clock": clock, "patience": 5.0, "give_up": 60.0}
    with device(tiny_bundle, served.endpoint, **options) as loop:
        answer = loop.start(request)
        for _ in loop.write(answer):
            pass
    assert answer.stats.token_ids == alone(prompt, 100)
    assert answer.stats.waiting_seconds >= 0


class Shuffled:
    """A link whose verdicts overtake each other."""

    def __init__(self, link, chance):
        self._receive, self._chance, self._held = link.receive, chance, []
        link.receive = self.receive

    def receive(self, timeout):
        """A held verdict comes after the next one, or after a silence."""
        messages = self._receive(timeout)
        if messages or timeout:
            messages, self._held = messages + self._held, []
        if messages and isinstance(messages[0], Verdict) and self._chance.random() < 0.3:
            self._held, messages = messages[:1], messages[1:]
        return messages


@pytest.mark.parametrize("drafter", [NgramDrafter, NoDrafter])
def test_a_cloud_that_answers_out_of_order_changes_nothing(tiny_bundle, served, alone, drafter):
    prompt = tuple(ids(tiny_bundle, "the quick"))
    request = Request(prompt, 100, Sampling(1.0, seed=2))
    options = {"drafter": drafter(), "tactics": Tactics()}
    with device(tiny_bundle, served.endpoint, **options) as loop:
        Shuffled(loop._link, random.Random(4))
        answer = loop.start(request)
        for _ in loop.write(answer):
            pass
    assert answer.stats.token_ids == alone(prompt, 100, request.sampling)
    assert answer.stats.resumed > 0, "nothing was ever out of order"


def test_garbage_on_the_socket_is_answered_or_dropped_and_harms_nobody(tiny_bundle, alone):
    prompt = tuple(ids(tiny_bundle, "the quick"))
    request = Request(prompt, 100)
    with (
        cloud(tiny_bundle) as process,
        zmq.Context() as context,
        device(tiny_bundle, process.endpoint) as loop,
    ):
        answer = loop.start(request)
        pieces = loop.write(answer)
        next(pieces)
        with context.socket(zmq.DEALER) as socket_, socket.socket() as raw:
            socket_.linger = 0
            socket_.connect(process.endpoint)
            port = int(process.endpoint.rpartition(":")[2])
            raw.connect(("127.0.0.1", port))
            raw.sendall(os.urandom(200))
            for packet in ([b"\xff" * 50], [b""], [b"a", b"b", b"c"], [b"x" * (2 << 20)]):
                socket_.send_multipart(packet)
                next(pieces)
            codes = []
            for _ in range(40):
                if "version" in codes:
                    break
                # Lost if it follows the 2 MB on the connection that the cloud cuts for them.
                socket_.send_multipart(pack(Hello(99, "a", "b", "c")))
                while socket_.poll(500):
                    codes.append(unpack(socket_.recv_multipart()).code)
        for _ in pieces:
            pass
        assert process.poll() is None
    assert {"version"} <= set(codes) <= {"malformed", "version"}
    assert answer.stats.token_ids == alone(prompt, 100)


def test_a_busy_cloud_says_so(tiny_bundle):
    with (
        cloud(tiny_bundle, "--max-sessions", "1") as process,
        device(tiny_bundle, process.endpoint) as loop,
    ):
        request = Request((5, 6), 300)
        pieces = loop.write(loop.start(request))
        next(pieces)
        done = edge(tiny_bundle, process.endpoint, "--prompt", "the", "--give-up", "1")
        pieces.close()
    assert done.returncode == 1
    assert "all places are taken by 1 sessions" in done.stderr
    assert len(done.stderr.strip().splitlines()[-1:]) == 1


def test_a_device_that_is_stopped_frees_its_slot_at_once(tiny_bundle):
    with cloud(tiny_bundle, "--max-sessions", "1") as process:
        writing = subprocess.Popen(
            [*EDGESPEC, "edge-run", str(tiny_bundle.folder), "--connect", process.endpoint,
             "--prompt", "the", "--max-tokens", "500", "--temperature", "1", "--seed", "4",
             "--drafter", "ngram"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert writing.stdout.read(1)
        writing.send_signal(signal.SIGTERM)
        writing.communicate()
        done = edge(tiny_bundle, process.endpoint, "--prompt", "the", "--max-tokens", "3")
        assert done.returncode == 0, done.stderr


def test_closed_standard_streams_are_no_traceback(tiny_bundle):
    for closing in (">&-", "<&-", "2>&-"):
        command = f"{sys.executable} -m edgespec edge-run {tiny_bundle.folder} {closing}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr


def test_interrupting_the_cloud_drains_and_interrupting_it_again_stops(tiny_bundle):
    # A shell that starts the tests in its background ignores the signal, and so would the cloud.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with cloud(tiny_bundle) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert "stopped" in process.said[-1]
    with (
        cloud(tiny_bundle) as process,
        device(tiny_bundle, process.endpoint, give_up=1.0) as loop,
    ):
        request = Request((5, 6), 300)
        pieces = loop.write(loop.start(request))
        next(pieces)
        process.send_signal(signal.SIGINT)
        while not any("once more" in line for line in process.said):
            next(pieces)
        process.send_signal(signal.SIGINT)
        with pytest.raises(LinkError, match="has been silent for 1 s; the answer stands at"):
            list(pieces)
        assert process.wait(10) == 130
    assert any("handing back 1 answers" in line for line in process.said)
    assert not any("Traceback" in line for line in process.said)


def test_what_a_drain_cannot_finish_goes_on_in_the_next_cloud(tiny_bundle, alone):
    prompt = tuple(ids(tiny_bundle, "the quick"))
    request = Request(prompt, 120, Sampling(1.0, seed=3))
    with ExitStack() as stack:
        with cloud(tiny_bundle, "--drain-timeout", "0") as process:
            told = []
            loop = stack.enter_context(device(tiny_bundle, process.endpoint, report=told.append))
            answer = loop.start(request)
            pieces = loop.write(answer)
            written = [next(pieces).token for _ in range(10)]
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        with cloud(tiny_bundle, bind=process.endpoint):
            written += [piece.token for piece in pieces]
    assert any("handing back 1 answers" in line for line in process.said)
    assert written == answer.stats.token_ids == alone(prompt, 120, request.sampling)
    assert "has shut down" in told[0] and "asking again in" in told[0]


def test_a_device_with_only_its_own_part_of_the_bundle(tmp_path, tiny_bundle, served):
    """The target's files need not be on the device."""
    import shutil

    shutil.copytree(tiny_bundle.folder, tmp_path / "lean", ignore=shutil.ignore_patterns("target"))
    run = ["edge-run", tmp_path / "lean", "--connect", served.endpoint]
    result = invoke(*run, "--prompt", "the quick", "--max-tokens", "4")
    assert result.exit_code == 0, result.output


def test_the_operators_tour(tiny_bundle, alone):
    """Start, look, scrape, drain, as docs/operations.md has it; the log is JSON."""
    options = ["--status", "127.0.0.1:0", "--log-format", "json", "--drain-timeout", "1"]
    with cloud(tiny_bundle, *options) as process:
        said = [json.loads(line) for line in process.said]
        url = said[0]["message"].split()[-1]

        def get(path):
            with urllib.request.urlopen(url + path) as reply:
                return reply.read().decode()

        assert get("/health/ready") == "ready\n"
        options = ["--prompt", "the quick", "--max-tokens", "12", "--target-rate", "5", "--json"]
        done = edge(tiny_bundle, process.endpoint, *options, "--drafter", "ngram")
        assert json.loads(done.stderr)["token_ids"] == alone(ids(tiny_bundle, "the quick"), 12)
        with device(tiny_bundle, process.endpoint) as loop:
            request = Request((5, 6), 300)
            pieces = loop.write(loop.start(request))
            next(pieces)
            while '"device":"test"' not in get("/fleet").partition('"devices"')[0]:
                time.sleep(0.1)  # a snapshot is half a second old
            view = invoke("top", "--connect", url, "--once").output
            for words in ("ready", "tokens/s", "memory", "2 devices, 1 sessions: 1 ", "test"):
                assert words in view, view
            fleet = json.loads(invoke("top", "--connect", url, "--once", "--json").output)
            assert fleet["sessions"][0]["device"] == "test"
            metrics = get("/metrics")
            assert 'edgespec:request_success_total{finished_reason="length"' in metrics
            assert "edgespec:num_requests_running{" in metrics
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            pieces.close()
    lines = [json.loads(line) for line in process.said]
    first = next(line for line in lines if line.get("event") == "device")
    assert first["hardware"] and first["drafter"] == "ngram"
    (drained,) = (line for line in lines if line.get("reason") == "drained")
    assert drained["device"] == "test" and drained["tokens"] >= 1
    refused(1, "no cloud answers", "top", "--connect", url, "--once")
    refused(2, "is no address", "top", "--connect", "tcp://x:1")
    refused(2, "HOST:PORT", "cloud-run", tiny_bundle.folder, "--status", "x")


def test_help_of_every_command():
    commands = ["export", "inspect", "cloud-run", "edge-run", "doctor", "demo", "keygen", "bench"]
    commands += ["top"]
    for command in [[], *([c] for c in commands), ["bench", "local"], ["bench", "export"]]:
        assert invoke(*command, "--help").exit_code == 0


def test_the_options_name_every_back_end():
    assert set(get_args(Backend)) == set(TARGETS)
