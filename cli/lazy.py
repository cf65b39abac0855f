"""Groups whose commands stand in other modules, which are imported when a command is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """A group that knows its commands by place: `{"top": "cli.cloud:top"}`."""

    def __init__(self, *args: Any, places: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.places = places

    def list_commands(self, context: click.Context) -> list[str]:
        del context
        return sorted(self.places)

    def get_command(self, context: click.Context | None, name: str) -> click.Command | None:
        del context
        if name not in self.places:
            return None
        module, _, attribute = self.places[name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command
