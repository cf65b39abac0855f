"""Processes in virtual time: one at a time, in the order of their events, and gone afterwards."""

import threading
import time

import pytest

from bench.simulation.virtual_time import Stopped, World, run_alone


def run(*bodies):
    """Runs all of them until the last one ends; what they noted, as (time, word)."""
    world, notes = World(), []
    processes = [world.start(lambda p, body=body: body(p, notes)) for body in bodies]
    world.run(processes[-1])
    return notes


def test_a_sleep_takes_its_time_and_no_more():
    def body(process, notes):
        for seconds in (3600.0, 0.5, 0.0):
            process.sleep(seconds)
            notes.append(process.world.now)

    before = time.monotonic()
    assert run(body) == [3600.0, 3600.5, 3600.5]
    assert time.monotonic() - before < 5


def test_two_take_turns_by_time_and_at_equal_times_by_order():
    def every(seconds, word):
        def body(process, notes):
            for _ in range(3):
                process.sleep(seconds)
                notes.append((process.world.now, word))

        return body

    assert run(every(1.0, "a"), every(1.5, "b")) == [
        (1.0, "a"), (1.5, "b"), (2.0, "a"), (3.0, "b"), (3.0, "a"), (4.5, "b"),
    ]  # fmt: skip


def test_a_wait_ends_with_news_or_with_its_time():
    world, woken = World(), []

    def waiting(process):
        for _ in range(3):
            process.wait(10.0)
            woken.append(world.now)

    process = world.start(waiting)
    world.at(2.0, process.notify)
    world.at(2.0, process.notify)  # the same news twice wakes once
    world.at(5.0, process.notify)
    world.run(process)
    assert woken == [2.0, 5.0, 15.0]


def test_news_does_not_shorten_a_sleep_nor_a_later_wait():
    world, woken = World(), []

    def body(process):
        process.sleep(4.0)
        woken.append(world.now)
        process.wait(3.0)
        woken.append(world.now)

    process = world.start(body)
    world.at(1.0, process.notify)
    world.run(process)
    assert woken == [4.0, 7.0]


def test_an_error_in_any_process_is_raised_and_stops_all():
    cleaned = []

    def fails(process, notes):
        process.sleep(1.0)
        raise ZeroDivisionError("here")

    def cleans_up_slowly(process, notes):
        try:
            process.sleep(10.0)
        except Stopped:
            cleaned.append(process.world.now)
            raise
        finally:
            process.sleep(1.0)  # as a loop that says goodbye over a link

    with pytest.raises(ZeroDivisionError, match="here"):
        run(fails, cleans_up_slowly)
    assert cleaned == [1.0]


def test_no_thread_outlives_its_world():
    before = set(threading.enumerate())

    def forever(process, notes):
        while True:
            process.wait(1.0)

    run(forever, lambda process, notes: process.sleep(5.0))
    assert set(threading.enumerate()) <= before


def test_alone_returns_what_the_body_does_or_raises_it():
    def body(process):
        process.sleep(2.0)
        return process.world.now

    assert run_alone(body) == 2.0
    with pytest.raises(ZeroDivisionError):
        run_alone(lambda process: 1 / 0)


@pytest.mark.parametrize("ends", [0.5, 3.0])
def test_an_error_of_an_event_is_raised_whoever_lets_time_pass(ends):
    def fails():
        raise ZeroDivisionError("event")

    world = World()
    world.at(1.0, fails)
    world.start(lambda process: process.sleep(ends))
    last = world.start(lambda process: process.wait(9.0))
    with pytest.raises(ZeroDivisionError, match="event"):
        world.run(last)


def test_a_world_without_further_events_ends():
    def forever(process):
        process.wait(1.0)
        process.wait(1e9)

    world = World()
    process = world.start(forever)
    world.at(5.0, lambda: None)
    world.run(process)
    assert process.done and world.now == 1.0 + 1e9
