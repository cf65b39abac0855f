"""The commands that stand outside `cli.main` are found there, and loaded only when wanted."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from cli.bench import bench
from cli.main import main


def test_every_command_is_listed_and_has_help():
    listed = CliRunner().invoke(main, ["--help"]).stdout
    assert "  demo " in listed and "  bench " in listed and "  export " in listed
    for command in [["demo"], ["bench"], *(["bench", name] for name in bench.commands)]:
        result = CliRunner().invoke(main, [*command, "--help"])
        assert result.exit_code == 0 and f"Usage: main {' '.join(command)}" in result.stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["bench", "nonsense"]])
def test_a_command_that_there_is_not(arguments):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "No such command 'nonsense'" in result.stderr


def test_another_command_loads_no_bench():
    code = """
import sys
from click.testing import CliRunner
from cli.main import main
assert CliRunner().invoke(main, ["doctor", "--json"]).exit_code == 0
print([name for name in sys.modules if name.partition(".")[0] in ("bench", "calibration")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
