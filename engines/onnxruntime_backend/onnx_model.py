"""An ONNX model that is read from a file, changed, and written as bytes, without the onnx package.

Only what a rewrite looks at is decoded; the rest is kept as it was read. Field numbers are those of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from engines.onnxruntime_backend import wire

Attribute = int | float | bytes | tuple[int, ...]
CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

_GRAPH, _OPSET = 7, 8
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7
"""Types of attributes."""
_INT64 = 7
"""Type of tensors of int64."""


@dataclass(eq=False)
class Node:
    kind: str
    inputs: list[str]
    outputs: list[str]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    domain: str = ""
    name: str = ""


class Stored(NamedTuple):
    """An initializer, an input or an output: its message and what is decoded of it."""

    message: bytes
    name: str
    shape: tuple[int, ...] = ()
    """Shape of an initializer."""


@dataclass
class OnnxModel:
    nodes: list[Node]
    initializers: dict[str, Stored]
    inputs: list[Stored]
    outputs: list[Stored]
    rest: bytes
    """Fields of the model but for its graph."""
    graph_rest: bytes
    """Fields of the graph but for the lists above."""

    def integers(self, name: str) -> tuple[int, ...]:
        """Returns the values of an int64 initializer; empty if there is none in the file."""
        if name not in self.initializers:
            return ()
        raw, listed, kind = b"", [], 0
        for number, value in wire.fields(self.initializers[name].message):
            if number == 2 and isinstance(value, int):
                kind = value
            elif number == 7:
                listed += wire.integers(value)
            elif number == 9 and isinstance(value, bytes):
                raw = value
        return tuple(listed or np.frombuffer(raw, "<i8").tolist()) if kind == _INT64 else ()

    def add_integers(self, name: str, values: int | Sequence[int]) -> str:
        """Adds an int64 initializer if the model has none of this name. Returns its name."""
        if name not in self.initializers:
            array = np.array(values, "<i8")
            message = b"".join(wire.integer(1, size) for size in array.shape)
            message += wire.integer(2, _INT64) + wire.text(8, name) + wire.text(9, array.tobytes())
            self.initializers[name] = Stored(message, name, array.shape)
        return name

    def add_integer_input(self, name: str) -> None:
        """Adds an input of int64 [any size]."""
        any_size = wire.text(1, wire.text(2, name))
        tensor = wire.integer(1, _INT64) + wire.text(2, any_size)
        self.inputs.append(Stored(wire.text(1, name) + wire.text(2, wire.text(1, tensor)), name))

    def written(self) -> bytes:
        """Returns the model as a file's bytes."""
        graph = [wire.text(_NODE, _written(node)) for node in self.nodes]
        lists = (
            (_INITIALIZER, self.initializers.values()),
            (_INPUT, self.inputs),
            (_OUTPUT, self.outputs),
        )
        graph += [wire.text(number, stored.message) for number, of in lists for stored in of]
        contrib = wire.text(1, CONTRIB) + wire.integer(2, 1)
        return (
            self.rest
            + wire.text(_OPSET, contrib)
            + wire.text(_GRAPH, b"".join(graph) + self.graph_rest)
        )


def read(file: bytes) -> OnnxModel:
    """Decodes a file. Raises `ValueError` if it is not a model, or has unusual attributes."""
    rest, graph = b"", b""
    for number, value in wire.fields(file):
        if number == _GRAPH and isinstance(value, bytes):
            graph = value
        else:
            rest += _field(number, value)
    model = OnnxModel([], {}, [], [], rest, b"")
    for number, value in wire.fields(graph):
        if not isinstance(value, bytes):
            raise ValueError("not a graph")
        if number == _NODE:
            model.nodes.append(_node(value))
        elif number == _INITIALIZER:
            stored = _initializer(value)
            model.initializers[stored.name] = stored
        elif number in (_INPUT, _OUTPUT):
            listed = model.inputs if number == _INPUT else model.outputs
            listed.append(Stored(value, _first_text(value)))
        else:
            model.graph_rest += _field(number, value)
    return model


def _field(number: int, value: wire.Value) -> bytes:
    written = wire.integer if isinstance(value, int) else wire.text
    return written(number, value)  # type: ignore[arg-type]


def _first_text(message: bytes) -> str:
    """Returns the name of an input or output."""
    return _text(next(value for number, value in wire.fields(message) if number == 1))


def _text(value: wire.Value) -> str:
    if not isinstance(value, bytes):
        raise ValueError("a number in place of a text")
    return value.decode()


def _initializer(message: bytes) -> Stored:
    name, shape = "", []
    for number, value in wire.fields(message):
        if number == 8:
            name = _text(value)
        elif number == 1:
            shape += wire.integers(value)
    return Stored(message, name, tuple(shape))


def _node(message: bytes) -> Node:
    node = Node("", [], [])
    attributes: dict[str, Attribute] = {}
    for number, value in wire.fields(message):
        if number == 5 and isinstance(value, bytes):
            name, attribute = _attribute(value)
            attributes[name] = attribute
        elif number in (1, 2):
            (node.inputs if number == 1 else node.outputs).append(_text(value))
        elif number == 3:
            node.name = _text(value)
        elif number == 4:
            node.kind = _text(value)
        elif number == 7:
            node.domain = _text(value)
    node.attributes = attributes
    return node


def _attribute(message: bytes) -> tuple[str, Attribute]:
    parts: dict[int, wire.Value] = {}
    integers: list[int] = []
    for number, value in wire.fields(message):
        parts[number] = value
        if number == 8:
            integers += wire.integers(value)
    kind, name = parts.get(20), _text(parts[1])
    if kind == _INTS:
        return name, tuple(integers)
    if kind == _INT:
        return name, wire.integers(parts.get(3, 0))[0]
    if kind == _STRING:
        return name, _text(parts.get(4, b"")).encode()
    if kind == _FLOAT and isinstance(stored := parts.get(2, bytes(4)), bytes):
        return name, float(struct.unpack("<f", stored)[0])
    raise ValueError(f"attribute {name} is of type {kind!r}")


def _written(node: Node) -> bytes:
    texts = [(1, name) for name in node.inputs] + [(2, name) for name in node.outputs]
    texts += [(3, node.name), (4, node.kind)]
    if node.domain:
        texts.append((7, node.domain))
    written = [wire.text(number, value) for number, value in texts]
    written += [wire.text(5, _of_attribute(*item)) for item in node.attributes.items()]
    return b"".join(written)


def _of_attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, tuple):
        kind, parts = _INTS, [wire.integer(8, number) for number in value]
    elif isinstance(value, bytes):
        kind, parts = _STRING, [wire.text(4, value)]
    elif isinstance(value, float):
        kind, parts = _FLOAT, [wire.four_bytes(2, struct.pack("<f", value))]
    else:
        kind, parts = _INT, [wire.integer(3, value)]
    return b"".join([wire.text(1, name), *parts, wire.integer(20, kind)])
