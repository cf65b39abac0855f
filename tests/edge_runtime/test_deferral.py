"""When a device asks again."""

import random

import pytest

from edge_runtime.deferral import Deferral
from edgespec.errors import LinkError
from edgespec.policies import LinkLimits
from edgespec.protocol import Error

LIMITS = LinkLimits()
SHORTEST, LONGEST = LIMITS.shortest_retry_s, LIMITS.longest_retry_s
SPREAD = LIMITS.retry_spread


def busy(retry_ms):
    return Error("busy", "full", 1, True, retry_ms)


@pytest.mark.parametrize(("asked", "meant"), [(0.0, SHORTEST), (2000.0, 2.0), (1e8, LONGEST)])
def test_the_time_is_bounded_and_spread(asked, meant):
    waits = [Deferral(60.0, random.Random(seed)).put_off(busy(asked), 0.0) for seed in range(200)]
    assert meant * (1 - SPREAD) <= min(waits) < meant * 0.7
    assert meant * 1.3 < max(waits) <= meant * (1 + SPREAD)


def test_it_is_put_off_again_until_it_has_gone_on_for_too_long():
    deferral = Deferral(5.0, random.Random(1))
    now = 100.0
    while now < 105.0:
        assert not deferral.waiting
        deferral.put_off(busy(1000.0), now)
        assert deferral.waiting
        now += deferral.left(now)
        assert deferral.left(now) == 0.0
        deferral.tried()
    with pytest.raises(LinkError, match="refused for 5 s: full") as caught:
        deferral.put_off(busy(1000.0), now)
    assert (caught.value.code, caught.value.retryable, now) == ("busy", True, 105.0)


def test_tokens_of_the_session_begin_a_new_count():
    deferral = Deferral(5.0, random.Random(1))
    deferral.put_off(busy(1000.0), 0.0)
    deferral.served()
    assert not deferral.waiting
    deferral.put_off(busy(1000.0), 100.0)


def test_a_clock_that_jumps_back_is_not_waited_for():
    deferral = Deferral(60.0, random.Random(1))
    deferral.put_off(busy(1000.0), 4000.0)
    assert deferral.left(100.0) == 0.0
    deferral.put_off(busy(1000.0), 100.0)
    assert 0 < deferral.left(100.0) <= 1.5
