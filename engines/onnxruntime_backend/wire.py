"""The wire format of Protocol Buffers, as far as ONNX files use it.

A device has no package that reads ONNX files. A message is a sequence of fields, and a field is a
key (number * 8 + type) and a value: a varint (type 0), four or eight bytes (5, 1), or a length and
that many bytes (2). Source: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

Value = int | bytes
"""An unsigned varint, or the bytes of a string, of a message or of a number of fixed size."""

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_FIXED = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}


def fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Yields the number and the value of each field. Raises `ValueError` for other bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == _VARINT:
            number, place = _varint(message, place)
            yield key >> 3, number
            continue
        size, place = _varint(message, place) if kind == _LENGTH else (_FIXED.get(kind, -1), place)
        if not 0 <= size <= len(message) - place:
            raise ValueError(f"field {key >> 3} of type {kind} ends beyond its message")
        yield key >> 3, message[place : place + size]
        place += size


def integers(value: Value) -> list[int]:
    """Returns the signed integers of one field: a varint, or several packed in bytes."""
    if isinstance(value, int):
        return [_signed(value)]
    found, place = [], 0
    while place < len(value):
        number, place = _varint(value, place)
        found.append(_signed(number))
    return found


def integer(number: int, value: int) -> bytes:
    """Returns a field that holds a signed integer of 64 bits."""
    return _number(number << 3 | _VARINT) + _number(value & 0xFFFF_FFFF_FFFF_FFFF)


def four_bytes(number: int, value: bytes) -> bytes:
    """Returns a field that holds a number of four bytes."""
    return _number(number << 3 | _FOUR_BYTES) + value


def text(number: int, value: str | bytes) -> bytes:
    """Returns a field that holds a string, bytes or a message."""
    data = value.encode() if isinstance(value, str) else value
    return _number(number << 3 | _LENGTH) + _number(len(data)) + data


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Returns the varint at `place`, and the place after it."""
    value = shift = 0
    while shift < 70:
        if place >= len(message):
            raise ValueError("the message ends within a number")
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
    raise ValueError("a number has more than ten bytes")


def _number(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
