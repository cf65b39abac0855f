"""What `edgespec top` shows of a fleet."""

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from cli.fleet_view import shortened, view
from edgespec.energy_report import Energy
from edgespec.fleet import DeviceView, Fleet, SessionView, decode
from edgespec.plain_text import plain


def session(number, **changes):
    values = {
        "session": f"{number:x}", "device": f"robot {number}", "drafter": "cpu-int4",
        "hardware": "Raspberry Pi 5", "mode": "edge", "state": "running", "tokens": 7,
        "rate": 12.34, "target_rate": 0.0, "verified": 10, "confirmed": 6, "reaction": 0.05,
        "seconds": 60.0 + number,
    }  # fmt: skip
    return SessionView(**{**values, **changes})


def shown(fleet, height=None, width=150):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(view(fleet, console, height))
    return capture.get()


def test_everything_that_is_known_is_there():
    device = DeviceView(
        name="robot 1", drafter="", hardware="", silent=0.0, sessions=1, away="",
        troubles={"flood": 12},
    )  # fmt: skip
    text = shown(
        Fleet(
            target="a target", state="ready", uptime=7300.0, endpoint="tcp://here:1", step=0.021,
            step_error=0.04, rows=3.5, width=9.0, rate=99.5, acceptance=0.61,
            memory_used=250_000_000, memory_limit=1_000_000_000, prefix_queries=4, prefix_hits=1,
            evictions=3, sessions=(session(1),), devices=(device,),
        )
    )  # fmt: skip
    for words in (
        "a target", "ready", "up 2 h 1 min", "tcp://here:1", "99.5 tokens/s", "acceptance 61%",
        "step 21.0 ms (predicted within 4%)", "3.5 sessions, 9.0 tokens", "250 of 1000 MB",
        "prefix hits 25%", "evictions 3", "1 devices, 1 sessions: 1 running; 1 edge",
        "packets in trouble: 12 flood", "robot 1", "Raspberry Pi 5", "cpu-int4", "12.3", "60%",
        "50 ms", "61 s",
    ):  # fmt: skip
        assert words in text, text


def test_energy_where_it_is_measured():
    energy = Energy(
        joules=120.0, seconds=10.0, tokens=60, covers="GPU only (NVML)", celsius=71.4,
        hottest="GPU", throttled=True,
    )  # fmt: skip
    text = shown(Fleet(target="t", state="ready", energy=energy))
    assert "energy 120 J, 2 J a token, 12 W, GPU only (NVML), 71 °C, throttled" in text
    assert "energy not measured" in shown(Fleet(target="t", state="ready", energy=Energy()))
    assert "energy" not in shown(Fleet(target="t", state="ready"))


def test_those_behind_come_first_and_the_rest_is_counted():
    sessions = [session(n, state="away" if n == 3 else "running") for n in range(30)]
    sessions.append(session(99, rate=5.0, target_rate=10.0))
    fleet = Fleet(target="t", state="ready", sessions=tuple(sessions))
    text = shown(fleet, height=20)
    lines = text.splitlines()
    names = [line.split()[2] for line in lines if "robot" in line]
    assert names[:2] == ["99", "29"]
    assert f"and {31 - len(names)} more" in text
    assert len(lines) <= 20
    assert shown(fleet).splitlines()[-1].split()[2] == "3", "who is away comes last"


LONG = "".join(f"robot {number:02}, " for number in range(7))[:60]


@pytest.mark.parametrize("width", [80, 100, 110, 130, 140, 200])
def test_a_session_is_one_line_of_the_terminal_whatever_its_names(width):
    names = {"device": LONG, "hardware": LONG, "drafter": LONG, "mode": "edge + cloud-draft"}
    sessions = [session(n, **names, target_rate=15.0, tokens=12_345, seconds=1e5) for n in range(9)]
    sessions.append(session(9, device="ロボット" * 15, hardware="[red]x[/]"))
    text = shown(Fleet(target=LONG, state="ready", sessions=tuple(sessions)), 40, width)
    assert max(map(cell_len, text.splitlines())) <= width
    rows = [line for line in text.splitlines() if "running" in line and "sessions" not in line]
    assert len(rows) == 10
    for row in rows[:9]:
        assert "…" in row and "12345" in row and "12.3" in row and "27 h" in row
    assert ("[red]x[/]" in text) == (width >= 130)


def test_every_line_of_a_usual_view_fits_80_columns():
    fleet = Fleet(
        target="SmolLM2-135M-Instruct", state="draining", uptime=1e5, step=0.2, rows=33.3,
        endpoint="tcp://0.0.0.0:5555", width=99.9, rate=1234.5, memory_used=10**11,
        memory_limit=2 * 10**11, memory_kept=10**10, evictions=12345,
        sessions=tuple(session(n) for n in range(50)),
    )  # fmt: skip
    lines = shown(fleet, 24, 80).splitlines()
    assert len(lines) == 24 and "more" in lines[-1]
    assert [line.split()[0] for line in lines[:6]] == [
        "SmolLM2-135M-Instruct", "1234.5", "batch", "memory", "prefix", "0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("short", 5, "short"),
        ("robot 17", 5, "ro…17"),
        ("robot 17", 6, "rob…17"),
        ("ロボット", 6, "ロ…ト"),  # each character takes two columns
    ],
)
def test_a_shortened_name_keeps_both_ends(name, width, expected):
    assert shortened(name, width) == expected


def test_a_cloud_that_loads_has_a_view_too():
    assert "loading" in shown(Fleet(target="t", state="loading"), height=5)


def test_a_device_with_markup_in_its_name_is_shown_as_it_is():
    names = {"device": "[/oops]", "hardware": "[bold]x"}
    text = shown(Fleet(target="[/t]", state="ready", sessions=(session(1, **names),)))
    assert "[/oops]" in text and "[/t]" in text and "[bold]x" in text


def test_no_text_of_a_status_port_reaches_the_terminal_as_more_than_plain_text():
    evil = "a\x1b]0;x\x07\n\u202eb"
    names = dict.fromkeys(("session", "device", "drafter", "hardware", "mode"), evil)
    device = DeviceView(
        name=evil, drafter=evil, hardware=evil, silent=0.0, sessions=1, away=evil,
        troubles={evil: 1},
    )  # fmt: skip
    energy = Energy(joules=1.0, covers=evil, rails={evil: 1.0})
    fleet = Fleet(
        target=evil, state="ready", endpoint=evil, energy=energy, devices=(device,),
        sessions=(session(1, **names),),
    )  # fmt: skip
    fleet = decode(msgspec.json.encode(fleet))
    for text in (shown(fleet), msgspec.json.encode(fleet).decode()):
        assert "a ]0;x b" in text
        assert set(text) - {"\n"} == set(plain(text)) - {"\n"}
