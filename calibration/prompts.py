"""Prompts of the training text: requests that the target answers.

By default the target writes the requests itself. Its chat template is filled with the beginning of
a request (`data/openings.txt`) in the user's turn; the target samples the rest and answers (Xu et
al., "Magpie", arXiv 2406.08464). This needs no data and fits any chat model. Requests to summarise
or rewrite use paragraphs of Python's own help topics (module `pydoc_data`, Python Software
Foundation licence), which are part of every Python. A user's folder replaces all of these prompts.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from edgespec.errors import UsageError

_TOPIC_ASKS = (
    "Summarize the following text:\n\n{}",
    "Summarize this paragraph in one sentence:\n\n{}",
    "Give a short summary of this text.\n\n{}",
    "What is the main idea of this passage?\n\n{}",
    "Explain this in simple words:\n\n{}",
    "Rewrite this text so that a beginner understands it:\n\n{}",
    "Rewrite the following paragraph in your own words:\n\n{}",
    "Make this text shorter:\n\n{}",
    "List the key points of this text:\n\n{}",
)
_TOPIC_RATIO = 0.12
"""Fraction of default prompts about a help topic."""
_PARAGRAPH_CHARACTERS = range(120, 700)
"""Allowed lengths of a paragraph in a prompt."""


@dataclass(frozen=True)
class Prompt:
    """The beginning of the user's turn, which the target completes if `open` is True."""

    text: str
    open: bool
    category: str = ""


@dataclass(frozen=True)
class Prompts:
    """An endless, seeded sequence: prompt `i` is a function of the seed and `i`."""

    fixed: tuple[Prompt, ...]
    """The user's own prompts; empty for the default ones."""

    def digest(self) -> str:
        """Return a name of the prompts, for comparison with those of an existing corpus."""
        if not self.fixed:
            return "default"
        return hashlib.sha256(repr(self.fixed).encode()).hexdigest()[:16]

    def at(self, index: int, seed: int) -> Prompt:
        if self.fixed:
            order = list(range(len(self.fixed)))
            lap, place = divmod(index, len(order))
            random.Random(f"{seed} {lap}").shuffle(order)
            return self.fixed[order[place]]
        draw = random.Random(f"{seed} {index}")
        if draw.random() < _TOPIC_RATIO:
            ask = draw.choice(_TOPIC_ASKS)
            return Prompt(ask.format(draw.choice(_paragraphs())), open=False, category="topics")
        openings = _openings()
        return draw.choice(openings[draw.choice(sorted(openings))])


def default_prompts() -> Prompts:
    return Prompts(())


def read_prompts(source: Path) -> Prompts:
    """Read prompts from a file or a folder: JSON lines with `prompt`, or text cut at blank lines.

    Raises `UsageError` that names the invalid file and line, or a source without prompts.
    """
    if not source.exists():
        raise UsageError(f"there is no {source}; give a folder or a file of prompts or text")
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    kinds = {".jsonl": _json_lines, ".txt": _text, ".md": _text, ".rst": _text}
    found = [
        prompt
        for file in files
        if file.is_file() and file.suffix in kinds
        for prompt in kinds[file.suffix](file)
    ]
    if not found:
        raise UsageError(
            f'{source} has no prompts: give .jsonl files with a "prompt" a line, '
            "or .txt, .md or .rst files with text"
        )
    return Prompts(tuple(found))


def _json_lines(path: Path) -> Iterator[Prompt]:
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            text, category = entry["prompt"], entry.get("category", "")
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            text = category = None
        if not isinstance(text, str) or not isinstance(category, str) or not text.strip():
            raise UsageError(
                f'{path}, line {number}: not a JSON object with a "prompt" of text; '
                'write one as {"prompt": "…", "category": "…"} on each line'
            )
        yield Prompt(text, open=False, category=category)


def _text(path: Path) -> Iterator[Prompt]:
    """Yield each paragraph as the beginning of a text that the target continues."""
    for paragraph in _cut(_read(path)):
        yield Prompt(paragraph, open=True, category="text")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text ({error})") from error


def _cut(text: str) -> Sequence[str]:
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [part for part in paragraphs if len(part) in _PARAGRAPH_CHARACTERS]


@cache
def _openings() -> dict[str, list[Prompt]]:
    lines = (resources.files("calibration") / "data" / "openings.txt").read_text("utf-8")
    found: dict[str, list[Prompt]] = {}
    for line in lines.splitlines():
        if not line.startswith("#"):
            category, _, text = line.partition(": ")
            text = text.replace("\\n", "\n")
            found.setdefault(category, []).append(Prompt(text, open=True, category=category))
    return found


@cache
def _paragraphs() -> list[str]:
    from pydoc_data.topics import topics

    cleaned = (re.sub(r"[*\"`]", "", text) for text in topics.values())
    return [part for text in cleaned for part in _cut(text) if part[0].isalpha()]
