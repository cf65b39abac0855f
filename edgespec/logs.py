"""Log lines as text, or as JSON objects with one field for each fact."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple

import msgspec

from edgespec.plain_text import plain

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning"]
TEXT = "%(asctime)s %(levelname)s %(message)s"
FIELDS = "fields"
"""Attribute of a log record with the facts of its sentence."""


class Note(NamedTuple):
    """A log line to be, returned by pure code that does not log itself."""

    level: int
    sentence: str
    fields: Mapping[str, Any]

    def write(self, log: logging.Logger) -> None:
        log.log(self.level, "%s", self.sentence, extra={FIELDS: self.fields})


class TextLines(logging.Formatter):
    """Formats `time LEVEL message` on one line; a traceback follows on lines of its own."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        return plain(super().formatMessage(record))


class JsonLines(logging.Formatter):
    """Formats `{"time": …, "level": …, "logger": …, "message": …}` and the fields of a note."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def configure(form: Format, level: Level) -> None:
    """Sends log lines of this process to standard error, unless it has handlers already."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler])
