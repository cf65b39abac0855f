"""`edgespec bench plan --fleet`: figures of fleets, capacities, tables, plot, bad input."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from bench.lab.profiles import builtin_profiles
from bench.lab.recording import synthetic
from bench.plan.simulated_fleet import FLEET_METHODS, FleetRun, run_fleet
from cli.bench import bench
from edgespec.errors import UsageError

PROFILE = {
    "name": "a", "source": "made up", "target_ms": 20, "token_ms": 1.0, "row_ms": 2.0,
    "draft_ms": 4, "exits": [], "agreement": 0.7,
}  # fmt: skip
QUICK = ("--seconds", "6")


@pytest.fixture
def profile_file(tmp_path):
    def write(**changes):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(PROFILE | changes))
        return path

    return write


def plan(*arguments):
    return CliRunner().invoke(bench, ["plan", "--fleet", *map(str, arguments)])


def report(*arguments):
    result = plan(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return result.stdout, json.loads(result.stdout.splitlines()[-1])["fleets"]


def test_the_same_fleet_has_the_same_figures():
    profile, _ = builtin_profiles()[0]
    conditions = FleetRun(seconds=5.0, warm_up=1.0)
    runs = [
        [run_fleet(profile, synthetic(0.7), name, conditions, 10.0, 3) for name in FLEET_METHODS]
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert all(f.devices == 3 and 0 < f.p5_tokens_per_s <= f.tokens_per_s for f in runs[0])
    by_name = dict(zip(FLEET_METHODS, runs[0], strict=True))
    assert by_name["lockstep one at a time"].rows == 1.0 < by_name["cloud"].rows
    assert by_name["cloud-draft"].drafting > 0 == by_name["cloud"].drafting


def test_fleets_of_given_sizes(profile_file):
    text, (one,) = report(profile_file(), "--devices", "2,4", "--target-rate", "5,1000", *QUICK)
    assert set(one["rates"]) == {"5", "1000"}
    methods = one["rates"]["5"]
    assert list(methods) == ["cloud", "lockstep one at a time", "edgespec"]  # no cloud draft
    assert [f["devices"] for f in methods["edgespec"]["fleets"]] == [2, 4]
    assert all(f["served"] == 1.0 for f in methods["cloud"]["fleets"])
    assert all(f["served"] == 0.0 for f in one["rates"]["1000"]["cloud"]["fleets"])
    assert "5 tokens/s each" in text and "served" in text


def test_the_capacity_is_the_largest_fleet_that_is_served(profile_file):
    text, (one,) = report(
        profile_file(), "--target-rate", "15", "--most", "32", "--method", "cloud", *QUICK
    )
    cloud = one["rates"]["15"]["cloud"]
    by_size = {f["devices"]: f["served"] for f in cloud["fleets"]}
    assert by_size[cloud["capacity"]] >= 0.95 > by_size[cloud["capacity"] + 1]
    step = 20 + 3 * (cloud["capacity"] - 1)
    assert 0.5 < 15 * step / 1e3 < 1.0  # prompts take the rest of the time
    assert not cloud["more"] and str(cloud["capacity"]) in text


def test_a_capacity_beyond_the_most_that_is_searched(profile_file):
    text, (one,) = report(profile_file(), "--target-rate", "1", "--most", "2", "--method", "cloud")
    assert one["rates"]["1"]["cloud"]["more"] and "2+" in text


def test_the_plot_is_written(profile_file, tmp_path):
    report(profile_file(), "--devices", "1,2", *QUICK, "--plot", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "message_part"),
    [
        (("--target-rate", "a"), "--target-rate is a list"),
        (("--target-rate", "0"), "--target-rate is a list"),
        (("--target-rate", "nan"), "--target-rate is a list"),
        (("--devices", "0"), "--devices is a list"),
        (("--devices", "x"), "--devices is a list"),
        (("--method", "magic"), "no method 'magic'"),
        (("--rtt", "-1"), "an RTT of -1 ms"),
        (("--seconds", "3"), "3 virtual seconds leave nothing"),
        (("--plot", "/gone/a.png"), "--plot /gone/a.png is no file"),
        (("--link", "a"), "exclude each other"),
    ],
)
def test_what_cannot_be_simulated_is_reported_in_a_sentence(arguments, message_part):
    result = plan(*arguments)
    assert isinstance(result.exception, UsageError)
    assert message_part in str(result.exception) and "\n" not in str(result.exception)
