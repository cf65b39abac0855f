"""Text that may be written to terminals and logs."""

import io

import pytest

from edgespec.plain_text import plain, visible


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("robot 7, 日本語 🎉 [/b]", "robot 7, 日本語 🎉 [/b]"),
        ("a\r\nb", "a b"),
        ("\x1b[31mred\x1b[0m\n", "[31mred [0m"),
        ("a\u202eb\x85c", "a b c"),
    ],
)
def test_plain_text_is_one_line_without_control_characters(text, safe):
    assert plain(text) == safe


def test_a_terminal_gets_no_control_characters_and_a_file_all():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    text = "one\n\ttwo\x1b]0;evil\x07"
    assert visible(text, Terminal()) == "one\n\ttwo]0;evil"
    assert visible(text, io.StringIO()) == text
