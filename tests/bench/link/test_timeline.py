"""A trace as Chrome's viewers read it, and as a picture."""

import json
import struct

import pytest

from bench.link.timeline import chrome_trace, packets, plot_timeline
from edgespec.errors import EdgespecError
from edgespec.trace import Span


def two_rounds(session=7, at=10.0):
    """Verdicts travel 20 ms, and so do drafts; the second verdict never arrives."""
    device = [
        Span("device", "draft", at, 0.03, session, 1, 5, 3),
        Span("device", "send", at + 0.03, 1e-6, session, 1, 5, 3),
        Span("device", "wait", at + 0.03, 0.09),
        Span("device", "receive", at + 0.12, 0.0, session, 0, 5, 2, note="hint 20"),
        Span("device", "receive", at + 0.13, 0.0, session, 0, 5, 4, note="full"),
        Span("device", "send", at + 0.14, 0.0, session, 2, 9, 12),
    ]
    cloud = [
        Span("cloud", "receive", at + 0.05, 0.0, session, 1, 5, 3),
        Span("cloud", "verify", at + 0.05, 0.06, session, 1, 5, 3, rows=2),
        Span("cloud", "send", at + 0.1, 0.0, session, 1, 5, 2),
        Span("cloud", "send", at + 0.11, 0.0, session, 1, 5, 4),
        Span("cloud", "receive", at + 0.16, 0.0, session, 2, 9, 12),
        Span("cloud", "verify", at + 0.16, 0.08, session, 2, 9, 12),
        Span("cloud", "send", at + 0.24, 0.0, session, 2, 9, 13),
        Span("cloud", "mode", at + 0.24, 0.0, session, note="plain"),
    ]
    return [*device, *cloud]


def events_of(path, phase):
    return [e for e in json.loads(path.read_bytes())["traceEvents"] if e["ph"] == phase]


def size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_a_packet_is_matched_with_what_it_became():
    pairs = packets(two_rounds())
    assert [(s.side, s.round, s.tokens, r.tokens) for s, r in pairs] == [
        ("device", 1, 3, 3),
        ("cloud", 1, 2, 2),  # the hint and the verdict share a key, and keep their order
        ("cloud", 1, 4, 4),
        ("device", 2, 12, 12),
    ]
    assert all(received.start == pytest.approx(sent.start + 0.02) for sent, received in pairs)


def test_packets_of_other_sessions_and_from_before_the_trace_match_nothing():
    sent = Span("device", "send", 1.0, 0.0, 1, 1, 5)
    others = [
        Span("cloud", "receive", 1.1, 0.0, 2, 1, 5),
        Span("cloud", "receive", 1.1, 0.0, 1, 2, 5),
        Span("cloud", "receive", 0.9, 0.0, 1, 1, 5),
        Span("device", "receive", 1.1, 0.0, 1, 1, 5),
    ]
    assert packets([sent, *others]) == []


def test_the_chrome_trace_has_a_process_a_side_and_every_span(tmp_path):
    path, spans = tmp_path / "trace.json", two_rounds()
    chrome_trace(path, spans)
    names = {
        e["pid"]: e["args"]["name"] for e in events_of(path, "M") if e["name"] == "process_name"
    }
    assert sorted(names.values()) == ["cloud", "device"]
    complete, instant = events_of(path, "X"), events_of(path, "i")
    assert len(complete) + len(instant) == len(spans)
    assert {e["name"] for e in instant} == {"send", "receive", "mode"}  # though one send took time
    verify = next(e for e in complete if e["name"] == "verify")
    assert names[verify["pid"]] == "cloud"
    assert (verify["ts"], verify["dur"]) == pytest.approx((50_000, 60_000))
    assert verify["args"] == {
        "session": 7, "round": 1, "base": 5, "tokens": 3, "rows": 2, "note": "",
    }  # fmt: skip
    named = {(e["pid"], e["tid"]) for e in events_of(path, "M") if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in complete + instant} == named


def test_flows_start_and_end_on_the_events_they_tie(tmp_path):
    path = tmp_path / "trace.json"
    chrome_trace(path, two_rounds())
    starts, ends = events_of(path, "s"), events_of(path, "f")
    assert len({e["id"] for e in starts}) == len(starts) == 4
    assert [e["id"] for e in starts] == [e["id"] for e in ends]
    places = {(e["name"], e["pid"], e["tid"], e["ts"]) for e in events_of(path, "i")}
    for start, end in zip(starts, ends, strict=True):
        assert ("send", start["pid"], start["tid"], start["ts"]) in places
        assert ("receive", end["pid"], end["tid"], end["ts"]) in places
        assert start["pid"] != end["pid"] and start["ts"] < end["ts"]
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])


def test_the_picture_shows_the_last_session(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "bench.link.timeline._numbers",
        lambda axes, spans, start, end: drawn.append((axes, start, end)),
    )
    path = tmp_path / "timeline.png"
    spans = [*two_rounds(9, at=20.0), *two_rounds(7, at=10.0)]
    plot_timeline(path, spans, title="two rounds", most_seconds=0.1)
    axes, start, end = drawn[0]
    assert (start, end) == pytest.approx((20.05, 20.15))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["device", "cloud"]
    labels = {text.get_text() for text in axes.figure.legends[0].get_texts()}
    assert labels == {"verify", "wait", "to the cloud", "to the device"}
    width, height = size(path)
    assert width > 1000 and height > 300


def test_verify_bars_say_how_many_tokens(tmp_path):
    path = tmp_path / "timeline.svg"
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_timeline(path, two_rounds(), title="two rounds")
        assert ">12</text>" in path.read_text()
        crowded = Span("cloud", "decode", 22.0, 0.01, 7)
        plot_timeline(path, [*two_rounds(), crowded], title="crowded", most_seconds=100)
        assert ">12</text>" not in path.read_text()


def test_a_step_of_several_sessions_names_none(tmp_path):
    batch = [Span("cloud", "verify", 1.0 + i, 0.5, rows=2, tokens=8) for i in range(3)]
    drafts = [Span("device", "draft", 0.5 + i, 0.1, session=1 + i) for i in range(3)]
    plot_timeline(tmp_path / "timeline.png", [*batch, *drafts], title="a batch")
    assert size(tmp_path / "timeline.png")[0] > 1000


def test_an_empty_trace_is_said(tmp_path):
    with pytest.raises(EdgespecError, match="empty"):
        chrome_trace(tmp_path / "trace.json", [])
    with pytest.raises(EdgespecError, match="no verify or decode"):
        plot_timeline(tmp_path / "t.png", [Span("device", "draft", 1.0, 0.1)], title="")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(EdgespecError, match=r"none/trace\.json"):
        chrome_trace(tmp_path / "none" / "trace.json", two_rounds())
    with pytest.raises(EdgespecError, match=r"none/t\.png"):
        plot_timeline(tmp_path / "none" / "t.png", two_rounds(), title="")
