"""What those who watch a device receive, and that nobody else pays for it."""

import contextlib
import json
import re
import threading
import time

import httpx
import pytest

from edge_runtime.api.live import LiveSpans
from edge_runtime.client import Client
from edge_runtime.observer import Observer
from edgespec.config import EdgeSettings, Tactics
from edgespec.policies import LivePolicy
from tests.edge_runtime.api.test_serve import KEY, serving

ASKED = {"prompt": "the quick", "max_tokens": 40, "temperature": 0}


def events(reply):
    for line in reply.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line[6:])


@pytest.fixture(scope="module")
def url(bundle, endpoint):
    with serving(bundle, endpoint) as (url, _):
        yield url


def test_spans_are_made_for_those_who_watch_only(bundle, endpoint):
    live = LiveSpans(LivePolicy(kept_spans=5))
    taken = []
    live.take = lambda span, take=live.take: (taken.append(span), take(span))
    lockstep = EdgeSettings(connect=endpoint, mode="edge", tactics=Tactics("none"))
    with Client(bundle, lockstep, Observer(trace=live)) as client:
        assert client.complete("the", max_tokens=10).text
        assert not taken
        with live.watching() as watcher:
            assert client.complete("the", max_tokens=10).text
            assert taken[-5:] == list(watcher.spans) and len(taken) > 5
            assert {"draft", "send", "receive"} <= {span.what for span in taken}
        count = len(taken)
        assert client.complete("the", max_tokens=10).text
        assert len(taken) == count and not live.wanted


def test_the_stream_has_the_spans_of_an_answer_and_its_figures(url):
    with httpx.stream("GET", f"{url}/edgespec/live", timeout=20) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        found = events(reply)
        until_connected(found)
        asking = threading.Thread(target=httpx.post, args=[f"{url}/completions"], kwargs={
            "json": ASKED,
        })  # fmt: skip
        asking.start()
        spans, tokens = [], 0
        while tokens < 40:
            event = next(found)
            spans += event["spans"]
            tokens = sum(s["tokens"] for s in spans if s["what"] == "receive")
        asking.join()
        figures = event["figures"]
    assert tokens == 40
    assert {s["session"] for s in spans} == {spans[0]["session"]}
    assert figures["mode"] and figures["reason"] and 0 < figures["agreement"] <= 1
    assert figures["bytes_up"] > 0 and figures["bytes_down"] > 0 and figures["round_trip_ms"] > 0
    assert event["now"] >= spans[-1]["start"] and event["offline"] is False


def until_connected(found):
    event = next(found)
    while not event["connected"]:
        event = next(found)


def test_of_too_many_who_watch_the_first_must_leave(url):
    with contextlib.ExitStack() as watching:

        def watch():
            stream = httpx.stream("GET", f"{url}/edgespec/live", timeout=20)
            found = events(watching.enter_context(stream))
            next(found)
            return found

        kept = [watch() for _ in range(LivePolicy().watchers)]
        owner = watch()
        list(kept[0])  # it ends; a stream that stays has an event each second
        next(kept[1])
        another = watch()
        list(kept[1])
        next(owner), next(another), next(kept[2])


def test_the_key_and_the_host_count_here_too(url, bundle, endpoint):
    foreign = {"Host": "attacker.example"}
    assert httpx.get(f"{url}/edgespec/live", headers=foreign).status_code == 403
    with serving(bundle, endpoint, env={"EDGESPEC_API_KEY": KEY}) as (locked, _):
        assert httpx.get(f"{locked}/edgespec/live").status_code == 401
        assert re.search("<title>", httpx.get(locked.removesuffix("/v1")).text)


def test_a_server_that_ends_does_not_wait_for_those_who_watch(bundle, endpoint):
    with (
        serving(bundle, endpoint) as (url, process),
        httpx.stream("GET", f"{url}/edgespec/live", timeout=20) as reply,
    ):
        found = events(reply)
        next(found)
        began = time.monotonic()
        process.terminate()
        for _ in found:
            pass
        assert process.wait(10) == 0 and time.monotonic() - began < 8


def test_energy_is_measured_where_a_sensor_is(bundle, endpoint, tmp_path):
    counter = tmp_path / "sys/class/powercap/intel-rapl:0"
    counter.mkdir(parents=True)
    (counter / "name").write_text("package-0\n")
    (counter / "energy_uj").write_text("1000000\n")
    (counter / "max_energy_range_uj").write_text("262143328850\n")
    with (
        serving(bundle, endpoint, "--sensors", str(tmp_path)) as (url, _),
        httpx.stream("GET", f"{url}/edgespec/live", timeout=20) as reply,
    ):
        found = events(reply)
        assert next(found)["energy"]["joules"] is None  # it takes two readings
        (counter / "energy_uj").write_text("3500000\n")
        energy = next(e["energy"] for e in found if e["energy"]["joules"])
        assert energy["joules"] == 2.5 and "RAPL" in energy["covers"]
