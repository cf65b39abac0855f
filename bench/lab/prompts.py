"""Prompts to measure on, by category: JSON lines with `prompt` and `category`.

The built-in set, `data/held-out.jsonl`, was written for edgespec; nothing is trained on it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from edgespec.errors import UsageError


class CategoryPrompt(NamedTuple):
    text: str
    category: str
    place: str
    """File and line, for messages."""


def read_prompts(path: Path | None) -> list[CategoryPrompt]:
    """The prompts of a file, or the built-in ones.

    Raises `UsageError` naming file and line of an invalid prompt, or a file without prompts.
    """
    name = path.name if path else "held-out.jsonl"
    source = path or resources.files("bench") / "data" / name
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(
            f"there is no file {path}; give JSON lines with prompt and category"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text ({error})") from error
    # Not splitlines, which also cuts at characters that JSON allows inside a string.
    lines = enumerate(text.split("\n"), 1)
    prompts = [_parse(line, f"{path or name}, line {n}") for n, line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"{path} is empty; give JSON lines with prompt and category")
    return prompts


def _parse(line: str, place: str) -> CategoryPrompt:
    form = 'write each line as {"prompt": "…", "category": "…"}'
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{place} is not JSON ({error}); {form}") from None
    if not isinstance(entry, dict):
        raise UsageError(f"{place} is no JSON object; {form}")
    for key in ("prompt", "category"):
        value = entry.get(key)
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{place} has no {key} that is text; {form}")
    return CategoryPrompt(entry["prompt"], entry["category"], place)


def first_of_each(prompts: Sequence[CategoryPrompt], most: int | None) -> list[CategoryPrompt]:
    """The first `most` prompts of each category, all for None, in their order."""
    seen: Counter[str] = Counter()
    kept = []
    for prompt in prompts:
        seen[prompt.category] += 1
        if most is None or seen[prompt.category] <= most:
            kept.append(prompt)
    return kept
