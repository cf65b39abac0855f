"""Reading an answer while exceptions come in between, as Ctrl-C raises them."""

import threading

import pytest

from edge_runtime.background import Ended
from edge_runtime.completion import Completion
from edge_runtime.pieces import Piece

PIECES = [Piece(7, "a", "target", 0.0), Piece(8, "b", "target", 0.0)]
END = Ended("c", None)


class Background:
    """Delivers an answer of two pieces at once."""

    def submit(self, answer, deliver):
        for item in (*PIECES, END):
            deliver(item)

    def cancel(self, answer):
        pass


def interrupted(item):
    """A completion whose reader is interrupted just after it has taken `item` out."""
    completion = Completion(Background(), None)
    accept = completion._accept

    def interrupt(taken):
        if taken == item:
            completion._accept = accept
            raise KeyboardInterrupt
        return accept(taken)

    completion._accept = interrupt
    return completion


def returns(action):
    """The result of `action`, which must not block."""
    results = []
    thread = threading.Thread(target=lambda: results.append(action()), daemon=True)
    thread.start()
    thread.join(10.0)
    assert results, "it blocks for ever"
    return results[0]


@pytest.mark.parametrize("item", [*PIECES, END], ids=["first", "last", "end"])
def test_an_interrupt_while_an_item_is_taken_does_not_block_the_reader(item):
    completion = interrupted(item)

    def read():
        with pytest.raises(KeyboardInterrupt):
            for _ in completion:
                pass
        completion.cancel()
        return completion.text

    assert returns(read).endswith("c"), "the end has come"


def test_an_interrupted_cancel_may_be_repeated():
    completion = interrupted(END)

    def cancel():
        with pytest.raises(KeyboardInterrupt):
            completion.cancel()
        completion.cancel()
        return [*completion] == [] and completion.partial_text

    assert returns(cancel) == "abc"
