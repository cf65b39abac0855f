"""The draft model is loaded once, however often the cloud is called in vain."""

import pytest

from edge_runtime.api import dialer
from edgespec.config import EdgeSettings
from edgespec.errors import LinkError


def test_tries_share_one_drafter(bundle, endpoint, monkeypatch):
    loaded = []
    load = dialer.drafter_for
    monkeypatch.setattr(dialer, "drafter_for", lambda *a: loaded.append(load(*a)) or loaded[-1])
    away = EdgeSettings(connect="tcp://127.0.0.1:9", connect_timeout=0.05)
    dial = dialer.Dialer(bundle, away)
    for _ in range(3):
        with pytest.raises(LinkError, match="nobody answered"):
            dial()
    assert len(loaded) == 1
    dial._settings = EdgeSettings(connect=endpoint)
    with dial() as client:
        assert len(loaded) == 1 and client.complete("the", max_tokens=3).text
    with dial() as client:
        assert len(loaded) == 2 and client.complete("the", max_tokens=3).text
