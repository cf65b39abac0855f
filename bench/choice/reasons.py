"""The choice in three lines: what is best and why, what comes next, and what it depends on."""

from __future__ import annotations

from collections.abc import Sequence

from bench.choice.ranking import WORTH_RATIO, Ranked, TargetTimes, break_even


def reasons(found: Sequence[Ranked], times: TargetTimes, rtts_ms: Sequence[float]) -> list[str]:
    """Three sentences about ranked drafts, the first of which is chosen if it is worth anything."""
    best, rest = found[0], found[1:]
    return [_why(best, times, rtts_ms), _next(best, rest), _depends(best, rest, times, rtts_ms)]


def worth(best: Ranked) -> bool:
    """True if the best draft gains something."""
    return best.gain >= WORTH_RATIO


def _why(best: Ranked, times: TargetTimes, rtts_ms: Sequence[float]) -> str:
    speeds = " / ".join(f"{speed * times.step_ms / 1e3:.2f}" for speed in best.tokens_per_s)
    distances = " / ".join(f"{rtt:g}" for rtt in rtts_ms)
    gains = f"{speeds} times the target alone at {distances} ms of round trip"
    if not worth(best):
        return f"no draft is worth making here: the best, {_about(best)}, is expected to be {gains}"
    return (
        f"{_about(best)}, so it is expected to be {gains}, and a busy cloud serves "
        f"{best.devices:.2f} times the devices"
    )


def _about(one: Ranked) -> str:
    source = f" (estimated from {one.draft.estimate})" if one.draft.estimate else ""
    return (
        f"{_name(one)} agrees at {one.draft.agreement:.3f} of the tokens{source} for "
        f"{one.step_ratio:.2f} of a target step"
    )


def _name(one: Ranked) -> str:
    return f"{one.draft.name} ({one.draft.profile})"


def _next(best: Ranked, rest: Sequence[Ranked]) -> str:
    if not rest:
        return "no other draft fits into the bounds"
    other = rest[0]
    return (
        f"next: {_about(other)}: {other.gain / best.gain:.2f} of that speed, "
        f"{other.devices:.2f} times the devices"
    )


def _depends(
    best: Ranked, rest: Sequence[Ranked], times: TargetTimes, rtts_ms: Sequence[float]
) -> str:
    others = [each for each in rest if bool(each.draft.estimate) != bool(best.draft.estimate)]
    if not others:
        kind = "estimated" if best.draft.estimate else "measured"
        return f"all agreements are {kind}"
    other = max(others, key=lambda each: each.gain)
    unsure, gain = (best, other.gain) if best.draft.estimate else (other, best.gain)
    needed = break_even(unsure.draft, gain, times, rtts_ms)
    if needed is None:
        return (
            f"{_name(unsure)}, whose agreement is estimated, could not be as fast at any agreement"
        )
    if unsure is best:
        return (
            f"its agreement is an estimate: below {needed:.3f}, {_name(other)} is faster, so "
            "measure the trained draft with 'edgespec bench acceptance'"
        )
    if unsure.gain > gain:
        return (
            f"{_name(unsure)} is expected to be {unsure.gain / gain:.2f} times as fast after "
            f"training, and is as fast from an agreement of {needed:.3f} on; so small a gain on an "
            "estimate does not decide"
        )
    return (
        f"{_name(unsure)}, whose agreement is estimated, would have to agree at {needed:.3f} "
        f"instead of {unsure.draft.agreement:.3f} to be as fast"
    )
