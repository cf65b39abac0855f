"""Answers that outlive the device: `edge-run --session FILE`."""

import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from bench.lab.processes import cloud_process
from bench.link.emulator import emulated_link
from bench.link.shape import LinkShape
from edge_runtime import session_file
from edge_runtime.pieces import Piece
from edge_runtime.session_file import SessionFile
from edgespec.config import Request
from edgespec.errors import UsageError
from edgespec.sampling import Sampling
from edgespec.telemetry import AnswerStats
from edgespec.text import Codec, TextStream
from engines.alone import write_alone
from engines.onnxruntime_backend.engine import OrtSettings, load_target

SAMPLING = Sampling(1.0, seed=11)
MOST = 120


@pytest.fixture(scope="module")
def expected(tiny_bundle):
    prompt = Codec(tiny_bundle).encode("the quick")
    target = load_target(tiny_bundle, OrtSettings())
    return write_alone(target, prompt, MOST, SAMPLING, tiny_bundle.manifest.text.end_ids)


def command(bundle, endpoint, file, *options):
    return [
        sys.executable, "-m", "edgespec", "edge-run", str(bundle.folder), "--connect", endpoint,
        "--prompt", "the quick", "-n", str(MOST), "--temperature", "1", "--seed", "11",
        "--pre-draft", "none", "--session", str(file), "--json", *options,
    ]  # fmt: skip


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60)


def test_a_killed_device_goes_on_where_it_was(tiny_bundle, tmp_path, expected):
    file = tmp_path / "answer"
    with cloud_process(tiny_bundle.folder) as cloud:
        with emulated_link(cloud.endpoint) as link:
            link.shape(LinkShape(rtt_ms=60.0))
            with subprocess.Popen(
                command(tiny_bundle, link.endpoint, file), stdout=subprocess.PIPE
            ) as writing:
                while not file.exists() or len(json.loads(file.read_text())["committed"]) < 10:
                    time.sleep(0.05)
                writing.send_signal(signal.SIGKILL)
        kept = json.loads(file.read_text())["committed"]
        assert kept == expected[: len(kept)] and len(kept) < len(expected)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        done = run(tiny_bundle, cloud.endpoint, file)
    stats = json.loads(done.stderr.splitlines()[-1])
    codec = Codec(tiny_bundle)
    stream = TextStream(codec, codec.encode("the quick"))
    text = "".join(map(stream.push, expected)) + "\n"
    assert done.stdout == text and stats["token_ids"] == expected
    assert stats["restored"] == len(kept) and stats["tokens"] == len(expected) - len(kept)
    again = run(tiny_bundle, "tcp://127.0.0.1:9", file)  # complete: no cloud is needed
    assert again.stdout == text and json.loads(again.stderr)["restored"] == len(expected)
    other = run(tiny_bundle, "tcp://127.0.0.1:9", file, "--seed", "12")
    assert other.returncode == 2 and "another answer: its sampling differs" in other.stderr


@pytest.mark.parametrize(
    "content",
    ["{}", "[1]", pytest.param("[" * 100_000, id="deep"), "\0", '{"format": 1, "extra": 2}'],
)
def test_a_file_that_is_no_session_is_left_alone(tiny_bundle, tmp_path, content):
    file = tmp_path / "notes"
    file.write_text(content)
    with pytest.raises(UsageError, match="is no session of edge-run; pass another file"):
        SessionFile(file, tiny_bundle, Request((1, 2)))
    assert file.read_text() == content


def test_an_empty_file_is_a_new_session(tiny_bundle, tmp_path):
    file = tmp_path / "answer"
    file.touch()
    assert SessionFile(file, tiny_bundle, Request((1, 2))).request.committed == ()
    assert json.loads(file.read_text())["prompt"] == [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        *({"committed": [token]} for token in (-1, 300, 1 << 31, 1 << 63, 10**30, 5.5, "5")),
        {"prompt": [1, -2]},
        {"prompt": [1, 1 << 63]},
        {"finish": "bored"},
        {"sampling": [-1.0, 1.0, 0, 0]},
        {"sampling": [1.0, 1.0, 0, -1]},
    ],
    ids=str,
)
def test_a_session_with_impossible_values_is_refused(tiny_bundle, tmp_path, change):
    file = tmp_path / "answer"
    SessionFile(file, tiny_bundle, Request((1, 2)))
    content = json.dumps(json.loads(file.read_text()) | change)
    file.write_text(content)
    with pytest.raises(UsageError, match="is no session of edge-run; pass another file"):
        SessionFile(file, tiny_bundle, Request((1, 2)))
    assert file.read_text() == content


def test_a_pipe_is_not_read(tiny_bundle, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = run(tiny_bundle, "tcp://127.0.0.1:9", tmp_path / "pipe")
    assert done.returncode == 2 and "is no session of edge-run" in done.stderr


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_answered(tiny_bundle):
    done = run(tiny_bundle, "tcp://127.0.0.1:9", "/proc/answer")
    assert done.returncode == 2 and "cannot write the session to /proc/answer" in done.stderr


def test_unverified_tokens_are_not_kept(tiny_bundle, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(session_file, "SAVE_INTERVAL_S", 0.0)
    file = SessionFile(tmp_path / "answer", tiny_bundle, Request((1, 2)))
    file.add(Piece(7, "a", "target", 0.0))
    file.add(Piece(8, "b", "unverified", 0.0))
    file.end(AnswerStats(finish="length", unverified=1))
    again = SessionFile(tmp_path / "answer", tiny_bundle, Request((1, 2)))
    assert again.request.committed == (7,) and not again.finish
    (tmp_path / "answer").unlink()
    tmp_path.rmdir()
    again.add(Piece(9, "c", "target", 0.0))
    again.add(Piece(10, "d", "target", 0.0))
    assert len(caplog.records) == 1 and "cannot write the session" in caplog.text
