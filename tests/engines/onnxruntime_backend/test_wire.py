"""Fields are written as the protobuf package writes them, and read back."""

import pytest

from engines.onnxruntime_backend import wire


@pytest.mark.parametrize("number", [0, 1, 127, 128, -1, 2**62, -(2**63)])
def test_integers_as_protobuf_writes_them(number):
    from onnx import AttributeProto

    message = wire.integer(3, number)
    assert message == AttributeProto(i=number).SerializeToString()
    ((field, value),) = wire.fields(message)
    assert (field, wire.integers(value)) == (3, [number])


def test_packed_integers():
    packed = b"".join(wire.integer(1, n)[1:] for n in (5, -1, 300))
    assert wire.integers(packed) == [5, -1, 300]


def test_text_and_numbers_of_fixed_size():
    message = wire.text(200, "é" * 100) + wire.four_bytes(2, b"abcd") + b"\x19" + bytes(8)
    assert list(wire.fields(message)) == [(200, ("é" * 100).encode()), (2, b"abcd"), (3, bytes(8))]


@pytest.mark.parametrize(
    "broken", [b"\x08", b"\x12\x05abc", b"\x0b", b"\x0d\x00", b"\x08" + b"\xff" * 11]
)
def test_bytes_that_are_no_message(broken):
    with pytest.raises(ValueError, match=r"number|field"):
        list(wire.fields(broken))
