"""A trace as a Chrome trace (chrome://tracing, ui.perfetto.dev) and as a picture.

The spans of device and cloud are together, on one clock: see `edgespec.trace`. Spans of different
kinds may overlap, and both viewers drop spans that overlap on one track. A Chrome trace therefore
has one track for each kind. Arrows are bound to the packets' instant events, which precede them.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bench.lab.plots import new_figure, save
from edgespec.errors import EdgespecError
from edgespec.trace import Side, Span, What

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROCESSES: dict[Side, int] = {"device": 1, "cloud": 2}
TRACKS: dict[What, tuple[int, str]] = {
    "prefill": (1, "target"),
    "verify": (1, "target"),
    "decode": (1, "target"),
    "draft": (2, "draft"),
    "wait": (3, "wait"),
    "send": (4, "packets"),
    "receive": (4, "packets"),
    "mode": (4, "packets"),
}
EVENTS = ("send", "receive", "mode")
COLOURS: dict[What, str] = {
    "draft": "#e69f00",
    "verify": "#0072b2",
    "decode": "#56b4e9",
    "prefill": "#7a5195",
    "wait": "#e4e4e4",
}
LANES: dict[Side, float] = {"device": 1.0, "cloud": 0.0}
PACKETS: dict[Side, tuple[str, str]] = {
    "device": ("to the cloud", "#b35c00"),
    "cloud": ("to the device", "#009e73"),
}
HEIGHT = 0.34
SIZE_INCHES = (13.0, 4.0)


def chrome_trace(path: Path, spans: Sequence[Span]) -> None:
    """Write `spans` as a Chrome trace file, in microseconds from the first.

    Raises `EdgespecError` if there are none, or if the file cannot be written.
    """
    if not spans:
        raise EdgespecError("the trace is empty: there is nothing to write")
    origin = min(span.start for span in spans)
    ordered = sorted(spans, key=lambda span: (span.start, -span.seconds))
    events = [*_names(spans), *(_event(span, origin) for span in ordered), *_flows(spans, origin)]
    try:
        path.write_bytes(msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"}))
    except OSError as error:
        raise EdgespecError(
            f"the timeline cannot be written to {path}: {error.strerror}"
        ) from error


def packets(spans: Sequence[Span]) -> list[tuple[Span, Span]]:
    """Every `send` with its `receive`; packets with the same key are matched in order."""
    pending: defaultdict[Hashable, deque[Span]] = defaultdict(deque)
    pairs = []
    for span in sorted(spans, key=lambda span: (span.start, span.what == "receive")):
        if span.what == "send":
            pending[_key(span, span.side)].append(span)
        elif span.what == "receive":
            sender: Side = "cloud" if span.side == "device" else "device"
            if sent := pending[_key(span, sender)]:
                pairs.append((sent.popleft(), span))
    return pairs


def _key(span: Span, sender: Side) -> Hashable:
    """Key of a packet. A verdict has no round, since the device does not record it on receipt."""
    return (sender, span.session, span.base, span.round if sender == "device" else None)


def _names(spans: Sequence[Span]) -> Iterator[dict[str, Any]]:
    for side, process in PROCESSES.items():
        named = {"ph": "M", "pid": process, "tid": 0, "ts": 0}
        yield named | {"name": "process_name", "args": {"name": side}}
        yield named | {"name": "process_sort_index", "args": {"sort_index": process}}
        for thread, name in sorted({TRACKS[span.what] for span in spans if span.side == side}):
            yield named | {"name": "thread_name", "tid": thread, "args": {"name": name}}


def _event(span: Span, origin: float) -> dict[str, Any]:
    instant = span.what in EVENTS or span.seconds <= 0
    event = _place(span, origin) | {"name": span.what, "cat": span.side}
    event["args"] = {
        name: getattr(span, name)
        for name in ("session", "round", "base", "tokens", "rows", "note")
    }  # fmt: skip
    return event | ({"ph": "i", "s": "t"} if instant else {"ph": "X", "dur": span.seconds * 1e6})


def _flows(spans: Sequence[Span], origin: float) -> Iterator[dict[str, Any]]:
    for number, (sent, received) in enumerate(packets(spans), 1):
        flow = {"name": PACKETS[sent.side][0], "cat": "packet", "id": number}
        yield _place(sent, origin) | flow | {"ph": "s"}
        yield _place(received, origin) | flow | {"ph": "f", "bp": "e"}


def _place(span: Span, origin: float) -> dict[str, Any]:
    ts = (span.start - origin) * 1e6
    return {"pid": PROCESSES[span.side], "tid": TRACKS[span.what][0], "ts": ts}


def plot_timeline(
    path: Path, spans: Sequence[Span], *, title: str, most_seconds: float = 1.5
) -> None:
    """Draw when each side was busy, for `most_seconds` from the last session's first target step.

    The ending of `path` chooses the format. Raises `EdgespecError` if there is no such step, or if
    the file cannot be written. Needs matplotlib (the extra `plots`).
    """
    start, end = _window(spans, most_seconds)
    figure = new_figure(*SIZE_INCHES)
    axes = figure.subplots()
    axes.set(xlim=(0, (end - start) * 1e3), ylim=(-0.3, 1.3), xlabel="ms")
    axes.set_yticks(list(LANES.values()), list(LANES), fontsize=12)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(title)
    inside = [
        span for span in spans if span.start < end and span.start + span.seconds > start + 1e-6
    ]
    _bars(axes, inside, start, end)
    _lines(axes, packets(spans), start, end)
    figure.legend(loc="outside lower center", ncols=7, frameon=False)
    figure.draw_without_rendering()
    _numbers(axes, inside, start, end)
    save(figure, path)


def _window(spans: Sequence[Span], most_seconds: float) -> tuple[float, float]:
    """Start and end in seconds. A step of several sessions names no session; the session that began
    last then gives the start."""
    steps = [span for span in spans if span.what in ("verify", "decode")]
    if not steps:
        raise EdgespecError("there is no verify or decode in the trace: there is nothing to plot")
    firsts = _firsts(steps)
    if firsts:
        start = max(firsts.values())
    else:
        since = max(_firsts(spans).values(), default=0.0)
        start = min(step.start for step in [s for s in steps if s.start >= since] or steps)
    last = max(span.start + span.seconds for span in spans)
    return start, min(start + most_seconds, max(last, start + 1e-3))


def _firsts(spans: Sequence[Span]) -> dict[int, float]:
    """Time of the first span of each session."""
    firsts: dict[int, float] = {}
    for span in spans:
        if span.session:
            firsts[span.session] = min(span.start, firsts.get(span.session, span.start))
    return firsts


def _bars(axes: Axes, spans: Sequence[Span], start: float, end: float) -> None:
    """Draw steps and waits; a white edge separates bars of more than a few pixels."""
    for what, colour in COLOURS.items():
        chosen = [span for span in spans if span.what == what]
        label: str = what
        for side in LANES:
            bars = [((s.start - start) * 1e3, s.seconds * 1e3) for s in chosen if s.side == side]
            if not bars:
                continue
            axes.broken_barh(
                bars,
                (LANES[side] - HEIGHT / 2, HEIGHT),
                facecolor=colour,
                edgecolor="white",
                linewidth=[0.5 if bar[1] > 4 * (end - start) else 0 for bar in bars],
                label=label,
                zorder=1 if what == "wait" else 2,
            )
            label = ""


def _lines(axes: Axes, pairs: Sequence[tuple[Span, Span]], start: float, end: float) -> None:
    """Draw packets from lane to lane; lines that cross the window's border are cut off there."""
    from matplotlib.collections import LineCollection

    for side, (label, colour) in PACKETS.items():
        inner = HEIGHT / 2 * (-1 if side == "device" else 1)
        ends = LANES[side] + inner, 1 - LANES[side] - inner
        lines = [
            [((sent.start - start) * 1e3, ends[0]), ((received.start - start) * 1e3, ends[1])]
            for sent, received in pairs
            if sent.side == side and received.start > start and sent.start < end
        ]
        if lines:
            axes.add_collection(
                LineCollection(lines, colors=colour, linewidths=0.9, label=label), autolim=False
            )


def _numbers(axes: Axes, spans: Sequence[Span], start: float, end: float) -> None:
    """Write the number of draft tokens into the verify bars that have room for it."""
    points = axes.get_position().width * SIZE_INCHES[0] * 72
    for span in spans:
        left, right = max(span.start, start), min(span.start + span.seconds, end)
        width = (right - left) / (end - start) * points
        if span.what == "verify" and width > 6 * len(str(span.tokens)) + 2:
            axes.text(
                ((left + right) / 2 - start) * 1e3,
                LANES[span.side],
                str(span.tokens),
                ha="center",
                va="center",
                color="white",
                fontsize=9,
            )
