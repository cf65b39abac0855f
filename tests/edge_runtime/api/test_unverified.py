"""Unverified text: plain clients never have to take text back, and the pieces settle."""

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.api.unverified import HeldText, settled
from edge_runtime.pieces import Piece

WORDS = st.lists(st.sampled_from(["a ", "b ", "", "c"]), min_size=1, max_size=12)


@st.composite
def written(draw):
    """Pieces as an answer hands them out, and the text that stands at the end.

    Stretches of the target's tokens alternate with times without the cloud, after which the target
    confirms what the draft wrote, up to a difference.
    """
    target = draw(WORDS)
    pieces, place, ahead = [], 0, []
    while place < len(target):
        if draw(st.booleans()):
            right = [*target, *["d "] * 100][place + len(ahead)]
            ahead.append(draw(st.sampled_from([right, right, "wrong "])))
            pieces.append(Piece(0, ahead[-1], "unverified", 0.0))
            continue
        text, correction = target[place], None
        if ahead:
            if ahead.pop(0) == text:
                text = ""
            else:
                correction, ahead = len("".join(target[:place])), []
        place += 1
        pieces.append(Piece(0, text, draw(st.sampled_from(["device", "target"])), 0.0, correction))
    return pieces, "".join([*target, *ahead])


@given(written())
def test_a_plain_client_is_sent_what_stands(case):
    pieces, text = case
    held = HeldText()
    assert "".join(held.pass_on(p.text, p) for p in pieces) + held.flush() == text


@given(written())
def test_pieces_settle_to_what_stands(case):
    pieces, text = case
    last = settled(pieces)
    assert "".join(piece.text for piece in last) == text
    assert all(piece.correction is None for piece in last)


def test_confirmed_pieces_have_the_verdicts_origin():
    pieces = [
        Piece(1, "a", "target", 0.0),
        Piece(2, "b", "unverified", 0.0),
        Piece(3, "c", "unverified", 0.0),
        Piece(2, "", "device", 0.0),
        Piece(4, "d", "target", 0.0, 2),
    ]
    found = [(piece.text, piece.origin) for piece in settled(pieces)]
    assert found == [("a", "target"), ("b", "device"), ("d", "target")]
