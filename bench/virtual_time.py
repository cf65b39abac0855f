"""Virtual time: real loops run as processes whose sleeping and waiting cost nothing.

Each process is a thread; exactly one runs at a time, and hands over when it sleeps or waits. Time
is the time of the next event, so a run is deterministic and as fast as its decisions.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable


class Stopped(BaseException):
    """Raised inside a process whose world has ended."""


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._baton = threading.Semaphore(0)
        self._processes: list[Process] = []

    def at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), event))

    def start(self, body: Callable[[Process], None]) -> Process:
        """A process that runs `body`, beginning now."""
        process = Process(self, body)
        self._processes.append(process)
        self.at(self.now, process.resume)
        return process

    def run(self, process: Process) -> None:
        """Until that process ends; the others are stopped. Raises what any of them raised."""
        while not process.done and self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
            failed = next((p.error for p in self._processes if p.error), None)
            if failed:
                self._stop()
                raise failed
        self._stop()

    def _stop(self) -> None:
        for process in self._processes:
            process.stop()

    def hand_to(self, process: Process) -> None:
        process.go.release()
        self._baton.acquire()

    def hand_back(self) -> None:
        self._baton.release()


class Process:
    """What runs in a world. Its methods are called by its own body, but for `notify`."""

    def __init__(self, world: World, body: Callable[[Process], None]) -> None:
        self.world = world
        self.done = False
        self.error: BaseException | None = None
        self.go = threading.Semaphore(0)
        self._waiting: int | None = None
        self._turns = itertools.count()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, args=(body,), daemon=True)
        self._thread.start()

    def _main(self, body: Callable[[Process], None]) -> None:
        self.go.acquire()
        try:
            if not self._stopping:
                body(self)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the world runs
            self.error = error
        self.done = True
        self.world.hand_back()

    def resume(self) -> None:
        if not self.done:
            self.world.hand_to(self)

    def stop(self) -> None:
        if not self.done:
            self._stopping = True
            self.world.hand_to(self)
        self._thread.join()

    def sleep(self, seconds: float) -> None:
        """Busy, deaf to news."""
        self.world.at(self.world.now + seconds, self.resume)
        self._pause()

    def wait(self, seconds: float) -> None:
        """Until `notify`, or until the time is up."""
        turn = self._waiting = next(self._turns)
        self.world.at(self.world.now + seconds, lambda: self._wake(turn))
        self._pause()

    def notify(self) -> None:
        """There is news; ends a wait."""
        if self._waiting is not None:
            turn = self._waiting
            self.world.at(self.world.now, lambda: self._wake(turn))

    def _wake(self, turn: int) -> None:
        if self._waiting == turn:
            self._waiting = None
            self.resume()

    def _pause(self) -> None:
        if self._stopping:  # cleaning up on the way out: nobody would wake it again
            raise Stopped
        self.world.hand_back()
        self.go.acquire()
        if self._stopping:
            raise Stopped
