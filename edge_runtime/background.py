"""A loop in a thread of its own, which owns the link, so that any thread may ask for answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple

from edge_runtime.answer import Answer
from edge_runtime.loop import EdgeLoop
from edge_runtime.pieces import Piece
from edge_runtime.wakeable_link import WakeableLink
from edgespec.errors import UsageError

IDLE_WAIT_S = 3600.0
"""Longest sleep while there are no answers. An order ends it."""


class Ended(NamedTuple):
    """The last item that a reader receives. The answer's figures are complete."""

    tail: str
    """Text that was held back because it might have begun a stop string."""
    error: Exception | None
    """Why the answer is not complete; None also if the reader cancelled it."""


Deliver = Callable[[Piece | Ended], None]
"""Takes the pieces of one answer and then `Ended`. It is called in the loop's thread."""


class _Order(NamedTuple):
    """Opens an answer, or closes it."""

    answer: Answer
    deliver: Deliver | None
    """Reader of an answer to open; None: close the answer."""


class BackgroundLoop:
    """Runs the turns of a loop. Every method may be called from any thread."""

    def __init__(self, loop: EdgeLoop, link: WakeableLink) -> None:
        """Takes over `link` and closes it at the end."""
        self._loop = loop
        self._link = link
        self._orders: SimpleQueue[_Order] = SimpleQueue()
        self._readers: dict[Answer, Deliver] = {}
        self._stopping = False
        self._ended: Exception | None = None
        """Why no more orders are taken."""
        self._lock = threading.Lock()
        """Held to add an order, and to refuse all later ones."""
        self._thread = threading.Thread(target=self._run, name="edgespec-client", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """True while answers can be started."""
        return not (self._ended or self._stopping)

    def submit(self, answer: Answer, deliver: Deliver) -> None:
        """Starts an answer. Raises `UsageError` if the loop is closed, or why it failed."""
        with self._lock:
            if self._ended or self._stopping:
                raise self._ended or _closed()
            self._orders.put(_Order(answer, deliver))
        self._link.wake()

    def cancel(self, answer: Answer) -> None:
        """Closes an answer here and at the cloud, if it is not over. Returns at once."""
        self._orders.put(_Order(answer, None))
        self._link.wake()

    def close(self) -> None:
        """Closes all answers and the link, and waits until the thread has ended."""
        self._stopping = True
        self._link.wake()
        if threading.current_thread() is not self._thread:  # a finalizer may run in any thread
            self._thread.join()

    def _run(self) -> None:
        reason: Exception = _closed()
        try:
            while not self._stopping:
                self._carry_out_orders()
                if self._readers:
                    self._loop.turn()
                    self._deliver()
                else:
                    self._link.receive(IDLE_WAIT_S)
        except Exception as error:  # noqa: BLE001 - every reader raises it
            reason = error
        finally:
            self._end(reason)

    def _carry_out_orders(self) -> None:
        for order in self._taken():
            if order.deliver:
                self._readers[order.answer] = order.deliver
                self._loop.open(order.answer)
            elif order.answer in self._readers:
                self._close(order.answer, None)

    def _taken(self) -> list[_Order]:
        orders = []
        try:
            while True:
                orders.append(self._orders.get_nowait())
        except Empty:
            return orders

    def _deliver(self) -> None:
        for answer, deliver in list(self._readers.items()):
            while answer.unread:
                deliver(answer.unread.popleft())
            if answer.over:
                self._close(answer, answer.error)

    def _close(self, answer: Answer, error: Exception | None) -> None:
        deliver = self._readers.pop(answer)
        while answer.unread:
            deliver(answer.unread.popleft())
        self._loop.close(answer)
        deliver(Ended(answer.flush_text(), error))

    def _end(self, reason: Exception) -> None:
        with self._lock:
            self._ended = reason
        for order in self._taken():
            if order.deliver:
                order.deliver(Ended("", reason))
        try:
            for answer in list(self._readers):
                self._close(answer, reason)
        finally:
            for deliver in self._readers.values():  # the link failed while sessions were closed
                deliver(Ended("", reason))
            self._link.close()


def _closed() -> UsageError:
    return UsageError("the client is closed")
