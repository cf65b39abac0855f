"""`edgespec edge-run`: text to standard output as it is committed, figures to standard error."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from rich.console import Console
from rich.text import Text

from edge_runtime.answer import Piece
from edge_runtime.drafters import open_drafter
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop, Observer
from edgespec.config import NO_DRAFTER, EdgeSettings, Request
from edgespec.errors import UsageError
from edgespec.manifest import Bundle
from edgespec.sampling import Sampling
from edgespec.text import Codec, TextStream
from edgespec.trace import Trace
from edgespec.transport import DealerLink
from engines.drafters.base import Drafter
from engines.drafters.none import NoDrafter
from engines.machine.doctor import brief
from engines.machine.energy.meter import EnergyMeter
from engines.machine.energy.sensors import Sensors, find

ACCEPTED, WRITTEN = "green", "yellow"


@dataclass(frozen=True)
class TextSettings:
    """What to write, and how to show it."""

    prompt: str | None
    """None: standard input; with `chat` on a terminal, a conversation."""
    chat: bool = False
    system: str = ""
    max_tokens: int = 256
    sampling: Sampling = Sampling()
    stops: tuple[str, ...] = ()
    show_drafts: bool = False
    """Colour accepted and corrected tokens."""
    json: bool = False
    """Figures as one JSON line."""
    explain: bool = False
    """Say which mode answers are written in, and why."""

    @property
    def conversation(self) -> bool:
        """Several prompts, typed one after the other."""
        return self.chat and self.prompt is None and sys.stdin.isatty()


def edge_run(bundle: Bundle, settings: EdgeSettings, text: TextSettings) -> None:
    """Connects, answers, prints. Raises edgespec's errors, after what was committed is shown."""
    text.sampling.check()
    if text.system and not text.chat:
        raise UsageError("--system is a message of a chat; pass --chat too")
    codec = Codec(bundle)
    prompts = _prompts(codec, text)
    if not text.conversation:  # whatever is wrong with a prompt shows before anything is loaded
        prompts = iter([next(prompts)])
    if settings.drafter == NO_DRAFTER and settings.mode == "auto":
        settings = replace(settings, mode="cloud")
    drafter = _drafter(bundle, settings)
    sensors = find(settings.energy) if settings.energy else None
    trace = Trace(settings.trace, "device") if settings.trace else None
    link = DealerLink(
        settings.connect, settings.server_key, key=settings.key, limits=settings.limits
    )
    try:
        identity = DeviceIdentity.of(bundle, socket.gethostname(), drafter.name, brief())
        observer = Observer(
            _explain if text.explain else None,
            _report if text.explain or sys.stderr.isatty() else None,
            trace,
        )
        loop = EdgeLoop.connect(link, drafter, identity, settings, observer)
        if settings.mode == "cloud-draft" and not loop.welcome.draft_ms:
            raise UsageError(
                f"the cloud at {settings.connect} has no draft beside its target; start it with "
                "'edgespec cloud-run --draft PROFILE', or choose another --mode"
            )
        for prompt, heard in prompts:
            heard.append(_answer(loop, codec, prompt, text, sensors))
    finally:
        link.close()
        if trace:
            trace.close()


def _drafter(bundle: Bundle, settings: EdgeSettings) -> Drafter:
    """What this mode drafts with here. Raises `UsageError` where the two do not fit."""
    if settings.mode in ("cloud", "cloud-draft"):
        return NoDrafter()
    if settings.mode == "edge" and settings.drafter == NO_DRAFTER:
        raise UsageError("--mode edge means that this device drafts; it cannot with --drafter none")
    return open_drafter(bundle, settings.drafter, settings.threads)


def _explain(sentence: str) -> None:
    sys.stdout.flush()
    print(f"\n[mode {sentence}]", file=sys.stderr, flush=True)


def _report(sentence: str) -> None:
    sys.stdout.flush()
    print(f"\n[{sentence}]", file=sys.stderr, flush=True)


def _prompts(codec: Codec, text: TextSettings) -> Iterator[tuple[list[int], list[str]]]:
    """Prompts as ids, each with a list that the caller puts the answer into."""
    history = [{"role": "system", "content": text.system}] if text.system else []
    heard: list[str] = []
    for words in _turns(text):
        if not text.chat:
            yield codec.encode(words), heard
            continue
        history.append({"role": "user", "content": words})
        heard.clear()
        yield codec.encode(codec.render(history), chat=True), heard
        history.append({"role": "assistant", "content": "".join(heard)})


def _turns(text: TextSettings) -> Iterator[str]:
    if text.prompt is not None:
        yield text.prompt
    elif text.conversation:
        while True:
            try:
                words = _read(lambda: input("> "))
            except EOFError:
                return
            if words.strip():
                yield words
    elif sys.stdin.isatty():
        raise UsageError("there is no prompt; pass --prompt, pipe a text in, or use --chat")
    else:
        words = _read(sys.stdin.read)
        if not words.strip():
            raise UsageError("standard input is empty; pass --prompt or pipe a text in")
        yield words


def _read(read: Callable[[], str]) -> str:
    try:
        return read()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text (byte {error.start})") from error


def _answer(
    loop: EdgeLoop, codec: Codec, prompt: Sequence[int], text: TextSettings, sensors: Sensors | None
) -> str:
    request = Request(tuple(prompt), text.max_tokens, text.sampling, text.stops)
    meter = EnergyMeter(sensors) if sensors else None
    stream = TextStream(codec, prompt, text.stops)
    console = Console(highlight=False, force_terminal=True) if text.show_drafts else None
    said = []
    with ExitStack() as measured:
        if meter:
            measured.enter_context(meter)
        answer = loop.start(request, stream)
        try:
            for piece in loop.write(answer):
                said.append(piece.text)
                _show(piece, console)
        except KeyboardInterrupt:
            if not text.conversation:
                raise
            # It ends the answer, not the conversation.
        finally:
            measured.close()
            if answer.stats.tokens:
                sys.stdout.write(stream.flush() + "\n")
                sys.stdout.flush()
                answer.stats.energy = meter.energy(answer.stats.tokens) if meter else None
                report = answer.stats.as_json() if text.json else answer.stats.as_text()
                print(report, file=sys.stderr)
    return "".join(said)


def _show(piece: Piece, console: Console | None) -> None:
    if console is None:
        sys.stdout.write(piece.text)
        sys.stdout.flush()
    else:
        colour = ACCEPTED if piece.origin == "device" else WRITTEN
        console.print(Text(piece.text, style=colour), end="", soft_wrap=True)
