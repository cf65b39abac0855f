"""JSON schemas drawn at random: nested objects, enums, arrays, numbers and strings."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
_WORDS = (
    "name", "kind", "colour", "city", "size", "price", "state", "speed", "mode", "unit",
    "weather", "battery", "door", "light", "robot", "room", "time", "level",
)  # fmt: skip
_CHOICES = ("fox", "dog", "red", "green", "blue", "on", "off", "north", "south", "warm", "cold")
MOST_PROPERTIES = 4
MOST_ITEMS = 3
MOST_LETTERS = 10


def random_schema(chance: random.Random, depth: int = 2) -> Schema:
    """An object of which no value is longer than a few words, so that answers end. `depth`: levels
    of objects and arrays in it."""
    names = chance.sample(_WORDS, chance.randint(1 + (depth > 1), MOST_PROPERTIES))
    required = [name for name in names if chance.random() < 0.7]
    properties = {name: _value(chance, depth) for name in names}
    return {
        "type": "object",
        "properties": properties,
        "required": required or names[:1],
        "additionalProperties": False,
    }


def _value(chance: random.Random, depth: int) -> Schema:
    simple: list[Callable[[random.Random], Schema]] = [_text, _enum, _integer, _number, _flag]
    if depth and chance.random() < 0.5:
        return random_schema(chance, depth - 1) if chance.random() < 0.5 else _array(chance, depth)
    return chance.choice(simple)(chance)


def _array(chance: random.Random, depth: int) -> Schema:
    most = chance.randint(1, MOST_ITEMS)
    least = chance.randint(0, most)
    items = _value(chance, depth - 1)
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _text(chance: random.Random) -> Schema:
    if chance.random() < 0.3:
        return {"type": "string", "pattern": chance.choice(["^[A-Z]{2}-[0-9]{3}$", "^[a-z]{1,6}$"])}
    return {"type": "string", "maxLength": chance.randint(1, MOST_LETTERS)}


def _enum(chance: random.Random) -> Schema:
    values: list[Any] = chance.sample(_CHOICES, chance.randint(1, 4))
    return {"enum": values + chance.choice([[], [None], [chance.randint(0, 9)]])}


def _integer(chance: random.Random) -> Schema:
    least = chance.randint(-100, 100)
    return {"type": "integer", "minimum": least, "maximum": least + chance.randint(0, 1000)}


def _number(chance: random.Random) -> Schema:
    least = chance.randint(-10, 10)
    return {
        "type": "number",
        "minimum": least,
        "maximum": least + chance.randint(1, 50),
        "multipleOf": chance.choice([0.5, 0.25, 0.01]),
    }


def _flag(chance: random.Random) -> Schema:
    return {"type": "boolean"} if chance.random() < 0.7 else {"type": ["boolean", "null"]}
