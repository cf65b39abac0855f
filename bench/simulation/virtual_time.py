"""Virtual time: real loops run as processes whose sleeping and waiting cost nothing.

Each process is a thread; exactly one runs at a time. One that sleeps or waits runs the next events
itself, until one of them wakes a process: itself, which costs nothing, or another, which costs one
hand-over between threads. Time is the time of the next event, so a run is deterministic and as fast
as its decisions. All threads keep to one core, where a hand-over takes half as long.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Stopped(BaseException):
    """Raised inside a process whose world has ended."""


Event = Callable[[], "Process | None"]
"""What happens at a time; returns the process that it wakes."""


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Event]] = []
        self._numbers = itertools.count()
        self._processes: list[Process] = []
        self._last: Process | None = None
        self.over = _gate()
        """Opened when the run is."""

    def at(self, when: float, event: Event) -> None:
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), event))

    def start(self, body: Callable[[Process], None]) -> Process:
        """A process that runs `body`, beginning now."""
        process = Process(self, body)
        self._processes.append(process)
        self.at(self.now, lambda: process)
        return process

    def run(self, process: Process) -> None:
        """Until that process ends; the others are stopped. Raises what any of them raised."""
        self._last = process
        self.hand_on()
        self.over.acquire()
        for each in self._processes:
            each.stop()
        failed = next((each.error for each in self._processes if each.error), None)
        if failed:
            raise failed

    def next(self) -> Process | None:
        """Lets time pass until a process is to go on; None where nothing happens any more."""
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            process = event()
            if process is not None and not process.done:
                return process
        return None

    def passes(self, seconds: float) -> bool:
        """Lets so much time pass if nothing happens meanwhile; whether it did."""
        when = self.now + seconds
        if self._events and self._events[0][0] <= when:
            return False
        self.now = when
        return True

    def hand_on(self, done: Process | None = None) -> None:
        """Goes on with whoever is next, or ends: with the process that is run, or an error."""
        process = None if done and (done is self._last or done.error) else self.next()
        (process.go if process else self.over).release()


class Process:
    """What runs in a world. Its methods are called by its own body, but for `notify`."""

    def __init__(self, world: World, body: Callable[[Process], None]) -> None:
        self.world = world
        self.done = False
        self.error: BaseException | None = None
        self.go = _gate()
        self._waiting: int | None = None
        self._turns = itertools.count()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, args=(body,), daemon=True)
        self._thread.start()

    def _main(self, body: Callable[[Process], None]) -> None:
        _keep_to_one_core()
        self.go.acquire()
        try:
            if not self._stopping:
                body(self)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the world runs
            self.error = error
        self.done = True
        try:
            if not self._stopping:
                self.world.hand_on(self)
        except BaseException as error:  # noqa: BLE001 - an event's
            self.error = error
            self.world.over.release()

    def stop(self) -> None:
        """Called by whoever runs the world, once it has ended."""
        if not self.done:
            self._stopping = True
            self.go.release()
        self._thread.join()

    def sleep(self, seconds: float) -> None:
        """Busy, deaf to news."""
        if self._stopping:  # cleaning up on the way out: nobody would wake it again
            raise Stopped
        if not self.world.passes(seconds):
            self.world.at(self.world.now + seconds, lambda: self)
            self._pause()

    def wait(self, seconds: float) -> None:
        """Until `notify`, or until the time is up."""
        if self._stopping:
            raise Stopped
        turn = self._waiting = next(self._turns)
        self.world.at(self.world.now + seconds, lambda: self._wake(turn))
        self._pause()

    def notify(self) -> None:
        """There is news; ends a wait."""
        if self._waiting is not None:
            turn = self._waiting
            self.world.at(self.world.now, lambda: self._wake(turn))

    def _wake(self, turn: int) -> Process | None:
        if self._waiting != turn:
            return None
        self._waiting = None
        return self

    def _pause(self) -> None:
        process = self.world.next()
        if process is self:
            return
        (process.go if process else self.world.over).release()
        self.go.acquire()
        if self._stopping:
            raise Stopped


def alone(body: Callable[[Process], T]) -> T:
    """What `body` returns that runs in a world of its own. Raises what it raises."""
    world, returned = World(), list[T]()
    world.run(world.start(lambda process: returned.append(body(process))))
    return returned[0]


def _gate() -> threading.Lock:
    """One waits by acquiring it until another releases it."""
    gate = threading.Lock()
    gate.acquire()
    return gate


def _keep_to_one_core() -> None:
    """This thread; which core differs between processes of the machine that simulate at once."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
