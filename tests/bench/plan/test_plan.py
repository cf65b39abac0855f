"""`edgespec bench plan`: profiles, the sketch, tables, and comparison with measured speeds."""

from __future__ import annotations

import json
from itertools import pairwise

import msgspec
import pytest
from click.testing import CliRunner

from bench.lab.profiles import builtin_profiles, read_profile
from bench.lab.recording import excerpt, read_recording, synthetic
from bench.plan.figures import ProfilePlan
from bench.plan.plots import plot_plan
from bench.plan.sketch import sketch
from cli.bench import bench
from cli.main import main
from edgespec.errors import EdgespecError, UsageError

PROFILE = {
    "name": "a", "source": "made up", "target_ms": 20, "token_ms": 1.0, "draft_ms": 4,
    "rtt_ms": [0, 40], "agreement": 0.7,
}  # fmt: skip


@pytest.fixture
def profile_file(tmp_path):
    def write(text=None, **changes):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(PROFILE | changes) if text is None else text)
        return path

    return write


def plan(*arguments):
    return CliRunner().invoke(bench, ["plan", *map(str, arguments)])


def report(*arguments):
    result = plan(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return result.stdout, json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("agreement", "speedups"),
    [
        (0.6, (1.45, 1.42, 1.23, 1.13, 1.06, 1.01)),
        (0.7, (1.74, 1.68, 1.43, 1.28, 1.13, 1.03)),
        (0.8, (2.22, 2.09, 1.78, 1.54, 1.30, 1.11)),
        (0.9, (3.12, 2.88, 2.57, 2.20, 1.78, 1.38)),
    ],
)
def test_the_sketch_reproduces_the_table(agreement, speedups):
    for rtt, speedup in zip((0, 10, 25, 50, 100, 200), speedups, strict=True):
        assert sketch(agreement, 30, 2.4, 3, rtt) * 0.03 == pytest.approx(speedup, rel=0.06)


def test_the_sketch_at_its_ends():
    assert sketch(0.0, 30, 2.4, 3, 0) == pytest.approx(1e3 / 30)
    assert sketch(0.8, 5, 0, 50, 100) == pytest.approx(200.0)  # a draft slower than the target
    assert 1e3 / 30 < sketch(1.0, 30, 2.4, 3, 200) < 1e3 / 2.4
    by_rtt = [sketch(0.8, 30, 2.4, 3, rtt) for rtt in range(0, 200, 5)]
    assert all(a >= 0.999 * b for a, b in pairwise(by_rtt))


def test_the_builtin_profiles_say_where_they_are_from():
    profiles = [profile for profile, _ in builtin_profiles()]
    assert [p.recording for p in profiles[:2]] == ["small", "strong"]
    for profile in profiles:
        estimate = profile.name.endswith("(estimate)")
        assert profile.source.startswith("estimated from") == estimate
    nano = next(p for p in profiles if p.name.startswith("Jetson Nano"))
    assert nano.target_ms + 4 * nano.token_ms == pytest.approx(522, abs=0.5)
    assert 4 * nano.draft_ms == 301


@pytest.mark.parametrize(
    ("changes", "message_part"),
    [
        ({"drafts_ms": 1}, "unknown field `drafts_ms`"),
        ({"target_ms": "20"}, "target_ms: expected `float`, got `str`"),
        ({"target_ms": 0}, "target_ms: expected `float` >= 0.01"),
        ({"token_ms": -1}, "token_ms: expected `float` >= 0"),
        ({"draft_ms": float("nan")}, "draft_ms: expected `float` >= 0.01"),
        ({"draft_ms": float("inf")}, "draft_ms: expected `float` <= 10000"),
        ({"rtt_ms": []}, "rtt_ms: expected `array` of length >= 1"),
        ({"rtt_ms": [0, -5]}, "rtt_ms[1]: expected `float` >= 0"),
        ({"batch": [1.2, 2]}, "batch begins with 1"),
        ({"exits": [1.5]}, "exits[0]: expected `float` <= 1"),
        ({"draft_length": 4.5}, "draft_length: expected `int`"),
        ({"agreement": 1.01}, "agreement: expected `float` <= 1"),
        ({"agreement": None}, "it needs one of agreement and recording"),
        ({"recording": "strong"}, "it needs one of agreement and recording"),
        ({"source": ""}, "source: expected `str` of length >= 1"),
        ({"agreement": None, "recording": "gone.json"}, "gone.json cannot be read"),
    ],
)
def test_a_profile_that_is_none_names_file_and_key(profile_file, changes, message_part):
    with pytest.raises(UsageError) as caught:
        read_profile(profile_file(**changes))
    message = str(caught.value)
    assert message_part in message and "\n" not in message
    assert "mine.json" in message or "gone.json" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": "a"}', "[" * 100_000])
def test_a_file_that_holds_no_profile(profile_file, text):
    with pytest.raises(UsageError, match=r"mine\.json"):
        read_profile(profile_file(text))


def test_a_missing_profile_is_one_sentence(tmp_path):
    result = CliRunner().invoke(main, ["bench", "plan", str(tmp_path / "none.json")])
    assert result.exit_code == 2 and "none.json cannot be read" in result.stderr


def test_a_recording_lies_beside_its_profile(profile_file, tmp_path):
    recording = synthetic(0.5, answers=2, tokens=9)
    (tmp_path / "recording.json").write_bytes(msgspec.json.encode(recording))
    path = profile_file(agreement=None, recording="recording.json")
    assert read_profile(path)[1] == recording


@pytest.mark.parametrize(
    "text",
    [
        '{"pair": "x", "prompts": [], "answers": []}',
        '{"pair": "x", "prompts": [5], "answers": [[]]}',
        '{"pair": "x", "prompts": [5, 5], "answers": [[[1, 1, 0.5, 2, 0.1]]]}',
        '{"pair": "x", "prompts": [5000], "answers": [[[1, 1, 0.5, 2, 0.1]]]}',
        '{"pair": "x", "prompts": [5], "answers": [[[-1, 1, 0.5, 2, 0.1]]]}',
        '{"pair": "x", "prompts": [5], "answers": [[[1, 1, 1.5, 2, 0.1]]]}',
    ],
)
def test_a_recording_that_cannot_be_replayed(tmp_path, text):
    path = tmp_path / "recording.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"recording\.json is no recording \("):
        read_recording(path)


def test_an_excerpt_comes_from_all_parts():
    recording = synthetic(0.5, answers=24, tokens=3)
    assert excerpt(recording, 99) == recording
    assert excerpt(recording, 4).answers == [recording.answers[n] for n in (0, 6, 12, 18)]


def test_a_plan_of_a_profile(profile_file):
    text, figures = report(profile_file(exits=[]), "--prompts", 2)
    (one,) = figures["profiles"]
    assert one["methods"] == ["cloud", "lockstep", "edgespec", "sketch"]
    assert set(one["tokens_per_s"]) == {"0", "40"} and one["prompts"] == 2
    assert one["ratio_to_cloud"]["0"]["edgespec"] > one["ratio_to_cloud"]["40"]["lockstep"]
    assert "made up" in text and "–" in text


def test_options_replace_what_the_profile_says(profile_file):
    path = profile_file()
    _, figures = report(path, path, "--rtt", "7", "--recording", "strong", "--prompts", 1)
    assert [p["rtts_ms"] for p in figures["profiles"]] == [[7.0], [7.0]]
    assert all("cpu-int8" in p["recording"] for p in figures["profiles"])


@pytest.mark.parametrize("rtt", ["a", "nan", "-1", "1e9", "0,"])
def test_round_trips_that_are_none(profile_file, rtt):
    result = plan(profile_file(), "--rtt", rtt)
    assert isinstance(result.exception, UsageError)


def test_the_plot_is_written(profile_file, tmp_path):
    report(profile_file(), "--prompts", 1, "--plot", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    figures = report(profile_file(), "--prompts", 1)[1]["profiles"]
    plans = msgspec.convert(figures, list[ProfilePlan])
    with pytest.raises(EdgespecError, match="the plot cannot be written"):
        plot_plan(tmp_path / "gone" / "a.png", plans)


@pytest.fixture
def link_file(tmp_path, profile_file):
    """What `bench link` would have printed, had it measured what is simulated."""

    def write(**changes):
        path = profile_file(cloud_draft_ms=4.0)
        (figures,) = report(path, "--prompts", 2)[1]["profiles"]
        cells = [
            {"rtt_ms": float(rtt), "method": method, "tokens_per_s": speed, "p50_ms": 1}
            for rtt, row in figures["tokens_per_s"].items()
            for method, speed in row.items()
            if method != "sketch"
        ]
        file = tmp_path / "link.txt"
        printed = {"pair": "x with y", "cells": cells, "other": 1} | changes
        file.write_text(f"a table\n{json.dumps(printed)}\n")
        return file, path

    return write


def test_measured_as_simulated(link_file):
    file, path = link_file()
    _, figures = report(path, "--link", file, "--prompts", 2, "--tolerance", "0.01")
    assert figures["worst_error"] < 0.01 and len(figures["cells"]) == 10
    assert len(report(path, "--link", file, "--prompts", 2, "--rtt", "40")[1]["cells"]) == 5


def test_measured_otherwise_than_simulated(link_file):
    times = {"target_ms": 30, "token_ms": 1, "draft_ms": 4, "cloud_draft_ms": 4, "batch": [1, 1.5]}
    file, path = link_file(times=times)
    result = CliRunner().invoke(
        main, ["bench", "plan", str(path), "--link", str(file), "--prompts", "2"]
    )
    assert result.exit_code == 1 and "of 10 simulated speeds differ" in result.stderr
    assert "!" in result.stdout


@pytest.mark.parametrize(
    ("changes", "message_part"),
    [
        ({"cells": []}, "cells"),
        ({"cells": [{"rtt_ms": 0, "method": "magic", "tokens_per_s": 1}]}, "'magic'"),
        ({"times": {"target_ms": 0}}, "target_ms"),
    ],
)
def test_a_link_file_that_cannot_be_used(link_file, changes, message_part):
    file, path = link_file(**changes)
    result = plan(path, "--link", file, "--prompts", 1)
    assert isinstance(result.exception, UsageError) and message_part in str(result.exception)


def test_another_pair_needs_its_profile(link_file):
    file, _ = link_file()
    result = plan("--link", file)
    assert isinstance(result.exception, UsageError) and "PROFILE.json" in str(result.exception)


def test_recording_to_nowhere(tmp_path):
    result = plan("--record", tmp_path / "gone" / "a.json")
    assert isinstance(result.exception, UsageError) and "--record" in str(result.exception)
    result = plan("--record", tmp_path / "a.json", "x", "y")
    assert isinstance(result.exception, UsageError)


@pytest.mark.parametrize("arguments", [("--link", "a", "--plot", "b"), ("--plot", "/gone/a.png")])
def test_options_that_do_not_go_together_or_nowhere(arguments):
    assert isinstance(plan(*arguments).exception, UsageError)
