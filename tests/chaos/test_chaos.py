"""The short form of `edgespec bench chaos`, its parts, and packets drawn from the protocol."""

import json
import random

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.chaos.attacks import ATTACKS, Victim
from bench.chaos.device_process import Report
from bench.chaos.figures import Ledger, recoveries
from bench.chaos.packets import MESSAGES, random_packet
from bench.chaos.settings import ChaosSettings
from bench.chaos.toy import any_request, hello, target
from bench.chaos.world import World
from cli.main import main
from cloud_runtime.service import Identity, Service
from edgespec.config import CloudSettings
from edgespec.errors import ProtocolError
from edgespec.protocol import Open, pack, unpack
from engines.alone import write_alone

PACKET = st.builds(random_packet, st.randoms(use_true_random=False), st.just([7]))
"""Packets whose fields are drawn from the protocol's structs."""
FUZZ = settings(
    max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def test_the_command_reports_faults_and_answers():
    ran = CliRunner().invoke(
        main, ["bench", "chaos", "--minutes", "0.25", "--seed", "5", "--devices", "2", "--json"]
    )
    assert ran.exit_code == 0, ran.output
    figures = json.loads(ran.stdout.splitlines()[-1])
    assert figures["wrong_tokens"] == figures["lost_answers"] == figures["crashes"] == 0
    assert figures["answers"] and figures["tokens"] and sum(figures["faults"].values()) > 2
    for use in figures["clouds"].values():
        assert use["final_mb"] < use["first_mb"] + 40
        assert use["final_files"] <= use["first_files"] + 2


def test_every_attack_on_a_running_cloud(tmp_path):
    ledger = Ledger()
    with World("plain", tmp_path, ChaosSettings(devices=1), ledger, keys=False) as world:
        device = world._devices[0]
        for attack in ATTACKS.values():
            chance = random.Random(attack.__name__)
            attack(Victim(world._port, None, None, list(device.open), chance))
        assert world._cloud.poll() is None
        world.finish()
    assert ledger.counts["answers"] and not ledger.trouble
    assert world.use.peak_mb < world.use.first_mb + 100


def test_a_wrong_and_a_lost_answer_are_counted():
    request = any_request(random.Random(1))
    right = write_alone(target(), request.prompt, request.max_tokens, request.sampling)
    ledger = Ledger()
    ledger.ended(Report(1, request, 0.0, right), [])
    assert not ledger.figures(1, 0, {}).failed
    ledger.ended(Report(2, request, 0.0, [right[0] ^ 1, *right[1:]]), [])
    ledger.ended(Report(3, request, 0.0, right[:-1]), [])
    ledger.ended(Report(4, request, 0.0, right[:2], error="LinkError: silent"), [])
    figures = ledger.figures(1, 0, {})
    assert (figures.answers, figures.wrong_tokens, figures.lost_answers) == (4, 2, 1)
    assert figures.failed and len(figures.trouble) == 3


def test_a_recovery_ends_with_the_token_after_the_gap():
    assert recoveries(0.0, [1.0, 1.1, 1.25, 3.0, 3.1], [1.2]) == [pytest.approx(1.8)]
    assert recoveries(0.0, [1.0, 1.1], [1.2]) == []
    assert recoveries(2.0, [2.5], [1.0]) == []
    assert recoveries(0.0, [], [1.0]) == []


def test_random_packets_reach_every_message():
    chance = random.Random(0)
    decoded = set()
    for _ in range(3000):
        try:
            decoded.add(type(unpack(random_packet(chance, [7]))))
        except ProtocolError:
            continue
    assert decoded == set(MESSAGES)


@FUZZ
@given(PACKET)
def test_every_message_survives_the_wire(packet):
    try:
        message = unpack(packet)
    except ProtocolError:
        return
    again = unpack(pack(message))
    if isinstance(message, Open):
        assert list(again.tokens) == list(message.tokens)
        again = msgspec.structs.replace(again, tokens=message.tokens)
    assert again == message


@FUZZ
@given(st.lists(st.one_of(PACKET, st.lists(st.binary(max_size=200), max_size=3)), max_size=20))
def test_a_service_survives_whatever_arrives(packets):
    service = Service(Identity("toy", "toy", (1, 2)), target(), CloudSettings(kv_memory=1 << 20))
    service.receive(b"peer", pack(hello("a device")), 0.0)
    for number, packet in enumerate(packets):
        service.receive(b"peer", packet, 0.01 * number)
    replies = service.receive(b"other", pack(hello("another device")), 1.0)
    assert [type(message).__name__ for _, message in replies] == ["Welcome"]
