"""Spans on disk."""

import pytest

from edgespec.errors import EdgespecError
from edgespec.session import alias
from edgespec.trace import Span, Trace, read_trace


def test_spans_come_back_by_their_start(tmp_path):
    path = tmp_path / "trace.jsonl"
    trace = Trace(path, "cloud")
    trace.add("verify", 2.0, 2.5, session=7, round=3, base=100, tokens=4, rows=2, note="x")
    trace.add("decode", 1.0, 1.25)
    trace.add("send", 3.0, 3.0)
    trace.close()
    assert read_trace(path) == [
        Span("cloud", "decode", 1.0, 0.25),
        Span("cloud", "verify", 2.0, 0.5, int(alias(7), 16), 3, 100, 4, 2, "x"),
        Span("cloud", "send", 3.0, 0.0),
    ]
    assert len(path.read_text().splitlines()) == 3
    assert path.stat().st_mode & 0o777 == 0o600, "it says when who wrote what"


def test_it_is_written_by_the_hundred_and_not_twice(tmp_path):
    path = tmp_path / "trace.jsonl"
    trace = Trace(path, "device")
    for number in range(99):
        trace.add("draft", number, number + 1)
    assert path.read_bytes() == b""
    trace.add("draft", 99, 100)
    assert len(read_trace(path)) == 100
    trace.add("draft", 100, 101)
    trace.flush()
    trace.close()
    assert [span.start for span in read_trace(path)] == list(range(101))


def test_what_cannot_be_written_or_read_is_one_sentence(tmp_path):
    with pytest.raises(EdgespecError, match=r"cannot be written to .*No such file"):
        Trace(tmp_path / "none" / "trace", "device")
    with pytest.raises(EdgespecError, match=r"cannot be written to .*directory"):
        Trace(tmp_path, "device")
    with pytest.raises(EdgespecError, match="cannot be read"):
        read_trace(tmp_path / "none")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"side": "robot", "what": "draft", "start": 1.0}',
        '{"side": "cloud", "what": "sleep", "start": 1.0}',
        '{"side": "cloud", "what": "draft"}',
    ],
)
def test_a_line_that_is_no_span_is_named(tmp_path, line):
    path = tmp_path / "trace.jsonl"
    good = '{"side": "cloud", "what": "draft", "start": 1.0}'
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(EdgespecError, match="line 2 is no span"):
        read_trace(path)
