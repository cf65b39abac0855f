"""Masks of the tokens that a grammar allows, for the device and for the cloud.

`Grammars` starts a process of its own (`edgespec.grammar_process`) with the first grammar, and a
copy of it for each answer. Nothing that a grammar does there takes memory of this process. A loop
that serves others asks for masks with `GrammarMask.prepare`, which does not wait, and applies them
once they are here; otherwise they are waited for, at most `GrammarLimits.reply_s`.
"""

from __future__ import annotations

import importlib.util
import json
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgespec.errors import UsageError
from edgespec.grammar import Grammar
from edgespec.grammar_process import Move, State, send, take
from edgespec.manifest import Bundle
from edgespec.plain_text import plain
from edgespec.policies import GrammarLimits
from edgespec.sampling import Logits, common_prefix
from edgespec.text import TOKENIZER

_CLOSED = "it takes too much time or memory"
_END_S = 5.0
"""Time that the process has to end once its connection is closed."""
_KEPT = 64
"""Masks before the last one that are kept: drafts are taken back."""
_LOADING_S = 60.0
"""Time that loading a tokenizer and compiling a grammar may take on a busy machine."""
_TURN_S = 0.05
"""Interval at which a wait looks at its limit."""


class Grammars:
    """The grammars of the answers of one process, all with the same tokenizer."""

    def __init__(
        self,
        tokenizer: Path,
        end_ids: Sequence[int],
        limits: GrammarLimits = GrammarLimits(),
    ) -> None:
        """`tokenizer` is a `tokenizer.json`; `end_ids` are its end-of-text tokens."""
        self._tokenizer = tokenizer
        self._end_ids = sorted(end_ids)
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._copies: list[_Copy] = []
        """Those that may not have exited, or whose answers have not ended."""
        self._penalties: dict[bytes, float] = {}
        """Time at which a device may use a grammar again, by its name."""
        self._open: weakref.WeakSet[GrammarMask] = weakref.WeakSet()
        self._lock = threading.Lock()
        """Held to start an answer; any thread may."""

    @classmethod
    def of(cls, bundle: Bundle, limits: GrammarLimits) -> Grammars:
        """The grammars of a bundle's tokenizer. Nothing is loaded before the first one."""
        return cls(bundle.path(TOKENIZER), bundle.manifest.text.end_ids, limits)

    def start(self, grammar: Grammar, end_ids: Sequence[int], device: bytes = b"") -> GrammarMask:
        """The grammar along a new answer that ends with one of `end_ids`. It is compiled meanwhile.

        `device`: who asks for it, in a cloud; empty: no bounds of one device apply.
        Raises `UsageError` if it cannot be used here.
        """
        grammar.check()
        if importlib.util.find_spec("llguidance") is None:
            raise UsageError(
                f"a {grammar.name} needs the package llguidance: pip install 'edgespec[grammar]'"
            )
        if not end_ids:
            raise UsageError(f"a {grammar.name} needs a model with an end-of-text token")
        with self._lock:
            if self.full:
                most = self._limits.processes
                raise UsageError(
                    f"{most} answers follow a grammar already; wait until one has ended"
                )
            return self._start(grammar, end_ids, device)

    def _start(self, grammar: Grammar, end_ids: Sequence[int], device: bytes) -> GrammarMask:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._hand_over(theirs)
            mask = GrammarMask(ours, grammar, end_ids, self._limits, partial(self._punish, device))
        except BaseException:
            ours.close()
            raise
        self._open.add(mask)
        self._copies.append(_Copy(device, ours, mask.end))
        return mask

    @property
    def full(self) -> bool:
        """True if no further answer can follow a grammar now."""
        return len(self._running()) >= self._limits.processes

    def _running(self) -> list[_Copy]:
        """Copies of the process that have not exited, also those whose answers have ended."""
        for copy in self._copies:
            if copy.exited and copy.ended:
                copy.connection.close()
        self._copies = [copy for copy in self._copies if copy.connection.fileno() >= 0]
        return [copy for copy in self._copies if not copy.exited]

    def lacks_place(self, device: bytes) -> bool:
        """True if too many answers follow a grammar, in all or of this device."""
        held = sum(copy.device == device for copy in self._running())
        share = max(1, round(self._limits.device_share * self._limits.processes))
        return self.full or held >= share

    def penalty_s(self, device: bytes) -> float:
        """Time until this device may use a grammar again, after one that took too long."""
        return max(0.0, self._penalties.get(device, 0.0) - time.monotonic())

    def _punish(self, device: bytes) -> None:
        now = time.monotonic()
        self._penalties = {one: end for one, end in self._penalties.items() if end > now}
        if device:
            self._penalties[device] = now + self._limits.penalty_s

    def _hand_over(self, connection: socket.socket) -> None:
        """Gives the other end of a connection to a new copy of the process."""
        if self._process is None or self._process.poll() is not None:
            self._launch()
        assert self._control is not None
        try:
            socket.send_fds(self._control, [b"."], [connection.fileno()])
        except OSError as error:  # it has just ended
            self.close()
            raise UsageError("the process that follows grammars has ended; try again") from error

    def _launch(self) -> None:
        self.close()
        self._control, theirs = socket.socketpair()
        limits = json.dumps(msgspec.to_builtins(self._limits))
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "edgespec.grammar_process", str(theirs.fileno()),
                    str(self._tokenizer), json.dumps(self._end_ids), limits,
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def close(self) -> None:
        """Ends the process and its copies."""
        for mask in list(self._open):
            mask.close()
        for copy in self._copies:
            copy.connection.close()
        self._copies = []
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


class _Copy(NamedTuple):
    """A copy of the process."""

    device: bytes
    connection: socket.socket
    end: weakref.finalize[..., GrammarMask]
    """Called as the answer ends."""

    @property
    def ended(self) -> bool:
        return not self.end.alive

    @property
    def exited(self) -> bool:
        """True once the other end is closed; the process does that when the copy has exited."""
        poll = select.poll()
        poll.register(self.connection, 0)
        return bool(poll.poll(0))


class GrammarMask:
    """A grammar along one answer: an `edgespec.adjustments.Adjustment`.

    Tokens that are illegal get minus infinity. If none is legal all do, as after a drafted token
    that is illegal itself, or once `refusal` is set.
    """

    def __init__(
        self,
        connection: socket.socket,
        grammar: Grammar,
        end_ids: Sequence[int],
        limits: GrammarLimits,
        on_slow: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_slow` is called if the grammar takes too much time or memory."""
        self.grammar = grammar
        self._on_slow = on_slow
        self.refusal = ""
        """Why the grammar cannot be followed any further; empty: it can."""
        self._connection = connection
        self.end = weakref.finalize(self, _end, connection)
        self._end_ids = np.array(sorted(end_ids), np.int64)
        self._ends = frozenset(end_ids)
        self._limits = limits
        self._tokens: list[int] = []
        self._path: list[int] = []
        """Tokens that the process has, or is sent: an answer and perhaps a draft."""
        self._states: dict[int, State] = {}
        """States by the number of tokens of `_path` before them."""
        self._awaited: deque[int] = deque([0])
        """Numbers of the states that the process is to send, in their order."""
        self._buffer = bytearray()
        self._masks = 0
        self._asked_at = self._heard_at = time.monotonic()
        self._send(grammar)

    @property
    def ready(self) -> bool:
        """True once it is known whether the grammar can be followed. Does not wait."""
        self._take()
        return bool(self._masks or self.refusal)

    @property
    def just_asked(self) -> bool:
        """True while masks are awaited that were asked for within `GrammarLimits.step_wait_s`."""
        awaited = bool(self._masks and self._awaited) and not self.refusal
        return awaited and time.monotonic() - self._asked_at < self._limits.step_wait_s

    @property
    def step_wait_s(self) -> float:
        """Time that a step may wait for masks that were just asked for."""
        return self._limits.step_wait_s

    def wait(self) -> None:
        """Waits until the grammar is compiled. Raises `UsageError` if it cannot be followed."""
        while not self.ready:
            wait_for_any([self], _TURN_S)
        if self.refusal:
            raise UsageError(self.refusal)

    def fileno(self) -> int:
        return self._connection.fileno()

    def prepare(self, answer: Sequence[int], drafted: int = 0) -> bool:
        """Asks for the masks after an answer, at each of its last `drafted` tokens and after them.

        True once they are here, or `refusal` is set. Does not wait.
        """
        known = next((i for i, token in enumerate(answer) if token in self._ends), len(answer))
        self._take()
        if self.refusal:
            return True
        if self._awaited:
            return False
        tokens, first = list(answer[:known]), min(known, len(answer) - drafted)
        same = common_prefix(self._path, tokens)
        wanted = range(first, known + 1)
        lacking = [place for place in wanted if place > same or place not in self._states]
        if lacking:
            kept = range(lacking[0] - _KEPT, same + 1)
            self._states = {at: state for at, state in self._states.items() if at in kept}
            self._ask(tokens, min(same, lacking[0]), lacking[0])
        return not lacking or bool(self.refusal)

    def _ask(self, tokens: list[int], keep: int, first: int) -> None:
        """Sends the process to `tokens`, for the states after the first `first` of them and on."""
        self._path, self._awaited = tokens, deque(range(first, len(tokens) + 1))
        self._asked_at = self._heard_at = time.monotonic()
        self._send(Move(keep, tokens[keep:], len(self._awaited)))

    def advance(self, tokens: Sequence[int]) -> None:
        self._tokens.extend(tokens)

    def retreat(self, tokens: Sequence[int]) -> None:
        del self._tokens[len(self._tokens) - len(tokens) :]

    def apply(self, logits: Logits) -> None:
        logits[~self.legal(logits.shape[0])] = -np.inf

    def legal(self, vocabulary: int) -> npt.NDArray[np.bool_]:
        """True for each id that may follow; [vocabulary]. Waits for the process."""
        legal = np.zeros(vocabulary, np.bool_)
        state = self._now()
        if state is not None and state.mask:
            bits = np.unpackbits(np.frombuffer(state.mask, np.uint8), bitorder="little")
            legal[: bits.size] = bits[:vocabulary]
            legal[self._end_ids[self._end_ids < vocabulary]] = state.accepting
        return legal

    def allows(self, token: int) -> bool:
        """True if `token` may follow."""
        state = self._now()
        if state is None or not state.mask:
            return False
        if token in self._ends:
            return state.accepting
        return token < 8 * len(state.mask) and bool(state.mask[token >> 3] >> (token & 7) & 1)

    def forced(self) -> list[int]:
        """Tokens that follow whatever the model says."""
        state = self._now()
        return state.forced if state is not None else []

    def _now(self) -> State | None:
        """The state after the tokens; None if there is none."""
        while not self.prepare(self._tokens):
            wait_for_any([self], _TURN_S)
        if self.refusal or not self._ends.isdisjoint(self._tokens):
            return None
        return self._states[len(self._tokens)]

    def _send(self, message: object) -> None:
        """Sends a message, which the process reads at once: it awaits one."""
        try:
            self._connection.settimeout(self._limits.reply_s)
            send(self._connection, message)
            self._connection.setblocking(False)
        except OSError:
            self._refuse(_CLOSED)

    def _take(self) -> None:
        """Takes the states that have come."""
        while self._awaited and not self.refusal:
            try:
                part = self._connection.recv(1 << 16)
            except BlockingIOError:
                self._refuse_late()
                return
            except OSError:
                part = b""
            if not part:
                self._refuse(_CLOSED)
            self._buffer += part
            while not self.refusal and (body := take(self._buffer)) is not None:
                self._add(msgspec.msgpack.decode(body, type=State))

    def _add(self, state: State) -> None:
        self._states[self._awaited.popleft()] = state
        self._heard_at = time.monotonic()
        self._masks += 1
        limits = self._limits
        if state.error:
            self._refuse(state.error)
        elif state.spent_s > limits.burst_s + limits.mean_mask_s * self._masks:
            self._refuse(_CLOSED)

    def _refuse_late(self) -> None:
        limit_s = self._limits.reply_s if self._masks else _LOADING_S
        if time.monotonic() - self._heard_at > limit_s:
            self._refuse(_CLOSED)

    def _refuse(self, reason: str) -> None:
        if reason == _CLOSED:
            self._on_slow()
        self.refusal = plain(f"the {self.grammar.name} cannot be used: {reason}", 500)
        self.close()

    @property
    def closed(self) -> bool:
        return not self.end.alive

    def close(self) -> None:
        """Ends the process of this answer."""
        self.refusal = self.refusal or "the answer has ended"
        self.end()


def _end(connection: socket.socket) -> None:
    """Has the process kill the copy. The other end is closed once that has exited."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


def wait_for_any(masks: Sequence[GrammarMask], timeout_s: float) -> None:
    """Waits until the process of one of them has said something."""
    poll = select.poll()
    for mask in masks:
        if not mask.closed:
            poll.register(mask, select.POLLIN)
    poll.poll(1e3 * timeout_s)
