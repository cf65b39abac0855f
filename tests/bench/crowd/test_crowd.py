"""`edgespec bench crowd`: its parts on paper, and a small one with real processes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest
from click.testing import CliRunner

from bench.crowd.churn import churn
from bench.crowd.figures import (
    Churn,
    ChurnPart,
    CloudState,
    CrowdFigures,
    ModelPart,
    Phase,
    compared,
    loop_cost,
    metrics,
    trouble_of,
    worst,
)
from bench.crowd.offenders import OFFENDERS, _certain, _GreedySession
from bench.crowd.overhead import record_bytes
from bench.crowd.scene import Scene
from bench.crowd.tables import crowd_tables
from bench.lab.processes import word_after
from cli.main import main
from cloud_runtime.status.metrics import exposition
from cloud_runtime.status.tally import Tally
from edgespec.fleet import Fleet
from edgespec.protocol import VERSION, Hello
from engines.machine.doctor import Machine

# What a cloud says of itself.


def test_the_figures_of_a_cloud_are_read_back():
    tally = Tally()
    tally.activities.update({"run": 2.5, "decide": 0.25})
    tally.step(3, 6, 0.5)
    tally.dropped["flood"] = 7
    said = metrics(
        exposition(Fleet(target="a {b}", state="ready", step_error=0.04), tally)[1].decode()
    )
    assert said["loop_seconds_total", "run"] == 2.5
    assert said["loop_seconds_total", "decide"] == 0.25
    assert said["packets_dropped_total", "flood"] == 7
    assert said["step_seconds_count", ""] == 1 and said["step_rows_sum", ""] == 3
    assert said["step_error_ratio", ""] == 0.04


def test_what_is_not_a_step_is_a_share_of_steps():
    before = {("step_seconds_count", ""): 10.0, ("loop_seconds_total", "run"): 1.0}
    after = {
        ("step_seconds_count", ""): 30.0,
        ("step_rows_sum", ""): 100.0,
        ("loop_seconds_total", "run"): 3.0,
        ("loop_seconds_total", "receive"): 0.02,
        ("loop_seconds_total", "decide"): 0.04,
        ("loop_seconds_total", "answer"): 0.01,
        ("loop_seconds_total", "wait"): 5.0,
    }
    cost = loop_cost(before, after)
    assert (cost.steps, cost.rows) == (20, 5)
    assert cost.run_ms == pytest.approx(100) and cost.decide_ms == pytest.approx(2)
    assert cost.share == pytest.approx(0.035), "waiting is no work"
    assert loop_cost(before, before).share == 0


def trial(*rates, p99=50.0, reliable=True):
    return SimpleNamespace(
        rates=list(rates), p99_ms=p99, refused=0, generator=0.1, cloud_cpu=0.9, reliable=reliable
    )


def test_polite_devices_are_compared_with_themselves_before_and_after():
    row = compared(trial(10, 12), trial(9, 9, 30, p99=70), trial(8, 10, reliable=False), 2)
    assert (row.rate_alone, row.rate_with_offender) == (10, 9), "the third one is not of them"
    assert row.ratio == pytest.approx(0.9)
    assert (row.p99_alone_ms, row.p99_with_offender_ms, row.reliable) == (50, 70, False)
    assert worst([row, replace(row, ratio=0.5)]) == 0.5 and worst([]) is None


def test_who_is_in_trouble_is_found_in_the_log():
    lines = [
        '{"level": "info", "device": "flood", "message": "device flood is here"}',
        '{"level": "warning", "device": "deaf", "message": "deaf does not read"}',
        "no JSON",
        '{"level": "warning", "device": "flood", "event": "flood", "message": "flood sends"}',
    ]
    assert [entry["event"] for entry in trouble_of(lines, "flood")] == ["flood"]


@pytest.mark.parametrize(
    "line",
    ["… INFO listening on tcp://127.0.0.1:7\n", '{"message":"listening on tcp://127.0.0.1:7"}\n'],
)
def test_the_endpoint_is_read_from_either_format(line):
    assert word_after(line, "listening on") == "tcp://127.0.0.1:7"


def test_a_greedy_draft_is_long_certain_and_half_of_them_wrong():
    answer = list(range(10, 50))
    scene = Scene("", Hello(VERSION, "t", "k", "x"), [[1, 2]], [answer], [], 0.0, 0)
    right, wrong = _GreedySession(0, 5, True), _GreedySession(0, 5, False)
    draft = _certain(scene, 7, right)
    assert draft.tokens == answer[3:35] and draft.confidences == b"\xff" * 32
    assert (draft.base, draft.round, _certain(scene, 7, right).round) == (5, 1, 2)
    assert all(a != b for a, b in zip(_certain(scene, 7, wrong).tokens, draft.tokens, strict=True))
    assert _certain(scene, 7, _GreedySession(0, 42, True)) is None


def test_an_idle_session_takes_what_its_tokens_do_and_little_more():
    assert 3_000 < record_bytes(60) < 40_000


def test_short_sessions_leave_nothing_behind():
    figures = churn(600)
    first, last = figures.churn.marks
    assert (first.sessions >= 60) and last.sessions >= 600
    assert last.open_sessions < 100
    assert figures.growth_bytes_per_session < 20_000


# All of it.


@pytest.fixture(scope="module")
def small(tiny_recording, tmp_path_factory):
    """A profile and a recording for the tiny target."""
    folder = tmp_path_factory.mktemp("crowd")
    (folder / "said.json").write_bytes(msgspec.json.encode(tiny_recording))
    kind = {"name": "a", "draft_ms": 2, "rtt_ms": 4, "answer_tokens": [2, 12], "think_s": 0.01}
    profile = {
        "name": "mine", "source": "made up", "kinds": [kind], "recording": "said.json",
        "arrive_s": 0.1, "target_rate": 5,
    }  # fmt: skip
    (folder / "fleet.json").write_text(json.dumps(profile))
    return folder / "fleet.json"


def test_a_small_crowd(tiny_bundle, small, monkeypatch):
    monkeypatch.setattr("bench.crowd.polite.OFFENDERS", {"greedy": OFFENDERS["greedy"]})
    monkeypatch.setattr("bench.fleet.generator.SETTLE_S", 0.2)
    monkeypatch.setattr("bench.crowd.overhead.SESSION_TOKENS", 40)
    monkeypatch.setattr("bench.crowd.overhead.RECORDS_COUNT", 50)
    done = CliRunner().invoke(
        main,
        ["bench", "crowd", "offenders", "overhead", "--bundle", str(tiny_bundle.folder),
         "--profile", str(small), "--seconds", "0.55", "--polite", "2", "--connected", "6",
         "--active", "2", "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout.splitlines()[-1])
    more, greedy = figures["offenders"]
    assert (more["name"], greedy["name"]) == ("one more", "greedy")
    assert figures["worst_polite_ratio"] == greedy["ratio"] > 0
    assert greedy["did"]["tokens"] > 0
    assert figures["overhead"]["steps"] > 0 and figures["overhead_share"] > 0
    assert figures["session_kv_bytes"] > 0 and figures["session_record_bytes"] > 1000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["noise"], "there is no part 'noise'"),
        (["--seconds", "0"], "--seconds"),
        (["--connected", "3", "--active", "4"], "cannot be active"),
    ],
)
def test_bad_options_are_one_sentence(options, words):
    done = CliRunner().invoke(main, ["bench", "crowd", *options])
    assert done.exit_code == 2, done.output
    assert words in done.output and "Traceback" not in done.output


def test_what_was_not_measured_has_no_table():
    phase = Phase(devices=1, steps=200.0, error=0.04, prompt_error=0.1)
    mark = CloudState(sessions=1, memory_mb=80.0, objects=5, open_sessions=0, devices=1)
    nothing = CrowdFigures(pair="a pair", profile="mine", machine=Machine())
    figures = replace(
        nothing,
        model=ModelPart(step_error=0.04, prompt_step_error=0.1, steps=200.0, model=[phase]),
        churn=ChurnPart(
            growth_bytes=0,
            growth_bytes_per_session=0.0,
            churn=Churn(connections=1, seconds=1.0, marks=[mark, mark]),
        ),
    )
    assert [table.row_count for table in crowd_tables(figures)] == [2, 1]
    assert not list(crowd_tables(nothing))
    assert {"step_error", "model", "growth_bytes", "churn"} <= set(figures.as_json())
    assert set(nothing.as_json()) == {"pair", "profile", "machine"}
