"""What reaches standard output while the cloud is lost and back again."""

import pytest

from edge_runtime.piece_writer import PieceWriter
from edge_runtime.pieces import Piece

COMMITTED, LOST = [Piece(1, "a", "target", 0.0)], [
    Piece(2, "b", "unverified", 0.0), Piece(3, "x", "unverified", 0.0)
]  # fmt: skip
BACK = [Piece(2, "", "device", 0.0), Piece(4, "y", "target", 0.0, 2), Piece(5, "z", "target", 0.0)]


class Terminal:
    def __init__(self, stream):
        self._stream = stream

    def isatty(self):
        return True

    def __getattr__(self, name):
        return getattr(self._stream, name)


def write(pieces, *, coloured=False):
    writer = PieceWriter(coloured=coloured)
    for piece in pieces:
        writer.write(piece)
    return writer


def test_a_pipe_gets_verified_text_alone(capsys):
    writer = write([*COMMITTED, *LOST])
    assert capsys.readouterr().out == "a" and writer.shown == 1
    writer = write([*COMMITTED, *LOST, *BACK])
    output, notes = capsys.readouterr()
    assert (output, notes, writer.shown) == ("abyz", "", 4)


def test_a_terminal_shows_unverified_text_in_its_own_colour(capsys, monkeypatch):
    import sys

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", Terminal(sys.stdout))
    writer = write([*COMMITTED, *LOST, *BACK])
    output, notes = capsys.readouterr()
    assert output == "a\x1b[35mb\x1b[0m\x1b[35mx\x1b[0myz"
    assert "the target corrects the text after “ab”" in notes and writer.shown == 4


@pytest.mark.parametrize("coloured", [False, True])
def test_a_file_holds_no_colours(coloured, capsys):
    write([*COMMITTED, *BACK], coloured=coloured)
    assert "\x1b" not in capsys.readouterr().out
