"""Exactness test: every way of computing a token must give the same bits on this machine.

Verifying several tokens must see the same logits as decoding one token at a time. The reference is
one prefill. Every case computes some of its positions in another way and compares the logits bit by
bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgespec.config import usable_cores
from edgespec.errors import UsageError
from edgespec.manifest import Bundle
from edgespec.progress import Advance, progress
from engines.backends import DEFAULT, FASTER, open_target
from engines.base import Engine, Row, final_choices
from engines.exact_price import Price, price_of, report_prices

REFERENCE_TOKENS = 300
"""Positions of the reference; more than the first capacity, so that a slot has to grow."""
TAIL_TOKENS = 24
"""Positions at the end that the slow ways compute."""

Logits = npt.NDArray[Any]
Way = Callable[[Engine, Sequence[int]], Logits]


class Case(NamedTuple):
    """Result of one way of computing."""

    name: str
    identical: bool
    positions: int
    largest: float
    """Largest absolute difference of a logit."""


def _feed(engine: Engine, slot: int, ids: Sequence[int], sizes: Iterator[int]) -> Logits:
    """Runs the ids that the slot lacks in rows of `sizes` tokens; returns all their logits."""
    parts = []
    start = engine.cached(slot)
    while start < len(ids):
        row = ids[start : start + next(sizes)]
        (choices,) = final_choices(engine, [Row(slot, start, row, len(row))])
        assert choices is not None
        parts.append(choices.logits)
        start += len(row)
    return np.concatenate(parts)


def _steady(size: int) -> Iterator[int]:
    while True:
        yield size


def _cycle(sizes: Sequence[int]) -> Iterator[int]:
    while True:
        yield from sizes


def _prefill(engine: Engine, ids: Sequence[int]) -> int:
    """Returns a slot that holds `ids` without the tail."""
    slot = engine.open()
    final_choices(engine, [Row(slot, 0, ids[:-TAIL_TOKENS], 0)])
    return slot


def _by_rows(size: int) -> Way:
    def way(engine: Engine, ids: Sequence[int]) -> Logits:
        slot = _prefill(engine, ids)
        logits = _feed(engine, slot, ids, _steady(size))
        engine.close(slot)
        return logits

    return way


def _in_chunks(engine: Engine, ids: Sequence[int]) -> Logits:
    """Computes all positions in chunks of different lengths; the slot grows through capacities."""
    slot = engine.open()
    logits = _feed(engine, slot, ids, _cycle([40, 3, 64, 17, 1, 8]))
    engine.close(slot)
    return logits


def _in_a_ragged_batch(engine: Engine, ids: Sequence[int]) -> Logits:
    """Computes the tail in a batch with three slots of other lengths, some of them idle."""
    others = [engine.open() for _ in range(3)]
    slot = _prefill(engine, ids)
    for number, other in enumerate(others):
        final_choices(
            engine, [Row(other, 0, ids[: REFERENCE_TOKENS - TAIL_TOKENS - 7 * number], 0)]
        )
    parts = []
    for turn, start in enumerate(range(REFERENCE_TOKENS - TAIL_TOKENS, REFERENCE_TOKENS, 4)):
        rows = [
            Row(other, engine.cached(other), ids[number : number + 2 + number])
            for number, other in enumerate(others)
            if number != turn % 2
        ]
        batch = [*rows[:1], Row(slot, start, ids[start : start + 4], 4), *rows[1:]]
        choices = final_choices(engine, batch)[1]
        assert choices is not None
        parts.append(choices.logits)
    for other in [*others, slot]:
        engine.close(other)
    return np.concatenate(parts)


def _alone_in_a_batch(engine: Engine, ids: Sequence[int]) -> Logits:
    """Computes the tail one token at a time, in a batch with single tokens of two other slots."""
    slots = [_prefill(engine, ids) for _ in range(3)]
    parts = []
    for place in range(REFERENCE_TOKENS - TAIL_TOKENS, REFERENCE_TOKENS):
        rows = [Row(slot, place, [ids[place - number]]) for number, slot in enumerate(slots)]
        choices = final_choices(engine, rows)[0]
        assert choices is not None
        parts.append(choices.logits)
    for slot in slots:
        engine.close(slot)
    return np.concatenate(parts)


def _after_rollback(engine: Engine, ids: Sequence[int]) -> Logits:
    """Computes the tail over positions that rejected drafts have written."""
    slot = _prefill(engine, ids)
    parts = []
    for start in range(REFERENCE_TOKENS - TAIL_TOKENS, REFERENCE_TOKENS, 3):
        final_choices(engine, [Row(slot, start, ids[:7])])
        engine.truncate(slot, start)
        (choices,) = final_choices(engine, [Row(slot, start, ids[start : start + 3], 3)])
        assert choices is not None
        parts.append(choices.logits)
    engine.close(slot)
    return np.concatenate(parts)


def _again(engine: Engine, ids: Sequence[int]) -> Logits:
    """Computes all positions at once, in a slot that was used before."""
    slot = engine.open()
    (choices,) = final_choices(engine, [Row(slot, 0, ids, len(ids))])
    assert choices is not None
    engine.close(slot)
    return choices.logits


WAYS: dict[str, Way] = {
    "prefill again, in a used slot": _again,
    "prefill in ragged chunks, growing": _in_chunks,
    "one token at a time": _by_rows(1),
    "one token at a time, in a batch of three": _alone_in_a_batch,
    **{f"verify of {size} tokens": _by_rows(size) for size in range(2, 9)},
    "in a ragged batch of four": _in_a_ragged_batch,
    "after rollback": _after_rollback,
}


def measure(load: Callable[[int], Engine], threads: Sequence[int] = (1, 2)) -> list[Case]:
    """Runs every way with every number of threads; `load(threads)` returns an engine."""
    with progress("exactness", len(threads) * len(WAYS), unit="cases") as advance:
        return list(_cases(load, threads, advance))


def _cases(
    load: Callable[[int], Engine], threads: Sequence[int], advance: Advance
) -> Iterator[Case]:
    reference: Logits | None = None
    for count in threads:
        engine = load(count)
        generator = np.random.default_rng(1)
        ids = generator.integers(0, engine.vocabulary, REFERENCE_TOKENS).tolist()
        if reference is None:
            reference = _again(engine, ids)
        for name, way in WAYS.items():
            logits = way(engine, ids)
            expected = reference[-len(logits) :]
            yield Case(
                f"{name}, {count} thread{'s' * (count > 1)}",
                bool(np.array_equal(logits, expected)),
                len(logits),
                float(np.abs(logits - expected).max()),
            )
            advance(1)
        del engine  # before the next one is loaded


def measure_bundle(
    bundle: Bundle, threads: Sequence[int] = (1, 2), backend: str = DEFAULT
) -> list[Case]:
    """Runs `measure` for a bundle's target. Raises `UsageError` if its context is too short."""
    if bundle.manifest.context < REFERENCE_TOKENS:
        raise UsageError(
            f"the bundle's context is {bundle.manifest.context}; exactness needs {REFERENCE_TOKENS}"
        )
    return measure(lambda count: open_target(bundle, backend, count), threads)


def report_cases(cases: Sequence[Case]) -> str:
    """Returns a line for each case and a summary."""
    lines = [
        f"{'identical' if case.identical else f'off by {case.largest:.2g}':>16}  {case.name}"
        for case in cases
    ]
    wrong = [case for case in cases if not case.identical]
    lines.append(
        f"exact: every way gives the same bits ({len(cases)} cases)"
        if not wrong
        else f"not exact: {len(wrong)} of {len(cases)} cases differ, by at most "
        f"{max(case.largest for case in wrong):.2g}; answers may differ from the target's alone"
    )
    return "\n".join(lines)


@dataclass(frozen=True)
class ExactnessReport:
    """Exactness of one back end on this machine."""

    backend: str
    cases: Sequence[Case]
    faster: Sequence[Case]
    """Cases of the back end's fast form; empty if it has none."""
    prices: Sequence[Price]

    @property
    def exact(self) -> bool:
        return all(case.identical for case in self.cases)

    def report(self) -> str:
        parts = [report_cases(self.cases)]
        if self.faster:
            parts += [f"\n{FASTER[self.backend]}:", report_cases(self.faster), ""]
            parts.append(report_prices(self.prices, self.backend))
        return "\n".join(parts)

    def as_dict(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "exact": self.exact,
            "cases": [case._asdict() for case in self.cases],
            "faster": [case._asdict() for case in self.faster],
            "prices": [{**price._asdict(), "ratio": price.ratio} for price in self.prices],
        }


def doctor(bundle: Bundle, backend: str) -> ExactnessReport:
    """Runs every case of a back end, and the cost of its exactness if it has a fast form."""
    cases = measure_bundle(bundle, backend=backend)
    if backend not in FASTER:
        return ExactnessReport(backend, cases, (), ())
    faster = measure_bundle(bundle, backend=FASTER[backend])
    return ExactnessReport(backend, cases, faster, price_of(bundle, backend, usable_cores()))
