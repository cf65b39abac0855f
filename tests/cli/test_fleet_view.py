"""What `edgespec top` shows of a fleet."""

import pytest
from rich.console import Console

from cli.fleet_view import _url, fetch, render
from edgespec.energy_report import Energy
from edgespec.errors import LinkError, UsageError
from edgespec.fleet import DeviceView, Fleet, SessionView


def session(number, **changes):
    values = {
        "session": f"{number:x}", "device": f"robot {number}", "drafter": "cpu-int4",
        "hardware": "Raspberry Pi 5", "mode": "edge", "state": "running", "tokens": 7,
        "rate": 12.34, "promised": 0.0, "verified": 10, "confirmed": 6, "reaction": 0.05,
        "seconds": 60.0 + number,
    }  # fmt: skip
    return SessionView(**{**values, **changes})


def shown(fleet, height=None):
    console = Console(width=150)
    with console.capture() as capture:
        console.print(render(fleet, height))
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
    sessions.append(session(99, rate=5.0, promised=10.0))
    fleet = Fleet(target="t", state="ready", sessions=tuple(sessions))
    text = shown(fleet, height=20)
    lines = text.splitlines()
    names = [line.split()[2] for line in lines if "robot" in line]
    assert names[:2] == ["99", "29"]
    assert f"and {31 - len(names)} more" in text
    assert len(lines) <= 20
    assert shown(fleet).splitlines()[-1].split()[2] == "3", "who is away comes last"


def test_a_cloud_that_loads_has_a_view_too():
    assert "loading" in shown(Fleet(target="t", state="loading"), height=5)


@pytest.mark.parametrize("connect", ["localhost:5556", "http://localhost:5556/", "10.0.0.1:1"])
def test_addresses(connect):
    assert _url(connect) == f"http://{connect.removeprefix('http://').rstrip('/')}"


@pytest.mark.parametrize("connect", ["", "tcp://here:1", "http://", "here:there"])
def test_what_is_no_address(connect):
    with pytest.raises(UsageError, match="is no address"):
        _url(connect)


def test_nobody_there():
    with pytest.raises(LinkError, match=r"no cloud answers at http://127\.0\.0\.1:9"):
        fetch("http://127.0.0.1:9")
