"""The view of `edgespec top`: one cloud, its memory and its sessions, from 80 columns up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgespec.energy_report import Energy
from edgespec.fleet import STATES, Fleet, SessionView

MEMORY_BAR_COLUMNS = 24
BEHIND_RATIO = 0.95
"""Fraction of its target rate below which a session is behind."""
NAME_COLUMNS = 32
"""Widest name of a device, a draft or a board."""
LEAST_NAME_COLUMNS = 10
COLOURS = {"running": "", "reading": "cyan", "waiting": "yellow", "evicted": "blue", "away": "red"}
ELLIPSIS = "…"


class Column(NamedTuple):
    """One column of the table of sessions."""

    title: str
    cell: Callable[[SessionView], Text]
    least_width: int = 0
    """Columns that the terminal must have for this one to be shown."""
    name: bool = False
    """The cell is a name, which is shortened to fit."""
    right: bool = False


def view(fleet: Fleet, console: Console, height: int | None = None) -> RenderableType:
    """The view for the width of `console`, at most `height` lines. None: all sessions."""
    sessions = sorted(fleet.sessions, key=_rank)
    header = Group(*_header(fleet))
    fits = len(sessions)
    if height is not None:
        # The table's titles and the line that counts the rest.
        fits = max(1, height - len(console.render_lines(header, pad=False)) - 2)
    parts: list[RenderableType] = [header]
    if sessions:
        parts.append(_table(sessions[:fits], console.width))
    if len(sessions) > fits:
        parts.append(Text(f"and {len(sessions) - fits} more", style="dim"))
    return Group(*parts)


def _header(fleet: Fleet) -> list[Text]:
    colour = {"ready": "green", "loading": "yellow", "draining": "yellow"}[fleet.state]
    name = Text(shortened(fleet.target, NAME_COLUMNS), "bold")
    rows, tokens = f"{fleet.rows:.1f} sessions", f"{fleet.width:.1f} tokens"
    found = fleet.prefix_hits / max(fleet.prefix_queries, 1)
    lines = [
        Text.assemble(
            name, "  ", (fleet.state, colour), f"  up {duration(fleet.uptime)}  {fleet.endpoint}"
        ),
        Text(f"{fleet.rate:.1f} tokens/s  acceptance {_share(fleet.acceptance)}"),
        Text(
            f"batch {rows}, {tokens}  step {1e3 * fleet.step:.1f} ms "
            f"(predicted within {_share(fleet.step_error)})"
        ),
        Text(_memory(fleet)),
        Text(f"prefix hits {_share(found)}  evictions {fleet.evictions}"),
        Text(_counts(fleet)),
    ]
    troubles = Counter[str]()
    for device in fleet.devices:
        troubles.update(device.troubles)
    if troubles:
        named = ", ".join(f"{count} {kind}" for kind, count in sorted(troubles.items()))
        lines.append(Text(f"packets in trouble: {named}"))
    if fleet.energy:
        lines.append(Text(_energy(fleet.energy)))
    return [*lines, Text()]


def _memory(fleet: Fleet) -> str:
    used = min(1.0, fleet.memory_used / max(fleet.memory_limit, 1))
    full = round(MEMORY_BAR_COLUMNS * used)
    return (
        f"memory {'█' * full}{'░' * (MEMORY_BAR_COLUMNS - full)} "
        f"{fleet.memory_used / 1e6:.0f} of {fleet.memory_limit / 1e6:.0f} MB, "
        f"{fleet.memory_kept / 1e6:.0f} MB kept"
    )


def _counts(fleet: Fleet) -> str:
    states = Counter(session.state for session in fleet.sessions)
    modes = Counter(session.mode for session in fleet.sessions)
    by_state = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    by_mode = ", ".join(f"{count} {mode}" for mode, count in sorted(modes.items()))
    return f"{len(fleet.devices)} devices, {len(fleet.sessions)} sessions" + (
        f": {by_state}; {by_mode}" if by_state else ""
    )


def _energy(energy: Energy) -> str:
    """Energy of the cloud's machine since the cloud began to listen."""
    each, watts = energy.joules_per_token, energy.watts
    facts = ["energy not measured"] if energy.joules is None else [f"energy {energy.joules:.4g} J"]
    facts += [f"{each:.3g} J a token"] if each is not None else []
    facts += [f"{watts:.3g} W"] if watts is not None else []
    facts += [energy.covers] if energy.covers else []
    facts += [f"{energy.celsius:.0f} °C"] if energy.celsius is not None else []
    facts += ["throttled"] if energy.throttled else []
    return ", ".join(facts)


def _rank(session: SessionView) -> tuple[bool, int, float]:
    """Sessions behind their target rate first, then by state, the oldest first."""
    return not _behind(session), STATES.index(session.state), -session.seconds


def _behind(session: SessionView) -> bool:
    return session.state == "running" and 0 < session.rate < BEHIND_RATIO * session.target_rate


def _rate(session: SessionView) -> Text:
    style = "red" if _behind(session) else ""
    return Text(f"{session.rate:.1f}" if session.rate else "", style)


COLUMNS = (
    Column("session", lambda s: Text(s.session[:8]), 100),
    Column("device", lambda s: Text(s.device), name=True),
    Column("hardware", lambda s: Text(s.hardware), 130, name=True),
    Column("drafter", lambda s: Text(s.drafter), 110, name=True),
    Column("mode", lambda s: Text(s.mode)),
    Column("state", lambda s: Text(s.state, COLOURS[s.state])),
    Column("tokens", lambda s: Text(str(s.tokens)), right=True),
    Column("tokens/s", _rate, right=True),
    Column("target", lambda s: Text(f"{s.target_rate:g}" if s.target_rate else ""), right=True),
    Column("accepted", lambda s: Text(_share(s.acceptance) if s.verified else ""), right=True),
    Column("reaction", lambda s: Text(f"{1e3 * s.reaction:.0f} ms" if s.reaction else ""), 140,
           right=True),
    Column("age", lambda s: Text(duration(s.seconds, short=True)), right=True),
)  # fmt: skip


def _table(sessions: Sequence[SessionView], width: int) -> Table:
    """The sessions, with the columns for which `width` has room and names cut to the rest."""
    columns = [column for column in COLUMNS if column.least_width <= width]
    cells = [[column.cell(session) for column in columns] for session in sessions]
    widths = [
        max(len(column.title), *(row[place].cell_len for row in cells))
        for place, column in enumerate(columns)
    ]
    names = [place for place, column in enumerate(columns) if column.name]
    gap = 1 if width < 100 else 2
    room = width - sum(w for place, w in enumerate(widths) if place not in names)
    room = max((room - gap * len(columns)) // len(names), LEAST_NAME_COLUMNS)
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=True)
    for row in cells:
        for place in names:
            row[place] = Text(shortened(row[place].plain, min(room, NAME_COLUMNS)))
        table.add_row(*row)
    return table


def shortened(name: str, width: int) -> str:
    """The name in at most `width` columns, without its middle if it is longer."""
    if cell_len(name) <= width:
        return name
    head, tail = "", ""
    for start, end in zip(name, reversed(name), strict=True):
        if cell_len(head + start + tail) >= width:
            break
        head += start
        if cell_len(head + end + tail) >= width:
            break
        tail = end + tail
    return f"{head}{ELLIPSIS}{tail}"


def _share(value: float) -> str:
    return f"{value:.0%}"


def duration(seconds: float, *, short: bool = False) -> str:
    """`61 s`, `12 min`, `2 h 1 min`; the last one `2 h` if `short`."""
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    return f"{whole // 3600} h" + ("" if short else f" {whole % 3600 // 60} min")
