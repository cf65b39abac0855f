"""A recording of `edge-run --offline draft` whose cloud is taken away and comes back.

    python -m bench.chaos.recording BUNDLE docs/offline.svg

Real processes on a pseudo-terminal: the cloud is stopped (SIGSTOP) in the middle of the answer and
goes on once the device has written some text of its own. The picture is an SVG that plays; where
nothing plays it, it shows the last state.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from bench.lab.processes import cloud_process

COLUMNS, ROWS = 92, 34
CHAR_WIDTH_PX, LINE_HEIGHT_PX, FONT_PX, MARGIN_PX = 8.43, 19, 14, 14
LOST_AFTER_BYTES = 700
"""Output of the device after which the cloud is stopped."""
ALONE_TOKENS = 25
"""Unverified tokens after which the cloud goes on."""
COLOURS = {"31": "#e06c75", "32": "#98c379", "33": "#e5c07b", "35": "#c678dd"}
PLAIN_COLOUR, BACKGROUND = "#d7dae0", "#1e2127"
_UNVERIFIED = b"\x1b[35m"
_STYLE = re.compile(r"\x1b\[([0-9;]*)m|(\r?\n)")


class Output(NamedTuple):
    """A part of the terminal's output, and when it came, in seconds from the first."""

    at: float
    text: str


class Span(NamedTuple):
    """Text of one colour on one line of the screen."""

    at: float
    row: int
    column: int
    text: str
    colour: str


def record(bundle: Path) -> list[Output]:
    """The output of a device whose cloud is away for a while."""
    with cloud_process(bundle) as cloud:
        options = ["--chat", "--prompt", "Why is the sky blue?", "-n", "110", "--threads", "1"]
        offline = ["--offline", "draft", "--offline-after", "1.5", "--show-drafts"]
        command = ["-m", "edgespec", "edge-run", str(bundle), "--connect", cloud.endpoint]
        child, terminal = pty.fork()
        if child == 0:
            os.environ["TERM"] = "xterm-256color"
            os.execv(sys.executable, [sys.executable, *command, *options, *offline])
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        try:
            return list(_outputs(terminal, cloud.pid))
        finally:
            os.kill(cloud.pid, signal.SIGCONT)
            os.waitpid(child, 0)


def _outputs(terminal: int, cloud: int) -> Iterator[Output]:
    began, seen, alone, away, lost = 0.0, 0, 0, False, False
    while select.select([terminal], [], [], 60)[0]:
        try:
            data = os.read(terminal, 65_536)
        except OSError:  # the device has ended
            return
        began = began or time.monotonic()
        seen, alone = seen + len(data), alone + data.count(_UNVERIFIED)
        if not lost and seen > LOST_AFTER_BYTES:
            os.kill(cloud, signal.SIGSTOP)
            lost = away = True
        if away and alone >= ALONE_TOKENS:
            os.kill(cloud, signal.SIGCONT)
            away = False
        yield Output(time.monotonic() - began, data.decode(errors="replace"))


def spans(outputs: Sequence[Output], columns: int = COLUMNS) -> list[Span]:
    """The output on a screen of `columns` characters a line."""
    found: list[Span] = []
    row = column = 0
    colour = PLAIN_COLOUR
    for at, text in outputs:
        for part in re.split(r"(\x1b\[[0-9;]*m|\r?\n)", text):
            style = _STYLE.fullmatch(part)
            if style and style[2]:
                row, column = row + 1, 0
            elif style:
                colour = COLOURS.get(style[1], PLAIN_COLOUR)
            while not style and part:
                if column == columns:
                    row, column = row + 1, 0
                piece, part = part[: columns - column], part[columns - column :]
                found.append(Span(at, row, column, piece, colour))
                column += len(piece)
    return found


def draw(found: Sequence[Span]) -> str:
    """An SVG that shows each span from its time on."""
    rows = 1 + max((span.row for span in found), default=0)
    width = round(2 * MARGIN_PX + COLUMNS * CHAR_WIDTH_PX)
    height = 2 * MARGIN_PX + rows * LINE_HEIGHT_PX
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="monospace" font-size="{FONT_PX}" xml:space="preserve">',
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>',
    ]
    for span in found:
        x = MARGIN_PX + span.column * CHAR_WIDTH_PX
        y = MARGIN_PX + FONT_PX + span.row * LINE_HEIGHT_PX
        length = len(span.text) * CHAR_WIDTH_PX
        lines.append(
            f'<text x="{x:.1f}" y="{y}" fill="{span.colour}" textLength="{length:.1f}" '
            f'lengthAdjust="spacingAndGlyphs">{escape(span.text)}'
            f'<set attributeName="opacity" to="0" begin="0s" end="{span.at:.2f}s"/></text>'
        )
    return "\n".join([*lines, "</svg>\n"])


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(draw(spans(record(Path(sys.argv[1])))), encoding="utf-8")
