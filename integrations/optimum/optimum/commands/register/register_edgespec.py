"""Read by optimum-cli at its start, from every distribution that has a file in this folder."""

from optimum.commands.export.base import ExportCommand
from optimum_edgespec.command import EdgespecExportCommand

REGISTER_COMMANDS = [(EdgespecExportCommand, ExportCommand)]
