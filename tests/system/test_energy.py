"""`--energy` as users meet it: real processes, sensors of recorded machines and of this one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request

import pytest
from click.testing import CliRunner

from cli.main import main
from tests.engines.machine.energy import trees
from tests.system.test_commands import EDGESPEC, cloud, edge

PROMPT = ["--prompt", "the quick", "--max-tokens", "12"]


@pytest.fixture(scope="module")
def served(tiny_bundle):
    with cloud(tiny_bundle, "--max-sessions", "4") as process:
        yield process


def sensors(root, tree):
    return ["--energy", "--sensors", str(trees.record(root, tree))]


@pytest.mark.parametrize("stop", [(), ("--stop", "zzzz")])
def test_a_device_reports_joules_a_token_and_heat(tiny_bundle, served, tmp_path, stop):
    options = [*PROMPT, *sensors(tmp_path, trees.ORIN), *stop]
    done = edge(tiny_bundle, served.endpoint, *options, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stderr)
    energy = figures["energy"]
    assert energy["measured"] and energy["complete"] and energy["tokens"] == figures["tokens"]
    assert energy["watts"] == pytest.approx(8.0, rel=0.01)
    assert energy["joules_per_token"] == pytest.approx(energy["joules"] / 12)
    assert energy["seconds"] == pytest.approx(figures["seconds"], abs=0.5)
    assert energy["covers"] == "whole module (INA3221)"
    assert (energy["highest_celsius"], energy["throttled"]) == (51.25, False)


def test_the_text_is_the_same_and_figures_are_sentences(tiny_bundle, served, tmp_path):
    plain = edge(tiny_bundle, served.endpoint, *PROMPT)
    assert "energy" not in plain.stderr
    measured = edge(tiny_bundle, served.endpoint, *PROMPT, *sensors(tmp_path, trees.PI5))
    assert measured.stdout == plain.stdout
    assert " J a token, 2.28 W on average; rails of the power management" in measured.stderr
    assert "heat: at most 64.8 °C (cpu-thermal); not throttled; before:" in measured.stderr


def test_what_cannot_be_measured_is_said(tiny_bundle, served, tmp_path):
    done = edge(tiny_bundle, served.endpoint, *PROMPT, *sensors(tmp_path, trees.PI4))
    assert done.returncode == 0
    assert "energy: not measured: Raspberry Pi 4 Model B Rev 1.5 has no power sensor" in done.stderr
    here = edge(tiny_bundle, served.endpoint, *PROMPT, "--energy", "--json")
    energy = json.loads(here.stderr)["energy"]
    assert energy["measured"] == (energy["joules"] is not None)
    assert energy["measured"] or energy["why"]


def test_an_interrupted_answer_is_measured_too(tiny_bundle, served, tmp_path):
    process = subprocess.Popen(
        [*EDGESPEC, "edge-run", str(tiny_bundle.folder), "--connect", served.endpoint, "--prompt",
         "the quick", "--max-tokens", "480", "--mode", "cloud", *sensors(tmp_path, trees.ORIN)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    os.read(process.stdout.fileno(), 1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode in (0, 130), said
    assert b"W on average; whole module (INA3221)" in said and b"Traceback" not in said


def test_a_folder_that_is_not_there_is_one_sentence(tiny_bundle, tmp_path):
    arguments = ["edge-run", str(tiny_bundle.folder), "--energy", "--sensors", str(tmp_path / "x")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2 and "does not exist" in done.stderr


def test_a_cloud_counts_while_it_serves_and_says_so_at_the_end(tiny_bundle, tmp_path):
    pytest.importorskip("prometheus_client")
    options = [*sensors(tmp_path, trees.SERVER), "--status", "127.0.0.1:0", "--log-format", "json"]
    with cloud(tiny_bundle, *options) as process:
        lines = [json.loads(line) for line in process.said]
        url = next(
            line["message"].split()[-1] for line in lines if line["message"].startswith("status on")
        )
        assert edge(tiny_bundle, process.endpoint, *PROMPT).returncode == 0
        counter = tmp_path / trees.CAP / "intel-rapl:1/energy_uj"
        counter.write_text("37000000")
        metrics = shown(url, 'edgespec:energy_joules_total{model_name="llama",rail="package-1"} 36')
        assert 'rail="package-0"} 0.0' in metrics
        assert 'edgespec:temperature_celsius{model_name="llama"} 71.0' in metrics
        assert 'edgespec:throttled{model_name="llama"} 0.0' in metrics
        top = CliRunner().invoke(main, ["top", "--connect", url, "--once"])
        assert "energy 36 J, 3 J a token" in top.stdout and "71 °C" in top.stdout
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    said = {line["message"]: line for line in map(json.loads, process.said)}
    assert "energy: CPU packages only (RAPL)" in said
    closing = next(text for text in said if text.startswith("energy: 36 J"))
    assert "36 J, 3 J a token" in closing
    assert said[closing]["energy"]["tokens"] == 12
    assert "heat: at most 71.0 °C (x86_pkg_temp); not throttled" in said


def shown(url, words):
    """`/metrics`, once it has these words: a counter is looked at every second."""
    deadline = time.monotonic() + 20.0
    while True:
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as reply:
            text = reply.read().decode()
        if words in text or time.monotonic() > deadline:
            assert words in text, text
            return text
        time.sleep(0.1)


def test_a_cloud_without_sensors_has_no_such_metrics(tiny_bundle, tmp_path):
    pytest.importorskip("prometheus_client")
    options = ["--energy", "--sensors", str(tmp_path), "--status", "127.0.0.1:0"]
    with cloud(tiny_bundle, *options) as process:
        url = next(line for line in process.said if "status on" in line).split()[-1]
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as reply:
            text = reply.read().decode()
        assert "edgespec:ready" in text and "joules" not in text and "celsius" not in text
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert any("energy: not measured: this machine shows none" in line for line in process.said)
