"""`edgespec bench fleet`: its parts on paper, and one small fleet with real processes."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import msgspec
import pytest
from click.testing import CliRunner

from bench.fleet.devices import FleetDevice, TimedAnswer
from bench.fleet.drafters import PacedDrafter, RecordedDrafter
from bench.fleet.figures import (
    CloudSteps,
    FleetFigures,
    ProcessLoad,
    Trial,
    Window,
    cloud_steps,
    fleet_cell,
    machine_load,
    rate,
    served,
)
from bench.fleet.link import DistantLink, TrialOver
from bench.fleet.plots import plot_fleet
from bench.fleet.profile import DeviceKind, answerable, fleet_recording, mix, read_fleet
from bench.fleet.search import Search, explore
from bench.fleet.tables import capacity_table, fleet_notes, fleet_table
from bench.lab.recording import RecordedToken, Recording, synthetic
from cli.main import main
from edgespec.errors import EdgespecError, UsageError
from edgespec.link_state import established
from edgespec.protocol import Ping, Pong
from edgespec.sampling import Sampling
from edgespec.telemetry import AnswerStats
from edgespec.trace import Span
from engines.drafters.base import DraftRequest
from engines.machine.doctor import Machine
from tests.engines.machine.energy import trees

KIND = {"name": "a", "draft_ms": 5}
PROFILE = {"name": "mine", "source": "made up", "kinds": [KIND]}


# The profile.


def test_the_builtin_profile_goes_with_its_recording():
    profile, folder = read_fleet(None)
    recording = fleet_recording(profile.recording, folder)
    assert len({kind.draft_ms for kind in profile.kinds}) > 1
    for kind in profile.kinds:
        assert len(answerable(recording, kind, [2])) >= 24
    assert all(map(len, recording.prompt_ids))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kinds": []}, "kinds"),
        ({"devices": 3}, "devices"),
        ({"target_rate": 0}, "target_rate"),
        ({"kinds": [KIND | {"drafter": "magic"}]}, "magic"),
        ({"kinds": [KIND | {"share": 0}]}, "share"),
        ({"kinds": [KIND | {"draft_ms": -1}]}, "draft_ms"),
        ({"kinds": [KIND | {"batch": [2.0]}]}, "batch begins with 1"),
        ({"kinds": [KIND | {"answer_tokens": [9, 8]}]}, "from and to"),
        ({"kinds": [{"name": "a"}]}, "draft_ms"),
        ({"recording": "nowhere.json"}, "nowhere.json cannot be read"),
        ({"kinds": [KIND | {"answer_tokens": [96, 200]}]}, "record longer ones"),
    ],
)
def test_a_bad_profile_is_one_sentence(tmp_path, changes, words):
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps(PROFILE | changes))
    done = CliRunner().invoke(main, ["bench", "fleet", "--profile", str(path)])
    assert done.exit_code == 2, done.output
    assert words in done.output and "Traceback" not in done.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--devices", "8,x"], "--devices is a list"),
        (["--devices", "0"], "--devices is a list"),
        (["--method", "magic"], "there is no method 'magic'"),
        (["--target-rate", "nan"], "--target-rate"),
        (["--seconds", "0"], "--seconds"),
        (["--profile", "nowhere.json"], "nowhere.json cannot be read"),
        (["--recording", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_bad_options_are_one_sentence(options, words):
    done = CliRunner().invoke(main, ["bench", "fleet", *options])
    assert done.exit_code == 2, done.output
    assert words in done.output and "Traceback" not in done.output


def test_a_recording_needs_its_prompts(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(msgspec.json.encode(synthetic(0.5, answers=2)))
    with pytest.raises(UsageError, match="without the prompts' token ids"):
        fleet_recording("a.json", tmp_path)
    told = msgspec.structs.replace(synthetic(0.5, answers=2), prompt_ids=[[1], [2]])
    path.write_bytes(msgspec.json.encode(told))
    with pytest.raises(UsageError, match="other lengths"):
        fleet_recording("a.json", tmp_path)


def test_any_part_of_a_fleet_is_mixed_as_the_shares_say():
    kinds = [DeviceKind(name="a", share=3, draft_ms=5), DeviceKind(name="b", share=1, draft_ms=9)]
    names = [kind.name for kind in mix(kinds, 40)]
    for count in range(1, 41):
        assert abs(names[:count].count("a") - 0.75 * count) < 1


# A device's draft.


RECORDING = Recording(
    "a pair",
    [2, 3],
    [
        [
            RecordedToken(11, 11, 0.9, 3, 0.1),
            RecordedToken(12, 50, 0.4, 12, 0.3, ((8, 0.1),)),
            RecordedToken(13, 13, 0.8, -1, 0.0),
        ],
        [RecordedToken(21, -1, 0.0, -1, 0.0), RecordedToken(22, 22, 0.7, 4, 0.1)],
    ],
    [[1, 2], [3, 4, 5]],
)


def guesses_of(drafter, texts):
    return drafter.guess([DraftRequest(0, text, Sampling()) for text in texts])


def test_the_recorded_draft_along_its_path_and_off_it():
    replay = RecordedDrafter(RECORDING, 3)
    replay.begin(0)
    on = [[1, 2], [1, 2, 11], [1, 2, 11, 12]]
    said = guesses_of(replay, on)
    others = [((3, 0.1),), ((12, 0.3), (8, 0.1)), ()]
    assert [(g.token, g.runners_up) for g in said] == list(zip((11, 50, 13), others, strict=True))
    assert said[1].confidence == 0.4
    off = [[1, 2, 11, 50], [1, 2, 11, 12, 13], [1, 2, 7, 7, 7, 7, 7]]
    guesses = [guesses_of(replay, [text])[0] for text in off * 2]
    assert guesses[:3] == guesses[3:]
    known = {each.guess for answer in RECORDING.answers for each in answer}
    assert all(guess is None or guess.token in known for guess in guesses)
    replay.begin(1)
    assert guesses_of(replay, [[3, 4, 5]]) == [None]
    assert guesses_of(replay, [[3, 4, 5, 21]])[0].token == 22


def test_a_draft_takes_its_time():
    kind = DeviceKind(name="a", draft_ms=10, batch=(1.0, 1.5), read_ms=2)
    slept = []
    paced = PacedDrafter(RecordedDrafter(RECORDING, 2), kind, lambda: 2, slept.append)
    paced.retain({0})
    for texts in ([[1, 2]], [[1, 2]], [[1, 2]] * 2, [[1, 2]] * 3):
        guesses_of(paced, texts)
    assert slept == pytest.approx([0.014, 0.010, 0.015, 0.015])


def test_answers_that_are_long_enough_are_asked_for():
    answerable(RECORDING, DeviceKind(name="a", draft_ms=5, answer_tokens=(2, 2)), [])
    three = DeviceKind(name="a", draft_ms=5, answer_tokens=(2, 3))
    assert answerable(RECORDING, three, [22]) == [0, 1]
    with pytest.raises(UsageError, match="ask for 2 to 3 tokens"):
        answerable(RECORDING, three, [])
    with pytest.raises(UsageError, match="have up to 3"):
        answerable(RECORDING, DeviceKind(name="a", draft_ms=5, answer_tokens=(4, 4)), [])


# A link as long as its round trip.


class Wire:
    """A link at no distance in a world without time: it records when things pass."""

    def __init__(self):
        self.now = 100.0
        self.state = established()
        self.bytes_up = self.bytes_down = 0
        self.sent, self.coming = [], []

    def send(self, message):
        self.bytes_up += 1
        self.sent.append((round(self.now - 100, 6), message.nonce))

    def receive(self, timeout):
        ends = self.now + timeout
        if not any(at <= self.now for at, _ in self.coming):
            self.now = min([ends, *(at for at, _ in self.coming if at <= ends)])
        here = [pong for at, pong in self.coming if at <= self.now]
        self.coming = [(at, pong) for at, pong in self.coming if at > self.now]
        self.bytes_down += len(here)
        return here

    def sleep(self, seconds):
        assert seconds >= 0
        self.now += seconds


def distant(wire, rtt_ms, jitter_ms=0.0, end=200.0):
    return DistantLink(wire, rtt_ms, jitter_ms, end, random.Random(0), lambda: wire.now, wire.sleep)


def test_packets_take_half_a_round_trip_each_way():
    wire = Wire()
    link = distant(wire, 40)
    link.send(Ping(1))
    assert link.receive(0.0) == [] and wire.sent == []
    wire.coming = [(100.030, Pong(1))]
    (pong,) = link.receive(5.0)
    assert pong.nonce == 1 and wire.now == pytest.approx(100.050)
    assert wire.sent == [(0.020, 1)]
    assert (link.bytes_up, link.bytes_down) == (1, 1)


def test_packets_pass_while_the_device_drafts():
    wire = Wire()
    link = distant(wire, 40)
    wire.coming = [(100.010, Pong(1))]
    link.send(Ping(2))
    link.sleep(0.1)
    assert wire.sent == [(0.020, 2)] and wire.now == pytest.approx(100.1)
    assert [pong.nonce for pong in link.receive(0.0)] == [1]
    assert [seconds for _, seconds in link.late] == pytest.approx([0.0], abs=1e-9)


def test_jitter_keeps_the_order():
    wire = Wire()
    link = distant(wire, 40, jitter_ms=15)
    for nonce in range(30):
        link.send(Ping(nonce))
        link.sleep(0.001)
    link.sleep(0.2)
    assert [nonce for _, nonce in wire.sent] == list(range(30))
    delays = [at - 0.001 * nonce for at, nonce in wire.sent]
    assert max(delays) - min(delays) > 0.005


@pytest.mark.parametrize("wait", ["sleep", "receive"])
def test_nothing_goes_on_when_the_cell_closes(wait):
    wire = Wire()
    link = distant(wire, 40, end=100.5)
    with pytest.raises(TrialOver):
        getattr(link, wait)(3.0)
    assert wire.now == pytest.approx(100.5)
    link.send(Ping(7))
    link.flush()
    assert wire.sent == [(0.5, 7)]


# Figures.


def written(asked, times, *, finish="length"):
    stats = AnswerStats(tokens=len(times), rounds=len(times), bytes_up=10, finish=finish)
    return TimedAnswer(asked, times, stats)


def every(start, step, count):
    return [start + step * number for number in range(count)]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([], 0.0),
        ([written(9, every(10, 0.1, 21))], 10.0),
        ([written(9, every(10, 0.1, 21)), written(14, every(15, 0.2, 11))], 30 / 4),
        ([written(2, every(3, 0.5, 5))], 0.0),  # before the window
        ([written(5, every(6, 0.5, 20))], 2.0),  # begun before it, counted within it
        ([written(5, [8.0, 8.0, 10.5, 10.5, 13, 13])], 4 / 5),  # two at once
        ([written(18, every(19, 0.1, 100), finish="")], 10.0),  # cut by its end
        ([written(9, [10, 10.5, 11], finish="")], 2 / 10),  # silent since
    ],
)
def test_the_rate_is_what_the_window_shows(answers, expected):
    assert rate(answers, Window(10, 20)) == pytest.approx(expected)


def device(number, answers, target_rate=10.0, kind="a"):
    made = FleetDevice(number, DeviceKind(name=kind, draft_ms=5), None, [0], 0.0, target_rate)
    made.answers = answers
    return made


def test_a_cell_tells_who_was_served():
    window = Window(10, 20)
    fast = [device(n, [written(10, every(10.5, 0.05, 100))]) for n in range(18)]
    slow = device(18, [written(10, every(10.5, 0.2, 40))], kind="b")
    late = device(19, [written(10, every(16.0, 0.05, 60))], kind="b")
    figures = served([*fast, slow], window)
    assert figures.met == 18 and not figures.holds
    assert figures.met_by_kind == {"a": 1.0, "b": 0.0}
    assert figures.goodput == 180 and figures.tokens_per_s == 184
    assert figures.p50_ms == pytest.approx(50) and figures.p99_ms == pytest.approx(200)
    assert figures.first_token_ms == pytest.approx(500)
    assert figures.steps_per_token == 1.0
    more = [device(n, fast[0].answers) for n in range(20, 22)]
    assert served([*fast, *more, slow], window).holds  # 20 of 21
    assert not served([*fast, *more, slow, late], window).holds  # 20 of 22: 6 s to begin


def test_steps_of_a_window_by_their_batches():
    spans = [
        Span("cloud", "decode", 9.0, 0.5, rows=9),
        *[Span("cloud", "verify", 10.0, 0.2, session=n, rows=3) for n in range(3)],
        Span("cloud", "receive", 10.1),
        *[Span("cloud", "draft", 11.0, 0.4, session=n) for n in range(2)],
        Span("cloud", "decode", 12.0, 0.1, rows=1),
    ]
    figures = cloud_steps(spans, [span.start for span in spans], Window(10.0, 14.0))
    assert figures.steps_per_s == 0.5
    assert (figures.rows_p50, figures.rows_p95) == (1, 3)
    assert figures.cloud_busy == pytest.approx(0.7 / 4)
    assert figures.drafting_share == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("busy", "late", "reliable"), [(0.2, 0.0005, True), (0.9, 0.0005, False), (0.2, 0.02, False)]
)
def test_a_generator_that_is_too_busy_says_so(busy, late, reliable):
    one = device(0, [])
    one.late = [(5.0, 9.0), *((11.0, late) for _ in range(50))]
    load = machine_load(ProcessLoad(busy, 1.0, 500.0), [one], Window(10, 20))
    assert load.reliable is reliable
    assert load.late_p95_ms == pytest.approx(1e3 * late)


def trial(devices, load, method="cloud"):
    window = Window(0, 1)
    service = vars(served(devices, window))
    return Trial(method=method, **service, **vars(machine_load(load, devices, window)))


def steps(cloud_busy):
    return CloudSteps(
        steps_per_s=1, rows_p50=1, rows_p95=1, step_ms=20, drafting_share=0, cloud_busy=cloud_busy
    )


@pytest.mark.parametrize(("cpu", "reliable"), [(0.95, True), (0.7, False)])
def test_a_cloud_that_shared_its_core_says_so(cpu, reliable):
    cell = fleet_cell(trial([], ProcessLoad(0.1, cpu, 1.0)), steps(cloud_busy=0.9))
    assert cell.reliable is reliable and cell.stolen == pytest.approx(max(0, 0.9 - cpu))


# Capacity.


@pytest.mark.parametrize("capacity", [0, 1, 3, 7, 8, 12, 24, 31])
def test_the_search_finds_the_capacity_and_its_neighbour(capacity):
    search = Search(most=256)
    while (devices := search.next()) is not None:
        assert devices not in search.measured
        search.tell(devices, devices <= capacity)
    assert (search.holds, search.fails) == (capacity, capacity + 1)
    assert search.confirmed and len(search.measured) <= 9


def test_the_search_stops_at_the_most_it_may():
    search = Search(most=20)
    while (devices := search.next()) is not None:
        search.tell(devices, True)
    assert (search.holds, search.fails, search.confirmed) == (20, None, False)


def test_a_fleet_that_fails_speaks_for_larger_ones():
    search = Search(most=64)
    for devices, held in [(8, True), (16, False), (24, True)]:
        search.tell(devices, held)
    assert (search.holds, search.fails) == (8, 16)


def test_methods_take_turns_and_stop_when_time_is_over():
    order = []

    def measure(name, devices):
        order.append(name)
        return devices <= {"a": 8, "b": 30, "c": 3}[name]

    searches = explore(("a", "b", "c"), 256, measure, lambda: True)
    assert {name: search.holds for name, search in searches.items()} == {"a": 8, "b": 30, "c": 3}
    assert order[:6] == ["a", "b", "c", "b", "c", "a"]
    order.clear()
    cut = explore(("a", "b", "c"), 256, measure, lambda: len(order) < 4)
    assert len(order) == 4 and not cut["b"].confirmed


# All of it.


@pytest.fixture(scope="module")
def small(tiny_recording, tmp_path_factory):
    """A fleet's profile and recording for the tiny target."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "said.json").write_bytes(msgspec.json.encode(tiny_recording))
    kinds = [
        KIND | {"draft_ms": 2, "rtt_ms": 4, "answer_tokens": [2, 12], "think_s": 0.01},
        KIND | {"name": "b", "drafter": "ngram", "answer_tokens": [2, 12], "think": "fixed"},
    ]
    changed = {"kinds": kinds, "recording": "said.json", "arrive_s": 0.2, "target_rate": 5}
    (folder / "fleet.json").write_text(json.dumps(PROFILE | changed))
    return folder, tiny_recording


def test_a_small_fleet(tiny_bundle, small, tmp_path):
    folder, _ = small
    done = CliRunner().invoke(
        main,
        ["bench", "fleet", str(tiny_bundle.folder), "--profile", str(folder / "fleet.json"),
         "--devices", "3", "--seconds", "2.5", "--method", "cloud", "--method", "edgespec",
         "--real", "1", "--most", "4", "--plot", str(tmp_path / "plots"), "--json", "--energy",
         "--sensors", str(trees.record(tmp_path / "orin", trees.ORIN))],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout.splitlines()[-1])
    cells = {cell["method"]: cell for cell in figures["cells"]}
    assert set(cells) == {"cloud", "edgespec"}
    assert cells["cloud"]["answers"] > 0 and cells["edgespec"]["answers"] > 0
    assert cells["cloud"]["steps_per_token"] == 1
    assert cells["edgespec"]["real"]["devices"] == 1 and cells["edgespec"]["real"]["answers"] > 0
    assert cells["cloud"]["cloud_cpu"] > 0
    assert cells["cloud"]["memory_mb"] > 10 and cells["cloud"]["rows_p95"] >= 1
    assert {"capacity_ratio_to_cloud", "capacity_ratio_to_cloud_draft"} <= set(figures)
    assert (tmp_path / "plots" / "fleet.png").stat().st_size > 10_000
    assert "… 1 real draft" in done.stdout
    assert cells["cloud"]["energy"]["watts"] == pytest.approx(8.0, rel=0.01)
    energy = cells["edgespec"]["energy"]
    assert energy["seconds"] == pytest.approx(2.5, rel=0.2)
    everyone = cells["edgespec"]["tokens_per_s"] + cells["edgespec"]["real"]["tokens_per_s"]
    assert energy["tokens"] == pytest.approx(everyone * 2.5, abs=1)
    assert "whole module (INA3221), device and cloud together" in done.stdout


def test_an_answer_that_is_not_the_recorded_one_stops_all(tiny_bundle, small, tmp_path):
    folder, recording = small
    wrong = [
        [msgspec.structs.replace(said, token=said.token ^ 2) for said in answer]
        for answer in recording.answers
    ]
    other = msgspec.structs.replace(recording, answers=wrong)
    (tmp_path / "wrong.json").write_bytes(msgspec.json.encode(other))
    done = CliRunner().invoke(
        main,
        ["bench", "fleet", str(tiny_bundle.folder), "--profile", str(folder / "fleet.json"),
         "--recording", str(tmp_path / "wrong.json"), "--devices", "1", "--seconds", "0.3",
         "--method", "cloud", "--most", "1"],
    )  # fmt: skip
    assert done.exit_code == 1
    assert "is not the recorded one of tiny" in done.output and "Traceback" not in done.output


def test_tables_and_plots_of_what_is_missing(tmp_path):
    cell = fleet_cell(trial([device(0, [])] * 4, ProcessLoad(0.95, 0.5, 1.0)), steps(0.9))
    figures = FleetFigures(
        profile="mine", target_rate=15.0, methods=["cloud", "edgespec"], cells=[cell],
        capacity={"cloud": 4, "edgespec": 0}, fails={"cloud": None, "edgespec": 4},
        confirmed={"cloud": False, "edgespec": False}, capacity_ratio_to_cloud=0.0,
        capacity_ratio_to_cloud_draft=None, capacity_ratio_to_lockstep=None, pair="a pair",
        seconds=1.0, mode="auto", machine=Machine(),
    )  # fmt: skip
    assert fleet_table(figures).row_count == 1 and capacity_table(figures).row_count == 2
    notes = fleet_notes(figures)
    assert "to be reliable for: cloud with 4 devices." in notes and "cloud, edgespec" in notes
    assert "computed on the cloud's core" in notes
    with pytest.raises(EdgespecError, match="nothing to plot"):
        plot_fleet(tmp_path / "a.png", replace(figures, cells=[]))
