"""`edgespec top`: a cloud's status port on the terminal."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from urllib.parse import urlsplit

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgespec.energy_report import Energy
from edgespec.errors import LinkError, UsageError
from edgespec.fleet import STATES, Fleet, SessionView

PATIENCE = 5.0
"""Seconds to wait for an answer."""
PIPE_WIDTH = 150
HEADER_LINES = 10
"""Lines that the sessions leave to everything else."""
BAR = 24
"""Characters of the memory's bar."""
BEHIND = 0.95
"""Of the promised rate, below which a session is behind."""
COLOURS = {"running": "", "reading": "cyan", "waiting": "yellow", "evicted": "blue", "away": "red"}


def watch(connect: str, *, once: bool, as_json: bool, interval_s: float) -> None:
    """Shows the cloud until interrupted, or once. Raises `UsageError` for what is no address, and
    with `once` `LinkError` where nobody answers."""
    url = _url(connect)
    if as_json or once or not sys.stdout.isatty():
        _lines(url, once=once, as_json=as_json, interval_s=interval_s)
        return
    with Live(screen=True, auto_refresh=False) as live:
        while True:
            try:
                shown = render(fetch(url), live.console.height)
            except LinkError as error:
                shown = Text(f"{error}; trying again", style="red")
            live.update(shown, refresh=True)
            time.sleep(interval_s)


def _lines(url: str, *, once: bool, as_json: bool, interval_s: float) -> None:
    """One look after the other, for pipes and files."""
    while True:
        fleet = fetch(url)
        if as_json:
            print(msgspec.json.encode(fleet).decode(), flush=True)
        elif sys.stdout.isatty():
            console = Console()
            console.print(render(fleet, console.height))
        else:
            Console(width=PIPE_WIDTH).print(render(fleet))
        if once:
            return
        time.sleep(interval_s)


def fetch(url: str) -> Fleet:
    """What the cloud says of itself now. Raises `LinkError`."""
    try:
        with urllib.request.urlopen(f"{url}/fleet", timeout=PATIENCE) as reply:
            return msgspec.json.decode(reply.read(), type=Fleet)
    except urllib.error.HTTPError as error:
        error.close()
        raise LinkError(f"{url} is no cloud's status port: it says {error.code}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason
        raise LinkError(
            f"no cloud answers at {url} ({reason}); was it started with --status?", retryable=True
        ) from error
    except msgspec.DecodeError as error:
        raise LinkError(f"{url} is no cloud's status port of this edgespec: {error}") from error


def render(fleet: Fleet, height: int | None = None) -> RenderableType:
    """The whole view, at most `height` lines of it; None: all."""
    shown = sorted(fleet.sessions, key=_rank)
    fits = max(1, height - HEADER_LINES) if height is not None else len(shown)
    parts: list[RenderableType] = [_header(fleet), _memory(fleet), Text(_counts(fleet)), Text()]
    if shown:
        parts.append(_table(shown[:fits]))
    if len(shown) > fits:
        parts.append(Text(f"and {len(shown) - fits} more", style="dim"))
    return Group(*parts)


def _header(fleet: Fleet) -> Text:
    colour = {"ready": "green", "loading": "yellow", "draining": "yellow"}[fleet.state]
    text = Text.assemble((fleet.target, "bold"), "  ", (fleet.state, colour))
    text.append(f"  up {_duration(fleet.uptime)}  {fleet.endpoint}\n")
    text.append(
        f"{fleet.rate:.1f} tokens/s  acceptance {_share(fleet.acceptance)}  "
        f"step {1e3 * fleet.step:.1f} ms (predicted within {_share(fleet.step_error)})  "
        f"batch {fleet.rows:.1f} sessions, {fleet.width:.1f} tokens"
    )
    return text


def _memory(fleet: Fleet) -> Text:
    used = min(1.0, fleet.memory_used / max(fleet.memory_limit, 1))
    full = round(BAR * used)
    found = fleet.prefix_hits / max(fleet.prefix_queries, 1)
    return Text(
        f"memory {'█' * full}{'░' * (BAR - full)} "
        f"{fleet.memory_used / 1e6:.0f} of {fleet.memory_limit / 1e6:.0f} MB, "
        f"{fleet.memory_kept / 1e6:.0f} MB kept  prefix hits {_share(found)}  "
        f"evictions {fleet.evictions}"
    )


def _counts(fleet: Fleet) -> str:
    states = Counter(session.state for session in fleet.sessions)
    modes = Counter(session.mode for session in fleet.sessions)
    said = [f"{states[state]} {state}" for state in STATES if states[state]]
    drafts = [f"{count} {mode}" for mode, count in sorted(modes.items())]
    troubles = Counter[str]()
    for device in fleet.devices:
        troubles.update(device.troubles)
    trouble = [f"{count} {kind}" for kind, count in sorted(troubles.items())]
    return (
        f"{len(fleet.devices)} devices, {len(fleet.sessions)} sessions"
        + (f": {', '.join(said)}; {', '.join(drafts)}" if said else "")
        + (f"\npackets in trouble: {', '.join(trouble)}" if trouble else "")
        + (f"\n{_energy(fleet.energy)}" if fleet.energy else "")
    )


def _energy(energy: Energy) -> str:
    """Since the cloud began to listen."""
    each, watts = energy.joules_per_token, energy.watts
    said = ["energy not measured"] if energy.joules is None else [f"energy {energy.joules:.4g} J"]
    said += [f"{each:.3g} J a token"] if each is not None else []
    said += [f"{watts:.3g} W"] if watts is not None else []
    said += [energy.covers] if energy.covers else []
    said += [f"{energy.celsius:.0f} °C"] if energy.celsius is not None else []
    said += ["throttled"] if energy.throttled else []
    return ", ".join(said)


def _rank(session: SessionView) -> tuple[bool, int, float]:
    """Those behind their promise first, then by state, the oldest first."""
    return not _behind(session), STATES.index(session.state), -session.seconds


def _behind(session: SessionView) -> bool:
    return session.state == "running" and 0 < session.rate < BEHIND * session.promised


def _table(sessions: list[SessionView]) -> Table:
    table = Table(box=None, pad_edge=False, expand=False)
    for name in ("session", "device", "hardware", "drafter", "mode", "state"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in ("tokens", "tokens/s", "promised", "accepted", "reaction", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in sessions:
        table.add_row(
            s.session[:8], s.device, s.hardware, s.drafter, s.mode,
            Text(s.state, style=COLOURS[s.state]), str(s.tokens),
            Text(f"{s.rate:.1f}" if s.rate else "", style="red" if _behind(s) else ""),
            f"{s.promised:g}" if s.promised else "", _share(s.acceptance) if s.verified else "",
            f"{1e3 * s.reaction:.0f} ms" if s.reaction else "", _duration(s.seconds),
        )  # fmt: skip
    return table


def _share(value: float) -> str:
    return f"{value:.0%}"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _url(connect: str) -> str:
    """`HOST:PORT` will do. Raises `UsageError`."""
    url = (connect if "://" in connect else f"http://{connect}").rstrip("/")
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url
    except ValueError:
        pass
    raise UsageError(f"{connect!r} is no address; write http://HOST:PORT, as --status has it")
