"""The command line as a whole: its commands, their help, their exit codes, and what it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.bench import BENCHES, bench
from cli.lazy import LazyGroup
from cli.main import COMMANDS, main

WIDTH = 80
HEAVY = {"numpy", "onnxruntime", "rich", "tokenizers", "zmq", "jinja2", "bench", "calibration",
         "cloud_runtime", "edge_runtime", "engines", "export"}  # fmt: skip


def commands(group=main, words=()):
    yield words, group
    if isinstance(group, LazyGroup):
        for name in group.list_commands(None):
            yield from commands(group.get_command(None, name), (*words, name))


EVERY = list(commands())


def help_of(words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((WIDTH, 24)))
        result = CliRunner().invoke(main, [*words, "--help"], prog_name="edgespec")
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_command_is_listed():
    assert len(EVERY) == 1 + len(COMMANDS) + len(BENCHES)
    for group, words in ((main, ()), (bench, ("bench",))):
        shown = help_of(words)
        for name in group.places:
            assert f"\n  {name} " in shown


@pytest.mark.parametrize(("words", "command"), EVERY, ids=lambda value: str(value))
def test_help_fits_and_is_sentences(words, command):
    text = help_of(words)
    assert f"Usage: edgespec {' '.join(words)}" in text
    assert max(map(len, text.splitlines())) <= WIDTH
    assert command.help.split("\n\n")[0].endswith((".", "end."))
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{option.opts} has no help"
            sentence = option.help
            assert sentence[0].isupper() and sentence.endswith("."), f"{option.opts}: {sentence}"
            assert len(sentence) <= WIDTH + 8, f"{option.opts}: {len(sentence)}"


def test_a_short_form_means_the_same_everywhere():
    options = [o for _, command in EVERY for o in command.params if isinstance(o, click.Option)]
    pairs = {
        (short, option.opts[-1])
        for option in options
        for short in option.opts
        if not short.startswith("--")
    }
    assert len({short for short, _ in pairs}) == len({long for _, long in pairs}) == len(pairs)
    assert {("-p", "--prompt"), ("-n", "--max-tokens"), ("-c", "--connect")} <= pairs
    shortened = {long for _, long in pairs}
    missing = {o.opts[-1] for o in options if len(o.opts) == 1} & shortened
    assert not missing, f"without their short form somewhere: {missing}"


@pytest.mark.parametrize("arguments", [["nonsense"], ["bench", "nonsense"]])
def test_an_unknown_command(arguments):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "No such command 'nonsense'" in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["edge-run", "--help"], ["bench", "--help"]])
def test_help_loads_no_other_package_and_nothing_large(arguments):
    code = f"""
import sys
from click.testing import CliRunner
from cli.main import main
assert CliRunner().invoke(main, {arguments!r}).exit_code == 0
print(*{{name.partition(".")[0] for name in sys.modules}} & {HEAVY!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


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


USAGE, FAILURE = 2, 1
MISSING = USAGE
"""For a path that does not exist."""
NOWHERE = str(Path("/nowhere/at/all"))
BAD = [
    (USAGE, ["export"]),
    (USAGE, ["export", NOWHERE]),
    (USAGE, ["export", NOWHERE, "-o", "b", "--precision", "fp8"]),
    (USAGE, ["export", NOWHERE, "-o", "b", "--opset", "7"]),
    (USAGE, ["export", NOWHERE, "-o", "b", "--context", "2"]),
    (USAGE, ["export", NOWHERE, "-o", "b", "--split", "1,x"]),
    (MISSING, ["export", NOWHERE, "-o", "b"]),
    (USAGE, ["inspect"]),
    (MISSING, ["inspect", NOWHERE]),
    (USAGE, ["build", NOWHERE]),
    (MISSING, ["build", NOWHERE, "--profile", "cuda"]),
    (USAGE, ["build", NOWHERE, "--profile", "cuda", "--capacity", "0"]),
    (MISSING, ["serve", NOWHERE]),
    (USAGE, ["serve"]),
    (USAGE, ["cloud-run"]),
    (USAGE, ["cloud-run", NOWHERE, "--kv-memory", "4X"]),
    (USAGE, ["cloud-run", NOWHERE, "--max-draft", "65"]),
    (USAGE, ["cloud-run", NOWHERE, "--backend", "abacus"]),
    (USAGE, ["cloud-run", NOWHERE, "--idle-timeout", "nan"]),
    (USAGE, ["cloud-run", NOWHERE, "--log-level", "loud"]),
    (MISSING, ["cloud-run", NOWHERE]),
    (USAGE, ["edge-run"]),
    (USAGE, ["edge-run", NOWHERE, "-n", "0"]),
    (USAGE, ["edge-run", NOWHERE, "-m", "abacus"]),
    (USAGE, ["edge-run", NOWHERE, "--target-rate", "-1"]),
    (USAGE, ["edge-run", NOWHERE, "--give-up", "inf"]),
    (MISSING, ["edge-run", NOWHERE, "-p", "x"]),
    (USAGE, ["verify"]),
    (USAGE, ["verify", NOWHERE, "-n", "0"]),
    (MISSING, ["verify", NOWHERE]),
    (USAGE, ["top", "-c", "tcp://x:1"]),
    (USAGE, ["top", "--interval", "0"]),
    (FAILURE, ["top", "-c", "127.0.0.1:9", "--once"]),
    (USAGE, ["keygen"]),
    (FAILURE, ["keygen", "/proc/nowhere"]),
    (USAGE, ["doctor", "--backend", "abacus"]),
    (MISSING, ["doctor", "--exactness", NOWHERE]),
    (USAGE, ["distill", NOWHERE]),
    (USAGE, ["distill", NOWHERE, "-o", "d", "--hours", "0"]),
    (USAGE, ["distill", NOWHERE, "-o", "d", "--rate", "nan"]),
    (USAGE, ["distill", NOWHERE, "-o", "d", "--layers", "a,b"]),
    (MISSING, ["distill", NOWHERE, "-o", "d"]),
    (USAGE, ["quantise", NOWHERE, "-o", "d", "--bits", "3"]),
    (MISSING, ["quantise", NOWHERE, "-o", "d"]),
    (USAGE, ["choose"]),
    (USAGE, ["choose", NOWHERE, "--depths", "deep"]),
    (USAGE, ["choose", NOWHERE, "--disk", "4X"]),
    (MISSING, ["choose", NOWHERE]),
    (USAGE, ["calibrate", NOWHERE]),
    (MISSING, ["calibrate", NOWHERE, "--bundle", NOWHERE]),
    (USAGE, ["demo", "-n", "0"]),
    (USAGE, ["bench", "local", "-t", "0"]),
    (MISSING, ["bench", "local", NOWHERE]),
    (USAGE, ["bench", "link", "--rtt", "far"]),
    (USAGE, ["bench", "link", "--method", "abacus"]),
    (MISSING, ["bench", "link", NOWHERE]),
    (USAGE, ["bench", "plan", "--fleet", "--link", "a"]),
    (USAGE, ["bench", "plan", "--fleet", "--devices", "0"]),
    (USAGE, ["bench", "fleet", "--devices", "2001"]),
    (USAGE, ["bench", "fleet", "--real", "17"]),
    (USAGE, ["bench", "crowd", "noise"]),
    (USAGE, ["bench", "crowd", "--seconds", "nan"]),
    (USAGE, ["bench", "export", "--model", "2b"]),
    (USAGE, ["bench", "load", "-t", "0"]),
    (MISSING, ["bench", "load", NOWHERE]),
    (USAGE, ["bench", "serve", "--tokens", "1"]),
    (MISSING, ["bench", "serve", NOWHERE]),
    (USAGE, ["bench", "structured", "--schemas", "0"]),
    (MISSING, ["bench", "structured", NOWHERE]),
    (USAGE, ["bench", "acceptance", "--limit", "0"]),
    (MISSING, ["bench", "acceptance", NOWHERE]),
    (USAGE, ["bench", "chaos", "--minutes", "0"]),
    (USAGE, ["bench", "shapes"]),
    (USAGE, ["bench", "shapes", "--work", "w", "--draft", "nameless"]),
    (USAGE, ["bench", "shapes", "--work", "w", "--depths", "deep"]),
    (USAGE, ["bench", "gpu", "--rows", "0"]),
    (USAGE, ["bench", "step", "--threads", "0"]),
    (USAGE, ["bench", "step", "--llama-bench", NOWHERE]),
    (USAGE, ["bench", "arm", "--board", "rpi3"]),
]


@pytest.mark.parametrize(
    ("code", "arguments"),
    BAD,
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else str(value),
)
def test_bad_input_is_a_message_and_an_exit_code(code, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    assert result.stderr and "Traceback" not in result.output
    if code == FAILURE or NOWHERE in result.stderr:
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("offline", [[], ["--offline", "refuse"]])
def test_offline_after_needs_offline_draft(offline):
    arguments = ["edge-run", NOWHERE, "-p", "x", "--offline-after", "2", *offline]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (USAGE, "")
    assert "pass --offline draft too" in result.stderr


def test_the_table_has_every_command():
    named = {words for words, command in EVERY if not isinstance(command, LazyGroup)}
    tried = {tuple(arguments[: 2 if arguments[0] == "bench" else 1]) for _, arguments in BAD}
    assert tried == named
