"""`edgespec verify`: the results as a table and sentences, or as one line of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from edge_runtime.difference import Candidate, Difference
from edge_runtime.verify import Check, Proof


def show(proof: Proof) -> None:
    """Prints a row for each mode, the first difference of each, and the result."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(_table(proof.checks))
    for check in _first_of_each_mode(proof.checks):
        assert check.difference is not None
        console.print(f"\n{_name(check)}: {_sentence(check.difference)}")
    console.print(f"\ncloud: {proof.cloud or 'unknown arithmetic'}")
    if proof.local:
        console.print(f"here:  {proof.local}")
    where = "on this machine" if proof.local else "in the cloud"
    wrong = sum(check.difference is not None for check in proof.checks)
    console.print(
        f"{wrong} of {len(proof.checks)} answers differ from the target's own {where}"
        if wrong
        else f"identical: all {len(proof.checks)} answers are the target's own, as it writes them "
        f"alone {where}"
    )
    if wrong and not proof.local:
        console.print("run 'edgespec doctor --exactness BUNDLE' in the cloud, or pass --local here")


def as_json(proof: Proof) -> str:
    """Returns one line of JSON."""
    return json.dumps(
        {
            "identical": proof.identical,
            "reference": "local" if proof.local else "cloud",
            "cloud_arithmetic": proof.cloud,
            "local_arithmetic": proof.local,
            "checks": [_check(check) for check in proof.checks],
        }
    )


def _check(check: Check) -> dict[str, Any]:
    document = asdict(check)
    difference = check.difference
    if difference is not None:
        gap = difference.gap_logits
        document["difference"]["gap_logits"] = gap if gap is None or math.isfinite(gap) else None
        document["difference"]["near_tie"] = difference.near_tie
        document["difference"]["explanation"] = difference.explain()
    return {"identical": difference is None, **document}


def _table(checks: Sequence[Check]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("mode")
    for name in ("greedy", "sampled", "tokens", "of them drafted"):
        table.add_column(name, justify="right")
    for mode in dict.fromkeys(check.mode for check in checks):
        own = [check for check in checks if check.mode == mode]
        tokens, drafted = (sum(getattr(c, name) for c in own) for name in ("tokens", "drafted"))
        table.add_row(
            mode, _identical(own, sampled=False), _identical(own, sampled=True),
            str(tokens), str(drafted),
        )  # fmt: skip
    return table


def _identical(checks: Sequence[Check], *, sampled: bool) -> str:
    kind = [check for check in checks if check.sampled == sampled]
    same = sum(check.difference is None for check in kind)
    return f"{same} of {len(kind)} identical"


def _first_of_each_mode(checks: Sequence[Check]) -> list[Check]:
    first: dict[str, Check] = {}
    for check in checks:
        if check.difference is not None:
            first.setdefault(check.mode, check)
    return list(first.values())


def _name(check: Check) -> str:
    return f"{check.mode}, prompt {check.prompt}, {'sampled' if check.sampled else 'greedy'}"


def _sentence(difference: Difference) -> str:
    return (
        f"token {difference.position + 1} is {_token(difference.found)}, and the target alone has "
        f"{_token(difference.expected)}; {difference.explain()}"
    )


def _token(candidate: Candidate) -> str:
    if candidate.token is None:
        return "the end of the answer"
    return f"{candidate.token} ({candidate.text!r})"
