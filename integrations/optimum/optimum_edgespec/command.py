"""`optimum-cli export edgespec`: `edgespec export`, with optimum's names for model and output.

The options are read from edgespec's own command, so that there is one list of them.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator

import click
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from cli.export import export

RENAMED = ("out",)
"""Options of `edgespec export` that have other names here."""


def options() -> Iterator[click.Option]:
    """The options that both commands have."""
    for parameter in export.params:
        if isinstance(parameter, click.Option) and parameter.name not in RENAMED:
            yield parameter


class EdgespecExportCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(
        name="edgespec",
        help="Export a model as a bundle for speculative decoding between a device and a cloud.",
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        group = parser.add_argument_group("required arguments")
        group.add_argument("-m", "--model", required=True, help="Folder, hub id or GGUF file.")
        group.add_argument("output", help="Folder of the bundle.")
        for option in options():
            action = "store_true" if option.is_flag else "append" if option.multiple else "store"
            more = {} if option.is_flag else {"metavar": option.make_metavar(_context())}
            help_text = (option.help or "").replace("%", "%%")
            names = [name for name in option.opts if name != "-m"]
            parser.add_argument(*names, dest=option.name, action=action, help=help_text, **more)

    def run(self) -> None:
        """Runs `edgespec export`, which ends the process with its exit code."""
        from cli.main import main

        main(["export", *self._words(), "--out", self.args.output, "--", self.args.model])

    def _words(self) -> Iterator[str]:
        """The options that were given, as `edgespec export` takes them."""
        for option in options():
            value = getattr(self.args, option.name)
            name = max(option.opts, key=len)
            if option.is_flag:
                yield from [name] if value else []
                continue
            for each in value if isinstance(value, list) else [value]:
                yield from () if each is None else (name, each)


def _context() -> click.Context:
    return click.Context(export)
