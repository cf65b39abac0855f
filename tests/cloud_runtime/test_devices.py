"""Which devices are forgotten, and which troubles are logged."""

from cloud_runtime.devices import Devices
from edgespec.policies import LinkLimits
from edgespec.protocol import VERSION, Hello

HELLO = Hello(VERSION, "t", "k", "robot", "cpu-int8", "a board")


def test_a_hello_names_a_stranger():
    devices = Devices()
    stranger = devices.heard(b"a", 1.0)
    assert (str(stranger), len(devices), devices.strangers) == ("without a name (61)", 0, 1)
    devices.greet(stranger, HELLO)
    assert (str(stranger), len(devices), devices.strangers) == ("robot", 1, 0)
    assert devices.heard(b"a", 2.0) is stranger
    assert (stranger.heard_at, stranger.hardware, stranger.drafter) == (2.0, "a board", "cpu-int8")


def test_the_longest_silent_is_forgotten_first_and_strangers_displace_no_device():
    devices = Devices(LinkLimits(known_devices=3))
    for peer in (b"a", b"b", b"c"):
        devices.greet(devices.heard(peer, 0.0), HELLO)
    devices.heard(b"a", 1.0)
    for number in range(50):
        devices.heard(b"stranger %d" % number, 2.0)
    assert [device.peer for device in devices] == [b"b", b"c", b"a"]
    assert devices.strangers == 3
    devices.greet(devices.heard(b"d", 3.0), HELLO)
    assert [device.peer for device in devices] == [b"c", b"a", b"d"]
    assert devices.get(b"b") is None


def test_trouble_is_counted_always_and_told_once_a_while():
    device, repeat_s = Devices().heard(b"a", 0.0), LinkLimits().repeat_s
    told = [
        device.trouble("flood", now) for now in (0.0, 1.0, repeat_s - 1, repeat_s, repeat_s + 1)
    ]
    assert told == [True, False, False, True, False]
    assert device.trouble("garbage", 1.0)
    assert device.troubles == {"flood": 5, "garbage": 1}
    assert not device.trouble("gone", 1.0, quiet=True)
    assert device.trouble("gone", 2.0), "what was not said is still to be said"
