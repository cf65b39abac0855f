"""Virtual time: real loops run as processes whose sleeping and waiting take no real time.

Each process is a thread, and exactly one thread runs at a time. A process that sleeps or waits
executes the next events itself until one of them resumes a process. Resuming itself is free;
resuming another process costs one hand-over between threads. The clock is the time of the last
event, so a run is deterministic. All threads run on one core, where a hand-over takes half as long.
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
"""Action at a point in time; returns the process that it resumes."""


class World:
    """A clock, the events that are scheduled on it, and the processes."""

    def __init__(self) -> None:
        self.now = 0.0
        """Virtual seconds since the start."""
        self._events: list[tuple[float, int, Event]] = []
        self._numbers = itertools.count()
        self._processes: list[Process] = []
        self._last: Process | None = None
        self.over = _gate()
        """Gate that opens when the run has ended."""

    def at(self, when: float, event: Event) -> None:
        """Schedules `event` at time `when`, or now if that has passed."""
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), event))

    def start(self, body: Callable[[Process], None]) -> Process:
        """Creates a process that runs `body`, starting now."""
        process = Process(self, body)
        self._processes.append(process)
        self.at(self.now, lambda: process)
        return process

    def run(self, process: Process) -> None:
        """Runs all processes until `process` ends, then stops the others. Raises the first error
        of any process."""
        self._last = process
        self.hand_on()
        self.over.acquire()
        for each in self._processes:
            each.stop()
        failed = next((each.error for each in self._processes if each.error), None)
        if failed:
            raise failed

    def next(self) -> Process | None:
        """Executes events until one resumes a process. Returns that process; None if no event is
        left."""
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            process = event()
            if process is not None and not process.done:
                return process
        return None

    def passes(self, seconds: float) -> bool:
        """Advances the clock by `seconds` if no event is due before. Returns True if it did."""
        when = self.now + seconds
        if self._events and self._events[0][0] <= when:
            return False
        self.now = when
        return True

    def hand_on(self, done: Process | None = None) -> None:
        """Resumes the next process. Ends the run if `done` is the last process or has failed, or
        if no process is left to resume."""
        process = None if done and (done is self._last or done.error) else self.next()
        (process.go if process else self.over).release()


class Process:
    """A body that runs in a world. Only the body calls these methods, except `notify`, which
    events and other processes call, and `stop`."""

    def __init__(self, world: World, body: Callable[[Process], None]) -> None:
        self.world = world
        self.done = False
        self.error: BaseException | None = None
        self.go = _gate()
        """Gate that opens when the process is resumed."""
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
        except BaseException as error:  # noqa: BLE001 - World.run raises it again
            self.error = error
        self.done = True
        try:
            if not self._stopping:
                self.world.hand_on(self)
        except BaseException as error:  # noqa: BLE001 - raised by an event
            self.error = error
            self.world.over.release()

    def stop(self) -> None:
        """Ends the process after its world has ended and waits for its thread."""
        if not self.done:
            self._stopping = True
            self.go.release()
        self._thread.join()

    def sleep(self, seconds: float) -> None:
        """Lets `seconds` pass; `notify` does not shorten it. Raises `Stopped` when the world has
        ended."""
        if self._stopping:  # clean-up code of a stopped process; nothing would resume it
            raise Stopped
        if not self.world.passes(seconds):
            self.world.at(self.world.now + seconds, lambda: self)
            self._pause()

    def wait(self, seconds: float) -> None:
        """Waits for `notify`, at most `seconds`. Raises `Stopped` when the world has ended."""
        if self._stopping:
            raise Stopped
        turn = self._waiting = next(self._turns)
        self.world.at(self.world.now + seconds, lambda: self._wake(turn))
        self._pause()

    def notify(self) -> None:
        """Ends the current `wait`, if there is one."""
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


def run_alone(body: Callable[[Process], T]) -> T:
    """Runs `body` in a world of its own. Returns its result, raises its error."""
    world, returned = World(), list[T]()
    world.run(world.start(lambda process: returned.append(body(process))))
    return returned[0]


def _gate() -> threading.Lock:
    """Closed gate: `acquire` waits until another thread calls `release`."""
    gate = threading.Lock()
    gate.acquire()
    return gate


def _keep_to_one_core() -> None:
    """Pins this thread to one core; processes that simulate at the same time use different ones."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
