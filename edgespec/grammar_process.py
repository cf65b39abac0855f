"""The process that follows grammars for a device or a cloud: `python -m edgespec.grammar_process`.

It loads the tokenizer once, and makes a copy of itself (fork) for each answer. The copy compiles
that answer's grammar and computes its masks. A copy that takes too long, too much memory or fails
in native code ends alone. Limits within llguidance do not suffice: version 1.9.1 never ends on
`start: ("x" | "y") /aa*/ /ab/`, in the middle of an answer, and takes 14 s and 2.4 GB to refuse a
regular expression of 48 kB.

A copy is killed when the answer has ended, which is when nothing more is sent to it. It does not
read while it computes, so the first process looks after that.

Messages have a length (4 bytes, little-endian) and a body in msgpack. A copy is sent the grammar,
and then a `Move` for each mask or for several; it answers with as many `State`s.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgespec.grammar import Grammar
from edgespec.policies import GrammarLimits

_SIZE = struct.Struct("<I")
_JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON on one line, as `json.dumps` writes it. A schema may say otherwise in `x-guidance`."""


class Move(msgspec.Struct, array_like=True):
    """Goes to another state of the same answer."""

    keep: int
    """Tokens of the last state that stay."""
    tokens: list[int]
    """Tokens after them."""
    states: int = 1
    """States to send: the one after all tokens, and those before the last tokens."""

    def steps(self) -> Iterator[Move]:
        """Moves after each of which one state is sent."""
        first = len(self.tokens) - self.states + 1
        yield Move(self.keep, self.tokens[:first])
        for place in range(first, len(self.tokens)):
            yield Move(self.keep + place, self.tokens[place : place + 1])


class State(msgspec.Struct, array_like=True):
    """What the grammar says after an answer's tokens so far."""

    mask: bytes = b""
    """One bit for each id of the tokenizer, lowest first: 1 if the token is legal. Empty: none is,
    since the answer itself is not."""
    accepting: bool = False
    """True if the answer may end here."""
    forced: list[int] = []
    """Tokens that follow whatever the model says."""
    spent_s: float = 0.0
    """CPU time of all masks of this answer."""
    error: str = ""
    """Why there is no state: the grammar is invalid, or too complex."""


def send(connection: socket.socket, message: object) -> None:
    body = msgspec.msgpack.encode(message)
    connection.sendall(_SIZE.pack(len(body)) + body)


def receive(connection: socket.socket) -> bytes | None:
    """The next message; None at the end of the connection."""
    head = _exactly(connection, _SIZE.size)
    return _exactly(connection, _SIZE.unpack(head)[0]) if head else None


def take(buffer: bytearray) -> bytes | None:
    """Removes the first message from a buffer; None: it is not complete."""
    if len(buffer) < _SIZE.size:
        return None
    end = _SIZE.size + _SIZE.unpack_from(buffer)[0]
    if len(buffer) < end:
        return None
    body = bytes(buffer[_SIZE.size : end])
    del buffer[:end]
    return body


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            return None
        data += part
    return bytes(data)


class _Follower:
    """A grammar along one answer."""

    def __init__(self, tokenizer: Any, grammar: Grammar, limits: GrammarLimits) -> None:
        """Raises `ValueError` if the grammar cannot be compiled."""
        self._size = tokenizer.vocab_size
        self._fresh = _matcher(tokenizer, grammar, limits)
        self._matcher = self._fresh.deep_copy()
        self._began_s = time.process_time()
        self._tokens: list[int] = []
        self._legal = 0
        """Tokens that the matcher has taken; the next one, if there is one, is illegal."""

    def move(self, move: Move) -> None:
        if move.keep < self._legal:
            if not self._matcher.rollback(self._legal - move.keep):
                self._restart()
            self._legal = min(self._legal, move.keep)
        self._tokens = self._tokens[: move.keep] + move.tokens
        self._legal += self._matcher.try_consume_tokens(self._known(self._tokens[self._legal :]))

    def _known(self, tokens: list[int]) -> list[int]:
        """The tokens before the first id that the tokenizer lacks."""
        return list(takewhile(lambda token: token < self._size, tokens))

    def _restart(self) -> None:
        self._matcher, self._legal = self._fresh.deep_copy(), 0

    def state(self) -> State:
        if self._legal < len(self._tokens) and not self._matcher.is_error():
            return State()
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            error = self._matcher.get_error()
            self._restart()
            return State(error=_sentence(error))
        accepting = self._matcher.is_accepting()
        forced = [] if accepting else self._matcher.compute_ff_tokens()
        return State(mask, accepting, forced, time.process_time() - self._began_s)


def _matcher(tokenizer: Any, grammar: Grammar, limits: GrammarLimits) -> Any:
    from llguidance import LLMatcher, LLParserLimits, grammar_from

    if grammar.kind == "json_schema":
        source = LLMatcher.grammar_from_json_schema(grammar.text, defaults=_JSON_STYLE)
    elif grammar.kind == "lark" and "::=" in grammar.text:
        source = grammar_from("gbnf", grammar.text)
    else:
        source = grammar_from(grammar.kind, grammar.text)
    bounds = LLParserLimits(max_lexer_states=limits.lexer_states, verbose_errors=False)
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=bounds)
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    return matcher


def _sentence(error: str) -> str:
    """The first line of what llguidance says."""
    return next(iter(error.strip().splitlines()), "")[:300]


def _serve(connection: socket.socket, tokenizer: Callable[[], Any], limits: GrammarLimits) -> None:
    """Follows the grammar of one answer until the connection ends."""
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    _limit(resource.RLIMIT_DATA, used + limits.memory_bytes)
    body = receive(connection)
    if body is None:
        return
    _allow(limits.compile_s)
    try:
        grammar = msgspec.msgpack.decode(body, type=Grammar)
        follower = _Follower(tokenizer(), grammar, limits)
    except (ValueError, MemoryError) as error:
        send(connection, State(error=_sentence(str(error)) or "it takes too much memory"))
        return
    send(connection, follower.state())
    _allow(0.0)
    while (body := receive(connection)) is not None:
        for step in msgspec.msgpack.decode(body, type=Move).steps():
            _allow(limits.mask_s)
            follower.move(step)
            send(connection, follower.state())
        _allow(0.0)


def _allow(cpu_s: float) -> None:
    """Sets the CPU time after which the kernel ends this process; 0: none."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (most, hard))


def _tokenizer(path: str, end_ids: list[int]) -> Any:
    """llguidance's form of a tokenizer. Raises `ValueError` if it has none."""
    from llguidance import LLTokenizer
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    try:
        return LLTokenizer(tokenizer.to_str(), eos_token=end_ids)
    except Exception as error:  # the library raises what it likes
        raise ValueError(f"this tokenizer cannot be used with grammars: {error}") from error


def main(control: socket.socket, path: str, end_ids: list[int], limits: GrammarLimits) -> None:
    """Makes a copy for each connection that arrives over `control`, until that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's end is this process's
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        loaded = _tokenizer(path, end_ids)
        load: Callable[[], Any] = lambda: loaded  # noqa: E731
    except ValueError as error:
        reason = str(error)

        def load() -> Any:
            raise ValueError(reason)

    copies = _Copies(control)
    while (connection := copies.next_connection()) is not None:
        pid = os.fork()
        if pid:
            copies.add(pid, connection)
            continue
        copies.forget()
        os.nice(limits.niceness)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # what Rust says
        try:
            _serve(connection, load, limits)
        finally:
            os._exit(0)
    copies.kill()


class _Copy(NamedTuple):
    pid: int
    exited: int
    """A descriptor that can be read once the copy has exited."""
    connection: socket.socket
    """The copy's; open here as well until it has exited, so that the other side sees when."""


class _Copies:
    """The copies that run, and the connection over which further ones are asked for."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._copies: dict[int, _Copy] = {}
        """Copies by each of their two descriptors."""
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def next_connection(self) -> socket.socket | None:
        """The connection of the next copy to make; meanwhile ends those that are to end."""
        while True:
            events = [descriptor for descriptor, _ in self._poll.poll()]
            known = next((one for one in events if one in self._copies), None)
            if known is not None:
                self._end(known)
                continue
            _, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
            return socket.socket(fileno=descriptors[0]) if descriptors else None

    def add(self, pid: int, connection: socket.socket) -> None:
        copy = _Copy(pid, os.pidfd_open(pid), connection)
        self._copies[copy.exited] = self._copies[connection.fileno()] = copy
        self._poll.register(copy.exited, select.POLLIN)
        self._poll.register(connection, select.POLLRDHUP)

    def _end(self, descriptor: int) -> None:
        copy = self._copies.pop(descriptor)
        self._poll.unregister(descriptor)
        if descriptor != copy.exited:
            os.kill(copy.pid, signal.SIGKILL)
            return
        os.waitpid(copy.pid, 0)
        if self._copies.pop(copy.connection.fileno(), None):
            self._poll.unregister(copy.connection)
        os.close(copy.exited)
        copy.connection.close()

    def forget(self) -> None:
        """In a new copy: closes what belongs to the others."""
        self._control.close()
        for copy in {id(copy): copy for copy in self._copies.values()}.values():
            os.close(copy.exited)
            copy.connection.close()

    def kill(self) -> None:
        for copy in self._copies.values():
            os.kill(copy.pid, signal.SIGKILL)


if __name__ == "__main__":
    main(
        socket.socket(fileno=int(sys.argv[1])),
        sys.argv[2],
        msgspec.json.decode(sys.argv[3], type=list[int]),
        msgspec.json.decode(sys.argv[4], type=GrammarLimits),
    )
