"""One JSON object a line, whatever is in it."""

import json
import logging

from edgespec.logs import JsonLines, Note, TextLines, configure


def lines(capture):
    return [json.loads(line) for line in capture.readouterr().err.splitlines()]


def test_a_note_is_a_line_with_its_facts_as_fields(capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    configure("json", "info")
    log = logging.getLogger("edgespec.test")
    Note(logging.WARNING, '100 % trouble\nwith "a robot"', {"device": "a robot"}).write(log)
    log.info("%d of %d", 1, 2)
    log.debug("not worth it")
    first, second = lines(capsys)
    assert first["message"] == '100 % trouble\nwith "a robot"'
    assert (first["level"], first["logger"], first["device"]) == (
        "warning", "edgespec.test", "a robot",
    )  # fmt: skip
    assert second["message"] == "1 of 2"
    assert second["time"].endswith("+00:00")


def test_an_exception_is_in_the_line():
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "no", (), (OSError, OSError("y"), None))
    assert "OSError: y" in json.loads(JsonLines().format(record))["exception"]


def test_a_text_line_cannot_be_forged():
    said = "robot\x1b[2J\n2026-01-01 00:00:00 WARNING all is lost"
    record = logging.LogRecord("x", logging.INFO, "f", 1, said, (), None)
    line = TextLines().format(record)
    assert line.isprintable() and "robot [2J 2026" in line
