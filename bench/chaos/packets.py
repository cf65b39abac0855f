"""Random packets that look valid: every field is drawn from its type in `edgespec.protocol`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, get_args

import msgspec
import numpy as np
from msgspec import inspect

from edgespec.protocol import AnyMessage, Packet

MESSAGES: Sequence[type[msgspec.Struct]] = get_args(AnyMessage)
EDGE_CASES = (0, 1, 2, 63, 64, 65, 255, 256, 1023, 1024, (1 << 31) - 1, (1 << 32) - 1, 1 << 62)
EDGE_CASE_SHARE = 0.02
LONGEST_LIST, LONGEST_BYTES = 70, 80
SMALL = 60
"""Bound of the numbers that look like positions and tokens of a short answer."""


def random_packet(chance: random.Random, sessions: Sequence[int] = ()) -> Packet:
    """A packet of any message. Half of them name one of `sessions`, ids of others' sessions."""
    kind = chance.choice(MESSAGES)
    fields = {
        field.name: _value(chance, field.type)
        for field in _fields(kind)
        if field.name != "tokens" or kind.__name__ != "Open"
    }
    if sessions and "session" in fields and chance.random() < 0.5:
        fields["session"] = chance.choice(sessions)
    header = [kind.__struct_config__.tag, *(fields.get(f.name, []) for f in _fields(kind))]
    packet = [msgspec.msgpack.encode(header)]
    if kind.__name__ == "Open":
        count = chance.choice([1, 3, 40, 1000])
        packet.append(np.array([chance.randrange(SMALL) for _ in range(count)], "<u4").tobytes())
    return packet


def _fields(kind: type[msgspec.Struct]) -> Sequence[inspect.Field]:
    shape = inspect.type_info(kind)
    assert isinstance(shape, inspect.StructType)
    return shape.fields


def _value(chance: random.Random, kind: inspect.Type) -> Any:
    """A value of a type, within its bounds except for rare numbers at their edges."""
    if isinstance(kind, inspect.Metadata):
        return _value(chance, kind.type)
    if isinstance(kind, inspect.IntType):
        edge = chance.random() < EDGE_CASE_SHARE
        return chance.choice(EDGE_CASES) if edge else chance.randrange(SMALL)
    if isinstance(kind, inspect.FloatType):
        return chance.choice([0.0, 1.0, chance.uniform(0, 100)])
    if isinstance(kind, inspect.BoolType):
        return chance.random() < 0.5
    if isinstance(kind, inspect.StrType):
        return chance.choice(["", "toy", "a name", "[/oops]", "é" * 100])
    if isinstance(kind, inspect.BytesType):
        exact = kind.max_length if kind.max_length == kind.min_length else None
        return chance.randbytes(chance.randrange(LONGEST_BYTES) if exact is None else exact)
    if isinstance(kind, inspect.LiteralType):
        return chance.choice(kind.values)
    if isinstance(kind, (inspect.ListType, inspect.CollectionType)):
        return [_value(chance, kind.item_type) for _ in range(chance.randrange(LONGEST_LIST))]
    if isinstance(kind, inspect.StructType):
        return [_value(chance, field.type) for field in kind.fields]
    return None
