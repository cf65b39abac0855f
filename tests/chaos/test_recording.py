"""The drawing of a terminal's output."""

from xml.etree import ElementTree

from bench.chaos.recording import COLOURS, PLAIN_COLOUR, Output, Span, draw, spans

OUTPUTS = [Output(0.0, "\x1b[32mab\x1b[0m<c"), Output(1.5, "\r\n\x1b[35mdefgh\x1b[0m")]
SPANS = [
    Span(0.0, 0, 0, "ab", COLOURS["32"]),
    Span(0.0, 0, 2, "<c", PLAIN_COLOUR),
    Span(1.5, 1, 0, "defg", COLOURS["35"]),
    Span(1.5, 2, 0, "h", COLOURS["35"]),
]


def test_output_is_laid_out_in_colours_and_lines():
    assert spans(OUTPUTS, columns=4) == SPANS


def test_each_span_appears_at_its_time():
    texts = ElementTree.fromstring(draw(SPANS)).findall("{*}text")
    assert [text.text for text in texts] == ["ab", "<c", "defg", "h"]
    assert [text.find("{*}set").get("end") for text in texts] == [
        "0.00s",
        "0.00s",
        "1.50s",
        "1.50s",
    ]
