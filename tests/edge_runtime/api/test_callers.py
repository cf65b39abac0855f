"""Whom the API serves: by key, host name and origin."""

import pytest
from starlette.datastructures import URL
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient

from edge_runtime.api.app import Api, ApiSettings
from edge_runtime.api.connector import Connector
from edge_runtime.api.live import LiveSpans
from edgespec.errors import LinkError

KEY = "a-key-of-nine-words"


def no_cloud():
    raise LinkError("there is no cloud")


def requests(**settings):
    """A client of an API without a cloud."""
    api = Api(Connector(no_cloud), ApiSettings(model="toy", **settings), LiveSpans())
    return TestClient(api.application())


@pytest.mark.parametrize("host", ["x/?", "x/health?", "a/health#", "@/health?", "x\\health?"])
def test_a_host_name_cannot_take_the_place_of_the_path(host, monkeypatch):
    """Starlette 1.0 makes the URL of the header `Host`, and `x/?` then hides the path."""
    made = property(lambda self: URL(f"http://{self.headers['host']}{self.scope['path']}"))
    monkeypatch.setattr(HTTPConnection, "url", made)
    with requests(api_key=KEY) as client:
        assert client.get("/v1/models", headers={"Host": host}).status_code == 400
        assert client.get("/", headers={"Host": host}).status_code == 400
        assert client.get("/v1/models", headers={"Host": "robot.example"}).status_code == 401


def test_the_key_is_asked_for_by_the_path_of_the_request(monkeypatch):
    monkeypatch.setattr(HTTPConnection, "url", property(lambda self: URL("http://x/")))
    with requests(api_key=KEY) as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.get("/").status_code == 200
        good = {"Authorization": f"Bearer {KEY}"}
        assert client.get("/v1/models", headers=good).status_code == 200
