"""`edgespec bench structured`: answers that follow random JSON schemas, with and without drafts.

Each schema is answered by the target alone and with drafts, both under the schema's grammar, and as
free text of the same length. The answers must be valid and identical. A rate is the tokens of all
answers over the time after their first tokens, so compiling a grammar is not in it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from bench.lab.builtin import builtin_bundle
from bench.lab.processes import cloud
from bench.lab.report import print_json
from bench.lab.tables import Column, table
from bench.lab.turns import rotated
from bench.structured.judging import fault
from bench.structured.schemas import random_schema
from edge_runtime.client import Client
from edgespec.config import EdgeSettings, Mode, Request
from edgespec.errors import EdgespecError
from edgespec.grammar import json_grammar
from edgespec.manifest import Bundle
from edgespec.progress import progress
from edgespec.sampling import Sampling
from edgespec.telemetry import AnswerStats
from engines.machine.doctor import Machine, describe

MODES: tuple[Mode, ...] = ("cloud", "edge")
"""The target alone, and the device's drafts."""
LONGEST_ANSWER_TOKENS = 600


@dataclass(frozen=True)
class StructuredSettings:
    bundle: Path | None = None
    """None: the built-in pair."""
    schemas: int = 20
    depth: int = 3
    """Levels of objects and arrays in a schema."""
    seed: int = 0
    temperature: float = 0.7
    """Temperature of every second schema; the others are greedy."""


class ModeFigures(msgspec.Struct, frozen=True):
    """One mode, over all schemas."""

    mode: str
    free_tokens_per_second: float
    """Without a grammar."""
    tokens_per_second: float
    ratio: float
    accepted_share: float
    """Part of the tokens that were drafted, by a side or by the grammar."""


class StructuredFigures(msgspec.Struct, frozen=True):
    machine: Machine
    target: str
    schemas: int
    tokens: int
    """Tokens of the answers of one mode."""
    valid: int
    identical: int
    modes: Sequence[ModeFigures]
    faults: Sequence[str]


def run(settings: StructuredSettings, *, as_json: bool) -> None:
    """Measures and prints. Raises `EdgespecError` if an answer is invalid or differs."""
    bundle = Bundle.open(settings.bundle) if settings.bundle else builtin_bundle()
    figures = measure(bundle, settings)
    show(figures)
    if as_json:
        print_json(figures)
    if figures.faults:
        raise EdgespecError(f"{len(figures.faults)} wrong answers: {figures.faults[0]}")


class _Tally:
    """Answers of one mode, with or without grammars."""

    def __init__(self) -> None:
        self.tokens, self.seconds, self.confirmed = 0, 0.0, 0

    def add(self, stats: AnswerStats) -> None:
        self.tokens += stats.tokens - 1
        self.seconds += stats.seconds - stats.first_token_seconds
        self.confirmed += stats.confirmed

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def measure(bundle: Bundle, settings: StructuredSettings) -> StructuredFigures:
    chance = random.Random(settings.seed)
    schemas = [random_schema(chance, settings.depth) for _ in range(settings.schemas)]
    tallies = {(mode, free): _Tally() for mode in MODES for free in (False, True)}
    faults: list[str] = []
    valid = identical = 0
    with cloud(bundle.folder) as endpoint:
        edge = EdgeSettings(connect=endpoint)
        with (
            Client(bundle, replace(edge, mode=MODES[0])) as alone,
            Client(bundle, replace(edge, mode=MODES[1])) as drafting,
            progress("answering", len(schemas), unit="schemas") as advance,
        ):
            clients = dict(zip(MODES, (alone, drafting), strict=True))
            for number, schema in enumerate(schemas):
                request = _request(alone, schema, number, settings)
                answers = _answers(clients, request, number, tallies)
                found = _judge(answers, schema, alone)
                valid += not found
                identical += answers[MODES[0]] == answers[MODES[1]]
                faults += [f"schema {number}: {found}"] if found else []
                if answers[MODES[0]] != answers[MODES[1]]:
                    faults.append(f"schema {number}: the modes differ")
                advance(1)
    return StructuredFigures(
        describe(),
        bundle.manifest.target.origin.name,
        len(schemas),
        tallies[MODES[0], False].tokens + len(schemas),
        valid,
        identical,
        [_figures(mode, tallies[mode, False], tallies[mode, True]) for mode in MODES],
        faults,
    )


def _request(
    client: Client, schema: dict[str, Any], number: int, settings: StructuredSettings
) -> Request:
    """A chat about the properties of a schema."""
    names = ", ".join(schema["properties"])
    content = f"Write a JSON object with these properties: {names}. Choose sensible values."
    tokens = client.chat_tokens([{"role": "user", "content": content}])
    warm = Sampling(settings.temperature, seed=settings.seed + number)
    sampling = warm if number % 2 else Sampling()
    return Request(tuple(tokens), LONGEST_ANSWER_TOKENS, sampling, grammar=json_grammar(schema))


def _answers(
    clients: dict[Mode, Client],
    request: Request,
    turn: int,
    tallies: dict[tuple[Mode, bool], _Tally],
) -> dict[Mode, Sequence[int]]:
    """The tokens under the grammar in each mode; free text of the same length is timed beside."""
    tokens: dict[Mode, Sequence[int]] = {}
    for name in rotated(MODES, turn):
        mode: Mode = "cloud" if name == "cloud" else "edge"
        answer = clients[mode].start(request)
        _ = answer.text
        tallies[mode, False].add(answer.stats)
        tokens[mode] = answer.stats.token_ids
        free = clients[mode].start(replace(request, grammar=None, max_tokens=len(tokens[mode])))
        _ = free.text
        tallies[mode, True].add(free.stats)
    return tokens


def _judge(answers: dict[Mode, Sequence[int]], schema: dict[str, Any], client: Client) -> str:
    """Why the answer is not valid; empty: it is."""
    text = client.decode(answers[MODES[0]])
    if len(answers[MODES[0]]) >= LONGEST_ANSWER_TOKENS:
        return f"not ended after {LONGEST_ANSWER_TOKENS} tokens: {json.dumps(text)[:80]}"
    return fault(text, schema)


def _figures(mode: str, followed: _Tally, free: _Tally) -> ModeFigures:
    return ModeFigures(
        mode,
        free.rate,
        followed.rate,
        followed.rate / free.rate if free.rate else 0.0,
        followed.confirmed / max(1, followed.tokens),
    )


def show(figures: StructuredFigures) -> None:
    columns = (
        Column("", "mode", left=True),
        Column("free, tokens/s", "free_tokens_per_second", ".1f"),
        Column("with a schema", "tokens_per_second", ".1f"),
        Column("ratio", "ratio", ".2f"),
        Column("drafted", "accepted_share", ".2f"),
    )
    caption = (
        f"{figures.valid} of {figures.schemas} answers are valid, {figures.identical} identical "
        f"with and without drafts; {figures.tokens} tokens"
    )
    title = f"random JSON schemas, target {figures.target}"
    console = Console(highlight=False)
    console.print(table(title, columns, figures.modes, caption=caption))
    for sentence in figures.faults:
        console.print(sentence, markup=False)
